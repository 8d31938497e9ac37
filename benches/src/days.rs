//! Whole backups and restores in this process, beside the floors: loops that do only what cannot be left out.

use std::collections::HashSet;
use std::error::Error;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rayon::prelude::*;
use repo_core::disk::raw::file_sink::RawFileSink;
use repo_core::disk::{SourceOptions, open_file};
use repo_core::entropy::Entropy;
use repo_core::frame;
use repo_core::keys::slot::{Argon2Cost, Unlock};
use repo_core::manifest::walk::{Leaves, leaf_runs};
use repo_core::monitor::Silent;
use repo_core::ops::backup::{BackupOptions, DiskInput, backup};
use repo_core::ops::open::{Session, open_session};
use repo_core::ops::restore::{RestoreOptions, RestorePlan, Target, restore};
use repo_core::repository::{InitOptions, Repository};
use repo_core::seal::{Aead, AwsLcAesGcm, Suite};
use repo_core::store::Store;
use repo_core::units::{BLOCK_LEN, PAGE_LEN, is_zero};

type Outcome<T> = Result<T, Box<dyn Error>>;

pub(crate) fn run(images: &[PathBuf]) -> Outcome<()> {
    let folder = tempfile::tempdir_in(images[0].parent().unwrap_or(Path::new(".")))?;
    for image in images {
        read_all(image)?;
    }
    let floor_first = timed("floor: read, hash, compress, seal the first image", || floor_first(&images[0]))?;
    let floor_reread = timed("floor: read and hash the last image", || floor_reread(&images[images.len() - 1]))?;
    let options = InitOptions::new(Suite::Aes256Gcm, 0);
    let unlock = Unlock::Passphrase { text: "x", cost: Argon2Cost::CHEAPEST };
    let store = Store::create_local(&folder.path().join("repository"))?;
    let repository = Repository::create(store, &options, &unlock, "", Entropy::system())?;
    let session = open_session(repository, None, &Silent)?;
    let mut seconds = Vec::new();
    for (day, image) in (1..).zip(images) {
        seconds.push(timed(&format!("back up {}", image.display()), || back_up(&session, image, day))?);
    }
    let restored = folder.path().join("restored.raw");
    count_frames(&session)?;
    let before = session.content.decoded_frame_count();
    timed("restore the last image to a file", || restore_last(&session, &restored))?;
    println!("  frames decoded  {}", session.content.decoded_frame_count() - before);
    println!("first backup / floor   {:.2}", floor_first / seconds[0]);
    println!("last backup / floor    {:.2}", floor_reread / seconds[seconds.len() - 1]);
    let same = std::process::Command::new("cmp").arg(&restored).arg(&images[images.len() - 1]).status()?.success();
    if same { Ok(()) } else { Err("the restored image differs".into()) }
}

fn timed(name: &str, work: impl FnOnce() -> Outcome<()>) -> Outcome<f64> {
    let before = cpu_seconds();
    let start = Instant::now();
    work()?;
    let wall = start.elapsed().as_secs_f64();
    println!("{name:64} {wall:7.2} s wall {:7.2} s CPU", cpu_seconds() - before);
    Ok(wall)
}

/// CPU time of this process so far, all threads.
fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn back_up(session: &Session, image: &Path, day: i64) -> Outcome<()> {
    let source = open_file(File::open(image)?, &SourceOptions::default())?;
    let disks = vec![DiskInput::new("disk", source)];
    let report = backup(session, disks, &BackupOptions::new(day * 86_400_000), &Silent)?;
    println!(
        "  new {} MiB, stored {:.1} MiB, {} of {} blocks unchanged",
        report.new_bytes >> 20,
        report.stored_bytes as f64 / (1 << 20) as f64,
        report.unchanged_blocks,
        report.blocks
    );
    Ok(())
}

fn restore_last(session: &Session, path: &Path) -> Outcome<()> {
    let (snapshots, _) = repo_core::snapshot::read_all(&session.repository)?;
    let tree = snapshots.last().ok_or("no snapshot")?.snapshot.disks[0].tree;
    let plan = RestorePlan::new(session, tree, RestoreOptions::default(), &Silent)?;
    let sink = RawFileSink::create(File::create(path)?, tree.virtual_size)?;
    restore(session, plan, Target::File(Box::new(sink)), RestoreOptions::default(), &Silent)?;
    Ok(())
}

/// What the restore of the last image cannot do without: each frame that holds any of it, once.
fn count_frames(session: &Session) -> Outcome<()> {
    let (snapshots, _) = repo_core::snapshot::read_all(&session.repository)?;
    let tree = snapshots.last().ok_or("no snapshot")?.snapshot.disks[0].tree;
    let (mut frames, mut chunks) = (HashSet::new(), 0_u64);
    for leaf in Leaves::new(&tree, &*session.content) {
        let ids: Vec<_> = leaf_runs(&*session.content, leaf?.1)?.iter().map(|run| run.id.into()).collect();
        chunks += ids.len() as u64;
        let found = session.content.locate(&ids)?;
        frames.extend(found.iter().flatten().map(|location| (location.pack, location.frame)));
    }
    println!("  the last image has {chunks} chunks in {} frames", frames.len());
    Ok(())
}

fn read_all(image: &Path) -> Outcome<()> {
    std::io::copy(&mut File::open(image)?, &mut std::io::sink())?;
    Ok(())
}

/// Every non-zero byte read, hashed, compressed and sealed; nothing looked up, nothing written, nothing read back.
fn floor_first(image: &Path) -> Outcome<()> {
    each_block(image, |content, sealer| {
        for part in content.chunks(1 << 20) {
            part.chunks(32 * 1024).for_each(|chunk| {
                std::hint::black_box(blake3::hash(chunk));
            });
            if let Ok((_, mut packed)) = frame::compress(part, 3, 16) {
                sealer.seal(&[0; 12], &[], &mut packed);
            }
        }
    })
}

/// Every non-zero byte read and hashed.
fn floor_reread(image: &Path) -> Outcome<()> {
    each_block(image, |content, _| {
        content.chunks(32 * 1024).for_each(|chunk| {
            std::hint::black_box(blake3::hash(chunk));
        });
    })
}

fn each_block(image: &Path, work: impl Fn(&[u8], &dyn Aead) + Sync) -> Outcome<()> {
    let file = File::open(image)?;
    let blocks = file.metadata()?.len() / BLOCK_LEN as u64;
    (0..blocks).into_par_iter().try_for_each_init(
        || (vec![0; BLOCK_LEN], Vec::with_capacity(BLOCK_LEN), AwsLcAesGcm::new(&[1; 32])),
        |(block, content, sealer), index| {
            file.read_exact_at(block, index * BLOCK_LEN as u64)?;
            content.clear();
            for page in block.chunks(PAGE_LEN).filter(|page| !is_zero(page)) {
                content.extend_from_slice(page);
            }
            work(content, sealer);
            Ok::<_, std::io::Error>(())
        },
    )?;
    Ok(())
}
