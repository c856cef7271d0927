//! A queue of short references in small chunks: four bytes an item, no doubling, no slack to speak of.

use std::collections::VecDeque;

use super::table::Ref;

/// A first-in, first-out queue of references in chunks of `CHUNK`: large ones cost least for a long
/// queue, small ones for many short queues.
pub struct Fifo<const CHUNK: usize> {
    chunks: VecDeque<Box<[Ref; CHUNK]>>,
    /// Items taken from the first chunk.
    head: usize,
    len: usize,
}

impl<const CHUNK: usize> Default for Fifo<CHUNK> {
    fn default() -> Self {
        Self { chunks: VecDeque::new(), head: 0, len: 0 }
    }
}

impl<const CHUNK: usize> Fifo<CHUNK> {
    /// Items.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no item.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes allocated.
    pub fn bytes(&self) -> usize {
        self.chunks.len() * size_of::<[Ref; CHUNK]>() + self.chunks.capacity() * size_of::<usize>()
    }

    /// Adds an item at the tail and returns by how many bytes the queue grew.
    pub fn push(&mut self, item: Ref) -> usize {
        let at = self.head + self.len;
        let mut grown = 0;
        if at == self.chunks.len() * CHUNK {
            let before = self.bytes();
            self.reserve_chunk();
            self.chunks.push_back(Box::new([0; CHUNK]));
            grown = self.bytes() - before;
        }
        self.chunks[at / CHUNK][at % CHUNK] = item;
        self.len += 1;
        grown
    }

    /// Grows the list of chunks by an eighth, not by doubling.
    fn reserve_chunk(&mut self) {
        if self.chunks.len() == self.chunks.capacity() {
            self.chunks.reserve_exact(1 + self.chunks.len() / 8);
        }
    }

    /// Takes the item at the head.
    pub fn pop(&mut self) -> Option<Ref> {
        let item = self.get(0)?;
        self.head += 1;
        self.len -= 1;
        if self.head == CHUNK || self.len == 0 {
            self.chunks.pop_front();
            self.head = 0;
        }
        if self.chunks.capacity() > 16 && self.chunks.len() * 4 < self.chunks.capacity() {
            self.chunks.shrink_to(self.chunks.len() * 2);
        }
        Some(item)
    }

    /// Takes out the item at a position from the head; the one at the head takes its place.
    pub fn swap_remove(&mut self, index: usize) {
        let at = self.head + index;
        if index < self.len
            && let Some(first) = self.get(0)
        {
            self.chunks[at / CHUNK][at % CHUNK] = first;
            self.pop();
        }
    }

    /// All items from the head, freeing chunks as it goes.
    pub fn into_items(mut self) -> impl Iterator<Item = Ref> {
        std::iter::from_fn(move || self.pop())
    }

    /// The item at a position from the head.
    pub fn get(&self, index: usize) -> Option<Ref> {
        let at = self.head + index;
        (index < self.len).then(|| self.chunks[at / CHUNK][at % CHUNK])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn behaves_as_a_deque(steps in prop::collection::vec(prop::option::of(any::<u32>()), 0..500)) {
            let (mut fifo, mut model) = (Fifo::<32>::default(), VecDeque::new());
            for step in steps {
                match step {
                    Some(item) => {
                        fifo.push(item);
                        model.push_back(item);
                    }
                    None => prop_assert_eq!(fifo.pop(), model.pop_front()),
                }
                prop_assert_eq!(fifo.len(), model.len());
                prop_assert_eq!(fifo.get(model.len() / 2), model.get(model.len() / 2).copied());
            }
        }
    }

    #[test]
    fn costs_little_more_than_its_items() {
        let mut fifo = Fifo::<32>::default();
        for item in 0..100_000 {
            fifo.push(item);
        }
        assert!(fifo.bytes() < 100_000 * 9 / 2, "{}", fifo.bytes());
        while fifo.pop().is_some() {}
        assert!(fifo.bytes() < 1024);
    }
}
