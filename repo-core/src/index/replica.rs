//! Replicas on disk: locking a free one, opening its database, removing it.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamilyDescriptor, DB, DBCompressionType, DataBlockIndexType, LogLevel, Options,
};

use super::{COMPLETE, COPIES, IDENTITY, LOCKS, PACKS, RECORDS, TOMBSTONES, database_error};
use crate::error::{Error, ErrorKind, Result, ResultExt};

/// Processes that may work on one repository from one machine at once.
const REPLICAS_MAX: usize = 64;
/// RocksDB's cache of data, filter and index blocks, one for all families, in bytes.
const BLOCK_CACHE_LEN: usize = 96 * 1024 * 1024;
/// One memtable, in bytes. There are at most two.
const MEMTABLE_LEN: usize = 16 * 1024 * 1024;

/// Locks the first free replica under `folder`. The lock ends with the file, also when the process is killed.
pub(super) fn lock_free(folder: &Path) -> Result<(File, PathBuf)> {
    fs::create_dir_all(folder).context(|| format!("cannot create {}", folder.display()))?;
    for number in 0..REPLICAS_MAX {
        let path = folder.join(format!("{number}.lock"));
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .context(|| format!("cannot open {}", path.display()))?;
        match lock.try_lock() {
            Ok(()) => return Ok((lock, folder.join(number.to_string()))),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(Error::io(format!("cannot lock {}", path.display()), error)),
        }
    }
    let text = format!("all {REPLICAS_MAX} replicas of the index in {} are in use", folder.display());
    Err(Error::new(ErrorKind::Locked, text))
}

/// Opens the database at `path`, making it and its families where they are missing.
pub(super) fn create(path: &Path) -> Result<DB> {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_max_open_files(256);
    options.set_keep_log_file_num(1);
    options.set_log_level(LogLevel::Warn);
    options.set_stats_dump_period_sec(0);
    options.set_max_background_jobs(2);
    options.set_bytes_per_sync(1024 * 1024);
    let cache = Cache::new_hyper_clock_cache(BLOCK_CACHE_LEN, 0);
    let families = [rocksdb::DEFAULT_COLUMN_FAMILY_NAME, COPIES, PACKS, TOMBSTONES, RECORDS, COMPLETE, LOCKS, IDENTITY]
        .map(|name| ColumnFamilyDescriptor::new(name, family_options(&cache)));
    DB::open_cf_descriptors(&options, path, families).map_err(|error| database_error(path, error))
}

fn family_options(cache: &Cache) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    // Most look-ups of a first backup are for what is not there: one filter bit test answers them.
    table.set_ribbon_filter(10.0);
    table.set_optimize_filters_for_memory(true);
    table.set_data_block_index_type(DataBlockIndexType::BinaryAndHash);
    // Filters and indexes count against the cache, so that memory stays flat however large the index grows.
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    let mut options = Options::default();
    options.set_block_based_table_factory(&table);
    options.set_write_buffer_size(MEMTABLE_LEN);
    // Keys are hashes: there is nothing to compress.
    options.set_compression_type(DBCompressionType::None);
    options
}

/// Removes a replica's database. Its lock stays with the caller.
pub(super) fn remove(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io(format!("cannot remove index {}", path.display()), error))
        }
        _ => Ok(()),
    }
}
