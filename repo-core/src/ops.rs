//! What a user can do, a file each. Only this layer sees all the stages.

pub mod backup;
pub mod block_reader;
pub mod check;
pub mod complete;
pub mod diff;
pub mod forget;
pub mod gc;
mod id_set;
pub mod lock;
pub mod open;
mod pack_stream;
pub mod repair;
pub mod report;
pub mod restore;
pub mod sync;
pub mod undelete;
pub mod usage;
