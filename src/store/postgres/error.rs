//! What went wrong at Postgres, by who is at fault (SEMANTICS 15, 17).
//!
//! Texts are Postgres's own message and its SQLSTATE. Details, which may quote a row, are left out; a
//! password is in none of them.

use std::error::Error as _;

use tokio_postgres::{
    Error,
    error::{DbError, Severity, SqlState},
};

use crate::store::StoreError;

/// Classes of SQLSTATE that are the store's fault: it can't be reached, won't let us in, can't serve now,
/// was told to stop, or is broken. All others are about the data or the statement.
const STORES_FAULT: [&str; 13] =
    ["08", "25", "26", "28", "3D", "40", "53", "55", "57", "58", "F0", "HV", "XX"];

/// Why a call didn't do what it should.
#[derive(Debug)]
pub(super) enum Trouble {
    /// It is known what to answer; nothing has changed.
    Known(StoreError),
    /// Postgres, or the way there, failed.
    Postgres(Error),
    /// No answer came in time.
    Late,
}

impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Self {
        Self::Known(error)
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Postgres(error)
    }
}

impl Trouble {
    fn db(&self) -> Option<&DbError> {
        match self {
            Self::Postgres(error) => error.as_db_error(),
            _ => None,
        }
    }

    /// Whether Postgres has answered, and goes on to serve this connection.
    pub(super) fn leaves_connection(&self) -> bool {
        let goes_on = |error: &DbError| error.parsed_severity() == Some(Severity::Error);
        self.db().is_some_and(goes_on) && !self.is_stale()
    }

    /// Whether a statement that was prepared is good no more, since its tables were changed or a pooler
    /// gave us another session: nothing has changed, and a new connection helps.
    pub(super) fn is_stale(&self) -> bool {
        self.db().is_some_and(|error| {
            let changed = error.code() == &SqlState::FEATURE_NOT_SUPPORTED
                && error.routine() == Some("RevalidateCachedQuery");
            changed || error.code() == &SqlState::INVALID_SQL_STATEMENT_NAME
        })
    }

    /// Whether the table isn't there.
    pub(super) fn is_missing_table(&self) -> bool {
        self.db().is_some_and(|error| error.code() == &SqlState::UNDEFINED_TABLE)
    }

    /// Whether the connection was lost.
    pub(super) fn is_lost(&self) -> bool {
        matches!(self, Self::Postgres(error) if error.as_db_error().is_none())
    }

    /// Whether nobody knows what became of a write that was under way: all but Postgres's own word. A
    /// backend that is shot because another one has crashed (57P02) may have committed already.
    pub(super) fn is_unknown(&self) -> bool {
        match self {
            Self::Known(_) => false,
            Self::Late => true,
            Self::Postgres(_) => {
                self.db().is_none_or(|error| error.code() == &SqlState::CRASH_SHUTDOWN)
            }
        }
    }

    /// The answer where nothing has changed.
    pub(super) fn unchanged(self) -> StoreError {
        match self {
            Self::Known(error) => error,
            Self::Late => StoreError::Down("postgres doesn't answer".into()),
            Self::Postgres(error) => match error.as_db_error() {
                Some(db) if !is_stores_fault(db.code().code()) => {
                    StoreError::Refused(describe(&error))
                }
                _ => StoreError::Down(describe(&error)),
            },
        }
    }

    /// The answer to a read: whose answer is late is told so.
    pub(super) fn of_load(self) -> StoreError {
        match self {
            Self::Late => StoreError::Timeout("postgres doesn't answer".into()),
            other => other.unchanged(),
        }
    }

    /// The answer where nobody knows.
    pub(super) fn unknown(self) -> StoreError {
        match self {
            Self::Known(error) => error,
            Self::Late => StoreError::Timeout("postgres doesn't answer".into()),
            Self::Postgres(error) => StoreError::Timeout(describe(&error)),
        }
    }
}

fn is_stores_fault(code: &str) -> bool {
    STORES_FAULT.iter().any(|class| code.starts_with(class))
}

/// The error on one line: Postgres's message and SQLSTATE, or what failed on the way, causes behind.
pub(super) fn describe(error: &Error) -> String {
    if let Some(db) = error.as_db_error() {
        return format!("{} ({})", db.message(), db.code().code());
    }
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(why) = cause {
        let why_text = why.to_string();
        if !text.contains(&why_text) {
            text += ": ";
            text += &why_text;
        }
        cause = why.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_say_whose_fault_it_is() {
        for code in
            ["08006", "28P01", "3D000", "40001", "40P01", "53300", "57014", "57P03", "XX000"]
        {
            assert!(is_stores_fault(code), "{code}");
        }
        for code in ["22P02", "23505", "42P01", "42501", "0A000", "54000", "P0001"] {
            assert!(!is_stores_fault(code), "{code}");
        }
    }

    #[test]
    fn only_a_word_of_postgres_makes_an_outcome_known() {
        assert!(Trouble::Late.is_unknown());
        assert!(!Trouble::Known(StoreError::Down(String::new())).is_unknown());
        assert!(matches!(Trouble::Late.unknown(), StoreError::Timeout(_)));
        assert!(matches!(Trouble::Late.unchanged(), StoreError::Down(_)));
    }
}
