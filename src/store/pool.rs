//! A bounded pool of connections, each lent to one call. One that a call doesn't give back is closed, and
//! the next call opens a new one: so a store comes back by itself when its server does.

use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::StoreError;

/// What a pool keeps.
pub(super) trait Connection {
    /// Whether the other end has closed it, as far as is known.
    fn has_ended(&self) -> bool;
}

/// See the module's doc.
pub(super) struct Pool<C> {
    idle: Mutex<Vec<C>>,
    permits: Semaphore,
}

/// A connection that one call has; dropped without [`Lease::give_back`], it is closed.
pub(super) struct Lease<'a, C> {
    pool: &'a Pool<C>,
    /// The connection.
    pub(super) connection: C,
    _permit: SemaphorePermit<'a>,
}

impl<C: Connection> Pool<C> {
    /// At most so many connections; none is opened yet.
    pub(super) fn new(most: usize) -> Self {
        Self { idle: Mutex::default(), permits: Semaphore::new(most.max(1)) }
    }

    /// The connection that was used last and is open, or what `open` makes.
    pub(super) async fn lease(
        &self,
        open: impl AsyncFnOnce() -> Result<C, StoreError>,
    ) -> Result<Lease<'_, C>, StoreError> {
        let permit = self.permits.acquire().await;
        let permit = permit.map_err(|why| StoreError::Down(why.to_string()))?;
        let idle = || self.idle.lock().pop();
        let mut found = idle();
        while found.as_ref().is_some_and(C::has_ended) {
            found = idle();
        }
        let connection = match found {
            Some(connection) => connection,
            None => open().await?,
        };
        Ok(Lease { pool: self, connection, _permit: permit })
    }

    /// Closes the connections that nobody has: the server, or the way there, is another one now.
    pub(super) fn forget(&self) {
        self.idle.lock().clear();
    }
}

impl<C: Connection> Lease<'_, C> {
    /// The connection may be used again.
    pub(super) fn give_back(self) {
        let Self { pool, connection, _permit } = self;
        if !connection.has_ended() {
            pool.idle.lock().push(connection);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

    use futures_util::FutureExt;

    use super::*;

    struct Numbered(u32, bool);

    impl Connection for Numbered {
        fn has_ended(&self) -> bool {
            self.1
        }
    }

    #[tokio::test]
    async fn connections_are_bounded_used_again_and_closed_when_kept() {
        let (pool, opened) = (Pool::new(2), AtomicU32::new(0));
        let open = async || Ok(Numbered(opened.fetch_add(1, Relaxed), false));
        let (first, second) = (pool.lease(open).await.unwrap(), pool.lease(open).await.unwrap());
        assert!(pool.lease(open).now_or_never().is_none(), "there are two at most");
        first.give_back();
        drop(second);
        let (again, new) = (pool.lease(open).await.unwrap(), pool.lease(open).await.unwrap());
        assert_eq!((again.connection.0, new.connection.0), (0, 2));
        again.give_back();
        pool.idle.lock()[0].1 = true;
        assert_eq!(pool.lease(open).await.unwrap().connection.0, 3);
        new.give_back();
        pool.forget();
        assert_eq!(pool.lease(open).await.unwrap().connection.0, 4);
        let down = async || Err(StoreError::Down(String::new()));
        assert!(pool.lease(down).await.is_err());
        assert!(pool.lease(open).await.is_ok(), "a failure gives its place back");
    }
}
