//! The configuration. Every setting is declared once, in the table of `settings.rs`; the file's
//! reader (`file.rs`, and `tables.rs` for stores and namespaces), the flags and `--help`
//! (`flags.rs`), CONFIG GET/SET/REWRITE (`live.rs`, `rewrite.rs`) and `docs/configuration.md`
//! (`docs.rs`) are made from it. What of it may change while the server runs is in `reload.rs`.
//!
//! A setting's kind (`kind.rs`) reads and writes its values in two forms: Redis's, for CONFIG and
//! flags, where numbers count in the setting's unit, and the file's, where sizes and durations
//! (`unit.rs`) carry theirs.

use std::{ffi::OsString, path::PathBuf};

mod composed;
mod copies;
mod docs;
mod file;
mod flags;
mod http;
mod kind;
mod live;
mod machine;
mod namespaces;
#[cfg(any(feature = "postgres", feature = "redis-store", feature = "http"))]
mod password;
#[cfg(feature = "postgres")]
mod postgres;
mod reader;
mod reload;
mod rewrite;
mod settings;
mod tables;
mod types;
mod unit;
mod upstream;

pub use self::{
    composed::COMPOSED_KEYS,
    copies::Copies,
    docs::markdown,
    flags::Exit,
    kind::{Kind, Refusal, Unit, Value},
    live::Live,
    machine::memory_share,
    namespaces::{NAMESPACE_KEYS, NamespaceConfig},
    reload::Source,
    settings::{Change, SETTINGS, Setting, Settings},
    tables::{STORE_KEYS, StoreConfig, StoreKind, TableKey},
    types::{
        BindAddress, Endpoint, JournalFsync, JournalRecover, LogFormat, LogLevel, MaxmemoryPolicy,
        OutputLimit, OutputLimits, Percentiles, Recover, Secret,
    },
};

/// What the server is told at its start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// The value of every setting.
    pub settings: Settings,
    /// The stores, in the order of the file.
    pub stores: Vec<StoreConfig>,
    /// The namespaces, in the order of the file; prefixes are unique within a database, and every
    /// store that is named exists.
    pub namespaces: Vec<NamespaceConfig>,
    /// The file that it came from, if any, as an absolute path: CONFIG REWRITE edits it, SIGHUP reads it
    /// again.
    pub path: Option<PathBuf>,
    /// What it was read from.
    pub source: Source,
}

impl Config {
    /// Reads `larder [CONFIG] [--flag value ...]`, the program's name first.
    ///
    /// # Errors
    /// [`Exit`] says what to print and how to end: help, version, or what is wrong and where.
    pub fn from_args<I>(args: I) -> Result<Self, Exit>
    where
        I: IntoIterator<Item: Into<OsString> + Clone>,
    {
        flags::read(args)
    }

    /// Reads the text of a file; `origin` names it in errors.
    ///
    /// # Errors
    /// `origin:line:column: ` and what is wrong there.
    pub fn from_toml(text: &str, origin: &str) -> Result<Self, String> {
        file::read(file::Origin { name: origin, text }, Vec::new())
    }
}
