//! Cairn benches.
