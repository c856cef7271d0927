//! LZF, the compression of strings in Redis's RDB format (Marc Lehmann's LibLZF).
//!
//! Literal runs (`000LLLLL`, then L+1 bytes) and references back (`LLLDDDDD DDDDDDDD`: copy L+2 bytes
//! from D+1 back; with L = 7 a byte between the two adds to L). The compressor is the usual greedy
//! one over a table of three-byte hashes. Decompression takes no more memory than the packed bytes
//! can honestly expand to.

const LONGEST_LITERAL: usize = 32;
const LONGEST_MATCH: usize = 264;
const SHORTEST_MATCH: usize = 3;
const FARTHEST: usize = 8192;
/// Three bytes make at most [`LONGEST_MATCH`].
const MOST_PER_BYTE: usize = LONGEST_MATCH / 3;

/// Compresses to at most `limit` bytes, or not at all.
pub(super) fn compress(data: &[u8], limit: usize) -> Option<Vec<u8>> {
    let mut seen = Seen::new(data.len());
    let mut out = Vec::new();
    let (mut at, mut literal) = (0, 0);
    while let Some(head) = data[at..].first_chunk() {
        let Some(from) = seen.replace(head, at).filter(|&from| near(data, from, at)) else {
            at += 1;
            continue;
        };
        let length = match_length(data, from, at);
        write_literals(&mut out, &data[literal..at]);
        write_match(&mut out, length, at - from);
        if out.len() > limit {
            return None;
        }
        // The next match may well overlap the end of this one.
        let end = at + length;
        for inner in end.saturating_sub(2).max(at + 1)..end {
            if let Some(head) = data[inner..].first_chunk() {
                seen.replace(head, inner);
            }
        }
        (at, literal) = (end, end);
    }
    write_literals(&mut out, &data[literal..]);
    (out.len() <= limit).then_some(out)
}

/// Restores exactly `length` bytes, or nothing.
pub(super) fn decompress(packed: &[u8], length: usize) -> Option<Vec<u8>> {
    if length > packed.len().saturating_mul(MOST_PER_BYTE) {
        return None;
    }
    let mut out = Vec::with_capacity(length);
    let mut rest = packed;
    while let Some((&control, tail)) = rest.split_first() {
        let control = usize::from(control);
        if control < LONGEST_LITERAL {
            let (literals, tail) = tail.split_at_checked(control + 1)?;
            fits(&out, literals.len(), length)?;
            out.extend_from_slice(literals);
            rest = tail;
            continue;
        }
        let (more, tail) = if control >> 5 == 7 { tail.split_first()? } else { (&0, tail) };
        let (&low, tail) = tail.split_first()?;
        let count = (control >> 5) + usize::from(*more) + 2;
        let back = ((control & 0x1f) << 8 | usize::from(low)) + 1;
        fits(&out, count, length)?;
        copy_back(&mut out, back, count)?;
        rest = tail;
    }
    (out.len() == length).then_some(out)
}

fn fits(out: &[u8], more: usize, length: usize) -> Option<()> {
    (more <= length - out.len()).then_some(())
}

/// Repeats what stands `back` bytes before the end; the copy may run into what it writes.
fn copy_back(out: &mut Vec<u8>, back: usize, count: usize) -> Option<()> {
    let from = out.len().checked_sub(back)?;
    let mut left = count;
    while left > 0 {
        let step = left.min(out.len() - from);
        out.extend_from_within(from..from + step);
        left -= step;
    }
    Some(())
}

/// Where three bytes were last seen, by their hash.
struct Seen {
    /// Positions plus one; 0 is none.
    places: Vec<u32>,
    bits: u32,
}

impl Seen {
    fn new(length: usize) -> Self {
        let bits = length.max(1).ilog2().clamp(8, 14);
        Self { places: vec![0; 1 << bits], bits }
    }

    /// Notes the bytes at `at` (positions past 4 GiB aren't) and returns where they may have
    /// stood before.
    fn replace(&mut self, head: &[u8; SHORTEST_MATCH], at: usize) -> Option<usize> {
        let [a, b, c] = *head;
        let hash = u32::from_le_bytes([a, b, c, 0]).wrapping_mul(0x9e37_79b1);
        let place = &mut self.places[(hash >> (32 - self.bits)) as usize];
        let next = u32::try_from(at + 1).ok()?;
        let old = std::mem::replace(place, next);
        old.checked_sub(1).map(|old| old as usize)
    }
}

/// Whether a reference from `at` to `from` can be written and saves anything.
fn near(data: &[u8], from: usize, at: usize) -> bool {
    at - from <= FARTHEST && data[from..from + SHORTEST_MATCH] == data[at..at + SHORTEST_MATCH]
}

fn match_length(data: &[u8], from: usize, at: usize) -> usize {
    let pairs = data[from..].iter().zip(&data[at..]);
    pairs.take(LONGEST_MATCH).take_while(|(old, new)| old == new).count()
}

fn write_literals(out: &mut Vec<u8>, literals: &[u8]) {
    for run in literals.chunks(LONGEST_LITERAL) {
        out.push(run.len() as u8 - 1);
        out.extend_from_slice(run);
    }
}

fn write_match(out: &mut Vec<u8>, length: usize, distance: usize) {
    let (length, distance) = (length - 2, distance - 1);
    let high = (distance >> 8) as u8;
    if length < 7 {
        out.push((length as u8) << 5 | high);
    } else {
        out.extend_from_slice(&[7 << 5 | high, (length - 7) as u8]);
    }
    out.push(distance as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn references_may_run_into_themselves() {
        assert_eq!(decompress(&[0, b'a', 0xe0, 0x05, 0x00], 15), Some(vec![b'a'; 15]));
        assert_eq!(decompress(&[1, b'a', b'b', 0x60, 0x01], 7), Some(b"abababa".to_vec()));
    }

    #[test]
    fn nonsense_is_refused() {
        assert_eq!(decompress(&[0, b'a', 0x20, 0x01], 4), None);
        assert_eq!(decompress(&[3, b'a'], 4), None);
        assert_eq!(decompress(&[0, b'a', 0xe0], 10), None);
        assert_eq!(decompress(&[0, b'a'], usize::MAX), None);
        assert_eq!(decompress(&[], 0), Some(vec![]));
    }

    #[test]
    fn the_limit_is_kept() {
        let data = b"abcdefghijklmnopqrstuvwxyz";
        assert_eq!(compress(data, data.len()), None);
        assert_eq!(compress(data, data.len() + 1).map(|packed| packed.len()), Some(27));
        assert_eq!(compress(b"", 0), Some(vec![]));
    }

    #[test]
    fn far_repetitions_are_out_of_reach() {
        // The same bytes twice, 8192 apart (the farthest reference) and one more.
        for (gap, repeats) in [(8192, true), (8193, false)] {
            let mut state = 1u32;
            let mut data: Vec<u8> = (0..gap)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (state >> 24) as u8
                })
                .collect();
            data.extend_from_within(..40);
            let packed = compress(&data, data.len() * 2).unwrap_or_default();
            assert_eq!(packed.len() < gap + gap / 32 + 10, repeats, "{gap}");
            assert_eq!(decompress(&packed, data.len()), Some(data));
        }
    }

    proptest! {
        #[test]
        fn round_trip(data in prop::collection::vec(0u8..4, 0..3000)) {
            let packed = compress(&data, usize::MAX).unwrap_or_default();
            prop_assert_eq!(decompress(&packed, data.len()), Some(data));
        }

        #[test]
        fn noise_stays_bounded(packed in prop::collection::vec(any::<u8>(), 0..200), length in 0usize..2000) {
            if let Some(data) = decompress(&packed, length) {
                prop_assert_eq!(data.len(), length);
                prop_assert!(data.capacity() <= length);
            }
        }
    }
}
