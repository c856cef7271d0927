//! The embedded store: a redb file, nothing to install.
//!
//! One table holds full key bytes (one store may serve several namespaces, and their prefixes
//! keep them apart) to
//!
//! ```text
//! 0      1              9              17
//! | type | deadline LE  | version LE   | value ...      type 0: a string
//! ```
//!
//! redb blocks, and has one writer. Loads run in read transactions on tokio's blocking threads.
//! Changes go through a bounded queue to one thread, which takes all that wait, writes them in one
//! transaction, commits once (one fsync for all; `Durability::Immediate`), and answers each.
//!
//! redb refuses to go on after an I/O error (a full disk) until the file is opened anew; the writer
//! does that before its next group, so a store comes back by itself. After a crash redb checks the
//! whole file when it is opened, which takes time in proportion to its size.

use std::{
    fs::{self, File},
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
};

use ::redb::{
    CommitError, Database, DatabaseError, Durability, ReadableDatabase, ReadableTable,
    StorageError, Table, TableDefinition,
};
use bytes::Bytes;
use parking_lot::RwLock;
use tokio::sync::{mpsc, oneshot};

use super::{
    Applied, BoxFuture, Change, MAX_KEY, MAX_VALUE, Overtaken, Record, Stamp, Store, StoreError,
    check,
};
use crate::{clock::Clock, error::Error};

/// The one table; the number is that of the layout above.
const TABLE: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("larder-records-1");

/// The type byte of a string.
const STRING: u8 = 0;

/// Type, deadline, version.
const HEADER: usize = 1 + 8 + 8;

/// The longest value that redb takes beside our header, in bytes.
const MAX_REDB_VALUE: u64 = 3 * 1024 * 1024 * 1024 - HEADER as u64;

/// redb's own page cache in bytes, of reads and of the pages that a transaction changes. Small,
/// since what is hot is in our tiers and the rest in the kernel's page cache.
const PAGE_CACHE: usize = 64 * 1024 * 1024;

/// Batches that may wait for the writer; further callers wait to be let in.
const QUEUE: usize = 256;

/// Bytes of values after which a group takes no further batch, so that one commit stays short.
const GROUP_BYTES: usize = 32 * 1024 * 1024;

const _: () = assert!(MAX_REDB_VALUE <= MAX_VALUE && MAX_KEY < 768 * 1024 * 1024);

/// A batch on its way to the writer, and where its answer goes.
struct Job {
    changes: Vec<(Bytes, Change)>,
    done: oneshot::Sender<Applied>,
}

impl Job {
    fn bytes(&self) -> usize {
        self.changes.iter().map(|(key, change)| key.len() + change.value_len()).sum()
    }
}

/// See the module's doc.
pub(super) struct RedbStore {
    file: Arc<RedbFile>,
    /// None only while it is dropped.
    jobs: Option<mpsc::Sender<Job>>,
    writer: Option<JoinHandle<()>>,
}

impl RedbStore {
    /// Opens the file at `path` or makes it, and starts the writer.
    pub(super) fn open(path: &Path, clock: Clock) -> Result<Self, Error> {
        let in_dir = |why: io::Error| Error::DataDir(path.to_owned(), why.to_string());
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new("."));
        fs::create_dir_all(parent).map_err(in_dir)?;
        let db = builder().create(path).map_err(|why| not_opened(path, why))?;
        make_table(&db).map_err(|why| Error::Store(format!("{}: {why}", path.display())))?;
        // The file's name must be as durable as what is in it.
        File::open(parent).and_then(|dir| dir.sync_all()).map_err(in_dir)?;
        let path = path.to_owned();
        Ok(Self::start(db, Box::new(move || builder().open(&path)), clock)?)
    }

    fn start(db: Database, reopen: Reopen, clock: Clock) -> io::Result<Self> {
        let db = RwLock::new(Some(db));
        let file = Arc::new(RedbFile { db, failed: AtomicBool::new(false), reopen, clock });
        let (jobs, queue) = mpsc::channel(QUEUE);
        let theirs = Arc::clone(&file);
        let writer = thread::Builder::new().name("larder-redb".into());
        let writer = writer.spawn(move || write_all(&theirs, queue))?;
        Ok(Self { file, jobs: Some(jobs), writer: Some(writer) })
    }

    /// Hands a batch to the writer and waits for its answer.
    async fn submit(&self, changes: Vec<(Bytes, Change)>) -> Applied {
        let stopped = || "its writer has stopped".to_owned();
        let Some(jobs) = &self.jobs else { return Err(StoreError::Down(stopped())) };
        let (done, answer) = oneshot::channel();
        let sent = jobs.send(Job { changes, done }).await;
        sent.map_err(|_| StoreError::Down(stopped()))?;
        answer.await.unwrap_or_else(|_| Err(StoreError::Timeout(stopped())))
    }

    /// Reads on a blocking thread.
    async fn read(&self, keys: Vec<Bytes>) -> Result<Vec<Option<Record>>, StoreError> {
        let file = Arc::clone(&self.file);
        let read = tokio::task::spawn_blocking(move || file.read(&keys)).await;
        read.unwrap_or_else(|why| Err(StoreError::Down(why.to_string())))
    }
}

impl Drop for RedbStore {
    /// What was handed over is written before the file is closed, and it is closed when this ends
    /// (or when the last load under way does).
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(writer) = self.writer.take() {
            // A writer that panicked has told its callers.
            let _ = writer.join();
        }
    }
}

impl Store for RedbStore {
    fn load<'a>(
        &'a self,
        keys: &'a [Bytes],
    ) -> BoxFuture<'a, Result<Vec<Option<Record>>, StoreError>> {
        Box::pin(self.read(keys.to_vec()))
    }

    fn apply<'a>(&'a self, changes: &'a [(Bytes, Change)]) -> BoxFuture<'a, Applied> {
        Box::pin(async move {
            check(changes, MAX_REDB_VALUE)?;
            self.submit(changes.to_vec()).await
        })
    }

    /// An empty batch shows that the writer lives, and has it open a failed file anew.
    fn ping(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            self.submit(Vec::new()).await?;
            self.read(Vec::new()).await.map(drop)
        })
    }

    fn kind(&self) -> &'static str {
        "redb"
    }
}

/// Takes batches in groups until the store is dropped and the queue is empty.
fn write_all(file: &RedbFile, mut queue: mpsc::Receiver<Job>) {
    while let Some(first) = queue.blocking_recv() {
        let group = gather(first, &mut queue);
        let mut outcome = file.write(&group).map(Vec::into_iter);
        for job in group {
            let own = outcome.as_mut().map(|all| all.next().unwrap_or_default());
            // Whoever no longer waits needs no answer.
            let _ = job.done.send(own.map_err(|why| why.clone()));
        }
    }
}

/// The first batch and all that wait behind it, within bounds.
fn gather(first: Job, queue: &mut mpsc::Receiver<Job>) -> Vec<Job> {
    let mut bytes = first.bytes();
    let mut group = vec![first];
    while group.len() < QUEUE && bytes < GROUP_BYTES {
        let Ok(job) = queue.try_recv() else { break };
        bytes += job.bytes();
        group.push(job);
    }
    group
}

/// Opens the file again after a failure; never makes a new one.
type Reopen = Box<dyn Fn() -> Result<Database, DatabaseError> + Send + Sync>;

/// The open file. The lock is held for writing only to open it anew, when nobody may use it.
struct RedbFile {
    db: RwLock<Option<Database>>,
    /// An operation failed, and redb may refuse all others until the file is opened anew.
    failed: AtomicBool,
    reopen: Reopen,
    clock: Clock,
}

impl RedbFile {
    fn read(&self, keys: &[Bytes]) -> Result<Vec<Option<Record>>, StoreError> {
        self.with(|db| read_group(db, keys, self.clock.now()))
    }

    /// Writes a group in one transaction: all of it, or an error for all of it. Tells of each batch what
    /// was overtaken.
    fn write(&self, group: &[Job]) -> Result<Vec<Vec<Overtaken>>, StoreError> {
        if self.failed.load(Relaxed) {
            self.open_anew()?;
        }
        if group.iter().all(|job| job.changes.is_empty()) {
            return Ok(Vec::new());
        }
        self.with(|db| write_group(db, group, self.clock.now()))
    }

    fn with<T>(
        &self,
        run: impl FnOnce(&Database) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let db = self.db.read();
        let Some(db) = &*db else { return Err(StoreError::Down("its file is closed".into())) };
        let result = run(db);
        if result.as_ref().is_err_and(StoreError::is_stores_fault) {
            self.failed.store(true, Relaxed);
        }
        result
    }

    fn open_anew(&self) -> Result<(), StoreError> {
        let mut db = self.db.write();
        // The old one goes first: it holds the file's lock.
        *db = None;
        *db = Some((self.reopen)().map_err(down)?);
        self.failed.store(false, Relaxed);
        Ok(())
    }
}

fn builder() -> ::redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(PAGE_CACHE);
    builder
}

fn make_table(db: &Database) -> Result<(), ::redb::Error> {
    let txn = db.begin_write()?;
    txn.open_table(TABLE)?;
    Ok(txn.commit()?)
}

fn read_group(db: &Database, keys: &[Bytes], now: u64) -> Result<Vec<Option<Record>>, StoreError> {
    let txn = db.begin_read().map_err(down)?;
    let table = txn.open_table(TABLE).map_err(down)?;
    let one = |key: &Bytes| match table.get(key.as_ref()).map_err(down)? {
        Some(found) => decode(found.value(), now),
        None => Ok(None),
    };
    keys.iter().map(one).collect()
}

fn write_group(db: &Database, group: &[Job], now: u64) -> Result<Vec<Vec<Overtaken>>, StoreError> {
    let mut txn = db.begin_write().map_err(down)?;
    txn.set_durability(Durability::Immediate).map_err(down)?;
    let overtaken = {
        let mut table = txn.open_table(TABLE).map_err(down)?;
        let of_job = |job: &Job| {
            let one = |(place, change)| apply_one(&mut table, place, change, now).transpose();
            job.changes.iter().enumerate().filter_map(one).collect()
        };
        group.iter().map(of_job).collect::<Result<_, _>>().map_err(down)?
    };
    txn.commit().map_err(not_committed)?;
    Ok(overtaken)
}

fn apply_one(
    table: &mut Table<'_, &'static [u8], &'static [u8]>,
    place: usize,
    (key, change): &(Bytes, Change),
    now: u64,
) -> Result<Option<Overtaken>, StorageError> {
    let key = key.as_ref();
    let old = table.get(key)?.and_then(|found| stamp(found.value()));
    let overtaken = old.and_then(|old| old.overtakes(place, change, now));
    if overtaken.is_some() {
        return Ok(overtaken);
    }
    match change {
        Change::Put(record) => {
            let mut place = table.insert_reserve(key, HEADER + record.value.len())?;
            encode(record, place.as_mut());
        }
        Change::Delete { .. } => drop(table.remove(key)?),
    }
    Ok(None)
}

/// Writes a record into a place of exactly its length.
fn encode(record: &Record, place: &mut [u8]) {
    place[0] = STRING;
    place[1..9].copy_from_slice(&record.deadline.to_le_bytes());
    place[9..HEADER].copy_from_slice(&record.version.to_le_bytes());
    place[HEADER..].copy_from_slice(&record.value);
}

/// Version and deadline, which stand at the same place whatever the type; None: no record of ours.
fn stamp(raw: &[u8]) -> Option<Stamp> {
    let deadline = u64::from_le_bytes(raw.get(1..9)?.try_into().ok()?);
    let version = u64::from_le_bytes(raw.get(9..HEADER)?.try_into().ok()?);
    Some(Stamp { version, deadline })
}

/// A stored record; None: past its deadline. What isn't ours is an error, not an absence.
fn decode(raw: &[u8], now: u64) -> Result<Option<Record>, StoreError> {
    let (Some(Stamp { version, deadline }), Some(&STRING)) = (stamp(raw), raw.first()) else {
        return Err(StoreError::Refused("a stored record of an unknown type".into()));
    };
    if (Stamp { version, deadline }).is_past(now) {
        return Ok(None);
    }
    let value = Bytes::copy_from_slice(&raw[HEADER..]);
    Ok(Some(Record { value, deadline, version, fresh_for: None }))
}

/// An error before the commit: nothing has changed.
fn down(why: impl Into<::redb::Error>) -> StoreError {
    StoreError::Down(why.into().to_string())
}

/// redb: a transaction whose commit failed is applied wholly or not at all, nobody knows which,
/// unless it was rolled back as poisoned.
fn not_committed(why: CommitError) -> StoreError {
    match why {
        CommitError::TransactionPoisoned => down(why),
        _ => StoreError::Timeout(why.to_string()),
    }
}

/// Why the program can't start with this file.
fn not_opened(path: &Path, why: DatabaseError) -> Error {
    let in_dir = |text: String| Error::DataDir(path.to_owned(), text);
    match why {
        DatabaseError::DatabaseAlreadyOpen => in_dir("another process holds this store".into()),
        DatabaseError::Storage(StorageError::Io(why))
            if why.kind() != io::ErrorKind::InvalidData =>
        {
            in_dir(why.to_string())
        }
        why => Error::Store(format!("{}: {why}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use ::redb::{StorageBackend, backends::InMemoryBackend};

    use super::*;
    use crate::store::suite::{block_on, delete, key, put, suite, text};

    fn open(path: &Path) -> RedbStore {
        RedbStore::open(path, Clock::default()).unwrap()
    }

    #[test]
    fn redb_does_its_duties() {
        suite(24, |clock| {
            let dir = tempfile::tempdir().unwrap();
            let store = RedbStore::open(&dir.path().join("store.redb"), clock).unwrap();
            (Arc::new(store) as Arc<dyn Store>, dir)
        });
    }

    #[test]
    fn everything_is_there_after_a_reopen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("made/on/the/way/store.redb");
        let keys: Vec<Bytes> = (0..100).map(|i| key(&format!("k{i}"))).collect();
        let puts: Vec<_> = keys.iter().map(|key| put(key, key, 0, 7)).collect();
        block_on(async {
            let store = open(&path);
            store.apply(&puts).await.unwrap();
            store.apply(&[delete("k0", 8)]).await.unwrap();
        });
        let found = block_on(async { open(&path).load(&keys).await.unwrap() });
        assert_eq!(found[0], None);
        for (key, record) in keys.iter().zip(found).skip(1) {
            assert_eq!(
                record,
                Some(Record { value: key.clone(), version: 7, ..Record::default() })
            );
        }
    }

    #[test]
    fn what_was_handed_over_is_written_before_the_file_closes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.redb");
        let (done, _) = oneshot::channel();
        let store = open(&path);
        let job = Job { changes: vec![put("k", "v", 0, 1)], done };
        store.jobs.as_ref().unwrap().blocking_send(job).map_err(drop).unwrap();
        drop(store);
        let found = block_on(async { text(&open(&path), "k").await });
        assert_eq!(found.as_deref(), Some(&b"v"[..]));
    }

    #[test]
    fn a_held_file_and_a_strange_one_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.redb");
        let held = open(&path);
        let why = RedbStore::open(&path, Clock::default()).err().unwrap();
        assert!(matches!(&why, Error::DataDir(at, text) if *at == path && text.contains("holds")));
        drop(held);
        fs::write(&path, b"not a database".repeat(1000)).unwrap();
        assert!(matches!(RedbStore::open(&path, Clock::default()), Err(Error::Store(_))));
        let under_a_file = path.join("store.redb");
        let why = RedbStore::open(&under_a_file, Clock::default());
        assert!(matches!(why, Err(Error::DataDir(..))));
    }

    #[test]
    fn a_group_takes_what_waits_within_bounds() {
        let (jobs, mut queue) = mpsc::channel(QUEUE);
        let job = |value: Bytes| {
            let record = Record { value, version: 1, ..Record::default() };
            Job { changes: vec![(key("k"), Change::Put(record))], done: oneshot::channel().0 }
        };
        let send = |job| jobs.try_send(job).map_err(drop).unwrap();
        (0..9).for_each(|_| send(job(key("v"))));
        assert_eq!(gather(job(key("v")), &mut queue).len(), 10);
        let big = Bytes::from(vec![0; GROUP_BYTES / 2]);
        (0..9).for_each(|_| send(job(big.clone())));
        assert_eq!(gather(job(big), &mut queue).len(), 2);
    }

    #[test]
    fn an_unknown_type_is_no_absence() {
        let mut raw = [0; HEADER + 1];
        assert!(matches!(decode(&raw, 1), Ok(Some(_))));
        raw[0] = 9;
        assert!(matches!(decode(&raw, 1), Err(StoreError::Refused(_))));
        assert!(matches!(decode(&raw[..HEADER - 1], 1), Err(StoreError::Refused(_))));
        assert!(matches!(decode(&[], 1), Err(StoreError::Refused(_))));
    }

    /// A disk that outlives the database, and fails while told to.
    #[derive(Clone, Debug)]
    struct Disk {
        bytes: Arc<InMemoryBackend>,
        broken: Arc<AtomicBool>,
    }

    impl Disk {
        fn works(&self) -> io::Result<()> {
            if self.broken.load(Relaxed) { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
        }
    }

    impl StorageBackend for Disk {
        fn len(&self) -> io::Result<u64> {
            self.bytes.len()
        }
        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.bytes.read(offset, out)
        }
        fn set_len(&self, len: u64) -> io::Result<()> {
            self.works().and_then(|()| self.bytes.set_len(len))
        }
        fn sync_data(&self) -> io::Result<()> {
            self.works()
        }
        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.works().and_then(|()| self.bytes.write(offset, data))
        }
    }

    #[test]
    fn a_store_comes_back_when_its_disk_does() {
        let bytes = Arc::new(InMemoryBackend::new());
        let disk = Disk { bytes, broken: Arc::default() };
        let db = builder().create_with_backend(disk.clone()).unwrap();
        make_table(&db).unwrap();
        let theirs = disk.clone();
        let reopen = Box::new(move || builder().create_with_backend(theirs.clone()));
        let store = RedbStore::start(db, reopen, Clock::default()).unwrap();
        block_on(async {
            store.apply(&[put("k", "old", 0, 1)]).await.unwrap();
            disk.broken.store(true, Relaxed);
            let failed = store.apply(&[put("k", "new", 0, 2)]).await.unwrap_err();
            assert!(failed.is_stores_fault(), "{failed}");
            assert!(store.ping().await.is_err());
            disk.broken.store(false, Relaxed);
            store.ping().await.unwrap();
            assert_eq!(text(&store, "k").await.as_deref(), Some(&b"old"[..]));
            store.apply(&[put("k", "newer", 0, 3)]).await.unwrap();
            assert_eq!(text(&store, "k").await.as_deref(), Some(&b"newer"[..]));
        });
    }
}
