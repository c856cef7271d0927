//! Reading the log: which bytes a record takes, and whether what was read of them is the record.
//!
//! The two halves stand apart so that what is between, the disk, can be waited for in any way.

use std::{io, sync::Arc, time::Duration};

use super::{
    super::{
        disk::{File, PAGE, buffer::Buffer},
        entry::Meta,
    },
    Log, UNIT, add,
    record::{self, Record},
    slot::Slot,
};

/// Bytes of a record that are read for its key.
const PEEKED: usize = 1 << 10;

/// A key on disk, and when it ends.
pub type KeyRead = (Box<[u8]>, Meta);

/// What a read of a record found.
#[derive(Debug)]
pub enum Fetched<T> {
    /// The key's record.
    Found(T),
    /// A record of another key, or of contents that are gone.
    Other,
    /// Nothing that is a record.
    Bad,
    /// The disk gave an error.
    Failed(io::Error),
}

/// Some bytes of the log, and the whole pages around them, which are what can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Where the pages begin.
    pub first: u64,
    /// Bytes of the pages.
    pub len: usize,
    skip: usize,
    bytes: usize,
}

impl Span {
    fn new(start: u64, bytes: usize, end: u64) -> Self {
        let first = start / PAGE as u64 * PAGE as u64;
        let end = (start + bytes as u64).min(end).next_multiple_of(PAGE as u64);
        let len = end.saturating_sub(first) as usize;
        Self { first, len, skip: (start - first) as usize, bytes }
    }

    /// The bytes, or those of them that were read.
    pub fn of<'a>(&self, pages: &'a [u8]) -> &'a [u8] {
        &pages[self.skip.min(pages.len())..pages.len().min(self.skip + self.bytes)]
    }
}

impl Log {
    /// Some bytes of the log, those up to its end.
    pub fn span(&self, start: u64, bytes: usize) -> Span {
        Span::new(start, bytes, self.shape.bytes())
    }

    /// The bytes of a record.
    pub fn span_of(&self, slot: Slot) -> Span {
        self.span(slot.place() * UNIT as u64, slot.bytes())
    }

    /// So many bytes of a record, to find its key in (see [`Log::judge_key`]).
    pub fn span_of_key(&self, slot: Slot, bytes: usize) -> Span {
        self.span(slot.place() * UNIT as u64, slot.bytes().min(bytes.max(PEEKED)))
    }

    /// Its file.
    pub fn file(&self) -> &Arc<dyn File> {
        &self.file
    }

    /// Reads a span, and waits for it. The buffer is made larger if need be.
    pub fn read_span<'a>(&self, buffer: &'a mut Buffer, span: &Span) -> io::Result<&'a [u8]> {
        if buffer.len() < span.len {
            *buffer = Buffer::zeroed(span.len);
        }
        let read = self.file.read_at(&mut buffer[..span.len], span.first)?;
        add(&self.counters.read_bytes, span.len as u64);
        Ok(span.of(&buffer[..read]))
    }

    /// The same for so many bytes, or those up to the log's end.
    pub fn read_bytes<'a>(
        &self,
        buffer: &'a mut Buffer,
        start: u64,
        bytes: usize,
    ) -> io::Result<&'a [u8]> {
        self.read_span(buffer, &self.span(start, bytes))
    }

    /// Counts a read of a record.
    pub fn note_read(&self, took: Duration) {
        add(&self.counters.reads, 1);
        add(&self.counters.read_nanos, took.as_nanos() as u64);
    }

    /// Takes what was read of a record's span and, if it is one of this key, hands it to `found`.
    pub fn judge<T>(
        &self,
        read: io::Result<&[u8]>,
        slot: Slot,
        keyspace: u32,
        key: &[u8],
        found: impl FnOnce(&Record<'_>) -> T,
    ) -> Fetched<T> {
        let bytes = match read {
            Ok(bytes) => bytes,
            Err(error) => {
                add(&self.counters.read_errors, 1);
                return Fetched::Failed(error);
            }
        };
        let Ok(record) = self.read_record(bytes) else { return Fetched::Bad };
        if record.head.generation != self.state.segment(self.segment_of(slot.place())).0 {
            return Fetched::Bad;
        }
        if record.key != key || record.head.keyspace != keyspace {
            add(&self.counters.other_keys, 1);
            return Fetched::Other;
        }
        Fetched::Found(found(&record))
    }

    /// Takes the key of a record and when it ends, unchecked, from what was read of its beginning: see
    /// whether the index has such a record before it is believed. `Err` says how many bytes it takes.
    pub fn judge_key(
        &self,
        read: io::Result<&[u8]>,
        slot: Slot,
    ) -> Result<Fetched<KeyRead>, usize> {
        add(&self.counters.key_reads, 1);
        let bytes = match read {
            Ok(bytes) => bytes,
            Err(error) => {
                add(&self.counters.read_errors, 1);
                return Ok(Fetched::Failed(error));
            }
        };
        match record::peek(bytes) {
            Ok((head, key)) => Ok(Fetched::Found((key.into(), self.judged(head, key).meta))),
            Err(record::Defect::Short(more)) if more > bytes.len() && more <= slot.bytes() => {
                Err(more)
            }
            Err(_) => Ok(Fetched::Bad),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_whole_pages() {
        let pages: Vec<u8> = (0..4 * PAGE).map(|at| (at / UNIT) as u8).collect();
        for (start, bytes) in [(0, 1), (64, 4096), (4032, 64), (4032, 128), (8192, 8192)] {
            let span = Span::new(start, bytes, pages.len() as u64);
            assert_eq!((span.first % PAGE as u64, span.len % PAGE), (0, 0));
            let read = &pages[span.first as usize..][..span.len];
            assert_eq!(span.of(read), &pages[start as usize..][..bytes]);
        }
        // What ends too early is cut short; what lies behind the end has no bytes.
        let span = Span::new(64, 4096, pages.len() as u64);
        assert_eq!(span.of(&pages[..PAGE]).len(), PAGE - 64);
        assert_eq!(span.of(&[]), b"");
        assert_eq!(Span::new(5 * PAGE as u64, 64, pages.len() as u64).of(&[]), b"");
    }
}
