//! The writer: takes what waits in the queue and writes it behind the last record.
//!
//! Bytes are gathered in a buffer and written a mebibyte at a time, in whole pages. A record counts once
//! all of it is written: then, under its key's stripe lock, its index entry changes from the queue's
//! number to its place, unless the key was changed meanwhile. Beside the segments that are written one is
//! always empty: when it is begun, another one is reclaimed.
//!
//! Two segments are written at a time: one has what comes from memory, the other what survives a reclaim,
//! so that the hot records come to stand together and their segments can be passed over. (Small logs, and
//! those that may forget nothing, do with the first.) The buffer is for one of them at a time.
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
    record,
    slot::{Slot, VOLATILE},
    state::Kind,
};

/// Bytes that are written at once, at most.
pub const CHUNK: usize = 1 << 20;
/// How often a write is tried at the same place.
const TRIES: u32 = 3;

/// Segments below which survivors have none of their own.
const FEW: usize = 16;

/// The two that are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Head {
    /// For what comes from memory.
    Fresh,
    /// For what survives.
    Again,
}

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
    heads: [Option<Open>; 2],
    /// The one that the buffer is for.
    head: Head,
    buffer: Buffer,
    filled: usize,
    failures: u32,
    /// Whether what is written is one record longer than a segment: it begins again after a failure, which
    /// counts until all of it is written.
    writes_long: bool,
    /// The demotion that failed to be written.
    again: Option<Demotion>,
    /// Whether no segment is empty: one is to be reclaimed before all else.
    lacks_empty: bool,
    pub(super) allowance: Allowance,
    pub(super) reads: Buffer,
}

impl Writer {
    /// A writer that goes on where the last one ended.
    pub fn new(log: Arc<Log>) -> Self {
        let mut writer = Self {
            heads: [None, None],
            head: Head::Fresh,
            buffer: Buffer::zeroed(2 * log.chunk),
            filled: 0,
            failures: 0,
            writes_long: false,
            again: None,
            lacks_empty: false,
            allowance: Allowance::default(),
            reads: Buffer::zeroed(PAGE),
            log,
        };
        writer.resume();
        writer
    }

    /// Goes on in the segments that were being written, behind all that may have been written there, which is
    /// more than their valid records: were one that doesn't count written over and the disk forgot it, it
    /// would pass. So no place is written twice in one generation.
    fn resume(&mut self) {
        let log = self.log.clone();
        let state = log.state();
        // The newest is most often the one for what comes from memory, which is the first.
        for first in state.in_turn().into_iter().rev() {
            let (generation, kind) = state.segment(first);
            if kind != Kind::Open {
                continue;
            }
            if state.valid_in(first).next().is_none() {
                state.set_segment(first, generation, Kind::Empty);
                continue;
            }
            let Ok(items) = log.contents(first) else { continue };
            let at = state.reached(first);
            let open = Open { first, generation, at, written: at, items, pending: Vec::new() };
            match self.heads.iter_mut().find(|head| head.is_none()) {
                Some(head) => *head = Some(open),
                None => self.end(open),
            }
        }
        // Then the end came while one was being emptied: what survives of it has its place here.
        self.lacks_empty =
            self.heads[Head::Fresh as usize].is_some() && state.empty_segments().next().is_none();
    }

    /// Writes some of what waits; all of it, to the last byte, if told so. Returns how many entries it
    /// took. After an error it goes on where it was.
    pub fn step(&mut self, memory: &Memory, all: bool) -> io::Result<usize> {
        self.send_chunk(memory)?;
        if self.lacks_empty {
            // What was taken before an error is not to be taken twice.
            self.send_all(memory)?;
            self.empty_one(memory)?;
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
        if count == 0 && self.log.wants_room.swap(false, Relaxed) && self.log.has_volatile() {
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
            room.map(|()| self.put(keyspace, hash, from, &entry, self.log.state.next_version()))
        };
        if let Err(error) = begun {
            self.again = Some(demotion);
            return Err(error);
        }
        self.send_chunk(memory)?;
        Ok(bytes)
    }

    fn is_long(&self, bytes: usize) -> bool {
        bytes.next_multiple_of(UNIT) + contents::table_bytes(1) > self.log.shape.segment_bytes
    }

    fn open(&self) -> Option<&Open> {
        self.heads[self.head as usize].as_ref()
    }

    fn open_mut(&mut self) -> Option<&mut Open> {
        self.heads[self.head as usize].as_mut()
    }

    fn take_open(&mut self) -> Option<Open> {
        self.heads[self.head as usize].take()
    }

    /// Goes on with the other one of the segments that are written.
    pub(super) fn turn_to(&mut self, memory: &Memory, head: Head) -> io::Result<()> {
        if self.head != head {
            self.send_all(memory)?;
            self.head = head;
        }
        Ok(())
    }

    /// Whether a record fits into one of the segments that are written.
    pub(super) fn has_room(&self, head: Head, bytes: usize) -> bool {
        self.heads[head as usize].as_ref().is_some_and(|open| {
            let table = contents::table_bytes(open.items.len() + 1);
            let end = open.at as usize + bytes.next_multiple_of(UNIT);
            end.next_multiple_of(PAGE) + table <= self.log.shape.segment_bytes
        })
    }

    /// Puts one record, for which there is room, behind the last; the index has it as `from`.
    pub(super) fn put(
        &mut self,
        keyspace: u32,
        hash: u64,
        from: Slot,
        entry: &EntryRef,
        version: u64,
    ) {
        let noted = self.note(keyspace, hash, from, entry, version);
        let Some((beginning, padding)) = noted else { return };
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
        version: u64,
    ) -> Option<(Vec<u8>, usize)> {
        let segment_units = self.log.shape.units();
        let open = self.open_mut()?;
        let entry = entry.get();
        let meta = entry.meta();
        let bytes = record::size(entry.key().len(), entry.value().len(), &meta);
        let units = record::units(bytes);
        let place = open.first as u64 * segment_units + open.at / UNIT as u64;
        let flags = if meta.deadline != 0 { VOLATILE } else { 0 };
        let item = Item { hash, keyspace, slot: Slot::written(place, units, flags) };
        open.items.push(item);
        open.pending.push(Pending { item, from, end: open.at + units * UNIT as u64 });
        let head = record::Head { generation: open.generation, version, keyspace, meta };
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
        if let Some(open) = self.open_mut() {
            open.at += bytes.len() as u64;
        }
    }

    /// Writes what is in the buffer to the last byte.
    pub(super) fn send_all(&mut self, memory: &Memory) -> io::Result<()> {
        let rest = self.filled.next_multiple_of(PAGE) - self.filled;
        self.append(&[0; PAGE][..rest]);
        self.send(memory)
    }

    /// Writes what is in the buffer, if it is much.
    pub(super) fn send_chunk(&mut self, memory: &Memory) -> io::Result<()> {
        if self.filled >= self.log.chunk { self.send(memory) } else { Ok(()) }
    }

    /// Writes the whole pages in the buffer, and lets the records that end there count.
    fn send(&mut self, memory: &Memory) -> io::Result<()> {
        let whole = self.filled / PAGE * PAGE;
        let Some(open) = self.open().filter(|_| whole > 0) else { return Ok(()) };
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
        let Some(open) = &mut self.heads[self.head as usize] else { return Ok(()) };
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
        let Some(open) = self.take_open() else { return };
        for Pending { item, from, .. } in open.pending {
            memory.drop_record(item.keyspace, item.hash, from);
            self.log.let_go(from);
        }
        let state = &self.log.state;
        if state.valid_in(open.first).next().is_none() {
            state.set_segment(open.first, open.generation, Kind::Empty);
        }
        self.filled = 0;
        self.failures = 0;
        self.log.ails.store(true, Relaxed);
        self.log.room.notify_waiters();
    }

    /// Begins another segment if the record doesn't fit into this one.
    fn make_room(&mut self, memory: &Memory, bytes: usize) -> io::Result<()> {
        // What survives of a reclaim may take room in the new one too.
        for _ in 0..self.log.shape.segments {
            if self.has_room(Head::Fresh, bytes) {
                return Ok(());
            }
            self.seal(memory)?;
            self.begin(memory)?;
        }
        Err(io::ErrorKind::StorageFull.into())
    }

    /// Ends the segment that the buffer is for.
    pub(super) fn seal(&mut self, memory: &Memory) -> io::Result<()> {
        self.send_all(memory)?;
        if let Some(open) = self.take_open() {
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
        self.log.state.give_turn(open.first);
    }

    /// Begins a segment that is empty, and sees to it that another one is.
    fn begin(&mut self, memory: &Memory) -> io::Result<()> {
        let empty = self.log.state.empty_segments().next();
        let first = empty.unwrap_or_else(|| self.forget_one(memory));
        self.begin_at(first, 1, false);
        self.lacks_empty = true;
        self.empty_one(memory)
    }

    /// Reclaims segments until one is empty. After an error it has to be called again.
    fn empty_one(&mut self, memory: &Memory) -> io::Result<()> {
        while self.log.state.empty_segments().next().is_none() {
            self.log.set_wrapped();
            let Some(segment) = self.victim(memory) else { break };
            let fitted = self.reclaim(memory, segment)?;
            if !fitted && self.log.shape.segments >= FEW && !memory.keeps_all() {
                // The survivors of the next one, and of those after it, have this one.
                self.turn_to(memory, Head::Again)?;
                self.seal(memory)?;
                self.begin_at(segment, 1, false);
            }
        }
        self.turn_to(memory, Head::Fresh)?;
        self.lacks_empty = false;
        Ok(())
    }

    /// Empties the oldest segment, after an end at a bad moment or for a long record.
    fn forget_one(&self, memory: &Memory) -> usize {
        let oldest = self.in_turn().first().copied().unwrap_or(0);
        self.log.set_wrapped();
        self.forget(memory, oldest);
        oldest
    }

    /// The segments that are neither empty nor written, in the order in which they are reclaimed.
    pub(super) fn in_turn(&self) -> Vec<usize> {
        let mut segments = self.log.state.in_turn();
        let is_written = |segment| self.heads.iter().flatten().any(|open| open.first == segment);
        segments.retain(|segment| !is_written(*segment));
        segments
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
        for head in [Head::Again, Head::Fresh] {
            self.turn_to(memory, head)?;
            self.seal(memory)?;
        }
        let shape = self.log.shape;
        let run = record_bytes(entry).div_ceil(shape.segment_bytes);
        // The first of another long record comes before its parts, in turn and in place.
        let next =
            self.log.state.empty_segments().next().or_else(|| self.in_turn().first().copied());
        let first = next.filter(|next| next + run <= shape.segments).unwrap_or(0);
        for segment in first..first + run {
            if self.log.state.segment(segment).1 != Kind::Empty {
                self.log.set_wrapped();
                self.forget(memory, segment);
            }
        }
        self.begin_at(first, run, true);
        self.writes_long = true;
        let written = self.write_parts(memory, keyspace, hash, from, entry);
        self.writes_long = false;
        if written.is_err() {
            self.take_open();
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
        let version = self.log.state.next_version();
        let noted = self.note(keyspace, hash, from, entry, version);
        let Some((beginning, _)) = noted else { return Ok(()) };
        self.append(&beginning);
        for part in entry.get().value().chunks(self.log.chunk) {
            self.append(part);
            self.send(memory)?;
        }
        let unit = self.filled.next_multiple_of(UNIT) - self.filled;
        self.append(&[0; UNIT][..unit]);
        self.send_all(memory)?;
        self.take_open();
        if self.log.state.empty_segments().next().is_none() {
            self.forget_one(memory);
        }
        Ok(())
    }

    pub(super) fn begin_at(&mut self, first: usize, run: usize, is_long: bool) {
        let state = &self.log.state;
        let generation = state.segment(first).0.wrapping_add(1);
        for segment in first..first + run {
            let kind = match (is_long, segment == first) {
                (false, _) => Kind::Open,
                (true, true) => Kind::Long,
                (true, false) => Kind::Part,
            };
            let own = state.segment(segment).0.wrapping_add(1);
            state.set_segment(segment, own, kind);
            state.set_begun(segment, crate::clock::micros() / 1_000_000);
            state.give_turn(segment);
        }
        for counts in [&self.log.hot, &self.log.valid] {
            counts[first].store(0, Relaxed);
        }
        let (items, pending) = (Vec::new(), Vec::new());
        let open = Open { first, generation, at: 0, written: 0, items, pending };
        self.heads[self.head as usize] = Some(open);
    }

    /// Bytes of memory that it has for the records of the segments which it writes, and for reads.
    pub fn bytes(&self) -> usize {
        let of_open = |open: &Open| {
            open.items.capacity() * size_of::<Item>()
                + open.pending.capacity() * size_of::<Pending>()
        };
        self.heads.iter().flatten().map(of_open).sum::<usize>() + self.reads.len()
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
