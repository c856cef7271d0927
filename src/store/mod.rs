//! The system of record behind the cache: what a store must do, and the stores that do it.
//!
//! A store must remember; a tier may forget. [`Store`] is the whole contract: load many, apply many,
//! ping. Its duties are written on the trait, `suite.rs` holds every implementation to them, and
//! [`faulty`] wraps any store with errors and delays to test what stands above. [`sharded`] and
//! [`replicated`] are made of other stores. Full keys, the namespace's prefix included, go to a store.

use std::{fmt, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;

use crate::{clock::Clock, error::ClientError};

pub mod balance;
pub mod breaker;
mod component;
pub mod faulty;
#[cfg(feature = "http")]
mod http;
#[cfg(any(feature = "redis-store", feature = "http"))]
mod link;
mod memory;
pub mod pattern;
#[cfg(any(feature = "redis-store", feature = "http"))]
mod pool;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "redb")]
mod redb;
#[cfg(feature = "redis-store")]
mod redis;
pub mod replicated;
pub mod ring;
pub mod sharded;
#[cfg(test)]
mod suite;
#[cfg(any(feature = "postgres", feature = "redis-store", feature = "http"))]
mod times;
#[cfg(any(feature = "redis-store", feature = "http"))]
mod wire;

#[cfg(feature = "http")]
pub use self::http::HttpOptions;
#[cfg(feature = "postgres")]
pub use self::postgres::{PostgresOptions, SqlTexts};
#[cfg(feature = "redis-store")]
pub use self::redis::RedisOptions;

/// What the methods of a [`Store`] return: a boxed future, so that stores can be trait objects.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The longest key that a store takes, in bytes: the key is held whole in index pages.
pub const MAX_KEY: usize = 1024 * 1024;

/// The longest value that any store takes, in bytes: an entry of L2 counts it in 32 bits.
pub const MAX_VALUE: u64 = u32::MAX as u64;

/// What a store keeps for a key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// The value; for now always a string's bytes.
    pub value: Bytes,
    /// When the data ends, in unix milliseconds; 0: never. Part of the data: how long a cached copy
    /// is fresh never comes here (SEMANTICS 13).
    pub deadline: u64,
    /// The version of the write that made it (SEMANTICS 14).
    pub version: u64,
    /// How long a cached copy is good for, where the store that answers a load says so; zero: there is
    /// to be no copy. It is no part of the data: a store need not keep it.
    pub fresh_for: Option<Duration>,
}

/// What happens to a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The key holds this from now on.
    Put(Record),
    /// The key is gone.
    Delete {
        /// The version of the delete.
        version: u64,
    },
}

impl Change {
    /// The version of the write that made this change.
    pub fn version(&self) -> u64 {
        match self {
            Self::Put(record) => record.version,
            Self::Delete { version } => *version,
        }
    }

    /// The same, as if a later write had made it.
    pub fn with_version(self, version: u64) -> Self {
        match self {
            Self::Put(record) => Self::Put(Record { version, ..record }),
            Self::Delete { .. } => Self::Delete { version },
        }
    }

    /// The bytes of the value; 0 for a delete.
    pub fn value_len(&self) -> usize {
        match self {
            Self::Put(record) => record.value.len(),
            Self::Delete { .. } => 0,
        }
    }
}

/// A change that a store passed over, since what it has is newer (SEMANTICS 14).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overtaken {
    /// The change's place in its batch.
    pub place: usize,
    /// The version that the store has.
    pub by: u64,
}

/// What [`Store::apply`] answers: what of the batch was overtaken, which mostly is nothing.
pub type Applied = Result<Vec<Overtaken>, StoreError>;

/// Why a store did not do what it was asked, by who is at fault (SEMANTICS 15, 17).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreError {
    /// It can't be reached or it failed, and nothing has changed: `-STOREDOWN`.
    Down(String),
    /// It answered no, and nothing has changed: the data or a constraint is at fault, `-STOREERR`.
    Refused(String),
    /// Nobody knows whether it was done: `-STORETIMEOUT`.
    Timeout(String),
}

impl StoreError {
    /// The longest text that goes to a client, in bytes.
    const MAX_TEXT: usize = 256;

    /// Whether the store itself failed, which counts for a circuit breaker, and not the data.
    pub fn is_stores_fault(&self) -> bool {
        !matches!(self, Self::Refused(_))
    }

    /// The error as a client sees it: code, then the store's text on one line and cut short, since
    /// it comes from another program and must not break the protocol.
    pub fn client_error(&self) -> ClientError {
        let (code, text) = match self {
            Self::Down(text) => ("STOREDOWN", text),
            Self::Refused(text) => ("STOREERR", text),
            Self::Timeout(text) => ("STORETIMEOUT", text),
        };
        ClientError::from(format!("{code} {}", one_line(text, Self::MAX_TEXT)))
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Down(text) => write!(f, "the store is down: {text}"),
            Self::Refused(text) => write!(f, "the store refused: {text}"),
            Self::Timeout(text) => write!(f, "the outcome at the store is unknown: {text}"),
        }
    }
}

impl std::error::Error for StoreError {}

/// A system of record.
///
/// What a store owes its caller:
///
/// - **Order.** The caller has at most one change per key under way, so changes to one key arrive
///   in order, one after the other. Loads come at any time; one that starts after an `apply`
///   returned sees what it did.
/// - **All or none.** No load, at any time, sees a part of a batch across a restart or a failure.
/// - **Durable.** When `apply` returns Ok the changes outlive what the store promises to outlive.
/// - **Errors.** [`StoreError::Down`] and [`StoreError::Refused`] mean that nothing was changed.
///   Whoever can't promise that answers [`StoreError::Timeout`].
/// - **Versions.** A change older than the record that is there is passed over, the rest of its batch
///   isn't, and `apply` tells of it ([`Overtaken`]): only its caller can know whether that is well. An
///   equal one is applied again, so that a repeated attempt does no harm. Of several changes of one key
///   in a batch the last has to be told of, others may be. A delete, and a passed deadline, may forget the
///   version. What keeps no versions tells of nothing.
/// - **Deadlines.** A record past its deadline is not there.
///
/// What a caller owes a store: it doesn't drop the future of an `apply`, since the change may still
/// happen (SEMANTICS 15); it bounds the number and bytes of keys that it asks for at once. Futures
/// are polled on a tokio runtime with its time and its blocking threads.
pub trait Store: Send + Sync + 'static {
    /// Loads many keys at once. The answer has the order and the length of `keys`; None: not there,
    /// or past its deadline. If one key can't be answered, all fail; ask alone to know which.
    fn load<'a>(
        &'a self,
        keys: &'a [Bytes],
    ) -> BoxFuture<'a, Result<Vec<Option<Record>>, StoreError>>;

    /// Applies changes in their order (the last of a key wins), all or none. When it returns Ok they
    /// are durable to the store's own standard, but for those of which it tells that they were overtaken.
    fn apply<'a>(&'a self, changes: &'a [(Bytes, Change)]) -> BoxFuture<'a, Applied>;

    /// Whether the store would serve now.
    fn ping(&self) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Why a call would be turned away at once, without the store being asked, if that is known now: so
    /// that it need not queue for that answer. It doesn't wait.
    fn turned_away(&self) -> Option<StoreError> {
        None
    }

    /// How many keys it loads at a time, where each takes a request of its own: then one call has one key,
    /// so that none waits for another's answer or fails with it. `None`: a batch is worth it.
    fn single_loads(&self) -> Option<usize> {
        None
    }

    /// A short name for logs and INFO.
    fn kind(&self) -> &'static str;

    /// Which part of the store a key is in, below [`Store::parts`]: a batch over more than one part
    /// can't be all or none, and is refused before anything has changed. An error if it is in none.
    fn part(&self, _key: &[u8]) -> Result<u32, StoreError> {
        Ok(0)
    }

    /// How many parts there are.
    fn parts(&self) -> u32 {
        1
    }

    /// By how much it lags behind what it is a copy of; 0 if it is no copy, None if it can't tell.
    fn lag(&self) -> BoxFuture<'_, Option<Duration>> {
        Box::pin(async { None })
    }

    /// The store as whoever writes to it has to see it, where that differs: nothing that it loads is
    /// older than what it wrote (SEMANTICS 15).
    fn for_writers(&self) -> Option<Arc<dyn Store>> {
        None
    }

    /// What an operator should see of the stores that it is made of: the name of each, and figures.
    fn report(&self) -> Vec<(String, String)> {
        Vec::new()
    }
}

/// A store in this process's memory: for tests, and for embedders that need no durability.
pub fn memory() -> Arc<dyn Store> {
    Arc::new(memory::MemoryStore::new(Clock::default()))
}

/// The embedded store: one redb file at `path`, made with its parent directories if missing.
///
/// # Errors
///
/// [`crate::error::Error::DataDir`] if the file can't be used or another process holds it,
/// [`crate::error::Error::Store`] if what is there can't be served.
#[cfg(feature = "redb")]
pub fn redb(path: impl AsRef<std::path::Path>) -> Result<Arc<dyn Store>, crate::error::Error> {
    Ok(Arc::new(redb::RedbStore::open(path.as_ref(), Clock::default())?))
}

/// A store over PostgreSQL. It needs no server yet: it connects when it is called, and again when a
/// connection broke.
///
/// # Errors
///
/// [`crate::error::Error::Store`] if there can be no pool of connections.
#[cfg(feature = "postgres")]
pub fn postgres(options: &PostgresOptions) -> Result<Arc<dyn Store>, crate::error::Error> {
    postgres::open(options, Clock::default())
}

/// A store over a server that speaks the Redis protocol. It needs no server yet: it connects when it is
/// called, and again when a connection broke.
#[cfg(feature = "redis-store")]
pub fn redis(options: &RedisOptions) -> Arc<dyn Store> {
    Arc::new(redis::RedisStore::new(options, Clock::default()))
}

/// A store over HTTP. It needs no server yet: it connects when it is called, and again when a connection
/// broke.
#[cfg(feature = "http")]
pub fn http(options: &HttpOptions) -> Arc<dyn Store> {
    Arc::new(http::HttpStore::new(options, Clock::default()))
}

/// Version and deadline of what a store holds for a key: enough for the rule of versions.
#[derive(Clone, Copy)]
struct Stamp {
    version: u64,
    deadline: u64,
}

impl Stamp {
    fn of(record: &Record) -> Self {
        Self { version: record.version, deadline: record.deadline }
    }

    /// The millisecond of the deadline itself is already past it, as in the tiers.
    fn is_past(self, now: u64) -> bool {
        self.deadline != 0 && self.deadline <= now
    }

    /// Whether the change at this place of its batch is overtaken by what is there. A record past its
    /// deadline overtakes nothing: no caller can have learned its version.
    fn overtakes(self, place: usize, change: &Change, now: u64) -> Option<Overtaken> {
        let overtakes = !self.is_past(now) && self.version > change.version();
        overtakes.then_some(Overtaken { place, by: self.version })
    }
}

/// Refuses a batch that holds a key or a value too long to keep, before anything is changed.
fn check(changes: &[(Bytes, Change)], max_value: u64) -> Result<(), StoreError> {
    changes.iter().try_for_each(|(key, change)| {
        check_lengths(key.len(), change.value_len() as u64, max_value)
    })
}

fn check_lengths(key: usize, value: u64, max_value: u64) -> Result<(), StoreError> {
    if key > MAX_KEY {
        return Err(StoreError::Refused(format!("key of {key} bytes, at most {MAX_KEY}")));
    }
    if value > max_value {
        return Err(StoreError::Refused(format!("value of {value} bytes, at most {max_value}")));
    }
    Ok(())
}

/// `text` with a space for each control character, at most `max` bytes of it.
fn one_line(text: &str, max: usize) -> String {
    let mut line = String::new();
    for c in text.chars().map(|c| if c.is_control() { ' ' } else { c }) {
        if line.len() + c.len_utf8() > max {
            break;
        }
        line.push(c);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_sees_one_bounded_line() {
        let refused = StoreError::Refused("bad\r\n-ERR x\u{7f}".into());
        assert_eq!(refused.client_error().text(), "STOREERR bad  -ERR x ");
        let down = StoreError::Down("é".repeat(1000)).client_error();
        assert_eq!(down.code(), "STOREDOWN");
        assert_eq!(down.text().len(), "STOREDOWN ".len() + StoreError::MAX_TEXT);
        assert_eq!(StoreError::Timeout(String::new()).client_error().code(), "STORETIMEOUT");
    }

    #[test]
    fn only_the_stores_own_failures_are_its_fault() {
        assert!(StoreError::Down(String::new()).is_stores_fault());
        assert!(StoreError::Timeout(String::new()).is_stores_fault());
        assert!(!StoreError::Refused(String::new()).is_stores_fault());
    }

    #[test]
    fn lengths_are_bounded() {
        assert_eq!(check_lengths(MAX_KEY, MAX_VALUE, MAX_VALUE), Ok(()));
        let long_key = check_lengths(MAX_KEY + 1, 0, MAX_VALUE);
        assert!(matches!(long_key, Err(StoreError::Refused(_))));
        let long_value = check_lengths(0, MAX_VALUE + 1, MAX_VALUE);
        assert!(matches!(long_value, Err(StoreError::Refused(_))));
    }
}
