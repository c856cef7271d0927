//! What [`entry`](super::entry) is made with: `tests/loom.rs` compiles it with loom's in their place.

use super::entry::HEADER;

pub(super) use std::{
    alloc,
    sync::atomic::{AtomicU32, AtomicU64, Ordering, fence},
};

const _: () = assert!(HEADER == 16 && align_of::<AtomicU64>() == 8);
