//! Warm restart: memory goes to disk at a clean stop and comes back at the next start, hottest first.
//!
//! Where there is a disk tier, what memory has and the disk hasn't is written to its log, and a list says
//! which records were in memory, the hottest first. Where there is none, memory is written to a log of
//! its own, a *snapshot*, in this order. Either comes back as L3 does: first the index, before anything
//! is served, so that a write or a delete reaches what isn't loaded yet (SEMANTICS 8); then, while the
//! cache serves, the entries, until memory is full. A snapshot that has served is removed.
//!
//! ```text
//!  dir/hot   | "LARDERHT" | format u64 | entry | entry | ... | CRC-32 of the entries, u32 |
//!  entry     | hash u64 | keyspace u32 | nothing u32 | slot u64 |
//! ```

use std::{
    fs, io,
    io::{Read, Write},
    path::{Path, PathBuf},
    sync::{Arc, Weak, atomic::Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use super::{Cache, Inner};
use crate::tier::{
    demote::Known,
    disk::{PAGE, buffer::Buffer},
    entry::EntryRef,
    eviction::COLDNESS,
    log::{self, Log, UNIT, contents::Item, record, slot::Slot, writer::Writer},
    memory::{Memory, Options},
    shelf::has_ended,
};

const MAGIC: &[u8; 8] = b"LARDERHT";
const FORMAT: u64 = 1;
const ENTRY: usize = 24;
/// Records that are brought back at a time.
const BATCH: usize = 1024;
/// Bytes that are read at once, and the bytes between two records that are read rather than skipped.
const EXTENT: usize = 1 << 20;
const GAP: u64 = (16 << 10) / UNIT as u64;
/// The least size of a snapshot, in bytes.
const SNAPSHOT_LEAST: u64 = 16 << 20;
/// Bytes that may wait to be written to a snapshot.
const SNAPSHOT_QUEUE: usize = 4 << 20;

/// How memory is saved.
#[derive(Clone, Debug)]
pub struct Save {
    /// The directory of a snapshot, where there is no disk tier.
    pub dir: PathBuf,
    /// The run that saves, so that a run which does without the snapshot makes it useless.
    pub run: Option<u64>,
    /// How long it may take; what isn't written by then is lost.
    pub limit: Duration,
}

/// What was saved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Saved {
    /// Entries that will come back.
    pub entries: usize,
    /// Whether that is all.
    pub complete: bool,
}

impl Cache {
    /// Ends the work on disk, and saves memory if told so. Call it when no command runs any more; calls of
    /// stores may.
    pub fn close(&self, save: Option<&Save>) -> io::Result<Saved> {
        let inner = &self.0;
        let memory = &inner.memory;
        inner.forget_unsettled();
        match memory.log() {
            Some(log) if !log.is_snapshot() => {
                let Some(mut writer) =
                    inner.disk.as_ref().and_then(|disk| disk.writer.lock().take())
                else {
                    return Ok(Saved::default());
                };
                let mut saved = Saved::default();
                if let Some(save) = save {
                    let until = Instant::now() + save.limit;
                    saved = write_all(memory, memory, &mut writer, until, inner.clock.now())?;
                    writer.step(memory, true)?;
                    saved.entries = write_list(&hot_list(log.dir()), memory, inner.clock.now())?;
                }
                writer.close(memory)?;
                Ok(saved)
            }
            loaded => {
                // What a snapshot still holds has to be in memory to be in the next one.
                if let Some(log) = loaded.filter(|_| inner.has_below.load(Relaxed)) {
                    load_snapshot(&Arc::downgrade(inner), log);
                }
                let Some(save) = save else { return Ok(Saved::default()) };
                save_snapshot(memory, save, inner.clock.now())
            }
        }
    }

    /// Brings back in the background what memory had when it was saved, by a thread that ends then.
    pub fn warm_up(&self) -> Option<thread::JoinHandle<()>> {
        let log = self.0.memory.log()?.clone();
        let cache = Arc::downgrade(&self.0);
        let thread = thread::Builder::new().name("larder-warm".into());
        let spawned = thread.spawn(move || {
            if log.is_snapshot() { load_snapshot(&cache, &log) } else { load_list(&cache, &log) }
        });
        let explain = |why: &io::Error| {
            tracing::error!("the thread that warms memory can't start: {why}");
        };
        spawned.inspect_err(explain).ok()
    }
}

/// Writes what memory has and the target's log hasn't, the hottest first.
fn write_all(
    memory: &Memory,
    target: &Memory,
    writer: &mut Writer,
    until: Instant,
    now: u64,
) -> io::Result<Saved> {
    let is_own = std::ptr::eq(memory, target);
    let mut saved = Saved { entries: 0, complete: true };
    for coldness in 0..COLDNESS {
        for stripe in 0..memory.stripes() {
            let mut found = memory.of_coldness(stripe, coldness, false, now);
            if !is_own {
                found.extend(memory.of_coldness(stripe, coldness, true, now));
            }
            for (db, mut entry) in found {
                let log = target.log();
                if !log.is_some_and(|log| log.fits(entry.get(), is_own && memory.keeps_all())) {
                    saved.complete = false;
                    continue;
                }
                if Instant::now() >= until || !has_room(target, is_own) {
                    return Ok(Saved { complete: false, ..saved });
                }
                while let Err(back) = target.enqueue(db, entry, is_own) {
                    entry = back;
                    writer.step(target, false)?;
                }
                saved.entries += 1;
            }
        }
    }
    Ok(saved)
}

/// Whether more may be written without writing over what was written before it.
fn has_room(target: &Memory, is_own: bool) -> bool {
    let Some(log) = target.log() else { return false };
    if is_own {
        !target.keeps_all() || log.may_keep(target.keeps(true))
    } else {
        !log.has_wrapped()
    }
}

/// Saves memory in a snapshot, in the place of an older one.
fn save_snapshot(memory: &Memory, save: &Save, now: u64) -> io::Result<Saved> {
    let until = Instant::now() + save.limit;
    let new = save.dir.with_extension("new");
    remove(&new)?;
    // The file is sparse; values that fit segments badly leave room unused.
    let size = (memory.used() as u64 * 3).max(SNAPSHOT_LEAST);
    let options = log::Options {
        snapshot: true,
        queue: SNAPSHOT_QUEUE,
        runs: save.run.map(|this| log::Runs { last: 0, this }),
        ..log::Options::new(&new, size)
    };
    let log = Arc::new(Log::open(&options)?);
    // Its index, for as long as it takes.
    let target = Memory::new(&Options {
        limit: usize::MAX / 2,
        databases: memory.databases(),
        stripe_bits: Some(4),
        log: Some(log.clone()),
        ..Options::default()
    });
    let mut writer = Writer::new(log);
    let saved = write_all(memory, &target, &mut writer, until, now)?;
    writer.close(&target)?;
    remove(&save.dir)?;
    fs::rename(&new, &save.dir)?;
    if let Some(parent) = save.dir.parent() {
        fs::File::open(parent)?.sync_all()?;
    }
    Ok(saved)
}

fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(why) if why.kind() != io::ErrorKind::NotFound => Err(why),
        _ => Ok(()),
    }
}

fn hot_list(dir: &Path) -> PathBuf {
    dir.join(log::HOT_LIST)
}

/// Writes which records are in memory, the hottest first; returns how many.
fn write_list(path: &Path, memory: &Memory, now: u64) -> io::Result<usize> {
    let mut file = io::BufWriter::new(fs::File::create(path)?);
    file.write_all(MAGIC)?;
    file.write_all(&FORMAT.to_le_bytes())?;
    let mut sum = crc32fast::Hasher::new();
    let mut count = 0;
    for coldness in 0..COLDNESS {
        for stripe in 0..memory.stripes() {
            for (db, entry) in memory.of_coldness(stripe, coldness, true, now) {
                let Some(item) = memory.resident_record(db, entry.get().key()) else { continue };
                let mut bytes = [0; ENTRY];
                bytes[..8].copy_from_slice(&item.hash.to_le_bytes());
                bytes[8..12].copy_from_slice(&item.keyspace.to_le_bytes());
                bytes[16..].copy_from_slice(&item.slot.0.to_le_bytes());
                sum.update(&bytes);
                file.write_all(&bytes)?;
                count += 1;
            }
        }
    }
    file.write_all(&sum.finalize().to_le_bytes())?;
    file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
    Ok(count)
}

/// Reads the list, if it is whole, and removes it.
fn read_list(path: &Path) -> io::Result<Vec<Item>> {
    let mut bytes = Vec::new();
    match fs::File::open(path) {
        Ok(mut file) => file.read_to_end(&mut bytes)?,
        Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(why) => return Err(why),
    };
    fs::remove_file(path)?;
    let word = |bytes: &[u8], at: usize| bytes[at..at + 8].try_into().map_or(0, u64::from_le_bytes);
    let entries = bytes.get(16..bytes.len().saturating_sub(4)).unwrap_or_default();
    let is_whole = bytes.starts_with(MAGIC)
        && word(&bytes, 8) == FORMAT
        && entries.len().is_multiple_of(ENTRY)
        && bytes.ends_with(&crc32fast::hash(entries).to_le_bytes());
    if !is_whole {
        tracing::warn!("{}: not a list of hot keys, or damaged", path.display());
        return Ok(Vec::new());
    }
    let item = |bytes: &[u8]| Item {
        hash: word(bytes, 0),
        keyspace: word(bytes, 8) as u32,
        slot: Slot(word(bytes, 16)).lasting(),
    };
    Ok(entries.chunks_exact(ENTRY).map(item).collect())
}

fn load_list(cache: &Weak<Inner>, log: &Arc<Log>) {
    let items = read_list(&hot_list(log.dir())).unwrap_or_else(|why| {
        tracing::warn!("the list of hot keys can't be read: {why}");
        Vec::new()
    });
    let started = Instant::now();
    let mut count = 0;
    for batch in items.chunks(BATCH) {
        match load(cache, log, batch.to_vec()) {
            Loaded::More(more) => count += more,
            Loaded::Enough => break,
        }
    }
    if count > 0 {
        tracing::info!("{count} keys are back in memory after {:.1?}", started.elapsed());
    }
}

fn load_snapshot(cache: &Weak<Inner>, log: &Arc<Log>) {
    let started = Instant::now();
    let mut count = 0;
    'all: for segment in 0..log.shape().segments {
        let Ok(items) = log.contents(segment) else { continue };
        for batch in items.chunks(BATCH) {
            match load(cache, log, batch.to_vec()) {
                Loaded::More(more) => count += more,
                Loaded::Enough => break 'all,
            }
        }
    }
    let Some(cache) = cache.upgrade() else { return };
    if !cache.has_below.swap(false, Relaxed) {
        return;
    }
    // Before the index goes: from here on no write reaches what is on disk.
    log.state().forget();
    cache.memory.drop_records();
    if let Some(disk) = &cache.disk {
        disk.end();
    }
    if let Err(why) = remove(log.dir()) {
        tracing::warn!("the snapshot can't be removed: {why}");
    }
    tracing::info!("{count} keys are back in memory after {:.1?}", started.elapsed());
}

enum Loaded {
    More(usize),
    /// Memory is full, or the cache is gone.
    Enough,
}

/// Brings some records into memory.
fn load(cache: &Weak<Inner>, log: &Log, mut items: Vec<Item>) -> Loaded {
    items.sort_unstable_by_key(|item| item.slot.place());
    let mut buffer = Buffer::zeroed(PAGE);
    let mut count = 0;
    while !items.is_empty() {
        let Some(cache) = cache.upgrade() else { return Loaded::Enough };
        let extent = extent(&items);
        let rest = items.split_off(extent);
        let first = items[0].slot.place();
        // From before the read on: a write of the key in between has to be noticed (SEMANTICS 1).
        let tickets: Vec<_> = items
            .iter()
            .map(|item| {
                let db = log.state().database(item.keyspace)?;
                let ticket = cache.memory.ticket(db, item.hash);
                // SWAPDB cancels tickets; one that came before this one shows.
                if log.state().keyspace(db) != item.keyspace {
                    cache.memory.release(item.hash, ticket);
                    return None;
                }
                Some((db, ticket))
            })
            .collect();
        let read = read_batch(log, &mut buffer, &items);
        let mut is_full = false;
        for (item, ticket) in items.iter().zip(tickets) {
            let Some((db, ticket)) = ticket else { continue };
            if let Ok(read) = read
                && !is_full
                && let Some(entry) = entry_of(&cache, log, item, read, first)
            {
                let memory = &cache.memory;
                is_full = !memory.keeps_all()
                    && memory.used() + entry.get().size() > memory.rules().limit();
                let (known, now) = (Known::Record(item.slot), cache.clock.now());
                // What comes first is hotter than what would take its place.
                let group = memory.rules().groups.of(db, entry.get().key());
                let is_above =
                    group.is_some_and(|at| memory.rules().groups.is_above(at, entry.get().size()));
                let fits = memory.keeps_all() || !is_above;
                if cache.traffic.may_be_big(entry.get().size()) {
                    cache.traffic.note_big(db, entry.get());
                }
                if !is_full && fits && memory.land(db, item.hash, ticket, entry, known, now) {
                    count += 1;
                }
            }
            cache.memory.release(item.hash, ticket);
        }
        if is_full {
            return Loaded::Enough;
        }
        items = rest;
    }
    Loaded::More(count)
}

/// How many of the items, which are in order of their places, are read at once.
fn extent(items: &[Item]) -> usize {
    let first = items[0].slot.place();
    let mut end = first + items[0].slot.units();
    let mut count = 1;
    for item in &items[1..] {
        let place = item.slot.place();
        let next = place + item.slot.units();
        if place > end + GAP || (next - first) as usize * UNIT > EXTENT {
            break;
        }
        end = end.max(next);
        count += 1;
    }
    count
}

/// A record that still counts, from bytes that begin at the unit `first`.
fn record_of<'a>(
    cache: &Inner,
    log: &Log,
    item: &Item,
    bytes: &'a [u8],
    first: u64,
) -> Option<record::Record<'a>> {
    cache.memory.record_of(item)?;
    let bytes = bytes.get((item.slot.place() - first) as usize * UNIT..)?;
    let record = log.read_record(bytes).ok()?;
    let (generation, _) = log.state().segment(log.segment_of(item.slot.place()));
    let is_it = record.head.generation == generation
        && record.head.keyspace == item.keyspace
        && cache.memory.hash(record.key) == item.hash;
    is_it.then_some(record)
}

/// The entry of a record that still counts and hasn't ended.
fn entry_of(cache: &Inner, log: &Log, item: &Item, bytes: &[u8], first: u64) -> Option<EntryRef> {
    let now = cache.clock.now();
    let record = record_of(cache, log, item, bytes, first)?;
    let access = cache.memory.rules().eviction().first_access(now);
    (!has_ended(&record.head.meta, now)).then(|| record.entry(access))
}

impl Cache {
    /// Gives back in the background the room on disk of what a restart has ended, by a thread that ends
    /// then; `None`: there is nothing to look for.
    pub fn sweep(&self) -> Option<thread::JoinHandle<()>> {
        let log = self.0.memory.disk()?.clone();
        if !self.0.policies.ends_at_restart() {
            return None;
        }
        let cache = Arc::downgrade(&self.0);
        let thread = thread::Builder::new().name("larder-sweep".into());
        let spawned = thread.spawn(move || {
            for segment in 0..log.shape().segments {
                let Ok(mut items) = log.contents(segment) else { continue };
                items.sort_unstable_by_key(|item| item.slot.place());
                if sweep(&cache, &log, &items).is_none() {
                    return;
                }
            }
        });
        let explain = |why: &io::Error| {
            tracing::error!("the thread that sweeps the disk can't start: {why}");
        };
        spawned.inspect_err(explain).ok()
    }
}

/// Drops those of some records, in order of their places, that have ended; `None`: the cache is gone.
fn sweep(cache: &Weak<Inner>, log: &Log, mut items: &[Item]) -> Option<()> {
    let mut buffer = Buffer::zeroed(PAGE);
    while !items.is_empty() {
        let cache = cache.upgrade()?;
        let (batch, rest) = items.split_at(extent(items));
        let first = batch[0].slot.place();
        if let Ok(bytes) = read_batch(log, &mut buffer, batch) {
            for item in batch {
                let record = record_of(&cache, log, item, bytes, first);
                if record.is_some_and(|record| has_ended(&record.head.meta, cache.clock.now())) {
                    cache.memory.drop_record(item.keyspace, item.hash, item.slot);
                }
            }
        }
        items = rest;
    }
    Some(())
}

/// Reads records that are in order of their places, from the first one's on.
fn read_batch<'a>(log: &Log, buffer: &'a mut Buffer, items: &[Item]) -> io::Result<&'a [u8]> {
    let first = items[0].slot.place();
    let end = items.iter().map(|item| item.slot.place() + item.slot.units()).max();
    let bytes = (end.unwrap_or(first) - first) as usize * UNIT;
    log.read_bytes(buffer, first * UNIT as u64, bytes)
}
