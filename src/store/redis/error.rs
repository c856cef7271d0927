//! What went wrong at a Redis, by who is at fault (SEMANTICS 15, 17).

use ::redis::{ErrorKind, RedisError, ServerError, Value};

use crate::store::{StoreError, link::Silence};

/// Codes of error replies that are the store's fault: it can't serve now, or not whoever we are. All others
/// are about the data, the request, or what its user may do. None of them has changed anything.
const STORES_FAULT: [&str; 16] = [
    "OOM",
    "LOADING",
    "READONLY",
    "CLUSTERDOWN",
    "MASTERDOWN",
    "MISCONF",
    "NOREPLICAS",
    "BUSY",
    "TRYAGAIN",
    "NOAUTH",
    "WRONGPASS",
    "DENIED",
    "UNKILLABLE",
    "FAILOVER",
    // A Larder upstream, or its journal.
    "STOREDOWN",
    "JOURNALERR",
];

/// Texts without a code of their own that are the store's fault.
const STORES_TEXTS: [&str; 3] =
    ["ERR max number of clients", "ERR server is shutting down", "ERR internal"];

/// Why a call didn't do what it should.
#[derive(Debug)]
pub(super) enum Trouble {
    /// It is known what to answer.
    Known(StoreError),
    /// The server said no, and nothing has changed: code and text.
    Reply(String),
    /// No answer came.
    Silent(Silence),
}

impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Self {
        Self::Known(error)
    }
}

impl Trouble {
    /// The answer where nothing has changed.
    pub(super) fn unchanged(self) -> StoreError {
        match self {
            Self::Known(error) => error,
            Self::Silent(silence) => silence.of_load(),
            Self::Reply(text) if is_stores_fault(&text) => StoreError::Down(text),
            Self::Reply(text) if is_unknown(&text) => StoreError::Timeout(text),
            Self::Reply(text) => StoreError::Refused(text),
        }
    }

    /// The answer to a read.
    pub(super) fn of_load(self) -> StoreError {
        self.unchanged()
    }
}

/// Whether another server than this one may be the one to write to: its address should be looked up again.
pub(super) fn is_elsewhere(text: &str) -> bool {
    text.starts_with("READONLY") || text.starts_with("MASTERDOWN")
}

/// Whether nobody knows what has changed: our script says so, or a Larder upstream does.
fn is_unknown(text: &str) -> bool {
    text.starts_with("PARTLY") || text.starts_with("STORETIMEOUT")
}

fn is_stores_fault(text: &str) -> bool {
    // Before Redis 7 what a script is answered is wrapped in where it was.
    if text.starts_with('@') || text.starts_with("ERR Error running script") {
        return text.split([' ', ':', '-']).any(|word| STORES_FAULT.contains(&word));
    }
    let code = text.split(' ').next().unwrap_or_default();
    STORES_FAULT.contains(&code) || STORES_TEXTS.iter().any(|start| text.starts_with(start))
}

/// An error reply as the server sent it.
pub(super) fn text(error: &ServerError) -> String {
    match error.details() {
        Some(details) => format!("{} {details}", error.code()),
        None => error.code().to_owned(),
    }
}

/// The text of a reply that is an error.
pub(super) fn reply(reply: Value) -> Option<String> {
    match reply {
        Value::ServerError(error) => Some(text(&error)),
        _ => None,
    }
}

/// What the server itself answered, if this is its answer.
pub(super) fn answered(error: &RedisError) -> Option<String> {
    match error.kind() {
        ErrorKind::Server(_) | ErrorKind::Extension => {
            let code = error.code().unwrap_or("ERR");
            Some(format!("{code} {}", error.detail().unwrap_or_default()))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_say_whose_fault_it_is() {
        for text in [
            "OOM command not allowed",
            "LOADING Redis is loading",
            "READONLY You can't write",
            "CLUSTERDOWN",
            "MASTERDOWN Link with MASTER is down",
            "ERR max number of clients reached",
            "@user_script: 9: -OOM command not allowed",
            "ERR Error running script (call to f_1): @user_script:9: READONLY You can't write",
        ] {
            let error = Trouble::Reply(text.into()).unchanged();
            assert_eq!(error, StoreError::Down(text.into()));
        }
        for text in [
            "WRONGTYPE Operation",
            "NOPERM no",
            "ERR value",
            "OOMPH",
            "MOVED 1 a:1",
            "@user_script: 9: WRONGTYPE",
        ] {
            let error = Trouble::Reply(text.into()).unchanged();
            assert_eq!(error, StoreError::Refused(text.into()));
        }
        let unknown = Trouble::Reply("STORETIMEOUT x".into()).unchanged();
        assert!(matches!(unknown, StoreError::Timeout(_)));
    }
}
