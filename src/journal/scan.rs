//! Reading a segment from its beginning to its end, trusting nothing.
//!
//! Memory is taken for bytes that the file has, never for those that a length in it promises, and no
//! more than a window at a time, whatever the length of a record.

use std::{io, sync::Arc};

use memchr::memmem;

use super::format::{Defect, HEAD, Head, Kind, MARKER, Salted};
use crate::tier::disk::File;

/// Bytes that are read at once.
const WINDOW: usize = 256 * 1024;

/// Where a segment is being read.
pub struct Scanner {
    file: Arc<dyn File>,
    salt: Salted,
    at: u64,
    end: u64,
    window: Vec<u8>,
    window_at: u64,
}

/// What comes next in a segment.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// A whole record.
    Record(Found),
    /// Bytes that are none; the scanner stays where they begin.
    Bad(Defect),
    /// Nothing.
    End,
}

/// A whole record.
#[derive(Debug, PartialEq, Eq)]
pub struct Found {
    /// Where it begins.
    pub at: u64,
    /// What it says.
    pub head: Head,
    /// Its body, if it acknowledges.
    pub runs: Vec<u8>,
}

impl Scanner {
    /// Reads a file of `end` bytes from its first record on.
    pub fn new(file: Arc<dyn File>, salt: u64, end: u64) -> Self {
        let salt = Salted::new(salt);
        Self { file, salt, at: HEAD as u64, end, window: Vec::new(), window_at: 0 }
    }

    /// Where the next record begins.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// Goes on from another place.
    pub fn seek(&mut self, at: u64) {
        self.at = at;
    }

    /// Reads the next record.
    pub fn step(&mut self) -> io::Result<Step> {
        if self.at >= self.end {
            return Ok(Step::End);
        }
        match self.record(self.at)? {
            Ok(found) => {
                self.at += found.head.record_len();
                Ok(Step::Record(found))
            }
            Err(defect) => Ok(Step::Bad(defect)),
        }
    }

    /// The place of the first whole record from `from` on.
    pub fn find(&mut self, mut from: u64) -> io::Result<Option<u64>> {
        let finder = memmem::Finder::new(&MARKER);
        while from < self.end {
            let window = self.window(from, MARKER.len())?;
            if window.is_empty() {
                break;
            }
            let Some(skip) = finder.find(window) else {
                // The marker may straddle the window's end.
                let step = window.len().saturating_sub(MARKER.len() - 1).max(1);
                from += step as u64;
                continue;
            };
            from += skip as u64;
            if self.record(from)?.is_ok() {
                return Ok(Some(from));
            }
            from += 1;
        }
        Ok(None)
    }

    /// Checks the record that begins at `at`.
    fn record(&mut self, at: u64) -> io::Result<Result<Found, Defect>> {
        let salt = self.salt.clone();
        let Some(bytes) = self.window(at, HEAD)?.first_chunk::<HEAD>() else {
            return Ok(Err(Defect::Short));
        };
        let (head, expected) = match Head::decode(bytes, &salt) {
            Ok(decoded) => decoded,
            Err(defect) => return Ok(Err(defect)),
        };
        let (body, len) = (at + HEAD as u64, head.body_len());
        if len > self.end - body {
            return Ok(Err(Defect::Short));
        }
        let mut sum = salt.begin();
        let mut runs = Vec::new();
        let mut done = 0;
        while done < len {
            let window = self.window(body + done, 1)?;
            let part = &window[..window.len().min((len - done) as usize)];
            if part.is_empty() {
                return Ok(Err(Defect::Short));
            }
            sum.update(part);
            if head.kind == Kind::Acknowledged {
                runs.extend_from_slice(part);
            }
            done += part.len() as u64;
        }
        if sum.finalize() == expected {
            Ok(Ok(Found { at, head, runs }))
        } else {
            Ok(Err(Defect::Body))
        }
    }

    /// The bytes from `at` on, as many as are at hand; at least `least` unless the file ends before.
    fn window(&mut self, at: u64, least: usize) -> io::Result<&[u8]> {
        let has = |window_at: u64, len: usize| {
            let skip = at.checked_sub(window_at).and_then(|skip| usize::try_from(skip).ok());
            skip.filter(|skip| len.checked_sub(*skip).is_some_and(|rest| rest >= least))
        };
        let skip = match has(self.window_at, self.window.len()) {
            Some(skip) => skip,
            None => {
                let len = self.end.saturating_sub(at).min(WINDOW as u64) as usize;
                self.window.resize(len, 0);
                self.window_at = at;
                let filled = self.file.read_at(&mut self.window, at)?;
                self.window.truncate(filled);
                0
            }
        };
        Ok(&self.window[skip..])
    }
}

/// Reads a record that has been found before: its body; an error if it isn't what it was.
pub fn read(file: &dyn File, salt: u64, at: u64, len: u32) -> io::Result<(Head, Vec<u8>)> {
    let bad = || io::Error::new(io::ErrorKind::InvalidData, "the record isn't what it was");
    let mut bytes = vec![0; len as usize];
    let filled = file.read_at(&mut bytes, at)?;
    let head = bytes[..filled].first_chunk::<HEAD>().ok_or_else(bad)?;
    let salt = Salted::new(salt);
    let (head, expected) = Head::decode(head, &salt).map_err(|_| bad())?;
    let is_whole = filled == bytes.len() && head.body_len() == (filled - HEAD) as u64;
    if !is_whole || salt.sum(&bytes[HEAD..filled]) != expected {
        return Err(bad());
    }
    Ok((head, bytes.split_off(HEAD)))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::tier::disk::{Disk, memory::Memory};

    const SALT: u64 = 99;

    fn put(out: &mut Vec<u8>, sequence: u64, value: &[u8]) {
        let head = Head { sequence, ..Head::bare(Kind::Put, value.len() as u32) };
        let salt = Salted::new(SALT);
        out.extend(head.encode(&salt, salt.sum(value)));
        out.extend_from_slice(value);
    }

    fn scanner(bytes: &[u8]) -> Scanner {
        let disk = Memory::new();
        disk.put(Path::new("file"), bytes);
        let file = disk.open(Path::new("file"), false).expect("opens");
        Scanner::new(file, SALT, bytes.len() as u64)
    }

    #[test]
    fn records_are_found_behind_damage_and_across_windows() {
        let mut bytes = vec![0; HEAD];
        put(&mut bytes, 1, b"one");
        let second = bytes.len();
        put(&mut bytes, 2, &vec![7; 3 * WINDOW]);
        // What looks like a record's beginning isn't taken for one.
        bytes[second + 100..second + 104].copy_from_slice(&MARKER);
        let third = bytes.len();
        put(&mut bytes, 3, b"three");
        let mut scanner = scanner(&bytes);
        assert!(matches!(scanner.step(), Ok(Step::Record(found)) if found.head.sequence == 1));
        assert!(matches!(scanner.step(), Ok(Step::Bad(Defect::Body))));
        assert_eq!(scanner.at(), second as u64);
        assert_eq!(scanner.find(second as u64 + 1).expect("reads"), Some(third as u64));
        scanner.seek(third as u64);
        assert!(matches!(scanner.step(), Ok(Step::Record(found)) if found.head.sequence == 3));
        assert_eq!(scanner.step().expect("reads"), Step::End);
        assert_eq!(scanner.find(third as u64 + 1).expect("reads"), None);
        let (head, body) = read(&*scanner.file, SALT, third as u64, 69).expect("reads");
        assert_eq!((head.sequence, &*body), (3, &b"three"[..]));
        assert!(read(&*scanner.file, SALT, third as u64, 68).is_err());
    }

    #[test]
    fn a_record_cut_anywhere_is_short() {
        let mut bytes = vec![0; HEAD];
        put(&mut bytes, 1, b"one");
        for len in HEAD + 1..bytes.len() {
            assert_eq!(scanner(&bytes[..len]).step().expect("reads"), Step::Bad(Defect::Short));
        }
    }
}
