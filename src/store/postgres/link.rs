//! Connections: a bounded pool of them, each lent to one call. One that a call leaves in an unknown
//! state, because it failed, was late or was dropped, is closed; the next call opens a new one. So the
//! store comes back by itself when Postgres does.

use std::time::Duration;

use deadpool_postgres::{
    ClientWrapper, Hook, HookError, Manager, ManagerConfig, Object, Pool, PoolError,
    RecyclingMethod, Runtime,
};
use tokio::time::{Instant, timeout};
use tokio_postgres::{NoTls, Statement};

use super::{error::Trouble, options::PostgresOptions};
use crate::{
    error::Error,
    store::{StoreError, times::Times},
};

/// The seconds by which a standby lags: none if it is connected and has replayed all that it received,
/// else since when the last transaction that it replayed was committed. A primary doesn't lag.
const LAG: &str = "\
select case
  when not pg_is_in_recovery() then 0
  when pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn()
    and exists (select from pg_stat_wal_receiver) then 0
  else extract(epoch from clock_timestamp() - pg_last_xact_replay_timestamp())
end::float8";

/// The pool, and how long what may take.
pub(super) struct Link {
    pool: Pool,
    times: Times,
}

/// A connection that one call has.
pub(super) struct Lease(Option<Object>);

impl Link {
    /// Opens no connection yet.
    pub(super) fn new(options: &PostgresOptions) -> Result<Self, Error> {
        let config = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let manager = Manager::from_config(options.server.clone(), NoTls, config);
        let limit = options.times.statement.as_millis();
        let pool = Pool::builder(manager)
            .max_size(options.pool)
            .runtime(Runtime::Tokio1)
            .post_create(Hook::async_fn(move |client, _| {
                Box::pin(async move {
                    // What Postgres was given up on must end there too (SEMANTICS 15).
                    let text = format!("set statement_timeout = {limit}");
                    client.batch_execute(&text).await.map_err(HookError::Backend)
                })
            }))
            .build()
            .map_err(|why| Error::Store(why.to_string()))?;
        Ok(Self { pool, times: options.times })
    }

    /// A connection: one that is open, or a new one.
    pub(super) async fn lease(&self) -> Result<Lease, Trouble> {
        match self.pool.get().await {
            Ok(object) => Ok(Lease(Some(object))),
            Err(
                PoolError::Backend(error) | PoolError::PostCreateHook(HookError::Backend(error)),
            ) => Err(down(&error)),
            Err(why) => Err(StoreError::Down(why.to_string()).into()),
        }
    }

    /// Gets a connection ready. Nothing has changed where this fails.
    pub(super) async fn ready<T>(
        &self,
        work: impl Future<Output = Result<T, Trouble>>,
    ) -> Result<T, Trouble> {
        let busy = || StoreError::Down("no connection to postgres in time".into()).into();
        timeout(self.times.connect, work).await.unwrap_or_else(|_| Err(busy()))
    }

    /// Closes the connections that nobody has: what is prepared on them is good no more.
    pub(super) fn forget(&self) {
        let _ = self.pool.retain(|_, _| false);
    }

    /// By how much the server lags behind its primary.
    pub(super) async fn lag(&self) -> Option<Duration> {
        let lease = self.ready(self.lease()).await.ok()?;
        let answer = self.answer(lease.client().query_one(LAG, &[])).await;
        let row = lease.settle(answer).ok()?;
        let seconds: Option<f64> = row.try_get(0).ok()?;
        Duration::try_from_secs_f64(seconds?.max(0.0)).ok()
    }

    /// Sends something and waits for the answer, until it is known dead.
    pub(super) async fn answer<T>(
        &self,
        call: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, Trouble> {
        match timeout(self.times.answer, call).await {
            Ok(answer) => answer.map_err(Trouble::from),
            Err(_) => Err(Trouble::Late),
        }
    }

    /// The answer to a write that failed, when the attempt is known dead: a backend whose client is gone
    /// may go on until its time is over, and commit (SEMANTICS 15).
    pub(super) async fn dead(&self, trouble: Trouble, sent: Instant) -> StoreError {
        if !trouble.is_unknown() {
            return trouble.unchanged();
        }
        tokio::time::sleep_until(sent + self.times.answer).await;
        trouble.unknown()
    }
}

/// Whoever isn't let in has a store that is down, whatever the code's class.
fn down(error: &tokio_postgres::Error) -> Trouble {
    StoreError::Down(super::error::describe(error)).into()
}

impl Lease {
    /// The connection itself.
    pub(super) fn client(&self) -> &ClientWrapper {
        self.0.as_ref().expect("taken out only where the lease ends")
    }

    /// Has a statement prepared, unless it is already.
    pub(super) async fn prepare(self, text: &str) -> Result<(Self, Statement), Trouble> {
        match self.client().prepare_cached(text).await {
            Ok(statement) => Ok((self, statement)),
            Err(error) => Err(self.fail(error.into())),
        }
    }

    /// The connection may be used again.
    pub(super) fn give_back(mut self) {
        self.0 = None;
    }

    /// Ends with an answer.
    pub(super) fn settle<T>(self, answer: Result<T, Trouble>) -> Result<T, Trouble> {
        match answer {
            Ok(found) => {
                self.give_back();
                Ok(found)
            }
            Err(trouble) => Err(self.fail(trouble)),
        }
    }

    /// Passes an error on; the connection may be used again if it is only about what was asked.
    fn fail(self, trouble: Trouble) -> Trouble {
        if trouble.leaves_connection() {
            self.give_back();
        }
        trouble
    }
}

impl Drop for Lease {
    /// Not given back: it is closed.
    fn drop(&mut self) {
        if let Some(object) = self.0.take() {
            drop(Object::take(object));
        }
    }
}
