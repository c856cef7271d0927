//! Background death is seen: a thread or a task that has to go on holds a guard, and if it ends in a panic
//! that is noted, so that the server says of itself that it isn't healthy, and why.

use std::{sync::Arc, thread};

use parking_lot::Mutex;

/// Those that have died.
#[derive(Clone, Debug, Default)]
pub struct Vitals(Arc<Mutex<Vec<String>>>);

impl Vitals {
    /// A guard for a thread or a task with this name.
    #[must_use = "it notes a death while it is held"]
    pub fn guard(&self, name: impl Into<String>) -> Alive {
        Alive { vitals: self.clone(), name: name.into() }
    }

    /// Notes that something has ended that had to go on.
    pub fn note_death(&self, name: String) {
        tracing::error!("{name} has died: the server goes on without it, and isn't healthy");
        self.0.lock().push(name);
    }

    /// The names of those that have died.
    pub fn dead(&self) -> Vec<String> {
        self.0.lock().clone()
    }
}

/// See [`Vitals::guard`].
#[derive(Debug)]
pub struct Alive {
    vitals: Vitals,
    name: String,
}

impl Drop for Alive {
    fn drop(&mut self) {
        if thread::panicking() {
            self.vitals.note_death(std::mem::take(&mut self.name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_noted_and_an_end_is_not() {
        let vitals = Vitals::default();
        let (ends, dies) = (vitals.guard("one that ends"), vitals.guard("one that dies"));
        thread::spawn(move || drop(ends)).join().expect("it ends");
        let died = thread::spawn(move || {
            let _dies = dies;
            panic!("as it should");
        });
        assert!(died.join().is_err());
        assert_eq!(vitals.dead(), ["one that dies"]);
    }

    #[tokio::test]
    async fn a_task_that_panics_is_noted_too() {
        let vitals = Vitals::default();
        let dies = vitals.guard("a task");
        let task = tokio::spawn(async move {
            let _dies = dies;
            tokio::task::yield_now().await;
            panic!("as it should");
        });
        assert!(task.await.is_err());
        assert_eq!(vitals.dead(), ["a task"]);
    }
}
