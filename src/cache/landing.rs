//! Where many wait for one result: of all that a flight shares with those who wait, the part that is
//! made for each, so it is small.

use std::{
    mem,
    pin::Pin,
    task::{Context, Poll, Waker},
};

use parking_lot::Mutex;
use slab::Slab;

/// A result that comes once, or never.
pub(super) struct Landing<T>(Mutex<State<T>>);

enum State<T> {
    /// Those who wait have a seat each.
    Waited(Slab<Waker>),
    Landed(T),
    Lost,
}

impl<T> Default for Landing<T> {
    fn default() -> Self {
        Self(Mutex::new(State::Waited(Slab::new())))
    }
}

impl<T: Clone> Landing<T> {
    /// Hands the result to all who wait, and will.
    pub(super) fn land(&self, result: T) {
        self.end(State::Landed(result));
    }

    /// Tells all who wait that no result will come, unless one has.
    pub(super) fn lose(&self) {
        self.end(State::Lost);
    }

    fn end(&self, end: State<T>) {
        let mut state = self.0.lock();
        if let State::Waited(wakers) = &mut *state {
            let wakers = mem::take(wakers);
            *state = end;
            drop(state);
            wakers.into_iter().for_each(|(_, waker)| waker.wake());
        }
    }

    /// Whether a result is still to come, or has come and passes `is_good`.
    pub(super) fn promises(&self, is_good: impl FnOnce(&T) -> bool) -> bool {
        match &*self.0.lock() {
            State::Waited(_) => true,
            State::Landed(result) => is_good(result),
            State::Lost => false,
        }
    }

    /// Waits for the result; `None` if there will be none.
    pub(super) fn wait(&self) -> Wait<'_, T> {
        Wait { landing: self, seat: None }
    }
}

/// Somebody who waits.
pub(super) struct Wait<'a, T> {
    landing: &'a Landing<T>,
    seat: Option<usize>,
}

impl<T: Clone> Future for Wait<'_, T> {
    type Output = Option<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let landing = self.landing;
        match &mut *landing.0.lock() {
            State::Waited(wakers) => {
                match self.seat {
                    Some(seat) => wakers[seat].clone_from(context.waker()),
                    None => self.seat = Some(wakers.insert(context.waker().clone())),
                }
                Poll::Pending
            }
            State::Landed(result) => Poll::Ready(Some(result.clone())),
            State::Lost => Poll::Ready(None),
        }
    }
}

impl<T> Drop for Wait<'_, T> {
    fn drop(&mut self) {
        if let Some(seat) = self.seat
            && let State::Waited(wakers) = &mut *self.landing.0.lock()
        {
            wakers.remove(seat);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn all_get_the_first_end() {
        let landing: Arc<Landing<u8>> = Arc::default();
        let wait = || {
            let landing = landing.clone();
            tokio::spawn(async move { landing.wait().await })
        };
        let early: Vec<_> = (0..3).map(|_| wait()).collect();
        tokio::task::yield_now().await;
        assert!(landing.promises(|_| false));
        landing.land(7);
        landing.lose();
        landing.land(8);
        for waiter in early.into_iter().chain([wait()]) {
            assert_eq!(waiter.await.expect("no panic"), Some(7));
        }
        assert!(landing.promises(|seven| *seven == 7) && !landing.promises(|_| false));
    }

    #[tokio::test]
    async fn who_goes_leaves_no_seat() {
        let landing: Landing<u8> = Landing::default();
        for _ in 0..100 {
            assert!(landing.wait().now_or_never().is_none());
        }
        let State::Waited(wakers) = &*landing.0.lock() else { panic!("nothing has come") };
        assert!(wakers.is_empty() && wakers.capacity() < 10);
    }

    #[tokio::test]
    async fn a_loss_is_told() {
        let landing: Arc<Landing<u8>> = Arc::default();
        landing.lose();
        assert_eq!(landing.wait().await, None);
        assert!(!landing.promises(|_| true));
    }
}
