//! What is to be sent: bytes, with large values spliced in by reference.
//!
//! ```text
//! bytes    $3\r\nabc\r\n$20000\r\n | \r\n:1\r\n$30000\r\n | \r\n
//! splices                   value of 20,000           value of 30,000
//! ```
//!
//! A worker has one [`Output`] for the batch that it runs; what the socket doesn't take at once moves
//! to an output of the connection ([`Output::take_rest`]), without copying spliced values.

use std::{iter, mem, ops::Range};

use bytes::{Buf, Bytes};

/// What a batch of requests answers. Reused by a worker.
#[derive(Debug)]
pub struct Output {
    /// All that isn't spliced.
    pub(super) bytes: Vec<u8>,
    /// Ascending by place.
    splices: Vec<Splice>,
    /// The length of all splices together.
    spliced: usize,
    /// Behind this length no further value is added.
    limit: usize,
    /// Whether one wasn't.
    cut: bool,
}

impl Default for Output {
    fn default() -> Self {
        let (bytes, splices) = (Vec::new(), Vec::new());
        Self { bytes, splices, spliced: 0, limit: usize::MAX, cut: false }
    }
}

/// A value that is sent after the first `at` of the bytes.
#[derive(Debug)]
struct Splice {
    at: usize,
    value: Bytes,
}

/// A place in an output, to which it can be truncated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    bytes: usize,
    splices: usize,
    spliced: usize,
}

/// What was sent of an output.
struct Sent {
    /// So many of the bytes.
    bytes: usize,
    /// So many whole splices.
    splices: usize,
    /// So many bytes of the splice behind them.
    of_next: usize,
}

impl Output {
    /// The number of bytes to send, splices included.
    #[inline]
    pub fn len(&self) -> usize {
        self.bytes.len() + self.spliced
    }

    /// Sets the length behind which no further value is added (one value may be longer).
    pub fn set_limit(&mut self, limit: usize) {
        (self.limit, self.cut) = (limit, false);
    }

    /// Whether a value was left out: what is there isn't fit to be sent.
    pub fn is_cut(&self) -> bool {
        self.cut
    }

    /// Whether a further value may be added.
    #[inline]
    pub(super) fn takes_value(&mut self) -> bool {
        let takes = self.len() <= self.limit;
        self.cut |= !takes;
        takes
    }

    /// Whether there is nothing to send.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether values are spliced in behind `mark`.
    pub fn has_splices_behind(&self, mark: Mark) -> bool {
        self.splices.len() > mark.splices
    }

    /// Drops everything and keeps the room.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.splices.clear();
        self.spliced = 0;
    }

    /// Gives room back, so that space for `cap` bytes remains (or for what is in use).
    pub fn shrink_to(&mut self, cap: usize) {
        self.bytes.shrink_to(cap);
        self.splices.shrink_to(cap / mem::size_of::<Splice>());
    }

    /// Bytes of memory that the output itself holds; spliced values aren't counted.
    #[cfg(test)]
    fn heap_bytes(&self) -> usize {
        self.bytes.capacity() + self.splices.capacity() * mem::size_of::<Splice>()
    }

    /// The end as it is now.
    #[inline]
    pub fn mark(&self) -> Mark {
        Mark { bytes: self.bytes.len(), splices: self.splices.len(), spliced: self.spliced }
    }

    /// Drops what came after `mark`. A mark is good until something before it is taken away.
    pub fn truncate(&mut self, mark: Mark) {
        self.bytes.truncate(mark.bytes);
        if self.splices.len() > mark.splices {
            self.splices.truncate(mark.splices);
            self.spliced = mark.spliced;
        }
    }

    /// Takes what came after `mark` out, as an output of its own.
    pub fn split_off(&mut self, mark: Mark) -> Self {
        let mut rest = Self {
            bytes: self.bytes.split_off(mark.bytes),
            splices: self.splices.drain(mark.splices..).collect(),
            ..Self::default()
        };
        rest.rebase(&Sent { bytes: mark.bytes, splices: 0, of_next: 0 });
        self.spliced = mark.spliced;
        rest
    }

    /// Appends bytes as they are.
    #[inline]
    pub fn extend(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Appends a value by reference.
    pub fn splice(&mut self, value: Bytes) {
        if !value.is_empty() {
            self.spliced += value.len();
            self.splices.push(Splice { at: self.bytes.len(), value });
        }
    }

    /// Inserts bytes at `mark`, which must be in the output.
    pub(super) fn insert(&mut self, mark: Mark, bytes: &[u8]) {
        let at = mark.bytes.min(self.bytes.len());
        self.bytes.splice(at..at, bytes.iter().copied());
        for splice in self.splices.iter_mut().skip(mark.splices) {
            splice.at += bytes.len();
        }
    }

    /// A range of an output in which no value is spliced.
    #[inline]
    pub fn plain(&self, range: Range<usize>) -> Option<&[u8]> {
        self.bytes.get(range).filter(|_| self.splices.is_empty())
    }

    /// What is to be sent, in order, without its first `from` bytes. No chunk is empty.
    pub fn chunks(&self, from: usize) -> impl Iterator<Item = &[u8]> {
        let mut skip = from;
        self.segments().filter_map(move |segment| {
            let skipped = skip.min(segment.len());
            skip -= skipped;
            Some(&segment[skipped..]).filter(|rest| !rest.is_empty())
        })
    }

    /// Runs of bytes and splices in turn; some may be empty.
    fn segments(&self) -> impl Iterator<Item = &[u8]> {
        let mut last = 0;
        let spliced = self.splices.iter().flat_map(move |splice| {
            let before = &self.bytes[last..splice.at];
            last = splice.at;
            [before, &splice.value]
        });
        let tail = self.splices.last().map_or(0, |splice| splice.at);
        spliced.chain(iter::once(&self.bytes[tail..]))
    }

    /// Appends a copy of a part of it to another.
    pub fn copy(&self, part: Range<usize>, to: &mut Self) {
        let mut left = part.len();
        for chunk in self.chunks(part.start) {
            if left == 0 {
                break;
            }
            let chunk = &chunk[..chunk.len().min(left)];
            to.extend(chunk);
            left -= chunk.len();
        }
    }

    /// Takes what follows the first `from` bytes, those which were sent, and is empty after.
    /// Spliced values aren't copied.
    pub fn take_rest(&mut self, from: usize) -> Self {
        let sent = self.sent(from);
        let mut rest = Self {
            bytes: self.bytes[sent.bytes..].to_vec(),
            splices: self.splices.drain(..).skip(sent.splices).collect(),
            ..Self::default()
        };
        rest.rebase(&sent);
        self.clear();
        rest
    }

    /// Drops the first `from` bytes, those which were sent. The rest moves to the front: call it
    /// when much was sent, not after every write.
    pub fn discard(&mut self, from: usize) {
        let sent = self.sent(from);
        self.bytes.drain(..sent.bytes);
        self.splices.drain(..sent.splices);
        self.rebase(&sent);
    }

    /// What the first `from` bytes cover.
    fn sent(&self, from: usize) -> Sent {
        let mut left = from;
        let mut bytes = 0;
        for (splices, splice) in self.splices.iter().enumerate() {
            let run = splice.at - bytes;
            if left < run + splice.value.len() {
                return Sent {
                    bytes: bytes + left.min(run),
                    splices,
                    of_next: left.saturating_sub(run),
                };
            }
            left -= run + splice.value.len();
            bytes = splice.at;
        }
        Sent { bytes: self.bytes.len().min(bytes + left), splices: self.splices.len(), of_next: 0 }
    }

    /// Mends the splices after what was sent has gone.
    fn rebase(&mut self, sent: &Sent) {
        if let Some(first) = self.splices.first_mut() {
            first.value.advance(sent.of_next);
        }
        self.splices.iter_mut().for_each(|splice| splice.at -= sent.bytes);
        self.spliced = self.splices.iter().map(|splice| splice.value.len()).sum();
    }

    /// Appends all of another output, whose splices aren't copied.
    pub fn append(&mut self, mut other: Self) {
        if self.is_empty() && self.bytes.capacity() < other.bytes.capacity() {
            mem::swap(self, &mut other);
            return;
        }
        let base = self.bytes.len();
        self.bytes.extend_from_slice(&other.bytes);
        let moved = other.splices.into_iter();
        self.splices.extend(moved.map(|splice| Splice { at: splice.at + base, ..splice }));
        self.spliced += other.spliced;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An output of runs and splices in turn, and what it must send.
    fn build(parts: &[(Vec<u8>, Vec<u8>)]) -> (Output, Vec<u8>) {
        let (mut output, mut expected) = (Output::default(), Vec::new());
        for (run, value) in parts {
            output.extend(run);
            output.splice(Bytes::from(value.clone()));
            expected.extend_from_slice(run);
            expected.extend_from_slice(value);
        }
        (output, expected)
    }

    fn sent(output: &Output, from: usize) -> Vec<u8> {
        output.chunks(from).inspect(|chunk| assert!(!chunk.is_empty())).flatten().copied().collect()
    }

    fn parts() -> impl Strategy<Value = Vec<(Vec<u8>, Vec<u8>)>> {
        let piece = || prop::collection::vec(any::<u8>(), 0..5);
        prop::collection::vec((piece(), piece()), 0..5)
    }

    proptest! {
        #[test]
        fn the_rest_is_the_same_however_taken(parts in parts(), more in parts()) {
            let (whole, expected) = build(&parts);
            prop_assert_eq!(whole.len(), expected.len());
            for from in 0..=expected.len() + 1 {
                let rest = expected.get(from..).unwrap_or_default();
                prop_assert_eq!(sent(&whole, from), rest);
                let mut left = build(&parts).0;
                left.discard(from);
                prop_assert_eq!((sent(&left, 0), left.len()), (rest.to_vec(), rest.len()));
                let (mut taken, (other, after)) = (build(&parts).0.take_rest(from), build(&more));
                taken.append(other);
                prop_assert_eq!(sent(&taken, 0), [rest, &after].concat());
                prop_assert_eq!(taken.len(), rest.len() + after.len());
            }
        }

        #[test]
        fn truncation_goes_back_to_the_mark(before in parts(), after in parts()) {
            let (mut output, expected) = build(&before);
            let mark = output.mark();
            output.append(build(&after).0);
            output.truncate(mark);
            prop_assert_eq!((sent(&output, 0), output.len()), (expected, mark.bytes + mark.spliced));
            prop_assert_eq!(output.mark(), mark);
        }
    }

    #[test]
    fn spliced_values_are_never_copied() {
        let value = Bytes::from(vec![7; 100]);
        let mut output = Output::default();
        output.extend(b"head");
        output.splice(value.clone());
        let rest = output.take_rest(14);
        assert!(output.is_empty() && output.heap_bytes() > 0);
        let chunk = rest.chunks(0).next().expect("the value");
        assert_eq!(chunk.as_ptr(), value[10..].as_ptr());
    }

    #[test]
    fn room_is_kept_and_given_back() {
        let mut output = Output::default();
        output.extend(&[0; 1000]);
        output.clear();
        assert!(output.is_empty() && output.heap_bytes() >= 1000);
        output.shrink_to(100);
        assert!(output.heap_bytes() < 200);
    }
}
