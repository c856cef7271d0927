//! What writes: batches in the order of sequence numbers, one sync for each, and between them what keeps
//! the directory small.
//!
//! It alone has the ledger and the files. A thread has it take turns ([`run`]). Where effects needn't be
//! synced before they are acknowledged, whoever waits for them writes them, if only that is to be done
//! ([`Writer::write_here`]), which spares two wakes of a thread.
//!
//! It stops at the first write or sync that fails: what the system then has of the file nobody knows, and
//! asking again would be answered with a success that means nothing ("fsyncgate", 2018).

use std::{
    io, mem,
    path::PathBuf,
    sync::{Arc, atomic::Ordering::Relaxed},
    thread,
    time::Duration,
};

use parking_lot::Mutex;

use super::{
    Fsync, MEMORY,
    format::{self, HEAD, Head, Kind, MAX_RUNS, SegmentHead},
    ledger::{Ledger, Segment},
    recover::{self, Start},
    scan::{self, Scanner, Step},
    shared::{Batch, MANY, Next, Shared, Wait},
    tail::Tail,
};
use crate::{clock, tier::disk::Disk};

/// Bytes of records that one sync is for, about, so that the first don't wait for too many others.
const BATCH: u64 = 16 * 1024 * 1024;
/// Bytes of an old segment that are looked at between two batches.
const COMPACT: u64 = 1024 * 1024;
/// Milliseconds until an old segment that couldn't be read or removed is tried again.
const PAUSE: u64 = 10_000;

/// What is written, and where.
pub(super) struct Writer {
    shared: Arc<Shared>,
    disk: Arc<dyn Disk>,
    ledger: Ledger,
    tail: Tail,
    batch: Batch,
    /// Up to where the log buffer has what is before the batch.
    until: u64,
    /// What the log buffer has is of the last run.
    takes_over: bool,
    /// The batch had something, which the log buffer had no room for.
    spills: bool,
    /// The sequence number of the next effect that is written.
    next: u64,
    /// The ceiling that is written.
    ceiling: u64,
    /// When what is written was last known to be synced.
    synced_at: u64,
    /// Segments below this number go.
    oldest: u64,
    compaction: Option<Scanner>,
    paused_until: u64,
    /// Effects, and bytes of all kinds, that were written.
    written: (u64, u64),
}

/// Poisons the journal if whoever writes panics.
struct Alive<'a>(&'a Shared);

impl Drop for Alive<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.poison("its writer has died");
        }
    }
}

/// Has the writer take turns until the journal is closed, or the disk fails.
pub(super) fn run(writer: &Mutex<Writer>, shared: &Shared) {
    loop {
        let (ceiling, wait, is_timed) = {
            let writer = writer.lock();
            // Once, for what comes between two looks would be waited for by neither.
            let is_timed = writer.is_timed();
            (writer.ceiling, writer.wait(is_timed), is_timed)
        };
        let Some(is_open) = shared.wait(ceiling, &wait, is_timed) else { break };
        let _alive = Alive(shared);
        let mut writer = writer.lock();
        let turn = writer.turn(is_open);
        match turn {
            Ok(true) => {}
            Ok(false) => break,
            Err(why) => writer.fail(&why),
        }
    }
    shared.ended();
}

impl Writer {
    /// Begins a segment behind what was found, with what the log buffer has.
    pub fn new(
        shared: Arc<Shared>,
        disk: Arc<dyn Disk>,
        mut ledger: Ledger,
        begin_at: Start,
    ) -> Result<Self, (PathBuf, io::Error)> {
        let Start { next, id, ceiling, .. } = begin_at;
        let path = recover::path_of(&shared.options.path, id);
        let begun = begin(&*disk, &shared, &mut ledger, begin_at);
        let tail = begun.map_err(|why| (path.clone(), why))?;
        let synced_at = shared.clock.now();
        let until = shared.buffer.end();
        let mut writer = Self {
            shared,
            disk,
            ledger,
            tail,
            batch: Batch::default(),
            until,
            takes_over: true,
            spills: false,
            next,
            ceiling,
            synced_at,
            oldest: 0,
            compaction: None,
            paused_until: 0,
            written: (0, 0),
        };
        if !writer.is_drained() {
            writer.write(ceiling).and_then(|_| writer.sync()).map_err(|why| (path, why))?;
        }
        writer.takes_over = false;
        writer.shared.buffer.begin();
        writer.count();
        Ok(writer)
    }

    /// What the store doesn't have.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    fn fail(&mut self, why: &io::Error) {
        self.shared.counters.write_errors.fetch_add(1, Relaxed);
        self.shared.poison(&format!("it can't be written: {why}"));
    }

    /// Writes what there is, and tells who waits; `false`: nothing will come any more.
    fn turn(&mut self, is_open: bool) -> io::Result<bool> {
        let mut ceiling = self.ceiling;
        if self.batch.is_done() {
            let Some((until, asked)) = self.shared.take(&mut self.batch) else { return Ok(false) };
            (self.until, ceiling) = (until, asked);
        }
        let is_awaited = self.write(ceiling)?;
        let fsync = self.shared.options.fsync;
        if is_awaited && fsync == Fsync::Always || self.is_due() {
            self.sync()?;
        }
        self.tell();
        self.tidy()?;
        self.count();
        let is_over = !is_open && self.batch.is_done();
        if is_over && self.tail.is_dirty() {
            self.sync()?;
        }
        Ok(!is_over)
    }

    /// Writes what there is, by whoever waits for it; what takes more than that is left to the thread.
    pub fn write_here(&mut self) {
        if !self.batch.is_done() || self.shared.options.fsync == Fsync::Always {
            return;
        }
        let shared = self.shared.clone();
        let _alive = Alive(&shared);
        let Some((until, ceiling)) = self.shared.take(&mut self.batch) else { return };
        self.until = until;
        // With a mark before it.
        let size = self.batch.size() + self.shared.buffer.len() + HEAD as u64;
        if size > 2 * MANY || self.tail.len() + size > self.shared.options.segment {
            return;
        }
        let was_dirty = self.tail.is_dirty();
        if let Err(why) = self.write(ceiling) {
            return self.fail(&why);
        }
        self.tell();
        let is_first = !was_dirty && self.tail.is_dirty();
        let syncs = matches!(self.shared.options.fsync, Fsync::Interval(_)) && is_first;
        if syncs || self.has_to_tidy() && self.shared.clock.now() >= self.paused_until {
            self.shared.rouse();
        }
    }

    /// Tells of what is durable by the policy.
    fn tell(&mut self) {
        // Before anybody hears of it, so that the figures have it.
        self.count();
        self.shared.durable.raise(self.next - 1);
        self.shared.ceiling.raise(self.ceiling);
        if self.spills && self.batch.is_done() {
            self.spills = false;
            self.shared.has_written();
        }
    }

    /// Whether the log buffer has nothing that is before the batch.
    fn is_drained(&self) -> bool {
        self.shared.buffer.start() == self.until
    }

    /// How long there may be nothing to do.
    fn wait(&self, is_timed: bool) -> Wait {
        if !self.batch.is_done() || self.shared.buffer.len() >= MANY {
            return Wait::No;
        }
        let now = self.shared.clock.now();
        let tidies = self.has_to_tidy().then(|| self.paused_until.saturating_sub(now).min(PAUSE));
        if tidies == Some(0) {
            return Wait::No;
        }
        let syncs = match self.shared.options.fsync {
            Fsync::Interval(interval) if is_timed => {
                let since = Duration::from_millis(now.saturating_sub(self.synced_at));
                // Not less than a millisecond: a clock that stands isn't asked without end.
                Some(interval.saturating_sub(since).max(Duration::from_millis(1)))
            }
            _ => None,
        };
        let times = [tidies.map(Duration::from_millis), syncs];
        times.into_iter().flatten().min().map_or(Wait::Forever, Wait::For)
    }

    /// Whether there is something to sync when its time has come.
    fn is_timed(&self) -> bool {
        let Shared { options, buffer, .. } = &*self.shared;
        matches!(options.fsync, Fsync::Interval(_)) && (self.tail.is_dirty() || buffer.len() > 0)
    }

    fn is_due(&self) -> bool {
        let Fsync::Interval(interval) = self.shared.options.fsync else { return false };
        let now = self.shared.clock.now();
        // A clock that was set back shows as a sync in the future.
        let since = now.checked_sub(self.synced_at).map(Duration::from_millis);
        self.tail.is_dirty() && since.is_none_or(|since| since >= interval)
    }

    /// Hands the system what was taken of the log buffer and the beginning of the batch; whether somebody waits
    /// for it.
    fn write(&mut self, ceiling: u64) -> io::Result<bool> {
        let raises = ceiling > self.ceiling;
        self.spills |= !self.batch.is_empty();
        let appends = self.batch.has_effects() || !self.is_drained();
        let before = self.next;
        if raises || appends && self.tail.synced > self.tail.marked {
            self.ceiling = self.ceiling.max(ceiling);
            self.mark()?;
        }
        let (mut left, mut freed) = (BATCH, self.drain()?);
        let mut ended = Vec::new();
        let mut batch = mem::take(&mut self.batch);
        while left > 0
            && let Some(next) = batch.next()
        {
            match next {
                Next::Effect(head, body) => {
                    freed += self.acknowledge(mem::take(&mut ended))?;
                    self.make_room(head.record_len())?;
                    let at = self.tail.put(&head, body)?;
                    freed += self.effect_at(&head, at);
                    left = left.saturating_sub(head.record_len());
                }
                Next::Acknowledge(runs) => ended.extend(runs),
            }
        }
        self.batch = batch;
        freed += self.acknowledge(ended)?;
        self.tail.flush()?;
        self.shared.buffer.free(self.until);
        if self.shared.lasts_at_once() {
            self.shared.buffer.prepare(2 * MANY);
        }
        self.shared.room.give_back(freed);
        Ok(raises || self.next > before)
    }

    /// Writes what was taken of the log buffer. Gives back the room of what it supersedes.
    fn drain(&mut self) -> io::Result<u64> {
        let (shared, mut freed) = (self.shared.clone(), 0);
        let mut at = shared.buffer.start();
        while at < self.until {
            let (head, body) = shared
                .buffer
                .read(at)
                .map_err(|defect| io::Error::new(io::ErrorKind::InvalidData, defect.text()))?;
            at = body.end;
            if head.kind == Kind::Acknowledged {
                let mut bytes = Vec::new();
                shared.buffer.read_body(&head, body.start, &mut bytes);
                freed += self.acknowledge(format::decode_runs(&bytes).collect())?;
            } else if head.sequence >= self.next {
                // A start may find some that a segment has, and all have the checksums of the last run.
                let buffer = &shared.buffer;
                self.make_room(head.record_len())?;
                let at = match self.takes_over {
                    true => {
                        self.tail.put_with(&head, |out| buffer.read_body(&head, body.start, out))?
                    }
                    false => {
                        self.tail.put_whole(|out| buffer.read_whole(&head, body.start, out))?
                    }
                };
                freed += self.effect_at(&head, at);
            }
        }
        Ok(freed)
    }

    /// Says how much is synced, and which versions may have been issued.
    fn mark(&mut self) -> io::Result<()> {
        self.make_room(HEAD as u64)?;
        let synced = self.tail.synced;
        let oldest = self.oldest.max(self.ledger.segments().next().map_or(0, |oldest| oldest.id));
        let head = Head {
            version: self.ceiling,
            supersedes: synced,
            deadline: oldest,
            ..Head::bare(Kind::Mark, 0)
        };
        self.tail.put(&head, &[])?;
        self.grow(&head);
        self.tail.marked = synced;
        Ok(())
    }

    /// An effect that wasn't written before has its record here; gives back the room of what it supersedes.
    fn effect_at(&mut self, head: &Head, at: u64) -> u64 {
        self.written.0 += 1;
        self.next = head.sequence + 1;
        self.record_at(head, at)
    }

    /// An effect has its record here; gives back the room of what that ends.
    fn record_at(&mut self, head: &Head, at: u64) -> u64 {
        self.grow(head);
        let segment = self.ledger.newest().map_or(0, |segment| segment.id);
        self.ledger.put(head.sequence, recover::place(segment, at, head), head.supersedes)
    }

    /// The segment has got a record.
    fn grow(&mut self, head: &Head) {
        self.ledger.grow(head.record_len());
        self.written.1 += head.record_len();
    }

    /// Writes down what the store has, the oldest first. Gives back the room of it.
    fn acknowledge(&mut self, runs: Vec<(u64, u64)>) -> io::Result<u64> {
        let numbers =
            runs.iter().flat_map(|(first, last)| *first..self.next.min(last.saturating_add(1)));
        let mut sequences: Vec<u64> =
            numbers.filter(|sequence| self.ledger.place(*sequence).is_some()).collect();
        sequences.sort_unstable();
        let mut freed = 0;
        for runs in format::runs(&sequences).chunks(MAX_RUNS) {
            let body = format::encode_runs(runs);
            self.make_room((HEAD + body.len()) as u64)?;
            let head = Head::acknowledging(runs.len());
            self.tail.put(&head, &body)?;
            self.grow(&head);
            freed += runs.iter().map(|(first, last)| self.ledger.end(*first..=*last)).sum::<u64>();
        }
        Ok(freed)
    }

    /// Goes on in a new segment if a record of this length doesn't fit into this one; one that fits into
    /// none gets its own.
    fn make_room(&mut self, bytes: u64) -> io::Result<()> {
        let len = self.tail.len();
        if len == HEAD as u64 || len + bytes <= self.shared.options.segment {
            return Ok(());
        }
        // Only the newest segment may have a torn end.
        if self.tail.is_dirty() {
            self.sync()?;
        }
        let begin_at = Start {
            id: self.ledger.newest().map_or(0, |segment| segment.id) + 1,
            next: self.next,
            previous_len: len,
            ceiling: self.ceiling,
        };
        self.tail = begin(&*self.disk, &self.shared, &mut self.ledger, begin_at)?;
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let begun = clock::micros();
        self.tail.sync()?;
        self.shared.counters.synced(clock::micros().saturating_sub(begun));
        self.synced_at = self.shared.clock.now();
        Ok(())
    }

    fn has_to_tidy(&self) -> bool {
        let Some(oldest) = self.ledger.oldest_segment() else { return false };
        oldest.live == 0 || self.compaction.is_some() || self.is_large()
    }

    /// Whether more is on disk than there need be.
    fn is_large(&self) -> bool {
        let room = self.ledger.live_bytes().saturating_add(self.shared.options.segment);
        self.ledger.disk_bytes() / 2 > room
    }

    /// Removes old segments of which nothing is needed, and brings nearer the time when the next may go.
    fn tidy(&mut self) -> io::Result<()> {
        if !self.has_to_tidy() || self.shared.clock.now() < self.paused_until {
            return Ok(());
        }
        while let Some(oldest) = self.ledger.oldest_segment().filter(|oldest| oldest.live == 0) {
            let (id, path) = (oldest.id, oldest.path.clone());
            // What took the place of its records has to be as durable as they were; and a start has to know
            // that nobody else took it away.
            self.oldest = id + 1;
            self.mark()?;
            self.sync()?;
            self.compaction = None;
            if let Err(why) = self.disk.remove(&path) {
                self.pause(&format!("{} can't be removed: {why}", path.display()));
                return Ok(());
            }
            // One after the other, so that no older one outlives a newer one.
            self.disk.sync_dir(&self.shared.options.path)?;
            self.ledger.remove_oldest();
        }
        self.compact()
    }

    /// Writes records of the oldest segment again that the store doesn't have. They keep their place in the
    /// order; who reads them puts them there.
    fn compact(&mut self) -> io::Result<()> {
        let Some(oldest) = self.ledger.oldest_segment() else { return Ok(()) };
        if self.compaction.is_none() && !self.is_large() {
            return Ok(());
        }
        let (id, salt, file, len) = (oldest.id, oldest.salt, oldest.file.clone(), oldest.len);
        let mut scanner =
            self.compaction.take().unwrap_or_else(|| Scanner::new(file.clone(), salt, len));
        let until = scanner.at().saturating_add(COMPACT);
        while scanner.at() < until {
            let step = match scanner.step() {
                Ok(Step::Bad(_)) => scanner.find(scanner.at() + 1).map(|next| {
                    scanner.seek(next.unwrap_or(len));
                    Step::End
                }),
                step => step,
            };
            let found = match step {
                Ok(Step::Record(found)) => found,
                Ok(_) if scanner.at() < len => continue,
                Ok(_) => return self.moved(id),
                Err(why) => return self.stuck(id, &why),
            };
            let place = self.ledger.place(found.head.sequence);
            let is_here = |at: u64, segment: u64| at == found.at && segment == id;
            let Some(place) = place.filter(|place| is_here(place.at, place.segment)) else {
                continue;
            };
            let (head, body) = match scan::read(&*file, salt, place.at, place.len) {
                Ok(read) => read,
                Err(why) => return self.stuck(id, &why),
            };
            let head = Head { copy: true, ..head };
            self.make_room(head.record_len())?;
            let at = self.tail.put(&head, &body)?;
            let freed = self.record_at(&head, at);
            debug_assert_eq!(freed, u64::from(place.len) + MEMORY, "it takes its original's room");
            self.shared.counters.compacted.fetch_add(1, Relaxed);
        }
        self.compaction = Some(scanner);
        self.tail.flush()
    }

    /// The segment has been read to its end.
    fn moved(&mut self, id: u64) -> io::Result<()> {
        if self.ledger.segment(id).is_some_and(|segment| segment.live > 0) {
            self.pause(&format!("records of segment {id:x} can't be read any more"));
        }
        self.tail.flush()
    }

    fn stuck(&mut self, id: u64, why: &io::Error) -> io::Result<()> {
        self.pause(&format!("segment {id:x} can't be read: {why}"));
        self.tail.flush()
    }

    fn pause(&mut self, why: &str) {
        tracing::error!("journal: {why}; tried again later");
        self.shared.counters.compaction_errors.fetch_add(1, Relaxed);
        self.paused_until = self.shared.clock.now().saturating_add(PAUSE);
    }

    fn count(&self) {
        let counters = &self.shared.counters;
        counters.disk_bytes.store(self.ledger.disk_bytes(), Relaxed);
        counters.segments.store(self.ledger.segments().len() as u64, Relaxed);
        counters.written.store(self.written.0, Relaxed);
        counters.written_bytes.store(self.written.1, Relaxed);
        counters.unacknowledged.store(self.ledger.live(), Relaxed);
        counters.unacknowledged_bytes.store(self.ledger.live_bytes(), Relaxed);
        counters.oldest.store(self.ledger.oldest().unwrap_or(u64::MAX), Relaxed);
    }
}

/// Makes a segment whose head is durable, before anything is written behind it.
fn begin(
    disk: &dyn Disk,
    shared: &Shared,
    ledger: &mut Ledger,
    begin_at: Start,
) -> io::Result<Tail> {
    let Start { next, id, previous_len, ceiling } = begin_at;
    let (boot, salt, is_buffered) = (disk.boot(), shared.buffer.salt(), shared.buffer.lasts());
    let head = SegmentHead { id, salt, next, previous_len, ceiling, boot, is_buffered };
    let path = recover::path_of(&shared.options.path, id);
    let file = disk.open(&path, false)?;
    file.set_len(0)?;
    file.write_at(&head.encode(), 0)?;
    let begun = clock::micros();
    file.sync()?;
    shared.counters.synced(clock::micros().saturating_sub(begun));
    disk.sync_dir(&shared.options.path)?;
    let tail = Tail::new(file.clone(), salt);
    ledger.begin(Segment::new(id, path, file, salt, HEAD as u64));
    Ok(tail)
}
