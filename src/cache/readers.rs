//! The threads that read L3: one for some cores, with many reads under way in its [`Ring`], or, where
//! the system or the disk has no rings, several that wait for one read each.

use std::{
    collections::VecDeque,
    io,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use slab::Slab;

use super::job::Job;
use crate::tier::{
    disk::{
        PAGE,
        buffer::Buffer,
        ring::{Bell, Ring},
    },
    log::{Log, add, read::Span},
};
use crate::vitals::Vitals;

/// Jobs that wait for a reader; more are taken for a disk that doesn't answer.
const MOST_WAITING: usize = 1 << 16;
/// Reads under way at once without a ring: as many threads.
const THREADS: usize = 16;
/// Reads that a ring has under way at once, and bytes.
const READS: usize = 64;
const MOST_BYTES: usize = 32 << 20;
/// Cores for which there is one ring, and the most rings.
const CORES_PER_RING: usize = 4;
const MOST_RINGS: usize = 8;
/// Buffers that are kept are this long: a record of up to a page straddles two.
const BUFFER: usize = 2 * PAGE;
/// A reader's own buffer is made smaller again when it is larger than this.
const KEPT_BUFFER: usize = 64 << 10;
/// How long a ring that fails waits before it goes on.
const BACKOFF: Duration = Duration::from_millis(10);

/// The readers, and what waits for them.
pub(super) struct Readers(Arc<Waiting>);

#[derive(Default)]
struct Waiting {
    state: Mutex<State>,
    /// Wakes a thread without a ring.
    more: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    /// The bells of the rings that wait for nothing but their reads, with their numbers.
    asleep: Vec<(usize, Bell)>,
    is_closed: bool,
}

impl Readers {
    /// Starts the threads.
    pub(super) fn start(log: &Arc<Log>, vitals: &Vitals) -> Self {
        let waiting = Arc::new(Waiting::default());
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let rings = (cores / CORES_PER_RING).clamp(1, MOST_RINGS);
        for number in 0..rings {
            let all = vitals.clone();
            spawn(number, log, &waiting, vitals, move |log, waiting| {
                let made = Bell::new().and_then(|bell| {
                    let has_none = || io::Error::from(io::ErrorKind::Unsupported);
                    log.file().descriptor().ok_or_else(has_none)?;
                    Ok((Ring::new(READS as u32, bell.clone())?, bell))
                });
                match made {
                    Ok((ring, bell)) => RingReader::new(number, log, waiting, ring, bell).run(),
                    Err(why) => {
                        tracing::debug!("L3 is read without io_uring: {why}");
                        for more in 0..THREADS / rings {
                            let number = rings + more * rings + number;
                            spawn(number, log, waiting, &all, read_one_by_one);
                        }
                    }
                }
            });
        }
        Self(waiting)
    }

    /// Gives a job to the readers. If there are too many, it is answered as by a disk that is too slow.
    pub(super) fn push(&self, job: Job) {
        let mut state = self.0.state.lock();
        if state.jobs.len() >= MOST_WAITING || state.is_closed {
            drop(state);
            return job.give_up();
        }
        state.jobs.push_back(job);
        let sleeper = state.asleep.pop();
        drop(state);
        match sleeper {
            Some((_, bell)) => bell.ring(),
            None => drop(self.0.more.notify_one()),
        }
    }

    /// Ends the threads, when there is nothing to read any more.
    pub(super) fn end(&self) {
        // Under the lock, so that no reader misses it on its way to sleep, and no job comes after it.
        let mut state = self.0.state.lock();
        state.is_closed = true;
        let asleep = std::mem::take(&mut state.asleep);
        drop(state);
        asleep.iter().for_each(|(_, bell)| bell.ring());
        self.0.more.notify_all();
    }
}

fn spawn(
    number: usize,
    log: &Arc<Log>,
    waiting: &Arc<Waiting>,
    vitals: &Vitals,
    run: impl FnOnce(&Arc<Log>, &Arc<Waiting>) + Send + 'static,
) {
    let (log, waiting) = (log.clone(), waiting.clone());
    let thread = thread::Builder::new().name(format!("larder-read-{number}"));
    let alive = vitals.guard("a thread that reads L3");
    let read = move || {
        let _alive = alive;
        run(&log, &waiting);
    };
    if let Err(why) = thread.spawn(read) {
        tracing::error!("a thread that reads L3 can't start: {why}");
    }
}

fn read_one_by_one(log: &Arc<Log>, waiting: &Arc<Waiting>) {
    let mut buffer = Buffer::zeroed(BUFFER);
    loop {
        let mut state = waiting.state.lock();
        let mut job = loop {
            if let Some(job) = state.jobs.pop_front() {
                break job;
            }
            if state.is_closed {
                return;
            }
            waiting.more.wait(&mut state);
        };
        drop(state);
        while let Some(span) = job.next(log) {
            let started = Instant::now();
            let read = log.read_span(&mut buffer, &span);
            job.take(log, read, started.elapsed());
        }
        if buffer.len() > KEPT_BUFFER {
            buffer = Buffer::zeroed(BUFFER);
        }
    }
}

/// A thread with a ring.
struct RingReader<'a> {
    number: usize,
    log: &'a Log,
    waiting: &'a Waiting,
    ring: Ring,
    bell: Bell,
    running: Slab<Running>,
    /// Bytes of the reads under way.
    bytes: usize,
    spare: Vec<Buffer>,
}

/// A job with a read under way.
struct Running {
    job: Job,
    span: Span,
    started: Instant,
}

impl<'a> RingReader<'a> {
    fn new(number: usize, log: &'a Log, waiting: &'a Waiting, ring: Ring, bell: Bell) -> Self {
        let (running, spare) = (Slab::with_capacity(READS), Vec::new());
        Self { number, log, waiting, ring, bell, running, bytes: 0, spare }
    }

    fn run(mut self) {
        let (mut jobs, mut ended) = (Vec::with_capacity(READS), Vec::with_capacity(READS));
        while let Some(is_asleep) = self.take_jobs(&mut jobs) {
            for job in jobs.drain(..) {
                self.go_on(job);
            }
            if !is_asleep && self.running.is_empty() {
                // None of them needed the disk, and more wait.
                continue;
            }
            if let Err(why) = self.ring.wait(&mut ended) {
                tracing::warn!("io_uring fails: {why}");
                thread::sleep(BACKOFF);
            }
            for ended in ended.drain(..) {
                let Running { mut job, span, started } = self.running.remove(ended.token);
                self.bytes -= span.len;
                let read = ended.read.map(|count| span.of(&ended.buffer[..count]));
                if read.is_ok() {
                    add(&self.log.counters.read_bytes, span.len as u64);
                }
                job.take(self.log, read, started.elapsed());
                if ended.buffer.len() == BUFFER && self.spare.len() < READS {
                    self.spare.push(ended.buffer);
                }
                self.go_on(job);
            }
        }
    }

    /// Takes as many of the jobs that wait as there is room for, and says whether the next one that comes
    /// rings the bell, which it does if no more wait. `None` if there will be none, and none is under way.
    fn take_jobs(&self, jobs: &mut Vec<Job>) -> Option<bool> {
        let mut state = self.waiting.state.lock();
        let is_asleep = |(number, _): &(usize, Bell)| *number == self.number;
        if let Some(at) = state.asleep.iter().position(is_asleep) {
            state.asleep.swap_remove(at);
        }
        let has_room = self.running.is_empty() || self.bytes < MOST_BYTES;
        let room = if has_room { READS - self.running.len() } else { 0 };
        let count = room.min(state.jobs.len());
        jobs.extend(state.jobs.drain(..count));
        let sleeps = state.jobs.is_empty() && !state.is_closed;
        if sleeps {
            state.asleep.push((self.number, self.bell.clone()));
        }
        let has_ended = state.is_closed && jobs.is_empty() && self.running.is_empty();
        (!has_ended || !state.jobs.is_empty()).then_some(sleeps)
    }

    /// Begins a job's next read, if it needs one.
    fn go_on(&mut self, mut job: Job) {
        let Some(span) = job.next(self.log) else { return };
        let spare = if span.len <= BUFFER { self.spare.pop() } else { None };
        let buffer = spare.unwrap_or_else(|| Buffer::zeroed(span.len.max(BUFFER)));
        self.bytes += span.len;
        let token = self.running.insert(Running { job, span, started: Instant::now() });
        self.ring.begin(token, self.log.file(), buffer, span.first, span.len);
    }
}
