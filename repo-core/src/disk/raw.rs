//! Raw disks: every byte of the disk in order, nothing else.
//!
//! A fixed VHD is the same with a footer behind it, so the sources here read it too.
//!
//! - [`file_source`]: a file or block device, holes skipped
//! - [`stream_source`]: a stream, whose end decides whether it was a fixed VHD
//! - [`file_sink`]: a file or block device, written in any order by many threads
//! - [`in_place`]: a file or block device that holds another state of the disk already
//! - [`stream_sink`]: a stream, with zeros for absent blocks

pub mod file_sink;
pub mod file_source;
pub mod in_place;
pub mod stream_sink;
pub mod stream_source;
