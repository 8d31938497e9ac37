//! What scenarios are made of: temporary repositories, model disks, the `cairn` binary, outside tools.

pub mod cli;
pub mod fixture;
pub mod memory_store;
pub mod model;
pub mod power;
pub mod proxy;
pub mod s3;
pub mod server;
pub mod sftp;
pub mod vhd;
pub mod wire;
