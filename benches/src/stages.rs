//! Each stage alone, on one core.

use std::error::Error;
use std::fs::File;
use std::hint::black_box;
use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

use repo_core::chunk::{ChunkParams, Chunker};
use repo_core::entropy::Entropy;
use repo_core::frame;
use repo_core::keys::RoleKeys;
use repo_core::keys::recipient::PrivateKey;
use repo_core::seal::{Aead, AwsLcAesGcm, KeyedHash, RustCryptoAesGcm};
use repo_core::units::{BLOCK_LEN, PAGE_LEN, is_zero};

/// Each figure is the best of this many runs.
const RUNS: usize = 5;

pub(crate) fn run(image: Option<&Path>) -> Result<(), Box<dyn Error>> {
    let sample = sample(image)?;
    println!("sample: {} MiB, without pages of zeros", sample.len() >> 20);

    figure("zero scan of zeros", BLOCK_LEN, || is_zero(black_box(&[0; BLOCK_LEN])));
    for len in [4, 8, 16, 32, 64, 1024].map(|kib| kib * 1024) {
        let hash = || sample.chunks_exact(len).map(|chunk| blake3::keyed_hash(&[1; 32], chunk).as_bytes()[0]).max();
        figure(&format!("BLAKE3 keyed, {} KiB", len / 1024), sample.len() / len * len, hash);
    }
    let keys = RoleKeys::from_master(&[7; 32].into());
    for cut_bits in [2, 3, 4] {
        let chunker = Chunker::new(ChunkParams { cut_bits, pages_max: 32 }, &keys)?;
        let cut = || sample.chunks_exact(BLOCK_LEN).map(|block| chunker.cut(block).len()).sum::<usize>();
        let blocks = sample.len() / BLOCK_LEN;
        let mean = (blocks * BLOCK_LEN / PAGE_LEN) as f64 / cut() as f64;
        let name = format!("cut and hash, {} pages nominal, {mean:.1} found", 1 << cut_bits);
        figure(&name, blocks * BLOCK_LEN, cut);
    }
    let sealers: [(&str, Box<dyn Aead>); 3] = [
        ("AES-256-GCM, AWS-LC", Box::new(AwsLcAesGcm::new(&[1; 32]))),
        ("AES-256-GCM, RustCrypto", Box::new(RustCryptoAesGcm::new(&[1; 32]))),
        ("keyed BLAKE3", Box::new(KeyedHash::new(&[1; 32]))),
    ];
    for (name, sealer) in sealers {
        let mut frame = sample[..512 * 1024].to_vec();
        figure(&format!("seal 512 KiB, {name}"), frame.len(), || sealer.seal_in_place(&[0; 12], &[], &mut frame));
    }
    let (private, entropy) = (PrivateKey::from_seed(&[3; 32].into()), Entropy::system());
    let public = private.public();
    let (encapsulation, _) = public.encapsulate(b"", &entropy)?;
    micros("X-Wing key pair from its seed", || PrivateKey::from_seed(&[3; 32].into()));
    micros("X-Wing encapsulation", || public.encapsulate(b"", &entropy).map(|_| ()));
    micros("X-Wing decapsulation", || private.decapsulate(&encapsulation, b"").map(|_| ()));
    for level in [-1, 1, 2, 3, 5] {
        let frames =
            || sample.chunks(1 << 20).map(|plain| frame::compress(plain, level, 16).map(|(_, packed)| packed.len()));
        let packed: usize = frames().sum::<Result<_, _>>()?;
        let ratio = sample.len() as f64 / packed as f64;
        figure(&format!("zstd {level}, 1 MiB frames, {ratio:.2} : 1"), sample.len(), || {
            frames().map_while(Result::ok).sum::<usize>()
        });
    }
    let packed: Vec<_> = sample.chunks(1 << 20).map(|plain| frame::compress(plain, 3, 16)).collect::<Result<_, _>>()?;
    figure("zstd decompress", sample.len(), || {
        packed
            .iter()
            .zip(sample.chunks(1 << 20))
            .filter_map(|((codec, packed), plain)| frame::decompress(*codec, packed.clone(), plain.len()).ok())
            .map(|plain| plain.len())
            .sum::<usize>()
    });
    Ok(())
}

/// 64 MiB of an image, without its pages of zeros; of the running program, over and over, without an image.
fn sample(image: Option<&Path>) -> Result<Vec<u8>, Box<dyn Error>> {
    const LEN: usize = 64 << 20;
    let mut bytes = Vec::with_capacity(LEN);
    let path = image.map_or_else(std::env::current_exe, |path| Ok(path.to_owned()))?;
    let mut block = vec![0; BLOCK_LEN];
    while bytes.len() < LEN {
        let mut file = File::open(&path)?;
        let before = bytes.len();
        while let Ok(()) = file.read_exact(&mut block) {
            bytes.extend(block.chunks(PAGE_LEN).filter(|page| !is_zero(page)).flatten());
            if bytes.len() >= LEN {
                break;
            }
        }
        if bytes.len() == before {
            return Err(format!("{} holds less than 2 MiB", path.display()).into());
        }
    }
    bytes.truncate(LEN);
    Ok(bytes)
}

fn micros<T>(name: &str, mut work: impl FnMut() -> T) {
    const TIMES: u32 = 200;
    let best = (0..RUNS).map(|_| {
        let start = Instant::now();
        (0..TIMES).for_each(|_| drop(black_box(work())));
        start.elapsed() / TIMES
    });
    println!("{name}: {:.0} µs", best.min().unwrap_or(Duration::MAX).as_secs_f64() * 1e6);
}

fn figure<T>(name: &str, bytes: usize, mut work: impl FnMut() -> T) {
    let best = (0..RUNS).map(|_| time(&mut work)).min().unwrap_or_default();
    println!("{name:48} {:9.2} GB/s", bytes as f64 / best.as_secs_f64() / 1e9);
}

fn time<T>(work: &mut impl FnMut() -> T) -> Duration {
    let start = Instant::now();
    black_box(work());
    start.elapsed()
}
