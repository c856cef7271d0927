//! The tiers: where entries are kept. A tier may forget, but never returns a wrong or an older value.
//!
//! L2 is [`memory::Memory`]: stripes, each a lock over shelves (one for each database) of a
//! [`table`](table::Table) of [`entries`](entry), eviction queues and an expiry wheel. L3 is
//! [`log::Log`], a log on [`disk`] whose index stands on the shelves too; [`demote`] is what happens
//! between them, [`lookup`] how a key is found there, [`tickets`] who may install what comes from below. Tiers know nothing of stores or commands; `cache/`
//! composes them.

pub mod adaptive;
pub mod class;
pub mod demote;
pub mod disk;
mod ends;
pub mod entry;
#[cfg(test)]
mod entry_tests;
pub mod eviction;
pub mod fifo;
pub mod ghost;
pub mod groups;
pub mod log;
pub mod lookup;
pub mod memory;
mod negative;
pub mod queues;
pub mod shelf;
mod sync;
pub mod table;
pub mod tickets;
pub mod wheel;

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicUsize, Ordering::Relaxed};

use entry::Entry;
use eviction::{Eviction, Lfu};

/// In what a tier's capacity is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Weight {
    /// Bytes as the allocator rounds them, all overhead included.
    #[default]
    Bytes,
    /// Entries, whatever their size.
    Entries,
}

impl Weight {
    /// The cost of an entry.
    #[inline]
    pub fn of(self, entry: Entry<'_>) -> usize {
        match self {
            Self::Bytes => entry.size(),
            Self::Entries => 1,
        }
    }
}

/// What all shelves of a memory tier go by: its shape, which is fixed, and its settings, which are live.
pub struct Rules {
    /// Hashes keys.
    pub hasher: table::Hasher,
    /// In what capacity is counted.
    pub weight: Weight,
    /// log2 of the number of stripes.
    pub stripe_bits: u32,
    /// log2 of the largest number of segments of a table.
    pub segment_bits: u32,
    /// Whether what leaves goes to L3, so that every policy may choose a victim.
    pub demotes: bool,
    /// Which keys are counted apart.
    pub groups: groups::Groups,
    /// The capacity of the whole tier.
    limit: AtomicUsize,
    /// What of it isn't for entries.
    charged: AtomicUsize,
    eviction: AtomicU8,
    samples: AtomicU32,
    lfu_log_factor: AtomicU32,
    lfu_decay: AtomicU32,
}

impl Rules {
    /// The policy in force.
    #[inline]
    pub fn eviction(&self) -> Eviction {
        Eviction::ALL[usize::from(self.eviction.load(Relaxed))]
    }

    /// The parameters of the LFU policies.
    pub fn lfu(&self) -> Lfu {
        Lfu { log_factor: self.lfu_log_factor.load(Relaxed), decay: self.lfu_decay.load(Relaxed) }
    }

    /// Candidates that a sampling policy compares.
    pub fn samples(&self) -> u32 {
        self.samples.load(Relaxed)
    }

    /// The capacity of the whole tier.
    pub fn limit(&self) -> usize {
        self.limit.load(Relaxed)
    }

    /// What of the capacity isn't for entries.
    pub fn charged(&self) -> usize {
        self.charged.load(Relaxed)
    }

    /// A stripe's fair share of the capacity.
    pub fn capacity(&self) -> usize {
        self.limit().saturating_sub(self.charged()) >> self.stripe_bits
    }
}
