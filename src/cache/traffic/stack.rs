//! Keys in the order of their last use, and how many bytes were used since each.
//!
//! A key stands at a place; each use gives it the next one, and when the places are used up, those that are
//! left free are closed. Bytes are summed up over blocks of places and over blocks of blocks, so a move costs
//! a few additions and a question a few short sums, which end where the newest key stands: the hotter the
//! key, the cheaper. (A Fenwick tree answers in as many steps as its depth, and writes as many at each move.)

use hashbrown::HashTable;

/// Places of a block, and blocks of a part.
const BLOCK: usize = 32;

/// A key of the stack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Node {
    /// What tells it from all others: its hash and its database.
    pub(super) id: u64,
    /// When it ends, in unix milliseconds; 0: never.
    pub(super) end: u64,
    /// Its database.
    pub(super) db: u16,
    /// Whether it wasn't there when it was last asked for.
    pub(super) is_absent: bool,
}

/// Keys in the order of their last use.
pub(super) struct Stack {
    nodes: Box<[Node]>,
    /// The bytes of the key at each place; 0: it is free.
    bytes: Box<[u32]>,
    /// Sums over blocks of places, and over blocks of those.
    blocks: Box<[u64]>,
    parts: Box<[u64]>,
    /// Where each key stands.
    places: HashTable<u16>,
    /// The next place, and one before which all are free.
    next: usize,
    oldest: usize,
    total: u64,
}

/// Low bits of what is sampled are alike; those above aren't.
fn spread(id: u64) -> u64 {
    id.rotate_right(38).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

impl Stack {
    /// An empty stack for `most` keys.
    pub(super) fn new(most: usize) -> Self {
        let places = (2 * most).next_multiple_of(BLOCK * BLOCK);
        assert!(places <= 1 << 16, "places are 16 bits");
        Self {
            nodes: vec![Node::default(); places].into(),
            bytes: vec![0; places].into(),
            blocks: vec![0; places / BLOCK].into(),
            parts: vec![0; places / BLOCK / BLOCK].into(),
            places: HashTable::with_capacity(most + 1),
            next: 0,
            oldest: 0,
            total: 0,
        }
    }

    /// Its keys.
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// The bytes of all its keys.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// What it takes of memory, in bytes.
    pub(super) fn size(&self) -> usize {
        self.nodes.len() * (size_of::<Node>() + size_of::<u32>())
            + (self.blocks.len() + self.parts.len()) * size_of::<u64>()
            + self.places.allocation_size()
    }

    /// The place of a key.
    pub(super) fn find(&self, id: u64) -> Option<usize> {
        let nodes = &self.nodes;
        let found = self.places.find(spread(id), |at| nodes[usize::from(*at)].id == id);
        found.map(|at| usize::from(*at))
    }

    /// The key at a place, and its bytes.
    pub(super) fn get(&self, place: usize) -> (Node, u32) {
        (self.nodes[place], self.bytes[place])
    }

    /// The bytes of the keys that were used after the one at a place.
    pub(super) fn above(&self, place: usize) -> u64 {
        // Behind the next place there is nothing.
        let (block, last_block) = (place / BLOCK, self.next / BLOCK);
        let (part, last_part) = (block / BLOCK, last_block / BLOCK);
        let near = place + 1..((block + 1) * BLOCK).min(self.next);
        let further = block + 1..((part + 1) * BLOCK).min(last_block + 1);
        let far = part + 1..last_part + 1;
        let near: u64 = self.bytes[near].iter().map(|bytes| u64::from(*bytes)).sum();
        let sum = |sums: &[u64]| sums.iter().sum::<u64>();
        near + sum(&self.blocks[further]) + sum(&self.parts[far])
    }

    /// Takes the key at a place out.
    pub(super) fn remove(&mut self, place: usize) {
        let spread = spread(self.nodes[place].id);
        if let Ok(entry) = self.places.find_entry(spread, |at| usize::from(*at) == place) {
            entry.remove();
            self.leave(place);
        }
    }

    fn leave(&mut self, place: usize) {
        let bytes = u64::from(std::mem::take(&mut self.bytes[place]));
        self.blocks[place / BLOCK] -= bytes;
        self.parts[place / BLOCK / BLOCK] -= bytes;
        self.total -= bytes;
    }

    /// Puts a key that isn't there on top. There must not be more keys than the stack was made for.
    pub(super) fn push(&mut self, node: Node, bytes: u32) {
        let nodes = &self.nodes;
        let spread_at = |at: &u16| spread(nodes[usize::from(*at)].id);
        self.places.insert_unique(spread(node.id), self.next as u16, spread_at);
        self.stand(node, bytes);
    }

    /// Moves the key at a place to the top, with what holds for it now.
    pub(super) fn renew(&mut self, place: usize, node: Node, bytes: u32) {
        let spread = spread(node.id);
        if let Some(at) = self.places.find_mut(spread, |at| usize::from(*at) == place) {
            *at = self.next as u16;
            self.leave(place);
            self.stand(node, bytes);
        }
    }

    /// Gives a key the next place. There is always one.
    fn stand(&mut self, node: Node, bytes: u32) {
        let (place, bytes) = (self.next, bytes.max(1));
        self.nodes[place] = node;
        self.bytes[place] = bytes;
        self.blocks[place / BLOCK] += u64::from(bytes);
        self.parts[place / BLOCK / BLOCK] += u64::from(bytes);
        self.total += u64::from(bytes);
        self.next += 1;
        if self.next == self.nodes.len() {
            self.close();
        }
    }

    /// Takes the key out that wasn't used for longest.
    pub(super) fn pop(&mut self) {
        while self.oldest < self.next && self.bytes[self.oldest] == 0 {
            self.oldest += 1;
        }
        if self.oldest < self.next {
            self.remove(self.oldest);
        }
    }

    /// Keeps some of the keys.
    pub(super) fn keep(&mut self, mut keeps: impl FnMut(&Node) -> bool) {
        for place in self.oldest..self.next {
            if self.bytes[place] != 0 && !keeps(&self.nodes[place]) {
                self.remove(place);
            }
        }
    }

    /// Closes the places that are free.
    fn close(&mut self) {
        self.blocks.fill(0);
        self.parts.fill(0);
        self.places.clear();
        let taken = self.oldest..std::mem::take(&mut self.next);
        (self.oldest, self.total) = (0, 0);
        for place in taken {
            let (node, bytes) = (self.nodes[place], std::mem::take(&mut self.bytes[place]));
            if bytes != 0 {
                self.push(node, bytes);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Use(u64, u32),
        Remove(u64),
        Pop,
        KeepBelow(u64),
        Close,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            20 => (0..90u64, 1..1000u32).prop_map(|(id, bytes)| Step::Use(id, bytes)),
            2 => (0..90u64).prop_map(Step::Remove),
            1 => Just(Step::Pop),
            1 => (60..120u64).prop_map(Step::KeepBelow),
            1 => Just(Step::Close),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn it_is_as_a_plain_list(steps in prop::collection::vec(step(), 1..6000)) {
            let mut stack = Stack::new(100);
            // The last used is at the end.
            let mut list: Vec<(u64, u32)> = Vec::new();
            for step in steps {
                match step {
                    Step::Use(id, bytes) => {
                        let node = Node { id, ..Node::default() };
                        match stack.find(id) {
                            Some(place) => stack.renew(place, node, bytes),
                            None => stack.push(node, bytes),
                        }
                        list.retain(|(other, _)| *other != id);
                        list.push((id, bytes));
                    }
                    Step::Remove(id) => {
                        stack.find(id).into_iter().for_each(|place| stack.remove(place));
                        list.retain(|(other, _)| *other != id);
                    }
                    Step::Pop => {
                        stack.pop();
                        if !list.is_empty() {
                            list.remove(0);
                        }
                    }
                    Step::KeepBelow(end) => {
                        stack.keep(|node| node.id < end);
                        list.retain(|(id, _)| *id < end);
                    }
                    Step::Close => stack.close(),
                }
                let all: u64 = list.iter().map(|(_, bytes)| u64::from(*bytes)).sum();
                prop_assert_eq!((stack.len(), stack.total()), (list.len(), all));
                let mut above = 0;
                for (id, bytes) in list.iter().rev() {
                    let place = stack.find(*id).expect("it is there");
                    prop_assert_eq!(stack.get(place).1, *bytes);
                    prop_assert_eq!(stack.above(place), above);
                    above += u64::from(*bytes);
                }
            }
        }
    }
}
