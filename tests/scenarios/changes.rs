//! How much an import says that it changed: what a diff of the two snapshots says, whatever the source delivers.

use proptest::prelude::*;
use repo_core::disk::{BlockBuf, Delivery, DiskFormat, DiskSource};
use repo_core::monitor::Silent;
use repo_core::ops::diff::diff;
use repo_core::seal::Suite;
use repo_core::units::{BLOCK_LEN, BlockIndex, block_count};
use repo_tests::cli::{cairn, json};
use repo_tests::fixture::RepoFixture;
use repo_tests::model::{BLOCK_PAGES, ModelDisk};

use crate::model::{Edit, apply, edit};

/// A source that also delivers blocks of zeros, as an export of blocks that were written once does.
struct WithZeros {
    inner: Box<dyn DiskSource>,
    /// Blocks of zeros that are delivered after the others.
    zeros: Vec<u64>,
}

impl WithZeros {
    /// `disk` with as many of its blocks of zeros as `chosen` says, by number.
    fn source(disk: &ModelDisk, chosen: impl Fn(u64) -> bool) -> Box<dyn DiskSource> {
        let is_zero = |block: &u64| disk.pages.range(block * BLOCK_PAGES..(block + 1) * BLOCK_PAGES).next().is_none();
        let zeros = (0..block_count(disk.virtual_size)).filter(is_zero).filter(|block| chosen(*block)).collect();
        Box::new(Self { inner: disk.source(Delivery::AnyOrder), zeros })
    }
}

impl DiskSource for WithZeros {
    fn virtual_size(&self) -> Option<u64> {
        self.inner.virtual_size()
    }

    fn format(&self) -> DiskFormat {
        self.inner.format()
    }

    fn delivery(&self) -> Delivery {
        Delivery::AnyOrder
    }

    fn next_block(&mut self, buf: &mut BlockBuf) -> repo_core::Result<Option<BlockIndex>> {
        if let Some(block) = self.inner.next_block(buf)? {
            return Ok(Some(block));
        }
        buf.bytes_mut().fill(0);
        Ok(self.zeros.pop().map(BlockIndex))
    }
}

/// How a state of the disk is imported: what happens to it first, in which order its blocks come, which of its blocks of
/// zeros come too.
type Import = (Vec<Edit>, bool, u64);

fn imports() -> impl Strategy<Value = Vec<Import>> {
    // Whole blocks become zeros, and content.
    let block = (any::<prop::sample::Index>(), any::<bool>()).prop_map(|(at, zero)| Edit::Write {
        at,
        pages: 3 * BLOCK_PAGES,
        content: u32::from(!zero),
    });
    let edits = prop::collection::vec(prop_oneof![edit(), block], 0..5);
    prop::collection::vec((edits, any::<bool>(), any::<u64>()), 2..5)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn a_full_import_says_that_it_changed_what_a_diff_with_its_parent_says(imports in imports()) {
        let mut fixture = RepoFixture::small(Suite::None);
        let session = fixture.session();
        let mut disk = ModelDisk::scattered(15 << 20, 5, 3);
        let mut last = None;
        for (edits, any_order, zeros) in imports {
            edits.iter().for_each(|edit| apply(&mut disk, edit));
            let source = match any_order {
                true => WithZeros::source(&disk, |block| zeros >> (block % 64) & 1 == 1),
                false => disk.source(Delivery::Ascending),
            };
            let snapshot = fixture.backup(&session, vec![("disk", source)]).unwrap().snapshot;
            let now = &snapshot.snapshot.disks[0];
            let changed_blocks = match last {
                Some(before) => diff(&session, &before, &now.tree, &Silent).unwrap().changed_blocks,
                None => disk.pages.keys().map(|page| page / BLOCK_PAGES).collect::<std::collections::BTreeSet<_>>().len() as u64,
            };
            prop_assert_eq!(now.reading.changed_bytes, changed_blocks * BLOCK_LEN as u64);
            last = Some(now.tree);
        }
    }
}

#[test]
fn a_disk_that_was_wiped_and_cut_off_changed_although_nothing_of_it_was_read() {
    let mut fixture = RepoFixture::small(Suite::Aes256Gcm);
    let session = fixture.session();
    let first = fixture.backup_model(&session, "disk", &ModelDisk::scattered(9 << 20, 2, 1)).snapshot.id;
    drop(session);
    let image = fixture.folder.path().join("image.raw");
    ModelDisk::new(3 << 20).write_raw(&image);
    let imported = json(cairn(&fixture.path()).arg("import").arg(&image).args(["--vdi", "disk", "--format", "raw"]));
    assert_eq!((&imported["read_bytes"], &imported["changed_bytes"]), (&0.into(), &(5 * BLOCK_LEN).into()));
    let new = imported["snapshot"].as_str().unwrap();
    let diff = json(cairn(&fixture.path()).args(["diff", &first.to_hex(), new]));
    assert_eq!(diff["disks"][0]["changed_blocks"], 5);
}
