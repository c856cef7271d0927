//! A consistent-hash ring with virtual nodes (Karger and others, 1997): which of several named places a
//! key belongs to, so that the n-th place takes about 1/n of the keys and no other key moves.
//!
//! **Stable for ever.** What a key was written under must be found under it by every later version, so
//! all of this is fixed, and tested with constants:
//!
//! - The hash of bytes is FNV-1a of 64 bits, then the finalizer of MurmurHash3 (`fmix64`), since FNV
//!   alone spreads short, similar texts badly. There is no seed.
//! - A place of weight w has w x 256 points on the ring: the hashes of its name, a zero byte, and the
//!   point's number in 4 bytes, little-endian.
//! - A key belongs to the first point at or after its hash, round the end to the beginning. Of two
//!   points at one spot the one of the lesser name counts, so the order of the names doesn't matter.
//! - Of a key with a hash tag (`a{tag}b`: not empty, the first `{` to the first `}` behind it, as in
//!   Redis Cluster) only the tag is hashed: keys with one tag are in one place.

/// Points of a place of weight 1: with 256 of them a place's share is within about a fifth of what it
/// should be (the standard deviation is a sixteenth).
const POINTS: u32 = 256;

/// See the module's doc.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ring {
    /// Each point and its place's number, in order.
    points: Vec<(u64, u32)>,
    /// How many places there are.
    places: usize,
}

impl Ring {
    /// A ring over places with their weights, at least 1; the answer of [`Ring::place`] is an index into
    /// these.
    pub fn new<N: AsRef<str>>(places: &[(N, u32)]) -> Self {
        let mut points = Vec::new();
        for (place, (name, weight)) in (0..).zip(places) {
            let mut text = name.as_ref().as_bytes().to_vec();
            text.push(0);
            let name = text.len();
            for point in 0..weight.max(&1) * POINTS {
                text.truncate(name);
                text.extend_from_slice(&point.to_le_bytes());
                points.push((hash(&text), place));
            }
        }
        points.sort_unstable_by_key(|(point, place)| (*point, places[*place as usize].0.as_ref()));
        Self { points, places: places.len() }
    }

    /// How many places there are.
    pub fn places(&self) -> usize {
        self.places
    }

    /// The place of a key.
    pub fn place(&self, key: &[u8]) -> usize {
        let hash = hash(tagged(key));
        let at = self.points.partition_point(|(point, _)| *point < hash);
        let found = self.points.get(at).or(self.points.first());
        found.map_or(0, |(_, place)| *place as usize)
    }

    /// Of the whole ring the part that each place has.
    pub fn shares(&self) -> Vec<f64> {
        let mut shares = vec![0.0; self.places];
        let mut before = self.points.last().map_or(0, |(point, _)| *point);
        for (point, place) in &self.points {
            shares[*place as usize] += point.wrapping_sub(before) as f64 / 2f64.powi(64);
            before = *point;
        }
        shares
    }
}

/// The part of a key that is hashed.
pub fn tagged(key: &[u8]) -> &[u8] {
    let Some(open) = memchr::memchr(b'{', key) else { return key };
    let behind = &key[open + 1..];
    match memchr::memchr(b'}', behind) {
        Some(length) if length > 0 => &behind[..length],
        _ => key,
    }
}

fn hash(bytes: &[u8]) -> u64 {
    let fnv = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    let mut hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325, fnv);
    hash = (hash ^ hash >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ hash >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ hash >> 33
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: usize = 100_000;

    fn key(number: usize) -> Vec<u8> {
        format!("user:{number}").into_bytes()
    }

    /// A ring over the first of `a`, `b`, `c`, ..., all of one weight.
    fn ring(places: usize) -> Ring {
        let names: Vec<_> = ('a'..).take(places).map(|name| (name.to_string(), 1)).collect();
        Ring::new(&names)
    }

    #[test]
    fn the_hash_is_what_it_is() {
        assert_eq!(hash(b""), 0xefd0_1f60_ba99_2926);
        assert_eq!(hash(b"user:1"), 0x4ce5_3ee4_648c_ef41);
        let places: Vec<_> = (0..16).map(|number| ring(4).place(&key(number))).collect();
        assert_eq!(places, [2, 1, 0, 2, 0, 0, 0, 3, 3, 0, 3, 3, 1, 0, 1, 0]);
    }

    #[test]
    fn the_nth_place_takes_a_nth_and_nothing_else_moves() {
        for places in 1..=9 {
            let (before, after) = (ring(places), ring(places + 1));
            let mut moved = 0;
            for number in 0..KEYS {
                let (old, new) = (before.place(&key(number)), after.place(&key(number)));
                assert!(old == new || new == places, "key {number} went from {old} to {new}");
                moved += usize::from(old != new);
            }
            let wanted = KEYS as f64 / (places + 1) as f64;
            let off = (moved as f64 / wanted - 1.0).abs();
            assert!(off < 0.2, "{moved} of {KEYS} moved to place {places}");
        }
    }

    #[test]
    fn keys_are_spread_by_weight() {
        let ring = Ring::new(&[("eu", 1), ("us", 2), ("asia", 5)]);
        let mut counts = [0; 3];
        (0..KEYS).for_each(|number| counts[ring.place(&key(number))] += 1);
        for (place, wanted) in [1.0 / 8.0, 2.0 / 8.0, 5.0 / 8.0].into_iter().enumerate() {
            for share in [counts[place] as f64 / KEYS as f64, ring.shares()[place]] {
                assert!((share / wanted - 1.0).abs() < 0.2, "place {place} has {share}");
            }
        }
        assert!((ring.shares().iter().sum::<f64>() - 1.0).abs() < 1e-9);
    }

    #[test]
    fn the_order_of_the_names_does_not_matter() {
        let (one, other) = (Ring::new(&[("a", 1), ("b", 2)]), Ring::new(&[("b", 2), ("a", 1)]));
        assert!((0..1000).all(|number| one.place(&key(number)) == 1 - other.place(&key(number))));
    }

    #[test]
    fn keys_with_one_tag_are_in_one_place() {
        for (key, hashed) in [
            ("a{b}c", "b"),
            ("{b}{c}", "b"),
            ("a{}c", "a{}c"),
            ("a{}{b}", "a{}{b}"),
            ("a{b", "a{b"),
            ("a}b{c", "a}b{c"),
            ("{{b}}", "{b"),
            ("", ""),
        ] {
            assert_eq!(tagged(key.as_bytes()), hashed.as_bytes(), "{key}");
        }
        let ring = ring(7);
        let place =
            |kind: &str, number: usize| ring.place(format!("{kind}{{{number}}}").as_bytes());
        assert!((0..1000).all(|number| place("cart:", number) == place("order:", number)));
    }

    #[test]
    fn one_place_has_all() {
        assert_eq!((ring(1).place(b"x"), ring(1).places(), ring(0).place(b"x")), (0, 1, 0));
    }
}
