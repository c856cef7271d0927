//! Errors, sorted by who is at fault: each kind has one treatment.
//!
//! [`ClientError`]: the request was wrong or can't be served; it is answered and the connection goes
//! on. [`ProtocolError`]: what came isn't RESP; it is answered and the connection closes.
//! [`Error`]: ours or the machine's; the program reports it and, at start, exits with its code.

use std::{borrow::Cow, fmt, io, path::PathBuf};

/// An error reply: the whole text behind the `-`, code first (`ERR syntax error`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientError(Cow<'static, str>);

impl ClientError {
    /// An error with a fixed text.
    pub const fn new(text: &'static str) -> Self {
        Self(Cow::Borrowed(text))
    }

    /// The text as it goes on the wire, without the `-` and the line end.
    pub fn text(&self) -> &str {
        &self.0
    }

    /// The code: the first word (`ERR`, `WRONGTYPE`).
    pub fn code(&self) -> &str {
        self.0.split(' ').next().unwrap_or("ERR")
    }

    /// `ERR syntax error`.
    pub const SYNTAX: Self = Self::new("ERR syntax error");
    /// `ERR value is not an integer or out of range`.
    pub const NOT_INTEGER: Self = Self::new("ERR value is not an integer or out of range");
    /// `ERR value is not a valid float`.
    pub const NOT_FLOAT: Self = Self::new("ERR value is not a valid float");
    /// `WRONGTYPE ...`: the key holds a value of another type.
    pub const WRONG_TYPE: Self =
        Self::new("WRONGTYPE Operation against a key holding the wrong kind of value");
    /// `ERR no such key`.
    pub const NO_SUCH_KEY: Self = Self::new("ERR no such key");
    /// `ERR DB index is out of range`.
    pub const DB_INDEX: Self = Self::new("ERR DB index is out of range");
    /// `OOM ...`: no room, and nothing may be evicted.
    pub const OOM: Self = Self::new("OOM command not allowed when used memory > 'maxmemory'.");
    /// A string would grow past `proto-max-bulk-len`.
    pub const TOO_LONG: Self =
        Self::new("ERR string exceeds maximum allowed size (proto-max-bulk-len)");
}

impl From<String> for ClientError {
    fn from(text: String) -> Self {
        Self(Cow::Owned(text))
    }
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ClientError {}

/// What came from the peer isn't the protocol: answered with `-ERR Protocol error: ...`, then closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProtocolError {
    /// Answered with this text behind `ERR Protocol error: `.
    Malformed(Cow<'static, str>),
    /// Closed without an answer: an HTTP request in disguise (`POST` or `Host:` as first word).
    CrossProtocol,
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(text) => write!(f, "Protocol error: {text}"),
            Self::CrossProtocol => f.write_str("possible cross-protocol scripting attack"),
        }
    }
}

/// What ends the program or keeps it from starting, with its exit code.
#[derive(Debug)]
pub enum Error {
    /// The configuration is wrong (exit code 2); the text names file, line and the nearest known name.
    Config(String),
    /// The data directory can't be used (exit code 3).
    DataDir(PathBuf, String),
    /// An address can't be listened on (exit code 4).
    Bind(String, io::Error),
    /// A store refused to open or to serve (exit code 1).
    Store(String),
    /// Anything else of the operating system (exit code 1).
    Io(io::Error),
}

impl Error {
    /// The exit code of the process.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) => 2,
            Self::DataDir(..) => 3,
            Self::Bind(..) => 4,
            Self::Store(_) | Self::Io(_) => 1,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(text) => f.write_str(text),
            Self::DataDir(path, why) => write!(f, "data directory {}: {why}", path.display()),
            Self::Bind(address, why) => write!(f, "can't listen on {address}: {why}"),
            Self::Store(why) => write!(f, "store: {why}"),
            Self::Io(why) => why.fmt(f),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Bind(_, why) | Self::Io(why) => Some(why),
            _ => None,
        }
    }
}

impl From<io::Error> for Error {
    fn from(why: io::Error) -> Self {
        Self::Io(why)
    }
}
