//! What a segment holds: from the table at its end, or, where that is missing or damaged, from its
//! records.
//!
//! ```text
//!  | CRC u32 | generation u32 | count u32 | "LTBL" | entry | entry | ... | nothing, up to a page |
//!  entry   | hash u64 | keyspace u32 | first unit 24 bits, class 7, volatile 1 |
//! ```
//!
//! The CRC covers all behind it to the last entry. A table's first page is where its length, rounded up
//! to pages, says, counted from the segment's end.

use std::io;

use super::{
    super::disk::{PAGE, buffer::Buffer},
    Log, UNIT, record,
    slot::{Slot, VOLATILE},
    state::Kind,
};

const MAGIC: u32 = u32::from_le_bytes(*b"LTBL");
const HEADER: usize = 16;
const ENTRY: usize = 16;

/// A record of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item {
    /// The hash of its key.
    pub hash: u64,
    /// The contents of a database that it belongs to.
    pub keyspace: u32,
    /// Where it is.
    pub slot: Slot,
}

/// Bytes of a table of so many entries, in whole pages.
pub fn table_bytes(count: usize) -> usize {
    (HEADER + count * ENTRY).next_multiple_of(PAGE)
}

/// A segment's table.
pub fn table(items: &[Item], generation: u32, first_unit: u64) -> Buffer {
    let mut table = Buffer::zeroed(table_bytes(items.len()));
    table[4..8].copy_from_slice(&generation.to_le_bytes());
    table[8..12].copy_from_slice(&(items.len() as u32).to_le_bytes());
    table[12..16].copy_from_slice(&MAGIC.to_le_bytes());
    for (item, out) in items.iter().zip(table[HEADER..].chunks_exact_mut(ENTRY)) {
        out[..8].copy_from_slice(&item.hash.to_le_bytes());
        out[8..12].copy_from_slice(&item.keyspace.to_le_bytes());
        let unit = (item.slot.place() - first_unit) as u32;
        let volatile = u32::from(item.slot.has(VOLATILE));
        let word = unit << 8 | (item.slot.class() as u32) << 1 | volatile;
        out[12..].copy_from_slice(&word.to_le_bytes());
    }
    let sum = crc32fast::hash(&table[4..HEADER + items.len() * ENTRY]);
    table[..4].copy_from_slice(&sum.to_le_bytes());
    table
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].try_into().map_or(0, u32::from_le_bytes)
}

/// The entries of a table, if it is whole and of this generation.
fn entries(table: &[u8], generation: u32, count: usize, first_unit: u64) -> Option<Vec<Item>> {
    let end = HEADER + count * ENTRY;
    let is_whole = table.len() >= end
        && word(table, 12) == MAGIC
        && word(table, 4) == generation
        && word(table, 8) as usize == count
        && word(table, 0) == crc32fast::hash(&table[4..end]);
    let item = |bytes: &[u8]| {
        let (low, high) = (word(bytes, 0), word(bytes, 4));
        let packed = word(bytes, 12);
        let flags = if packed & 1 != 0 { VOLATILE } else { 0 };
        Item {
            hash: u64::from(high) << 32 | u64::from(low),
            keyspace: word(bytes, 8),
            slot: Slot::of_class(
                first_unit + u64::from(packed >> 8),
                u64::from(packed >> 1 & 127),
                flags,
            ),
        }
    };
    is_whole.then(|| table[HEADER..end].chunks_exact(ENTRY).map(item).collect())
}

impl Log {
    /// The valid records of a segment. An error says that the disk failed; then some may be missing.
    pub fn contents(&self, segment: usize) -> io::Result<Vec<Item>> {
        let (generation, kind) = self.state.segment(segment);
        let first_unit = segment as u64 * self.shape.units();
        match kind {
            Kind::Empty | Kind::Part => Ok(Vec::new()),
            Kind::Sealed => {
                let count = self.state.count(segment);
                let bytes = table_bytes(count);
                if bytes <= self.shape.segment_bytes {
                    let mut buffer = Buffer::zeroed(bytes);
                    let start = (segment + 1) * self.shape.segment_bytes - bytes;
                    let read = self.read_bytes(&mut buffer, start as u64, bytes);
                    if let Ok(table) = read
                        && let Some(mut items) = entries(table, generation, count, first_unit)
                    {
                        items.retain(|item| self.state.is_valid(item.slot.place()));
                        return Ok(items);
                    }
                }
                self.scan(segment, generation)
            }
            Kind::Open | Kind::Long => self.scan(segment, generation),
        }
    }

    /// The valid records of a segment, read one by one. Damaged ones are left out and made invalid.
    fn scan(&self, segment: usize, generation: u32) -> io::Result<Vec<Item>> {
        let hasher = self.hasher();
        let first = segment as u64 * self.shape.units();
        let places: Vec<u64> = self.state.valid_in(segment).map(|unit| first + unit).collect();
        let mut buffer = Buffer::zeroed(super::writer::CHUNK);
        // What the buffer holds.
        let (mut start, mut len) = (0, 0);
        let mut items = Vec::with_capacity(places.len());
        // Only a record that is longer than a segment goes on behind it.
        let segment_end = (segment as u64 + 1) * self.shape.segment_bytes as u64;
        let is_long = self.state.segment(segment).1 == Kind::Long;
        let last = if is_long { self.shape.bytes() / 4 + segment_end } else { segment_end };
        let last = last.min(self.shape.bytes());
        for place in places {
            let at = place * UNIT as u64;
            let mut need = record::HEADER;
            let read = loop {
                let is_here = at >= start && at + need as u64 <= start + len;
                if !is_here {
                    let want = need.max(super::writer::CHUNK);
                    len = self.read_bytes(&mut buffer, at, want)?.len() as u64;
                    // Bytes from `at` on stand behind the beginning of its page.
                    start = at;
                }
                let skip = (start % PAGE as u64 + (at - start)) as usize;
                let end = (start % PAGE as u64 + len) as usize;
                match record::read(&buffer[skip.min(end)..end]) {
                    Err(record::Defect::Short(more)) if more > need && at + more as u64 <= last => {
                        need = more;
                    }
                    read => break read,
                }
            };
            match read {
                Ok(record) if record.head.generation == generation => {
                    let meta = &record.head.meta;
                    let bytes = record::size(record.key.len(), record.value.len(), meta);
                    let flags = if meta.deadline != 0 { VOLATILE } else { 0 };
                    items.push(Item {
                        hash: super::hash(&hasher, record.key),
                        keyspace: record.head.keyspace,
                        slot: Slot::written(place, record::units(bytes), flags),
                    });
                }
                _ => {
                    super::add(&self.counters.bad_records, 1);
                    self.state.set_invalid(place);
                }
            }
        }
        Ok(items)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_comes_back_whole_or_not_at_all() {
        let items: Vec<Item> = (0..300_u64)
            .map(|number| Item {
                hash: number.wrapping_mul(0x9E37_79B9_7F4A_7C15),
                keyspace: number as u32 % 3,
                slot: Slot::written(5_000 + number * 7, 1 + number % 30, (number % 2) * VOLATILE),
            })
            .collect();
        let mut bytes = table(&items, 9, 5_000);
        assert_eq!(bytes.len(), 2 * PAGE);
        assert_eq!(entries(&bytes, 9, 300, 5_000).as_deref(), Some(&items[..]));
        assert_eq!(entries(&bytes, 8, 300, 5_000), None);
        assert_eq!(entries(&bytes, 9, 299, 5_000), None);
        bytes[1234] ^= 1;
        assert_eq!(entries(&bytes, 9, 300, 5_000), None);
    }
}
