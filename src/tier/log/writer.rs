//! The writer: takes what waits in the queue and writes it behind the last record.
//!
//! Bytes are gathered in a buffer and written a mebibyte at a time, in whole pages. A record counts once
//! all of it is written: then, under its key's stripe lock, its index entry changes from the queue's
//! number to its place, unless the key was changed meanwhile. The segment behind the one that is written
//! is always empty: it is reclaimed when the one before it is begun, and what survives goes there.
//!
//! A write that fails is tried again later, from the same bytes at the same place. When that has failed
//! a few times, what was to be written is let go and the segment is left as it is, and until a write
//! succeeds nothing waits for the disk; where nothing may be forgotten it is tried for ever.
//!
//! What may have been written is noted in the state before it is, so that the next start goes on behind it.

use std::{
    io,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use super::{
    super::{
        disk::{PAGE, buffer::Buffer},
        entry::EntryRef,
        memory::Memory,
    },
    Log, UNIT, add,
    contents::{self, Item},
    queue::Demotion,
    reclaim::Allowance,
    record::{self, Head},
    slot::{Slot, VOLATILE},
    state::Kind,
};

/// Bytes that are written at once, at most.
pub const CHUNK: usize = 1 << 20;
/// How often a write is tried at the same place.
const TRIES: u32 = 3;

/// The segment, or the segments of one long record, that are being written.
struct Open {
    first: usize,
    generation: u32,
    /// Bytes from the first segment's beginning on that are written or in the buffer.
    at: u64,
    /// Those that are written.
    written: u64,
    items: Vec<Item>,
    pending: Vec<Pending>,
}

/// A record that isn't written yet.
struct Pending {
    item: Item,
    /// What the index has for it until then.
    from: Slot,
    /// Bytes from the first segment's beginning to its end.
    end: u64,
}

/// The writer.
pub struct Writer {
    pub(super) log: Arc<Log>,
    open: Option<Open>,
    buffer: Buffer,
    filled: usize,
    failures: u32,
    /// Whether what is written is one record longer than a segment: it begins again after a failure, which
    /// counts until all of it is written.
    writes_long: bool,
    /// The demotion that failed to be written.
    again: Option<Demotion>,
    /// The segment that is being reclaimed.
    reclaiming: Option<usize>,
    pub(super) allowance: Allowance,
    pub(super) reads: Buffer,
}

impl Writer {
    /// A writer that goes on where the last one ended.
    pub fn new(log: Arc<Log>) -> Self {
        let mut writer = Self {
            open: None,
            buffer: Buffer::zeroed(2 * log.chunk),
            filled: 0,
            failures: 0,
            writes_long: false,
            again: None,
            reclaiming: None,
            allowance: Allowance::default(),
            reads: Buffer::zeroed(PAGE),
            log,
        };
        writer.resume();
        writer
    }

    /// Goes on in the segment that was written last, behind all that may have been written there, which is
    /// more than its valid records: were one that doesn't count written over and the disk forgot it, it
    /// would pass. So no place is written twice in one generation.
    fn resume(&mut self) {
        let log = &self.log;
        let segment = log.state.next_segment();
        let (generation, kind) = log.state.segment(segment);
        if kind != Kind::Open {
            return;
        }
        let behind = (segment + 1) % log.shape.segments;
        if log.state.valid_in(segment).next().is_none() {
            return log.state.set_segment(segment, generation, Kind::Empty);
        }
        let Ok(items) = log.contents(segment) else { return log.state.set_next_segment(behind) };
        let at = log.state.reached(segment);
        let (written, pending) = (at, Vec::new());
        self.open = Some(Open { first: segment, generation, at, written, items, pending });
        if log.state.segment(behind).1 != Kind::Empty {
            // The end came while that was being emptied: what survives of it has its place here.
            self.reclaiming = Some(behind);
        }
    }

    /// Writes some of what waits; all of it, to the last byte, if told so. Returns how many entries it
    /// took. After an error it goes on where it was.
    pub fn step(&mut self, memory: &Memory, all: bool) -> io::Result<usize> {
        if self.filled >= self.log.chunk {
            self.send(memory)?;
        }
        if let Some(segment) = self.reclaiming {
            // What was put there before an error is not to be put there twice.
            self.send_all(memory)?;
            self.reclaim(memory, segment)?;
            self.reclaiming = None;
        }
        let (mut count, mut bytes) = (0, 0);
        while (bytes < self.log.chunk || all)
            && let Some(demotion) = self.again.take().or_else(|| self.log.queue.pop())
        {
            count += 1;
            bytes += self.take(memory, demotion)?;
        }
        if all {
            self.send_all(memory)?;
        }
        if count == 0 && self.log.wants_room.swap(false, Relaxed) {
            // Some of the oldest may have ended.
            self.seal(memory)?;
            self.begin(memory)?;
        }
        Ok(count)
    }

    /// Writes one entry, if it is still wanted; returns the bytes of its record.
    fn take(&mut self, memory: &Memory, demotion: Demotion) -> io::Result<usize> {
        let Demotion { number, keyspace, hash, .. } = demotion;
        let entry = self.log.queue.get(number);
        let from = Slot::queued(number, 0);
        let Some(entry) = entry.filter(|_| memory.has_record(keyspace, hash, from)) else {
            memory.drop_record(keyspace, hash, from);
            self.log.queue.free(number);
            return Ok(0);
        };
        let bytes = record_bytes(&entry);
        let begun = if self.is_long(bytes) {
            self.write_long(memory, keyspace, hash, from, &entry)
        } else {
            let room = self.make_room(memory, bytes);
            room.map(|()| self.put(keyspace, hash, from, &entry))
        };
        if let Err(error) = begun {
            self.again = Some(demotion);
            return Err(error);
        }
        if self.filled >= self.log.chunk {
            self.send(memory)?;
        }
        Ok(bytes)
    }

    fn is_long(&self, bytes: usize) -> bool {
        bytes.next_multiple_of(UNIT) + contents::table_bytes(1) > self.log.shape.segment_bytes
    }

    /// Whether a record fits into the segment that is being written.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        self.open.as_ref().is_some_and(|open| {
            let table = contents::table_bytes(open.items.len() + 1);
            let end = open.at as usize + bytes.next_multiple_of(UNIT);
            end.next_multiple_of(PAGE) + table <= self.log.shape.segment_bytes
        })
    }

    /// Puts one record, for which there is room, behind the last; the index has it as `from`.
    pub(super) fn put(&mut self, keyspace: u32, hash: u64, from: Slot, entry: &EntryRef) {
        let Some((beginning, padding)) = self.note(keyspace, hash, from, entry) else { return };
        for part in [&beginning[..], entry.get().value(), &[0; UNIT][..padding]] {
            self.append(part);
        }
    }

    /// Notes a record that begins where the last one ends; returns its bytes before the value and how
    /// many zeroes follow it.
    fn note(
        &mut self,
        keyspace: u32,
        hash: u64,
        from: Slot,
        entry: &EntryRef,
    ) -> Option<(Vec<u8>, usize)> {
        let open = self.open.as_mut()?;
        let entry = entry.get();
        let meta = entry.meta();
        let bytes = record::size(entry.key().len(), entry.value().len(), &meta);
        let units = record::units(bytes);
        let place = open.first as u64 * self.log.shape.units() + open.at / UNIT as u64;
        let flags = if meta.deadline != 0 { VOLATILE } else { 0 };
        let item = Item { hash, keyspace, slot: Slot::written(place, units, flags) };
        open.items.push(item);
        open.pending.push(Pending { item, from, end: open.at + units * UNIT as u64 });
        let version = self.log.state.next_version();
        let head = Head { generation: open.generation, version, keyspace, meta };
        let beginning = record::beginning(&head, entry.key(), entry.value());
        Some((beginning, units as usize * UNIT - bytes))
    }

    fn append(&mut self, bytes: &[u8]) {
        let end = self.filled + bytes.len();
        if end > self.buffer.len() {
            let mut larger = Buffer::zeroed(end.max(2 * self.log.chunk));
            larger[..self.filled].copy_from_slice(&self.buffer[..self.filled]);
            self.buffer = larger;
        }
        self.buffer[self.filled..end].copy_from_slice(bytes);
        self.filled = end;
        if let Some(open) = &mut self.open {
            open.at += bytes.len() as u64;
        }
    }

    /// Writes what is in the buffer to the last byte.
    pub(super) fn send_all(&mut self, memory: &Memory) -> io::Result<()> {
        let rest = self.filled.next_multiple_of(PAGE) - self.filled;
        self.append(&[0; PAGE][..rest]);
        self.send(memory)
    }

    /// Writes the whole pages in the buffer, and lets the records that end there count.
    fn send(&mut self, memory: &Memory) -> io::Result<()> {
        let whole = self.filled / PAGE * PAGE;
        let Some(open) = self.open.as_mut().filter(|_| whole > 0) else { return Ok(()) };
        let start = (open.first * self.log.shape.segment_bytes) as u64 + open.written;
        self.log.state.set_reached(open.first, open.written + whole as u64);
        if let Err(error) = self.log.write(&self.buffer[..whole], start) {
            self.failures += 1;
            if self.failures >= TRIES && !memory.keeps_all() && !self.writes_long {
                self.give_up(memory);
            }
            return Err(error);
        }
        if !self.writes_long {
            self.failures = 0;
        }
        self.log.ails.store(false, Relaxed);
        open.written += whole as u64;
        let done = open.pending.iter().take_while(|pending| pending.end <= open.written).count();
        for Pending { item, from, .. } in open.pending.drain(..done) {
            memory.move_record(&item, from);
            self.log.let_go(from);
        }
        self.buffer.copy_within(whole..self.filled, 0);
        self.filled -= whole;
        if self.filled == 0 && self.buffer.len() > 2 * self.log.chunk {
            self.buffer = Buffer::zeroed(2 * self.log.chunk);
        }
        self.log.room.notify_waiters();
        Ok(())
    }

    /// Lets go of what can't be written and leaves the segment as it is.
    fn give_up(&mut self, memory: &Memory) {
        let Some(open) = self.open.take() else { return };
        for Pending { item, from, .. } in open.pending {
            memory.drop_record(item.keyspace, item.hash, from);
            self.log.let_go(from);
        }
        let state = &self.log.state;
        if state.valid_in(open.first).next().is_none() {
            // Its turn comes again before the log counts as full.
            state.set_segment(open.first, open.generation, Kind::Empty);
        }
        state.set_next_segment((open.first + 1) % self.log.shape.segments);
        self.filled = 0;
        self.failures = 0;
        self.log.ails.store(true, Relaxed);
        self.log.room.notify_waiters();
    }

    /// Begins another segment if the record doesn't fit into this one.
    fn make_room(&mut self, memory: &Memory, bytes: usize) -> io::Result<()> {
        // What survives of the segment behind takes room in the new one too.
        for _ in 0..self.log.shape.segments {
            if self.has_room(bytes) {
                return Ok(());
            }
            self.seal(memory)?;
            self.begin(memory)?;
        }
        Err(io::ErrorKind::StorageFull.into())
    }

    /// Ends the segment that is being written.
    fn seal(&mut self, memory: &Memory) -> io::Result<()> {
        self.send_all(memory)?;
        if let Some(open) = self.open.take() {
            self.end(open);
        }
        Ok(())
    }

    /// Ends a segment: writes its table.
    fn end(&self, open: Open) {
        let shape = self.log.shape;
        let first_unit = open.first as u64 * shape.units();
        let table = contents::table(&open.items, open.generation, first_unit);
        let start = (open.first + 1) * shape.segment_bytes - table.len();
        // Without its table it is read record by record.
        if open.at as usize + table.len() <= shape.segment_bytes
            && self.log.write(&table, start as u64).is_ok()
        {
            // In this order: an open segment's count is of pages.
            self.log.state.set_segment(open.first, open.generation, Kind::Sealed);
            self.log.state.set_count(open.first, open.items.len());
        }
        self.log.state.set_next_segment((open.first + 1) % shape.segments);
    }

    /// Begins the next segment, which is empty, and empties the one behind it.
    fn begin(&mut self, memory: &Memory) -> io::Result<()> {
        let first = self.log.state.next_segment();
        if self.log.state.segment(first).1 != Kind::Empty {
            // After an end at a bad moment.
            self.forget(memory, first);
        }
        self.open(first, 1, false);
        let behind = (first + 1) % self.log.shape.segments;
        if self.log.state.segment(behind).1 != Kind::Empty {
            self.log.set_full();
            self.reclaiming = Some(behind);
            self.reclaim(memory, behind)?;
            self.reclaiming = None;
        }
        Ok(())
    }

    /// Writes a record that is longer than a segment into segments of its own. If that fails, it begins
    /// again from the start the next time.
    fn write_long(
        &mut self,
        memory: &Memory,
        keyspace: u32,
        hash: u64,
        from: Slot,
        entry: &EntryRef,
    ) -> io::Result<()> {
        self.seal(memory)?;
        let shape = self.log.shape;
        let run = record_bytes(entry).div_ceil(shape.segment_bytes);
        let next = self.log.state.next_segment();
        let first = if next + run > shape.segments { 0 } else { next };
        for segment in (first..=first + run).map(|segment| segment % shape.segments) {
            if self.log.state.segment(segment).1 != Kind::Empty {
                self.log.set_full();
                self.forget(memory, segment);
            }
        }
        self.open(first, run, true);
        self.writes_long = true;
        let written = self.write_parts(memory, keyspace, hash, from, entry);
        self.writes_long = false;
        if written.is_err() {
            self.open = None;
            self.filled = 0;
            (first..first + run).for_each(|segment| self.forget(memory, segment));
            if self.failures >= TRIES {
                self.failures = 0;
                memory.drop_record(keyspace, hash, from);
                self.log.let_go(from);
                return Ok(());
            }
        } else {
            self.failures = 0;
        }
        written
    }

    fn write_parts(
        &mut self,
        memory: &Memory,
        keyspace: u32,
        hash: u64,
        from: Slot,
        entry: &EntryRef,
    ) -> io::Result<()> {
        let Some((beginning, _)) = self.note(keyspace, hash, from, entry) else { return Ok(()) };
        self.append(&beginning);
        for part in entry.get().value().chunks(self.log.chunk) {
            self.append(part);
            self.send(memory)?;
        }
        let unit = self.filled.next_multiple_of(UNIT) - self.filled;
        self.append(&[0; UNIT][..unit]);
        self.send_all(memory)?;
        if let Some(open) = self.open.take() {
            let run = (open.at as usize).div_ceil(self.log.shape.segment_bytes);
            let next = (open.first + run) % self.log.shape.segments;
            self.log.state.set_next_segment(next);
        }
        Ok(())
    }

    fn open(&mut self, first: usize, run: usize, is_long: bool) {
        let state = &self.log.state;
        let generation = state.segment(first).0.wrapping_add(1);
        for segment in (first..first + run).rev() {
            let kind = match (is_long, segment == first) {
                (false, _) => Kind::Open,
                (true, true) => Kind::Long,
                (true, false) => Kind::Part,
            };
            let own = state.segment(segment).0.wrapping_add(1);
            state.set_segment(segment, own, kind);
            state.set_begun(segment, crate::clock::micros() / 1_000_000);
        }
        state.set_next_segment(first);
        let (items, pending) = (Vec::new(), Vec::new());
        self.open = Some(Open { first, generation, at: 0, written: 0, items, pending });
    }

    /// Bytes of memory that it has for the records of the segment which it writes, and for reads.
    pub fn bytes(&self) -> usize {
        let of_open = |open: &Open| {
            open.items.capacity() * size_of::<Item>()
                + open.pending.capacity() * size_of::<Pending>()
        };
        self.open.as_ref().map_or(0, of_open) + self.reads.len()
    }

    /// Whether all that was taken is written.
    pub fn is_done(&self) -> bool {
        self.filled == 0 && self.again.is_none()
    }

    /// Writes all that waits and closes the log.
    pub fn close(mut self, memory: &Memory) -> io::Result<()> {
        while !self.is_done() || self.log.queue.len().0 > 0 {
            self.step(memory, true)?;
        }
        self.log.file.sync()?;
        self.log.state.close()
    }
}

/// Bytes of an entry's record.
pub(super) fn record_bytes(entry: &EntryRef) -> usize {
    let entry = entry.get();
    record::size(entry.key().len(), entry.value().len(), &entry.meta())
}

impl Log {
    fn write(&self, bytes: &[u8], start: u64) -> io::Result<()> {
        add(&self.counters.writes, 1);
        let result = self.file.write_at(bytes, start);
        match &result {
            Ok(()) => add(&self.counters.written_bytes, bytes.len() as u64),
            Err(_) => add(&self.counters.write_errors, 1),
        }
        result
    }

    /// Frees the queue's number of a record that is written or not wanted any more.
    fn let_go(&self, from: Slot) {
        if from.has(super::slot::QUEUED) {
            self.queue.free(from.place() as u32);
        }
    }
}
