//! Cairn's core: a deduplicating, content-addressed backup repository for virtual disks.
//!
//! Data flows one way, and the modules are in that order; a lower one never names a higher one:
//!
//! ```text
//! error, units, id, entropy, monitor, direct, spill
//! disk        blocks of a virtual disk in, blocks out: VHD, VHDX, qcow2, raw
//! seal, keys  authenticated sealing, the key hierarchy and its roles
//! chunk       a block cut into chunks and named
//! frame       chunks compressed together
//! traffic     requests and bytes, counted and limited
//! object, config, store   what every object begins with, the configuration, objects by name
//! pack        frames sealed into an immutable object with a directory
//! repository  store, configuration and keys, opened
//! record      small sealed objects
//! tombstone, lease   packs waiting to be deleted; who is at work
//! index       where each chunk stands: RocksDB replicas, a cache
//! content     from names back to bytes
//! manifest    the Merkle tree of one disk
//! remarks     what people say of a snapshot
//! snapshot    the commit record
//! annotation  remarks made after the commit
//! retention   which snapshots a policy keeps, and why
//! ops         backup, restore, check: the only layer that sees all the others
//! ```
//!
//! The crate never prints, prompts, or reads the environment; time and randomness are handed in.

pub mod annotation;
pub mod chunk;
pub mod config;
pub mod content;
pub mod direct;
pub mod disk;
pub mod entropy;
pub mod error;
pub mod frame;
pub mod id;
pub mod index;
pub mod keys;
pub mod lease;
pub mod manifest;
pub mod monitor;
pub mod object;
pub mod ops;
pub mod pack;
mod record;
pub mod remarks;
pub mod repository;
pub mod retention;
pub mod seal;
pub mod snapshot;
mod spill;
pub mod store;
pub mod tombstone;
pub mod traffic;
pub mod units;

pub use error::{Error, ErrorKind, Result};
