//! The threads of L3: a few that read records for flights, and one that writes what memory demotes.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use super::{
    Inner,
    flight::{FetchError, Found, Origin, Pilot},
};
use crate::tier::{
    demote::Known,
    disk::{PAGE, buffer::Buffer},
    entry::Meta,
    log::{Fetched, Log, add, slot::Slot, writer::Writer},
    lookup::Wanted,
    memory::Memory,
};

/// Reads under way at once.
const READERS: usize = 16;
/// Flights that wait for a reader; more are taken for a disk that doesn't answer.
const MOST_WAITING: usize = 1 << 16;
/// A reader's buffer is made smaller again when it is larger than this.
const KEPT_BUFFER: usize = 64 << 10;
/// How long the writer waits for more before it writes less than it would like to.
const IDLE: Duration = Duration::from_millis(500);
/// How long it sleeps at most while nothing comes.
const NAP: Duration = Duration::from_millis(100);
/// How long it pauses at most to keep to the rate: a changed rate has to be noticed.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How long it waits after an error.
const BACKOFF: Duration = Duration::from_millis(100);
/// How long a read may take, unless told otherwise.
const READ_LIMIT: Duration = Duration::from_millis(500);

/// The threads, and what they are told.
pub(super) struct Disk {
    log: Arc<Log>,
    waiting: Arc<Waiting>,
    /// Taken by whoever closes the log.
    pub(super) writer: Arc<Mutex<Option<Writer>>>,
    /// How long a read may take, in microseconds; then it is a miss.
    pub(super) read_limit: AtomicU64,
    /// Bytes a second that may be written; 0: any.
    pub(super) write_rate: Arc<AtomicU64>,
}

/// What a reader does.
enum Job {
    /// Looks for a key.
    Flight(Pilot),
    /// Reads whose record it is.
    Key(Slot, oneshot::Sender<Option<KeyRead>>),
}

/// A key on disk, and when it ends.
pub(super) type KeyRead = (Box<[u8]>, Meta);

#[derive(Default)]
struct Waiting {
    jobs: Mutex<VecDeque<Job>>,
    more: Condvar,
    closed: AtomicBool,
}

impl Waiting {
    /// Gives a job to the readers; gives it back if there are too many.
    fn push(&self, job: Job) -> Result<(), Job> {
        let mut jobs = self.jobs.lock();
        if jobs.len() >= MOST_WAITING || self.closed.load(Relaxed) {
            return Err(job);
        }
        jobs.push_back(job);
        drop(jobs);
        self.more.notify_one();
        Ok(())
    }
}

impl Disk {
    /// Recovers what is on disk into the index, and starts the readers.
    pub(super) fn start(log: &Arc<Log>, memory: &Memory) -> Self {
        log.recover(memory);
        let waiting = Arc::new(Waiting::default());
        for number in 0..READERS {
            let (waiting, log) = (waiting.clone(), log.clone());
            let thread = thread::Builder::new().name(format!("larder-read-{number}"));
            if let Err(why) = thread.spawn(move || read_for_ever(&waiting, &log)) {
                tracing::error!("a thread that reads L3 can't start: {why}");
            }
        }
        Self {
            log: log.clone(),
            waiting,
            writer: Arc::new(Mutex::new((!log.is_snapshot()).then(|| Writer::new(log.clone())))),
            read_limit: AtomicU64::new(READ_LIMIT.as_micros() as u64),
            write_rate: Arc::default(),
        }
    }

    /// Starts the thread that writes; it ends with the cache.
    pub(super) fn write_for(&self, cache: &Arc<Inner>) {
        let (cache, log) = (Arc::downgrade(cache), self.log.clone());
        let (writer, rate) = (self.writer.clone(), self.write_rate.clone());
        let thread = thread::Builder::new().name("larder-write".into());
        if let Err(why) = thread.spawn(move || write_for_ever(&cache, &log, &writer, &rate)) {
            tracing::error!("the thread that writes L3 can't start: {why}");
        }
    }

    /// Has a reader look for a flight's key.
    pub(super) fn fly(&self, pilot: Pilot) {
        if let Err(Job::Flight(pilot)) = self.waiting.push(Job::Flight(pilot)) {
            pilot.go_on_to_store(Err(FetchError::Disk));
        }
    }

    /// Reads the key of a record that is written, unchecked (see [`Log::read_key`]).
    pub(super) async fn read_key(&self, record: Slot) -> Option<KeyRead> {
        let (sender, read) = oneshot::channel();
        self.waiting.push(Job::Key(record, sender)).ok()?;
        let limit = Duration::from_micros(self.read_limit.load(Relaxed));
        tokio::time::timeout(limit, read).await.ok()?.ok()?
    }

    /// Ends the readers, when there is nothing to read any more.
    pub(super) fn end(&self) {
        // Under the lock, so that no reader misses it on its way to sleep, and no job comes after it.
        let jobs = self.waiting.jobs.lock();
        self.waiting.closed.store(true, Relaxed);
        drop(jobs);
        self.waiting.more.notify_all();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.end();
        self.log.queue.rouse();
    }
}

impl Inner {
    /// How long a flight is waited for while it looks into L3.
    pub(super) fn disk_patience(&self, writes: bool) -> Option<Duration> {
        let disk = self.disk.as_ref()?;
        let limit = Duration::from_micros(disk.read_limit.load(Relaxed));
        Some(if writes { limit.max(self.store_timeout()) } else { limit })
    }

    /// Counts a flight that wasn't waited for.
    pub(super) fn note_slow_disk(&self) {
        if let Some(disk) = &self.disk {
            add(&disk.log.counters.timeouts, 1);
        }
    }
}

fn read_for_ever(waiting: &Waiting, log: &Log) {
    let mut buffer = Buffer::zeroed(PAGE);
    loop {
        let mut jobs = waiting.jobs.lock();
        let job = loop {
            if let Some(job) = jobs.pop_front() {
                break job;
            }
            if waiting.closed.load(Relaxed) {
                return;
            }
            waiting.more.wait(&mut jobs);
        };
        drop(jobs);
        match job {
            Job::Flight(pilot) => {
                let found = look(&pilot, &mut buffer);
                pilot.go_on_to_store(found);
            }
            Job::Key(record, sender) => {
                let read = match log.read_key(&mut buffer, record) {
                    Fetched::Found(read) => Some(read),
                    _ => None,
                };
                // Who asked may have gone.
                let _ = sender.send(read);
            }
        }
        if buffer.len() > KEPT_BUFFER {
            buffer = Buffer::zeroed(PAGE);
        }
    }
}

/// Looks for a flight's key in L3 and, if it is there, brings it into memory.
fn look(pilot: &Pilot, buffer: &mut Buffer) -> Result<Found, FetchError> {
    let Pilot { cache, db, key, hash, .. } = pilot;
    let wanted = Wanted { db: *db, key, hash: *hash, now: cache.clock.now() };
    let found = cache.memory.look_below(wanted, buffer).map_err(|why| {
        tracing::debug!("L3 can't be read: {why}");
        FetchError::Disk
    })?;
    let Some((entry, record)) = found else {
        return Ok(Found { entry: None, known: Known::None });
    };
    let known = Known::Record(record);
    Ok(Found { entry: Some((pilot.install(entry, known), Origin::Disk)), known })
}

fn write_for_ever(
    cache: &Weak<Inner>,
    log: &Log,
    writer: &Mutex<Option<Writer>>,
    rate: &AtomicU64,
) {
    let mut last = Instant::now();
    loop {
        let Some(cache) = cache.upgrade() else { return };
        let before = log.counters.written_bytes.load(Relaxed);
        let mut writer = writer.lock();
        let Some(open) = writer.as_mut() else { return };
        let is_idle = last.elapsed() > IDLE && !open.is_done();
        let result = open.step(&cache.memory, is_idle);
        drop(writer);
        // It may be the last one who has the cache.
        drop(cache);
        match result {
            Ok(0) => log.queue.sleep(NAP),
            Ok(_) => last = Instant::now(),
            Err(why) => {
                tracing::warn!("L3 can't be written: {why}");
                thread::sleep(BACKOFF);
            }
        }
        let written = log.counters.written_bytes.load(Relaxed) - before;
        let rate = rate.load(Relaxed);
        if rate != 0 && written > 0 {
            let pause = Duration::from_secs_f64(written as f64 / rate as f64);
            thread::sleep(pause.min(LONGEST_PAUSE));
        }
    }
}
