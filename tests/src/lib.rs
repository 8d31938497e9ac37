//! What scenarios are made of: temporary repositories, model disks, the `cairn` binary, outside tools.

pub mod cli;
pub mod fixture;
pub mod model;
pub mod power;
pub mod vhd;
