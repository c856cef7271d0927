//! The suite over a real Postgres.

#[path = "../../../tests/common/postgres.rs"]
mod instance;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::*;
use crate::store::suite::suite;

/// Random histories: each batch is a transaction of a real database.
const CASES: u32 = 64;

#[test]
fn a_table_of_our_own_does_its_duties() {
    let Some(postgres) = instance::Postgres::start() else { return };
    let tables = AtomicU64::new(0);
    suite(CASES, |clock| {
        let mut options = PostgresOptions::new(&postgres.url()).expect("a url");
        options.set_password(instance::PASSWORD);
        let name = format!("suite_{}", tables.fetch_add(1, Relaxed));
        options.set_table(&name).expect("a name");
        options.set_pool(4);
        // The machine is shared: the suite is not about time.
        let minute = std::time::Duration::from_secs(60);
        options.set_timeouts(minute, None).expect("in order");
        (open(&options, clock).expect("a pool"), ())
    });
}
