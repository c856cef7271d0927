//! How long the parts of a call to another machine may take. All of it together stays below what the
//! caller waits, so that the caller hears what has happened.

use std::time::Duration;

/// How long the caller waits for a store, unless told otherwise.
const STORE_TIMEOUT: Duration = Duration::from_secs(2);

/// See the module's doc.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Times {
    /// Until there is a connection that is ready for the request.
    pub(super) connect: Duration,
    /// What the other machine may take for it.
    pub(super) statement: Duration,
    /// From when the request was sent until it is taken for dead, answered or not.
    pub(super) answer: Duration,
}

impl Times {
    /// The parts of what the caller waits; `statement` is half of it unless told otherwise.
    ///
    /// # Errors
    /// If `statement` isn't below what the caller waits: a write that nobody waits for any more might
    /// still be done.
    pub(super) fn within(store: Duration, statement: Option<Duration>) -> Result<Self, String> {
        if statement.is_some_and(|statement| statement >= store) {
            return Err(format!("not below `store-timeout`, which is {store:?}"));
        }
        let statement = statement.unwrap_or(store / 2).max(Duration::from_millis(1));
        let left = store.saturating_sub(statement);
        Ok(Self { connect: store / 4, statement, answer: statement + left / 4 })
    }
}

impl Default for Times {
    fn default() -> Self {
        Self {
            connect: STORE_TIMEOUT / 4,
            statement: STORE_TIMEOUT / 2,
            answer: STORE_TIMEOUT / 2 + STORE_TIMEOUT / 8,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_together_is_below_what_the_caller_waits() {
        let second = Duration::from_secs(1);
        assert!(Times::within(second, Some(second)).is_err());
        for statement in [None, Some(Duration::from_millis(1)), Some(Duration::from_millis(600))] {
            let times = Times::within(second, statement).unwrap();
            assert!(times.statement < times.answer && times.connect + times.answer < second);
        }
        assert_eq!(Times::within(STORE_TIMEOUT, None), Ok(Times::default()));
    }
}
