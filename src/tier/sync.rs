//! What [`entry`](super::entry) is made with: `tests/loom.rs` compiles it with loom's in their place.

pub(super) use std::{
    alloc,
    sync::atomic::{AtomicU32, AtomicU64, Ordering, fence},
};
