//! Any bytes as a pack in a store: opened, its directory read, every frame opened and decompressed.
//!
//! Input: control (1), pack. Bits of the control byte make right 0 the trailer, 1 the numbers of the directory, 2 the seals
//! of the frames, 3 the seal of the directory.
#![no_main]

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use libfuzzer_sys::fuzz_target;
use repo_core::config::Config;
use repo_core::entropy::Entropy;
use repo_core::error::{Error, Result};
use repo_core::id::{EntryId, PackId};
use repo_core::pack::directory::{Directory, Entry};
use repo_core::pack::reader::PackReader;
use repo_core::pack::writer::PackWriter;
use repo_core::pack::{Content, HEADER_LEN, PackCipher, TRAILER_LEN, Trailer};
use repo_core::seal::{Suite, TAG_LEN};
use repo_core::store::{ObjectName, Store};
use repo_fuzz::pack::{repair_directory, repair_frames, repair_seal, repair_trailer};
use repo_fuzz::{check_error, config, has, keys, write_seeds};

const ID: PackId = PackId([0xAB; 32]);

fuzz_target!(init: write_seeds(seeds, accepts), |input: &[u8]| {
    accepts(input);
});

fn accepts(input: &[u8]) -> bool {
    let Some((control, pack)) = input.split_first() else { return false };
    let mut pack = pack.to_vec();
    let repairs: [fn(&mut [u8]); 4] = [repair_trailer, repair_directory, repair_frames, repair_seal];
    for (repair, bit) in repairs.into_iter().zip(0..) {
        if has(*control, bit) {
            repair(&mut pack);
        }
    }
    check_encapsulated(&pack);
    if let Err(error) = check_without_store(&pack, has(*control, 3)) {
        check_error(&error);
        return false;
    }
    let store = store();
    std::fs::write(store.root().expect("it is a folder").join(ObjectName::Pack(ID).path()), &pack)
        .expect("the folder can be written");
    let reader = match PackReader::open(store, ID, pack.len() as u64, &config(), &keys()) {
        Ok(reader) => reader,
        Err(error) => {
            check_error(&error);
            return false;
        }
    };
    let frames = reader.directory().frames();
    let mut all_open = true;
    for (frame, position) in frames.iter().zip(0..) {
        let start = usize::try_from(frame.offset).expect("the pack is in memory");
        let sealed = pack[start..start + frame.record.sealed_len as usize].to_vec();
        match reader.open_frame(position, sealed) {
            Ok(plain) => assert_eq!(plain.len(), frame.record.plain_len as usize),
            Err(error) => {
                check_error(&error);
                all_open = false;
            }
        }
    }
    let behind = u32::try_from(frames.len()).expect("frames are bounded");
    check_error(&reader.frame(behind).expect_err("there is no such frame"));
    all_open
}

/// What can be refused without a store, which takes a hundred times longer.
fn check_without_store(pack: &[u8], is_sealed: bool) -> Result<()> {
    let (Some(header), Some(trailer)) = (pack.first_chunk::<HEADER_LEN>(), pack.last_chunk::<TRAILER_LEN>()) else {
        return Err(Error::corrupt("too short"));
    };
    PackCipher::open(header, &config(), &keys())?;
    let range = Trailer::decode(trailer, pack.len() as u64)?.directory_range();
    if is_sealed {
        let end = range.end.saturating_sub(TAG_LEN as u64).max(range.start);
        let range = [range.start, end].map(|at| usize::try_from(at).expect("the pack is in memory"));
        Directory::decode(&pack[range[0]..range[1]], HEADER_LEN as u64, range[0] as u64)?;
    }
    Ok(())
}

/// The beginning of a pack in an encrypted repository: any frame key kind and any length of an encapsulation.
fn check_encapsulated(pack: &[u8]) {
    let config = Config { suite: Suite::Aes256Gcm, ..config() };
    match PackCipher::open(pack, &config, &keys()) {
        Ok(cipher) => assert!(cipher.frames_offset() <= pack.len() as u64),
        Err(error) => check_error(&error),
    }
}

/// A store in a folder of this process.
fn store() -> &'static Store {
    static STORE: OnceLock<Store> = OnceLock::new();
    STORE.get_or_init(|| {
        let store = Store::create_local(&folder()).expect("the folder can be made");
        let parent = store
            .root()
            .expect("it is a folder")
            .join(ObjectName::Pack(ID).path())
            .parent()
            .expect("packs are in a folder")
            .to_owned();
        std::fs::create_dir_all(parent).expect("the folder can be made");
        store
    })
}

fn folder() -> PathBuf {
    std::env::temp_dir().join(format!("pack_open-{}", std::process::id()))
}

fn seeds() -> Vec<Vec<u8>> {
    let (folder, entropy) = (folder(), Entropy::seeded(1));
    let store = Store::create_local(&folder).expect("the folder can be made");
    let mut seeds = Vec::new();
    let packs = [
        (Suite::None, Content::Data, 0),
        (Suite::None, Content::Data, 1),
        (Suite::None, Content::Meta, 3),
        (Suite::Aes256Gcm, Content::Data, 1),
    ];
    for (suite, content, frames) in packs {
        let config = Config { suite, ..config() };
        let cipher = PackCipher::create(content, &config, &keys(), &entropy).expect("all roles are there");
        let cipher = Arc::new(cipher);
        let mut writer = PackWriter::create(cipher.clone(), &store).expect("the folder can be written");
        for position in 0..frames {
            // Something that compresses, and something that does not.
            let plain = if position == 1 { entropy.bytes::<90>().expect("seeded").to_vec() } else { vec![3; 4096] };
            let len = u32::try_from(plain.len()).expect("seeds are small");
            let entries = [len / 3, len - len / 3].map(|len| Entry { id: EntryId([9; 32]), len });
            let frame = cipher.seal_frame(position, &plain, 3).expect("sound memory");
            writer.append(&frame, &entries).expect("the folder can be written");
        }
        let pack = writer.finish().expect("the folder can be written");
        let bytes = store.get(ObjectName::Pack(pack.id), 1 << 20).expect("just written");
        seeds.extend([0, 0b1111].map(|control| [&[control], &bytes[..]].concat()));
    }
    std::fs::remove_dir_all(folder).expect("the folder is ours");
    seeds
}
