//! Who has to go when memory is full: Redis's eight policies by sampling, and our default.
//!
//! `allkeys-s3fifo` ([`super::adaptive`]) keeps queues. The others look at a handful of entries
//! (`maxmemory-samples`) and evict the worst, as <https://redis.io/docs/latest/develop/reference/eviction/>
//! describes: `lru` by an access clock of 16 ms, `lfu` by a logarithmic counter that decays with time,
//! `ttl` by the nearest deadline, `random` by none. `volatile-` looks only at entries with a deadline,
//! `noeviction` at none. Entries keep the word that clock or counter need only under these policies.

use std::sync::atomic::Ordering::Relaxed;

use super::{adaptive::MARK_TOP, entry::Entry};

/// `maxmemory-policy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Eviction {
    /// Scan-resistant queues (the default).
    #[default]
    AllkeysS3fifo,
    /// Nothing is evicted: writes fail when memory is full.
    Noeviction,
    /// The longest unused of a sample.
    AllkeysLru,
    /// The least often used of a sample.
    AllkeysLfu,
    /// Any entry.
    AllkeysRandom,
    /// The longest unused of a sample of entries with a deadline.
    VolatileLru,
    /// The least often used of a sample of entries with a deadline.
    VolatileLfu,
    /// Any entry with a deadline.
    VolatileRandom,
    /// The entry with the nearest deadline of a sample.
    VolatileTtl,
}

impl Eviction {
    /// All policies, in the order of their numbers.
    pub const ALL: [Self; 9] = [
        Self::AllkeysS3fifo,
        Self::Noeviction,
        Self::AllkeysLru,
        Self::AllkeysLfu,
        Self::AllkeysRandom,
        Self::VolatileLru,
        Self::VolatileLfu,
        Self::VolatileRandom,
        Self::VolatileTtl,
    ];

    /// The name as `maxmemory-policy` has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::AllkeysS3fifo => "allkeys-s3fifo",
            Self::Noeviction => "noeviction",
            Self::AllkeysLru => "allkeys-lru",
            Self::AllkeysLfu => "allkeys-lfu",
            Self::AllkeysRandom => "allkeys-random",
            Self::VolatileLru => "volatile-lru",
            Self::VolatileLfu => "volatile-lfu",
            Self::VolatileRandom => "volatile-random",
            Self::VolatileTtl => "volatile-ttl",
        }
    }

    /// The policy of a name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|policy| policy.name().eq_ignore_ascii_case(name))
    }

    /// Whether only entries with a deadline may go.
    pub fn is_volatile(self) -> bool {
        use Eviction::{VolatileLfu, VolatileLru, VolatileRandom, VolatileTtl};
        matches!(self, VolatileLru | VolatileLfu | VolatileRandom | VolatileTtl)
    }

    /// Whether the access word is a frequency counter.
    pub fn is_lfu(self) -> bool {
        matches!(self, Self::AllkeysLfu | Self::VolatileLfu)
    }

    /// The access word of a new entry, if the policy keeps one.
    pub fn first_access(self, now: u64) -> Option<u32> {
        match self {
            Self::AllkeysS3fifo => None,
            _ if self.is_lfu() => Some(minutes(now) << 8 | LFU_START),
            _ => Some(lru_clock(now)),
        }
    }

    /// Notes a hit on an entry at `now`; `random` decides whether a large counter rises.
    #[inline]
    pub fn touch(self, entry: Entry<'_>, now: u64, lfu: Lfu, random: impl FnOnce() -> u64) {
        if self == Self::AllkeysS3fifo {
            return entry.touch(MARK_TOP[entry.queue() as usize]);
        }
        let Some(access) = entry.access() else { return };
        let old = access.load(Relaxed);
        let new = if self.is_lfu() { lfu.hit(old, now, random()) } else { lru_clock(now) };
        if new != old {
            access.store(new, Relaxed);
        }
    }

    /// How much an entry deserves to go: the highest goes first.
    pub fn score(self, entry: Entry<'_>, now: u64, lfu: Lfu) -> u64 {
        let access = entry.access().map(|access| access.load(Relaxed));
        match self {
            Self::VolatileTtl => u64::MAX - entry.deadline(),
            Self::AllkeysLru | Self::VolatileLru => access.map_or(u64::MAX, |at| idle_ms(at, now)),
            _ if self.is_lfu() => 255 - access.map_or(0, |word| u64::from(lfu.counter(word, now))),
            _ => 0,
        }
    }
}

/// Classes of heat that [`Eviction::coldness`] tells apart.
pub const COLDNESS: u64 = 8;

impl Eviction {
    /// How cold an entry is, from 0 to [`COLDNESS`] - 1: in this order entries come back after a restart.
    pub fn coldness(self, entry: Entry<'_>, now: u64, lfu: Lfu) -> u64 {
        let coldness = match self {
            // Main before small before the window, and more marks before fewer.
            Self::AllkeysS3fifo => {
                u64::from(3_u32.saturating_sub(entry.queue())) * 2 + 2
                    - u64::from(entry.mark().min(2))
            }
            _ if self.is_lfu() => self.score(entry, now, lfu) / 32,
            // Minutes since the last use, doubling.
            _ => {
                let idle = entry.access().map_or(0, |word| idle_ms(word.load(Relaxed), now));
                u64::from(64 - (idle / 60_000).leading_zeros())
            }
        };
        coldness.min(COLDNESS - 1)
    }
}

/// A new entry's counter, so that it isn't evicted before it had a chance.
const LFU_START: u32 = 5;
/// The LRU clock's unit is 2^4 ms.
const LRU_SHIFT: u32 = 4;

/// The clock by which entries are said to be unused, in units of 16 ms.
pub fn lru_clock(now: u64) -> u32 {
    (now >> LRU_SHIFT) as u32
}

fn minutes(now: u64) -> u32 {
    (now / 60_000) as u32 & 0xff_ffff
}

/// By how much an access clock of so many bits may seem to be behind what was written by it: the writer's thread
/// is ahead, or the system's clock was set back. More than that, and it has turned over.
const fn ahead(bits: u32) -> u32 {
    1 << (bits - 6)
}

/// How long ago an LRU access word was written, in milliseconds.
pub fn idle_ms(access: u32, now: u64) -> u64 {
    let clock = lru_clock(now);
    let is_ahead = access.wrapping_sub(clock) < ahead(u32::BITS);
    if is_ahead { 0 } else { u64::from(clock.wrapping_sub(access)) << LRU_SHIFT }
}

/// The two parameters of the frequency counter (`lfu-log-factor`, `lfu-decay-time` in minutes).
#[derive(Clone, Copy, Debug)]
pub struct Lfu {
    /// How slowly the counter rises.
    pub log_factor: u32,
    /// Minutes after which the counter falls by one; 0: never.
    pub decay: u32,
}

impl Lfu {
    /// The counter of an access word as it is at `now`.
    pub fn counter(self, word: u32, now: u64) -> u32 {
        let (clock, written) = (minutes(now), word >> 8);
        let is_ahead = written.wrapping_sub(clock) & 0xff_ffff < ahead(24);
        let passed = if is_ahead { 0 } else { clock.wrapping_sub(written) & 0xff_ffff };
        let fallen = passed.checked_div(self.decay).unwrap_or(0);
        (word & 0xff).saturating_sub(fallen)
    }

    /// The access word after a hit: the counter rises with probability 1 / (excess * factor + 1).
    fn hit(self, word: u32, now: u64, random: u64) -> u32 {
        let counter = self.counter(word, now);
        let excess = u64::from(counter.saturating_sub(LFU_START));
        let odds = excess * u64::from(self.log_factor) + 1;
        let rises = counter < 255 && random.is_multiple_of(odds);
        minutes(now) << 8 | (counter + u32::from(rises))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back() {
        for (number, policy) in Eviction::ALL.into_iter().enumerate() {
            assert_eq!(policy as usize, number);
            assert_eq!(Eviction::from_name(policy.name()), Some(policy));
        }
    }

    #[test]
    fn what_was_used_by_a_clock_that_is_ahead_is_not_old() {
        let (now, year) = (1_800_000_000_000, 365 * 24 * 3_600_000);
        assert_eq!(idle_ms(lru_clock(now), now - 16), 0);
        assert_eq!(idle_ms(lru_clock(now), now + 1_600), 1_600);
        assert!(idle_ms(lru_clock(now), now + year) > year - 1_000);
        let lfu = Lfu { log_factor: 10, decay: 1 };
        let word = minutes(now) << 8 | 100;
        let at = |now| lfu.counter(word, now);
        assert_eq!(
            [at(now - 60_000), at(now), at(now + 120_000), at(now + year)],
            [100, 100, 98, 0]
        );
    }

    #[test]
    fn a_frequency_counter_rises_ever_slower_and_decays() {
        let lfu = Lfu { log_factor: 10, decay: 1 };
        let mut word = Eviction::AllkeysLfu.first_access(0).unwrap();
        let mut random = 1u64;
        for _ in 0..1_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            word = lfu.hit(word, 0, random >> 33);
        }
        let counter = lfu.counter(word, 0);
        assert!((10..60).contains(&counter), "{counter}");
        assert_eq!(lfu.counter(word, 5 * 60_000), counter - 5);
        assert_eq!(lfu.counter(word, 600 * 60_000), 0);
    }
}
