//! Dead letters: changes that the store refused every time, kept until somebody decides.
//!
//! Each is a file of its own in a directory of the data directory, named by its number in the journal, so
//! that one can be looked at, tried again or dropped while others come. All numbers are little-endian.
//!
//! ```text
//!  0          8        10     11     12       16      24      32       40       48     50     52
//!  +----------+--------+------+------+--------+-------+-------+--------+--------+------+------+
//!  | LARDERDL | format | kind | 0    | CRC of | id    | time  | ver-   | dead-  | db   | 0    |
//!  | magic    | u16: 1 | u8   | u8   | the    | u64   | ms    | sion   | line   | u16  | u16  |
//!  |          |        |      |      | rest   |       | u64   | u64    | ms u64 |      |      |
//!  +----------+--------+------+------+--------+-------+-------+--------+--------+------+------+
//!  52      56        60           64          68
//!  +-------+---------+------------+-----------+-----+--------+-------+
//!  | tries | key len | reason len | value len | key | reason | value |
//!  | u32   | u32     | u32        | u32       |     |        |       |
//!  +-------+---------+------------+-----------+-----+--------+-------+
//!
//!  kind 1  put, 2  delete; the CRC is CRC-32 (IEEE)
//! ```

use std::{
    fs, io,
    io::Write as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use bytes::Bytes;

use crate::{
    error::Error,
    store::{Change, Record},
};

/// Where they are, in the data directory.
pub const DIRECTORY: &str = "dead";
const MAGIC: &[u8; 8] = b"LARDERDL";
const FORMAT: u16 = 1;
/// Bytes before the key.
const HEAD: usize = 68;
/// Where the checksum stands; it covers what follows it.
const CRC: usize = 12;
/// What the files' names end in.
const ENDING: &str = "letter";
/// How many there may be: more stay in the journal, and are tried again and again.
const MOST: usize = 100_000;
/// The longest reason that is kept, in bytes.
const MAX_REASON: usize = 1024;

/// A change that was given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letter {
    /// Its number: the change's place in the journal.
    pub id: u64,
    /// When it was given up, in unix milliseconds.
    pub time: u64,
    /// The database of the key.
    pub db: u16,
    /// How often the store refused it.
    pub tries: u32,
    /// What the store said last.
    pub reason: String,
    /// The key.
    pub key: Bytes,
    /// What it was to hold.
    pub change: Change,
}

impl Letter {
    /// Takes its value out, which may be long; says how long it was.
    pub fn take_value(&mut self) -> usize {
        match &mut self.change {
            Change::Put(record) => std::mem::take(&mut record.value).len(),
            Change::Delete { .. } => 0,
        }
    }
}

/// The changes that were given up; clones are the same. What reads or writes files here blocks: with many
/// letters for long.
#[derive(Clone, Debug)]
pub struct DeadLetters {
    dir: PathBuf,
    count: Arc<AtomicUsize>,
}

impl DeadLetters {
    /// Those in this directory; it is made when there are some.
    ///
    /// # Errors
    /// [`Error::DataDir`] if it can't be read.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, Error> {
        let dir = dir.into();
        let count = ids(&dir).map_err(|why| Error::DataDir(dir.clone(), why.to_string()))?.len();
        Ok(Self { dir, count: Arc::new(AtomicUsize::new(count)) })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.count.load(Relaxed)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Their numbers, the oldest first.
    ///
    /// # Errors
    /// If the directory can't be read.
    pub fn ids(&self) -> io::Result<Vec<u64>> {
        ids(&self.dir)
    }

    /// Reads one; `None` if there is none of this number.
    ///
    /// # Errors
    /// If it can't be read, or is damaged.
    pub fn read(&self, id: u64) -> io::Result<Option<Letter>> {
        match fs::read(self.path(id)) {
            Ok(bytes) => decode(&bytes).map(Some).ok_or_else(|| {
                io::Error::new(io::ErrorKind::InvalidData, format!("letter {id} is damaged"))
            }),
            Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(why) => Err(why),
        }
    }

    /// Removes one; says whether it was there.
    ///
    /// # Errors
    /// If it can't be removed.
    pub fn remove(&self, id: u64) -> io::Result<bool> {
        Ok(self.remove_all(&[id])? > 0)
    }

    /// Removes these; says how many of them were there.
    ///
    /// # Errors
    /// If one can't be removed; those before it are gone.
    pub fn remove_all(&self, ids: &[u64]) -> io::Result<usize> {
        let mut removed = 0;
        let mut remove = |id: u64| match fs::remove_file(self.path(id)) {
            Ok(()) => {
                let less = |count: usize| Some(count.saturating_sub(1));
                let _ = self.count.fetch_update(Relaxed, Relaxed, less);
                removed += 1;
                Ok(())
            }
            Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(why) => Err(why),
        };
        let result = ids.iter().try_for_each(|id| remove(*id));
        if removed > 0 {
            sync_dir(&self.dir)?;
        }
        result.map(|()| removed)
    }

    /// Keeps one more, durably.
    pub(super) async fn keep(&self, letter: Letter) -> io::Result<()> {
        if self.len() >= MOST {
            // Some may have been dropped from the shell.
            self.count.store(self.ids()?.len(), Relaxed);
        }
        if self.len() >= MOST {
            return Err(io::Error::other(format!("there are {MOST} of them already")));
        }
        let (dir, path) = (self.dir.clone(), self.path(letter.id));
        let is_new = !path.exists();
        let keep = tokio::task::spawn_blocking(move || {
            fs::create_dir_all(&dir)?;
            let part = path.with_extension("part");
            let mut file = fs::File::create(&part)?;
            file.write_all(&encode(&letter))?;
            file.sync_all()?;
            fs::rename(&part, &path)?;
            sync_dir(&dir)
        });
        keep.await.map_err(io::Error::other)??;
        self.count.fetch_add(usize::from(is_new), Relaxed);
        Ok(())
    }

    fn path(&self, id: u64) -> PathBuf {
        self.dir.join(format!("{id:016}.{ENDING}"))
    }
}

fn ids(dir: &Path) -> io::Result<Vec<u64>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(why) => return Err(why),
    };
    let mut ids = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == ENDING)
            && let Some(id) = path.file_stem().and_then(|name| name.to_str()?.parse().ok())
        {
            ids.push(id);
        }
    }
    ids.sort_unstable();
    Ok(ids)
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    fs::File::open(dir)?.sync_all()
}

fn encode(letter: &Letter) -> Vec<u8> {
    let none = Bytes::new();
    let (kind, value, deadline) = match &letter.change {
        Change::Put(record) => (1, &record.value, record.deadline),
        Change::Delete { .. } => (2, &none, 0),
    };
    let mut end = letter.reason.len().min(MAX_REASON);
    while !letter.reason.is_char_boundary(end) {
        end -= 1;
    }
    let reason = &letter.reason.as_bytes()[..end];
    let mut out = Vec::with_capacity(HEAD + letter.key.len() + reason.len() + value.len());
    out.extend(MAGIC);
    out.extend(FORMAT.to_le_bytes());
    out.extend([kind, 0, 0, 0, 0, 0]);
    out.extend(letter.id.to_le_bytes());
    out.extend(letter.time.to_le_bytes());
    out.extend(letter.change.version().to_le_bytes());
    out.extend(deadline.to_le_bytes());
    out.extend([letter.db.to_le_bytes(), [0; 2]].concat());
    for number in [letter.tries, len(&letter.key), len(reason), len(value)] {
        out.extend(number.to_le_bytes());
    }
    debug_assert_eq!(out.len(), HEAD, "the head is as drawn");
    out.extend_from_slice(&letter.key);
    out.extend(reason);
    out.extend_from_slice(value);
    let crc = crc32fast::hash(&out[CRC + 4..]);
    out[CRC..CRC + 4].copy_from_slice(&crc.to_le_bytes());
    out
}

fn len(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

fn decode(bytes: &[u8]) -> Option<Letter> {
    let head: &[u8; HEAD] = bytes.first_chunk()?;
    let u16_at = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
    let u32_at = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().unwrap_or_default());
    let u64_at = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().unwrap_or_default());
    let is_ours = head.starts_with(MAGIC) && u16_at(8) == FORMAT;
    if !is_ours || u32_at(CRC) != crc32fast::hash(&bytes[CRC + 4..]) {
        return None;
    }
    let (key, rest) = bytes[HEAD..].split_at_checked(u32_at(56) as usize)?;
    let (reason, value) = rest.split_at_checked(u32_at(60) as usize)?;
    if value.len() != u32_at(64) as usize {
        return None;
    }
    let version = u64_at(32);
    let change = match head[10] {
        1 => {
            let value = Bytes::copy_from_slice(value);
            Change::Put(Record { value, deadline: u64_at(40), version, fresh_for: None })
        }
        2 => Change::Delete { version },
        _ => return None,
    };
    Some(Letter {
        id: u64_at(16),
        time: u64_at(24),
        db: u16_at(48),
        tries: u32_at(52),
        reason: String::from_utf8_lossy(reason).into_owned(),
        key: Bytes::copy_from_slice(key),
        change,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter(id: u64, change: Change) -> Letter {
        let (key, reason) = (Bytes::from_static(b"user:\0\xff"), "no such column".to_owned());
        Letter { id, time: 7, db: 3, tries: 8, reason, key, change }
    }

    #[tokio::test]
    async fn letters_are_kept_read_and_dropped() {
        let dir = tempfile::tempdir().expect("a directory");
        let letters = DeadLetters::open(dir.path().join("dead")).expect("there is none yet");
        assert!(letters.is_empty() && letters.ids().expect("readable").is_empty());
        let value = Bytes::from_static(b"\r\nvalue");
        let put = letter(
            12,
            Change::Put(Record { value, deadline: 9, version: 1 << 60, fresh_for: None }),
        );
        let delete = letter(2, Change::Delete { version: 5 });
        for one in [&put, &delete, &put] {
            letters.keep(one.clone()).await.expect("kept");
        }
        let letters = DeadLetters::open(dir.path().join("dead")).expect("there again");
        assert_eq!((letters.len(), letters.ids().expect("readable")), (2, vec![2, 12]));
        assert_eq!(letters.read(12).expect("readable"), Some(put));
        assert_eq!(letters.read(2).expect("readable"), Some(delete));
        assert!(letters.remove(2).expect("removed") && !letters.remove(2).expect("gone"));
        assert_eq!((letters.len(), letters.read(2).expect("no error")), (1, None));
        assert_eq!(letters.remove_all(&[2, 12, 13]).expect("removed"), 1);
        assert!(letters.is_empty() && letters.ids().expect("readable").is_empty());
    }

    #[test]
    fn a_damaged_letter_is_none() {
        let change =
            Change::Put(Record { value: Bytes::new(), deadline: 0, version: 1, fresh_for: None });
        let whole = encode(&letter(1, change));
        assert!(decode(&whole).is_some());
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            assert!(decode(&bytes).is_none() || at == 11, "byte {at}");
            assert!(decode(&whole[..at]).is_none(), "{at} bytes");
        }
    }
}
