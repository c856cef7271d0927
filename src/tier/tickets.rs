//! Flights' permissions to install what they bring (SEMANTICS 1), and what happens when they do.
//!
//! A ticket stands in its key's stripe, and whatever changes the key cancels it. A flight that is to renew a
//! copy that is there remembers which entry that is: it may take this one's place, and no other's. One
//! that found nothing at its store may leave a note of that ([`super::negative`]), which the same
//! changes remove.

use super::{
    demote::Known,
    entry::{Entry, EntryRef},
    memory::{Core, Memory},
    shelf::is_live,
};

/// A flight's permission to install what it brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(u64);

pub(super) struct Waiting {
    pub(super) db: usize,
    hash: u64,
    ticket: u64,
}

impl Core {
    /// Notes a flight for a key; what it brings may be installed while the ticket lives.
    pub fn ticket(&mut self, db: usize, hash: u64) -> Ticket {
        self.next_ticket += 1;
        let ticket = self.next_ticket;
        self.tickets.push(Waiting { db, hash, ticket });
        Ticket(ticket)
    }

    /// A change of a key cancels the flights that are under way for it (SEMANTICS 1), and what is known of
    /// its absence.
    #[inline]
    pub fn cancel(&mut self, db: usize, hash: u64) {
        if !self.tickets.is_empty() {
            self.tickets.retain(|waiting| waiting.db != db || waiting.hash != hash);
        }
        if let Some(negatives) = &mut self.negatives {
            negatives.remove(db, hash);
        }
    }

    /// Whether no write has cancelled a ticket.
    pub fn has_ticket(&self, ticket: Ticket) -> bool {
        self.tickets.iter().any(|waiting| waiting.ticket == ticket.0)
    }

    /// Whether the key's store is known not to have it.
    #[inline]
    pub fn is_negative(&self, db: usize, hash: u64, key: &[u8], now: u64) -> bool {
        self.negatives.as_ref().is_some_and(|negatives| negatives.has(db, hash, key, now))
    }
}

impl Memory {
    /// Notes a flight for a key; what it brings may be installed while the ticket lives.
    pub fn ticket(&self, db: usize, hash: u64) -> Ticket {
        self.lock(self.stripe_of(hash)).ticket(db, hash)
    }

    /// The same, and the entry that the key has, which the flight is to renew.
    pub fn ticket_over(&self, db: usize, hash: u64, key: &[u8]) -> (Ticket, Option<EntryRef>) {
        let mut core = self.lock(self.stripe_of(hash));
        let entry = core.shelf(db).and_then(|shelf| {
            let slot = shelf.find(hash, key)?;
            shelf.entry(slot).share()
        });
        (core.ticket(db, hash), entry)
    }

    /// Gives a ticket back.
    pub fn release(&self, hash: u64, ticket: Ticket) {
        let tickets = &mut self.lock(self.stripe_of(hash)).tickets;
        if let Some(at) = tickets.iter().position(|waiting| waiting.ticket == ticket.0) {
            tickets.swap_remove(at);
        }
    }

    /// Whether no write has cancelled a ticket.
    pub fn has_ticket(&self, hash: u64, ticket: Ticket) -> bool {
        self.lock(self.stripe_of(hash)).has_ticket(ticket)
    }

    /// Installs what a flight brought, if its ticket still lives, the key is absent and there is room; says
    /// whether it was.
    pub fn land(
        &self,
        db: usize,
        hash: u64,
        ticket: Ticket,
        entry: EntryRef,
        known: Known,
        now: u64,
    ) -> bool {
        self.land_over((db, hash), ticket, entry, known, None, now)
    }

    /// The same for a flight that renews `old`, whose place it may take.
    pub fn land_over(
        &self,
        (db, hash): (usize, u64),
        ticket: Ticket,
        entry: EntryRef,
        known: Known,
        old: Option<Entry<'_>>,
        now: u64,
    ) -> bool {
        let stripe = self.stripe_of(hash);
        // Where nothing may be forgotten, what a snapshot has comes back whatever it takes.
        let is_kept = matches!(known, Known::Record(_))
            && self.keeps_all()
            && self.log().is_some_and(|log| log.is_snapshot());
        let need = self.rules().weight.of(entry.get());
        let group = self.rules().groups.of(db, entry.get().key());
        let grows = entry.get().size().saturating_sub(old.map_or(0, Entry::size));
        let make_room = || {
            if let Some(group) = group {
                self.make_room_in(group, grows, stripe, now, &[])?;
            }
            self.make_room(need, stripe, now, &[])
        };
        if make_room().is_err() && !is_kept {
            return false;
        }
        let mut core = self.lock(stripe);
        if !core.has_ticket(ticket) {
            return false;
        }
        let shelf = self.shelf(stripe, &mut core, db);
        let found = shelf.find(hash, entry.get().key());
        let may_replace = |present: Entry<'_>| {
            !is_live(present, now) || old.is_some_and(|old| old.is_same(present))
        };
        if found.is_some_and(|slot| !may_replace(shelf.entry(slot))) {
            return false;
        }
        match old {
            Some(_) if !self.note_renewal(shelf, hash, found, known) => return false,
            Some(_) => {}
            None => self.note_promotion(shelf, hash, found, entry.get(), known),
        }
        match found {
            Some(slot) => shelf.replace(slot, hash, entry, self.rules(), now),
            None => shelf.insert(hash, entry, self.rules(), now),
        }
        self.report(shelf);
        if let Some(negatives) = &mut core.negatives {
            negatives.remove(db, hash);
        }
        drop(core);
        if let Some(group) = group {
            // Others may have installed as much meanwhile. What can't go stays.
            let _ = self.make_room_in(group, 0, stripe, now, &[]);
        }
        true
    }

    /// Notes that a flight found nothing, if its ticket still lives: the entry that it was to renew goes,
    /// and if `until` isn't 0, that is known until then.
    pub fn land_nothing(
        &self,
        (db, hash, key): (usize, u64, &[u8]),
        ticket: Ticket,
        old: Option<Entry<'_>>,
        known: Known,
        until: u64,
    ) {
        let stripe = self.stripe_of(hash);
        let mut core = self.lock(stripe);
        if !core.has_ticket(ticket) {
            return;
        }
        let shelf = self.shelf(stripe, &mut core, db);
        let found = shelf.find(hash, key);
        let is_old = |slot| old.is_some_and(|old| old.is_same(shelf.entry(slot)));
        if found.is_some_and(|slot| !is_old(slot)) {
            return;
        }
        if old.is_some() {
            self.note_renewal(shelf, hash, found, known);
        }
        if let Some(slot) = found {
            drop(shelf.remove(slot, self.rules()));
        }
        self.report(shelf);
        // What the disk may have of it would be hidden.
        if until != 0 && !shelf.has_below(hash) {
            let bytes = self.negative_bytes();
            core.negatives.get_or_insert_default().insert(db, hash, key, until, bytes);
            self.report_negatives(&mut core);
        }
    }
}
