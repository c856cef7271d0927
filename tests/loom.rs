//! The protocol of an entry under every interleaving that the memory model allows (crate `loom`): its
//! source is compiled here once more, over loom's atomics and allocator.
//!
//! loom doesn't see plain bytes, so a cell stands for the value: whoever reads or changes the value
//! reads or changes the cell, and loom fails if two do so without one having happened before the other.

#![allow(unsafe_code, reason = "loom's cell is reached through pointers")]

use std::sync::Arc;

use loom::{
    cell::UnsafeCell, sync::Mutex, sync::atomic::AtomicBool, sync::atomic::Ordering, thread,
};

#[allow(dead_code, unreachable_pub, reason = "only the shared part is tried")]
#[path = "../src/tier"]
mod tier {
    pub mod entry;

    mod class {
        pub use larder::tier::class::class;
    }

    mod sync {
        pub use loom::{
            alloc,
            sync::atomic::{AtomicU32, AtomicU64, Ordering, fence},
        };
    }
}

use tier::entry::{EntryRef, Meta};

/// Stands for the bytes of a value.
#[derive(Default)]
struct Value(UnsafeCell<u64>);

// SAFETY: loom checks each access.
unsafe impl Sync for Value {}

impl Value {
    fn read(&self) -> u64 {
        // SAFETY: loom fails the test if somebody changes it meanwhile.
        self.0.with(|value| unsafe { *value })
    }

    fn change(&self) {
        // SAFETY: loom fails the test if somebody else has it.
        self.0.with_mut(|value| unsafe { *value += 1 });
    }
}

fn entry() -> EntryRef {
    EntryRef::new(b"key", &[b"value"], &Meta::default())
}

/// Whoever goes last frees the entry, once: loom's allocator knows of each allocation.
#[test]
fn the_last_reference_frees() {
    loom::model(|| {
        let first = entry();
        let others = [first.try_clone().expect("few"), first.try_clone().expect("few")];
        let threads = others.map(|other| thread::spawn(move || drop(other)));
        drop(first);
        threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
    });
}

/// A value changes in place only when nobody reads it any more.
#[test]
fn a_value_changes_in_place_only_while_alone() {
    loom::model(|| {
        let value = Arc::new(Value::default());
        let mut owner = entry();
        let reader = owner.try_clone().expect("few");
        let seen = value.clone();
        let thread = thread::spawn(move || {
            let found = seen.read();
            drop(reader);
            found
        });
        if owner.get_mut().is_some() {
            value.change();
        }
        assert_eq!(thread.join().expect("no panic"), 0);
        assert!(owner.get_mut().is_some());
        value.change();
    });
}

/// SEMANTICS 4: a worker that has seen a write's reply never takes the entry before it for alive.
#[test]
fn the_mark_of_death_comes_before_the_reply() {
    loom::model(|| {
        let stripe = Arc::new(Mutex::new(entry()));
        let replied = Arc::new(AtomicBool::new(false));
        let (shelf, reply) = (stripe.clone(), replied.clone());
        let writer = thread::spawn(move || {
            let mut held = shelf.lock().expect("not poisoned");
            held.get().kill();
            *held = entry();
            drop(held);
            reply.store(true, Ordering::Release);
        });
        // L1 takes its reference while it holds the stripe, and looks at it without.
        let local = stripe.lock().expect("not poisoned").get().share().expect("few");
        let has_reply = replied.load(Ordering::Acquire);
        let is_old = !local.get().is_dead();
        if has_reply && is_old {
            // Then it is the new one.
            let held = stripe.lock().expect("not poisoned");
            assert_eq!(held.get().value().as_ptr(), local.get().value().as_ptr());
        }
        writer.join().expect("no panic");
    });
}

/// References that come and go beside the marks lose nothing of either.
#[test]
fn marks_and_references_share_a_word() {
    loom::model(|| {
        let stripe = Arc::new(Mutex::new(entry()));
        let local = stripe.lock().expect("not poisoned").get().share().expect("few");
        let shelf = stripe.clone();
        let holder = thread::spawn(move || {
            let held = shelf.lock().expect("not poisoned");
            held.get().touch(3);
            held.get().set_queue(2);
            held.get().set_stored(true);
            held.get().set_queue(1);
        });
        let second = local.try_clone().expect("few");
        drop(local);
        drop(second);
        holder.join().expect("no panic");
        let mut held = stripe.lock().expect("not poisoned");
        let view = held.get();
        assert_eq!((view.mark(), view.queue(), view.is_stored()), (1, 1, true));
        assert!(held.get_mut().is_some());
    });
}

/// Hits in L1 of several workers leave their marks without the stripe, and none spills over.
#[test]
fn a_mark_never_spills_into_its_neighbour() {
    loom::model(|| {
        let owner = entry();
        owner.get().set_mark(2);
        let local = owner.try_clone().expect("few");
        let worker = thread::spawn(move || local.get().touch(3));
        owner.get().touch(3);
        owner.get().set_queue(1);
        worker.join().expect("no panic");
        assert_eq!((owner.get().mark(), owner.get().queue()), (3, 1));
    });
}
