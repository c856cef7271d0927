//! The threads of L3: a few that read records for flights, and one that writes what memory demotes.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::{
    Inner,
    job::{Job, Peek, Search},
    pilot::Pilot,
    readers::Readers,
};
use crate::tier::{
    log::{Log, add, read::KeyRead, slot::Slot, writer::Writer},
    memory::Memory,
};
use crate::vitals::Vitals;

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
    readers: Readers,
    /// Taken by whoever closes the log.
    pub(super) writer: Arc<Mutex<Option<Writer>>>,
    /// How long a read may take, in microseconds; then it is a miss.
    pub(super) read_limit: AtomicU64,
    /// Bytes a second that may be written; 0: any.
    pub(super) write_rate: Arc<AtomicU64>,
}

impl Disk {
    /// Recovers what is on disk into the index, and starts the readers.
    pub(super) fn start(log: &Arc<Log>, memory: &Memory, vitals: &Vitals) -> Self {
        log.recover(memory);
        let readers = Readers::start(log, vitals);
        Self {
            log: log.clone(),
            readers,
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
        let Some(vitals) = cache.upgrade().map(|cache| cache.vitals.clone()) else { return };
        let alive = vitals.guard("the thread that writes L3");
        let write = move || {
            let _alive = alive;
            write_for_ever(&cache, &log, &writer, &rate);
        };
        if let Err(why) = thread.spawn(write) {
            tracing::error!("the thread that writes L3 can't start: {why}");
        }
    }

    /// Looks for a flight's key.
    pub(super) fn fly(&self, pilot: Pilot) {
        self.readers.push(Job::Search(Search::new(pilot)));
    }

    /// Reads the key of a record that is written, unchecked (see [`Log::judge_key`]).
    pub(super) async fn read_key(&self, record: Slot) -> Option<KeyRead> {
        let (key, read) = Peek::new(record);
        self.readers.push(Job::Peek(key));
        let limit = Duration::from_micros(self.read_limit.load(Relaxed));
        tokio::time::timeout(limit, read).await.ok()?.ok()?
    }

    /// Ends the readers, when there is nothing to read any more.
    pub(super) fn end(&self) {
        self.readers.end();
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

fn write_for_ever(
    cache: &Weak<Inner>,
    log: &Log,
    writer: &Mutex<Option<Writer>>,
    rate: &AtomicU64,
) {
    let mut last = Instant::now();
    // How long nothing is to be written, for what was.
    let mut owed = Duration::ZERO;
    loop {
        if rate.load(Relaxed) == 0 {
            owed = Duration::ZERO;
        }
        let pause = owed.min(LONGEST_PAUSE);
        thread::sleep(pause);
        owed -= pause;
        let Some(cache) = cache.upgrade() else { return };
        if owed > Duration::ZERO {
            continue;
        }
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
            owed += Duration::from_secs_f64(written as f64 / rate as f64);
        }
    }
}
