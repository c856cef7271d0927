//! All commands, and the way from a name to its row.
//!
//! Names are looked up in a small open-addressed table over the name's first and last bytes in lower
//! case, built once; the row found is then compared in full.

use std::sync::LazyLock;

use super::{
    bitfield, bits, breaker_command, connection, dead_letter_command, dump, expire, keys, keyspace,
    lcs, namespace_command, object, relocate,
    row::{Flags, Group, Row},
    scan, server, strings, strings_many, strings_number, strings_range, tiers, traffic,
};

/// A row and its place among all rows, subcommands included.
#[derive(Clone, Copy)]
pub struct Entry {
    /// The row.
    pub row: &'static Row,
    /// The index by which it is counted.
    pub index: u16,
    /// The index of the command that it is a subcommand of.
    pub parent: Option<u16>,
    /// It takes so little that looking at the clock for each would be felt: what Redis calls fast, and what does
    /// as little, as SET does.
    pub is_brief: bool,
}

impl Entry {
    /// The name with the container's: `config|get`.
    pub fn full_name(&self) -> String {
        match self.parent {
            Some(parent) => format!("{}|{}", all()[usize::from(parent)].row.name, self.row.name),
            None => self.row.name.to_owned(),
        }
    }

    /// The subcommand that an argument names.
    pub fn subcommand(&self, name: &[u8]) -> Option<&'static Entry> {
        let mut rows = all()[usize::from(self.index) + 1..].iter();
        let count = self.row.subcommands().len();
        rows.by_ref().take(count).find(|entry| entry.row.name.as_bytes().eq_ignore_ascii_case(name))
    }
}

struct Table {
    entries: Vec<Entry>,
    /// Index of an entry plus 1, by hash.
    slots: Vec<u16>,
}

/// A power of two, a few times the number of commands.
const SLOTS: usize = 1024;

static TABLE: LazyLock<Table> = LazyLock::new(Table::new);

fn families() -> impl Iterator<Item = &'static Row> {
    [
        connection::ROWS,
        server::ROWS,
        keyspace::ROWS,
        keys::ROWS,
        relocate::ROWS,
        expire::ROWS,
        scan::ROWS,
        object::ROWS,
        dump::ROWS,
        strings::ROWS,
        strings_number::ROWS,
        strings_range::ROWS,
        strings_many::ROWS,
        lcs::ROWS,
        bits::ROWS,
        bitfield::ROWS,
        tiers::ROWS,
        traffic::ROWS,
        breaker_command::ROWS,
        namespace_command::ROWS,
        dead_letter_command::ROWS,
    ]
    .into_iter()
    .flatten()
}

/// A few bytes of a name, the same in any case.
#[inline]
fn slot_of(name: &[u8]) -> usize {
    let (Some(first), Some(last)) = (name.first(), name.last()) else { return 0 };
    let middle = name[name.len() / 2];
    let word = u64::from_le_bytes([
        first | 0x20,
        middle | 0x20,
        last | 0x20,
        name.len() as u8,
        name[name.len() / 4] | 0x20,
        name[name.len() * 3 / 4] | 0x20,
        0,
        0,
    ]);
    (word.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 54) as usize
}

fn is_brief(row: &Row) -> bool {
    let is_like_set = row.group == Group::String && row.complexity == "O(1)";
    row.flags.has(Flags::FAST) || is_like_set
}

impl Table {
    fn new() -> Self {
        let mut table = Self { entries: Vec::new(), slots: vec![0; SLOTS] };
        for row in families() {
            let index = table.entries.len() as u16;
            table.entries.push(Entry { row, index, parent: None, is_brief: is_brief(row) });
            let mut slot = slot_of(row.name.as_bytes());
            while table.slots[slot] != 0 {
                slot = (slot + 1) % SLOTS;
            }
            table.slots[slot] = index + 1;
            for (step, row) in row.subcommands().iter().enumerate() {
                let entry = Entry {
                    row,
                    index: index + 1 + step as u16,
                    parent: Some(index),
                    is_brief: is_brief(row),
                };
                table.entries.push(entry);
            }
        }
        table
    }
}

/// All rows; a command's subcommands stand behind it.
pub fn all() -> &'static [Entry] {
    &TABLE.entries
}

/// The row of a command.
#[inline]
pub fn find(name: &[u8]) -> Option<&'static Entry> {
    let table = &*TABLE;
    let mut slot = slot_of(name);
    loop {
        let index = usize::from(table.slots[slot]).checked_sub(1)?;
        let entry = &table.entries[index];
        if entry.row.name.as_bytes().eq_ignore_ascii_case(name) {
            return Some(entry);
        }
        slot = (slot + 1) % SLOTS;
    }
}

/// The entry with this index.
#[inline]
pub fn at(index: u16) -> &'static Entry {
    &TABLE.entries[usize::from(index)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::row::{Flags, Run};
    use std::collections::HashSet;

    #[test]
    fn every_name_is_unique_and_found_in_any_case() {
        let mut seen = HashSet::new();
        for entry in all() {
            assert!(seen.insert(entry.full_name()), "{}", entry.full_name());
            if entry.parent.is_none() {
                let upper = entry.row.name.to_ascii_uppercase();
                assert_eq!(find(upper.as_bytes()).unwrap().index, entry.index);
            }
        }
        assert!(find(b"").is_none() && find(b"nosuch").is_none());
    }

    #[test]
    fn every_row_is_legal_and_documented() {
        for entry in all() {
            let (row, name) = (entry.row, entry.full_name());
            assert_eq!(row.name, row.name.to_ascii_lowercase());
            assert!(!row.summary.is_empty() && row.summary.ends_with('.'), "{name}: summary");
            assert!(!row.since.is_empty() && !row.complexity.is_empty(), "{name}");
            let is_write = row.flags.has(Flags::WRITE);
            assert!(!(is_write && row.flags.has(Flags::READONLY)), "{name}: writes and reads only");
            assert!(!row.flags.has(Flags::DENYOOM) || is_write, "{name}: grows without writing");
            if let Run::Keys(_) = row.run {
                assert!(!row.keys.is_empty(), "{name}: works on keys, but names none");
                assert!(is_write || row.flags.has(Flags::READONLY), "{name}");
            }
            if row.arity > 0 && !matches!(row.run, Run::Sub(_)) {
                let last = row.key_positions(row.arity as usize).map(|(at, _)| at).max();
                assert!(last.is_none_or(|last| last < row.arity as usize), "{name}");
            }
        }
    }
}
