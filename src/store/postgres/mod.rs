//! The store over PostgreSQL, in one of two ways:
//!
//! - `table.rs`: a table of our own, made when it is first needed, with all that a store has to keep;
//! - `rows.rs`: tables that are there, through your own SQL with named parameters (`sql.rs`), the keys'
//!   parts taken from a pattern.
//!
//! `link.rs` has the connections. No connection is opened at the start, and one that broke is replaced at
//! the next call: a cache starts and serves what it has while its database is down.
//!
//! **Time.** A call gets a connection within one limit; then Postgres itself stops a statement that takes
//! longer than `statement_timeout`, and it is known that nothing has changed. Where no answer comes at
//! all, or the connection is lost while a write is under way, nobody knows what became of it; the call
//! answers so, but only when Postgres must have stopped the statement, so that it can't be done late
//! (SEMANTICS 15). A stopped process or a frozen machine of Postgres can break that bound.

mod error;
mod link;
mod options;
mod rows;
mod sql;
mod table;

use std::sync::Arc;

pub use self::options::{PostgresOptions, SqlTexts};
use self::{link::Link, options::Layout};
use super::Store;
use crate::{clock::Clock, error::Error};

/// How often a call that has changed nothing is made again where that may help.
const RETRIES: u32 = 2;

/// The longest value, and the most bytes of a batch: a message of Postgres has at most 1 GiB.
const MAX_POSTGRES_VALUE: u64 = 512 << 20;
const MAX_BATCH: u64 = 768 << 20;

/// A store over Postgres; no connection is opened yet.
pub(super) fn open(options: &PostgresOptions, clock: Clock) -> Result<Arc<dyn Store>, Error> {
    let link = Link::new(options)?;
    Ok(match &options.layout {
        Layout::Table(name) => Arc::new(table::TableStore::new(link, name, clock)),
        Layout::Sql(statements) => Arc::new(rows::RowStore::new(link, (**statements).clone())),
    })
}

#[cfg(test)]
mod tests;
