//! The end of the newest segment, where records are added.

use std::{io, sync::Arc};

use super::format::{HEAD, Head, Salted};
use crate::tier::disk::File;

/// Bytes that are gathered for one write.
const WRITE: usize = 1024 * 1024;
/// Bodies from this length on are written from where they are.
const LONG: usize = 128 * 1024;

/// A segment that grows.
pub(super) struct Tail {
    file: Arc<dyn File>,
    salt: Salted,
    /// Bytes of it that are written.
    written: u64,
    buffer: Vec<u8>,
    /// Bytes of it that are synced.
    pub synced: u64,
    /// What the last mark says of that.
    pub marked: u64,
}

impl Tail {
    /// A segment of which only the head is written, and synced.
    pub fn new(file: Arc<dyn File>, salt: u64) -> Self {
        let (head, salt) = (HEAD as u64, Salted::new(salt));
        Self { file, salt, written: head, buffer: Vec::new(), synced: head, marked: head }
    }

    /// Its bytes.
    pub fn len(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }

    /// Whether some of them aren't synced.
    pub fn is_dirty(&self) -> bool {
        self.len() > self.synced
    }

    /// Adds a record; gives its place.
    pub fn put(&mut self, head: &Head, body: &[u8]) -> io::Result<u64> {
        if body.len() < LONG {
            return self.put_with(head, |out| out.extend_from_slice(body));
        }
        let at = self.len();
        self.buffer.extend_from_slice(&head.encode(&self.salt, self.salt.sum(body)));
        self.flush()?;
        self.file.write_at(body, self.written)?;
        self.written += body.len() as u64;
        Ok(at)
    }

    /// Adds a record, to which `add` adds its body; gives its place.
    pub fn put_with(&mut self, head: &Head, add: impl FnOnce(&mut Vec<u8>)) -> io::Result<u64> {
        let (from, salt) = (self.buffer.len(), self.salt.clone());
        self.put_whole(|out| {
            out.extend_from_slice(&[0; HEAD]);
            add(out);
            if let Some((place, body)) = out[from..].split_first_chunk_mut::<HEAD>() {
                *place = head.encode(&salt, salt.sum(body));
            }
        })
    }

    /// Adds a record as it is, with the checksums of this segment; gives its place.
    pub fn put_whole(&mut self, add: impl FnOnce(&mut Vec<u8>)) -> io::Result<u64> {
        let at = self.len();
        add(&mut self.buffer);
        if self.buffer.len() >= WRITE {
            self.flush()?;
        }
        Ok(at)
    }

    /// Hands all of it to the system.
    pub fn flush(&mut self) -> io::Result<()> {
        if !self.buffer.is_empty() {
            self.file.write_at(&self.buffer, self.written)?;
            self.written += self.buffer.len() as u64;
            self.buffer.clear();
        }
        Ok(())
    }

    /// Brings all of it onto the device.
    pub fn sync(&mut self) -> io::Result<()> {
        self.flush()?;
        self.file.sync()?;
        self.synced = self.written;
        Ok(())
    }
}
