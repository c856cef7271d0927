//! DUMP and RESTORE: a value as bytes that Redis understands, and back ([`crate::value::codec`]).

use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;

use super::{
    Args,
    row::{Flags, Group, READ_1, Row, Run, WRITE_1},
};
use crate::{
    cache::tx::{Stop, Ttl, Tx},
    error::ClientError,
    protocol::Reply,
    tier::{
        entry::{Entry, MAX_DEADLINE, MAX_VALUE},
        eviction::Eviction,
    },
    value::codec::{self, CodecError, Loaded},
};

/// The rows of this family.
pub const ROWS: &[Row] = &[
    Row {
        name: "dump",
        arity: 2,
        flags: Flags::READONLY,
        keys: READ_1,
        run: Run::Keys(dump),
        group: Group::Generic,
        since: "2.6.0",
        complexity: "O(1) to access the key and additional O(N*M) to serialize it, where N is the \
                     number of objects composing the value and M their average size.",
        summary: "Serialises a value for RESTORE.",
        syntax: "key",
    },
    Row {
        name: "restore",
        arity: -4,
        flags: Flags::WRITE.with(Flags::DENYOOM),
        keys: WRITE_1,
        run: Run::Keys(restore),
        group: Group::Generic,
        since: "2.6.0",
        complexity: "O(1) to create the new key and additional O(N*M) to reconstruct the \
                     serialized value, where N is the number of objects composing the value and M \
                     their average size.",
        summary: "Makes a key of what DUMP gave.",
        syntax: "key ttl serialized-value [REPLACE] [ABSTTL] [IDLETIME seconds] [FREQ frequency]",
    },
];

/// Longer replies are handed over, not copied.
const COPIED: usize = 16 << 10;

fn dump(tx: &mut Tx<'_>, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    match tx.string(args.key(1))?.map(codec::dump_string) {
        None => reply.null(),
        Some(payload) if payload.len() > COPIED => reply.shared(Bytes::from(payload)),
        Some(payload) => reply.bulk(&payload),
    }
    Ok(())
}

/// RESTORE's options.
#[derive(Default)]
struct Options {
    replace: bool,
    absolute: bool,
    /// Seconds.
    idle: Option<u64>,
    frequency: Option<u8>,
}

const BUSY: ClientError = ClientError::new("BUSYKEY Target key name already exists.");
const INVALID_TTL: ClientError = ClientError::new("ERR Invalid TTL value, must be >= 0");
const INVALID_IDLE: ClientError = ClientError::new("ERR Invalid IDLETIME value, must be >= 0");
const INVALID_FREQUENCY: ClientError =
    ClientError::new("ERR Invalid FREQ value, must be >= 0 and <= 255");
const BAD_CHECKSUM: ClientError =
    ClientError::new("ERR DUMP payload version or checksum are wrong");
const BAD_FORMAT: ClientError = ClientError::new("ERR Bad data format");

/// An access clock doesn't count further back than this (about a year), in milliseconds.
const MAX_IDLE: u64 = 1 << 35;

impl Options {
    fn parse(args: Args<'_>) -> Result<Self, ClientError> {
        let mut options = Self::default();
        let mut at = 4;
        while at < args.len() {
            let more = at + 1 < args.len();
            if args.is(at, "replace") {
                options.replace = true;
            } else if args.is(at, "absttl") {
                options.absolute = true;
            } else if args.is(at, "idletime") && more && options.frequency.is_none() {
                at += 1;
                let idle = u64::try_from(args.integer(at)?).map_err(|_| INVALID_IDLE)?;
                options.idle = Some(idle);
            } else if args.is(at, "freq") && more && options.idle.is_none() {
                at += 1;
                let frequency = u8::try_from(args.integer(at)?).map_err(|_| INVALID_FREQUENCY)?;
                options.frequency = Some(frequency);
            } else {
                return Err(ClientError::SYNTAX);
            }
            at += 1;
        }
        Ok(options)
    }

    /// The deadline that a time to live means; 0: none.
    fn deadline(&self, ttl: u64, now: u64) -> u64 {
        match ttl {
            0 => 0,
            _ if self.absolute => ttl.min(MAX_DEADLINE),
            _ => now.saturating_add(ttl).min(MAX_DEADLINE),
        }
    }

    /// The access word that the options ask for, as far as the policy keeps what they say.
    fn access(&self, eviction: Eviction, now: u64) -> Option<u32> {
        if eviction.is_lfu() {
            let frequency = u32::from(self.frequency?);
            return eviction.first_access(now).map(|word| word & !0xff | frequency);
        }
        let idle = self.idle?.saturating_mul(1000).min(MAX_IDLE);
        eviction.first_access(now.saturating_sub(idle))
    }
}

fn restore(tx: &mut Tx<'_>, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let options = Options::parse(args)?;
    let key = args.key(1);
    if !options.replace && tx.exists(key)? {
        return Err(BUSY.into());
    }
    let ttl = u64::try_from(args.integer(2)?).map_err(|_| INVALID_TTL)?;
    let value = load(args.get(3), tx.max_string())?;
    let now = tx.now();
    match options.deadline(ttl, now) {
        0 => tx.set(key, &[&value], Ttl::Clear)?,
        deadline if deadline > now => tx.set(key, &[&value], Ttl::At(deadline))?,
        // Over before it began.
        _ => drop(tx.remove(key)?),
    }
    warm(tx, args, &options)?;
    reply.ok();
    Ok(())
}

/// Notes how warm the key is said to be.
fn warm(tx: &mut Tx<'_>, args: Args<'_>, options: &Options) -> Result<(), Stop> {
    let word = options.access(tx.rules().eviction(), tx.now());
    let access = tx.peek(args.key(1))?.and_then(Entry::access);
    if let (Some(access), Some(word)) = (access, word) {
        access.store(word, Relaxed);
    }
    Ok(())
}

fn load(payload: &[u8], limit: usize) -> Result<Vec<u8>, ClientError> {
    match codec::load(payload, limit.min(MAX_VALUE)) {
        Ok(Loaded::String(value)) => Ok(value),
        Err(CodecError::Checksum) => Err(BAD_CHECKSUM),
        Err(CodecError::Malformed | CodecError::Unsupported(_)) => Err(BAD_FORMAT),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            Row, expire,
            keys::testing::{Bench, NOW},
            object,
        },
        *,
    };
    use proptest::prelude::*;

    const TESTED: &[Row] = &{
        let [dump, restore] = ROWS else { panic!() };
        let [object] = object::ROWS else { panic!() };
        let [.., pexpiretime] = expire::ROWS else { panic!() };
        [copy_of(dump), copy_of(restore), copy_of(object), copy_of(pexpiretime)]
    };

    const fn copy_of(row: &Row) -> Row {
        Row { ..*row }
    }

    /// The payload of a bulk reply.
    fn payload(reply: &[u8]) -> Vec<u8> {
        let start = reply.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        reply[start..reply.len() - 2].to_vec()
    }

    fn restore(bench: &Bench, ttl: &str, payload: &[u8], options: &str) -> String {
        let mut words: Vec<&[u8]> = vec![b"restore", b"b", ttl.as_bytes(), payload];
        words.extend(options.split(' ').filter(|word| !word.is_empty()).map(str::as_bytes));
        String::from_utf8(bench.run(&words)).unwrap().trim_end().to_owned()
    }

    #[test]
    fn ttl_counts_from_now_or_not() {
        let bench = Bench::new(TESTED, Default::default());
        let hello = codec::dump_string(b"hello");
        assert_eq!(bench.say("dump a"), "$-1");
        assert_eq!(restore(&bench, "0", &hello, ""), "+OK");
        assert_eq!(bench.say("pexpiretime b"), ":-1");
        assert_eq!(restore(&bench, "5", &hello, ""), "-BUSYKEY Target key name already exists.");
        assert_eq!(restore(&bench, "5", &hello, "REPLACE"), "+OK");
        assert_eq!(bench.say("pexpiretime b"), format!(":{}", NOW + 5));
        assert_eq!(restore(&bench, "2000000", &hello, "absttl replace"), "+OK");
        assert_eq!(bench.say("pexpiretime b"), ":2000000");
        assert_eq!(restore(&bench, "9223372036854775807", &hello, "replace"), "+OK");
        assert_eq!(bench.say("pexpiretime b"), format!(":{MAX_DEADLINE}"));
        assert_eq!(restore(&bench, "1", &hello, "absttl replace"), "+OK");
        assert_eq!(bench.say("pexpiretime b"), ":-2");
        assert_eq!(restore(&bench, "1", &hello, "absttl"), "+OK");
        assert_eq!(bench.say("pexpiretime b"), ":-2");
    }

    #[test]
    fn refusals_come_in_redis_order() {
        let bench = Bench::new(TESTED, Default::default());
        bench.put("b", b"1", 0);
        let checksum = "-ERR DUMP payload version or checksum are wrong";
        let list = b"\x0e\x01\x0a\x00";
        for (ttl, payload, options, error) in [
            ("x", &b"x"[..], "foo", "-ERR syntax error"),
            ("x", b"x", "idletime", "-ERR syntax error"),
            ("x", b"x", "idletime 1 freq 2", "-ERR syntax error"),
            ("x", b"x", "idletime -1 foo", "-ERR Invalid IDLETIME value, must be >= 0"),
            ("x", b"x", "freq 256", "-ERR Invalid FREQ value, must be >= 0 and <= 255"),
            ("x", b"x", "freq x", "-ERR value is not an integer or out of range"),
            ("x", b"x", "", "-BUSYKEY Target key name already exists."),
            ("x", b"x", "replace", "-ERR value is not an integer or out of range"),
            ("-1", b"x", "replace", "-ERR Invalid TTL value, must be >= 0"),
            ("1", b"x", "replace", checksum),
            ("1", list, "replace", checksum),
        ] {
            assert_eq!(restore(&bench, ttl, payload, options), error, "{ttl} {options}");
        }
        assert_eq!(load(&codec::dump_string(b"hello"), 4), Err(BAD_FORMAT));
    }

    #[test]
    fn warmth_is_kept_where_the_policy_keeps_it() {
        let hello = codec::dump_string(b"hello");
        let bench = Bench::new(TESTED, Eviction::AllkeysLru);
        assert_eq!(restore(&bench, "0", &hello, "idletime 70"), "+OK");
        assert_eq!(bench.say("object idletime b"), ":70");
        assert_eq!(restore(&bench, "0", &hello, "freq 70 replace"), "+OK");
        assert_eq!(bench.say("object idletime b"), ":0");
        let far = restore(&bench, "0", &hello, "idletime 9223372036854775807 replace");
        assert_eq!(far, "+OK");
        let bench = Bench::new(TESTED, Eviction::AllkeysLfu);
        assert_eq!(restore(&bench, "0", &hello, "freq 70"), "+OK");
        assert_eq!(bench.say("object freq b"), ":70");
        let bench = Bench::new(TESTED, Eviction::AllkeysS3fifo);
        assert_eq!(restore(&bench, "0", &hello, "freq 70"), "+OK");
    }

    proptest! {
        #[test]
        fn what_was_dumped_is_restored(value in prop::collection::vec(0u8..4, 0..40_000)) {
            let bench = Bench::new(TESTED, Default::default());
            bench.put("a", &value, 0);
            let dumped = payload(&bench.run(&[b"dump", b"a"]));
            prop_assert_eq!(restore(&bench, "0", &dumped, ""), "+OK");
            prop_assert_eq!(payload(&bench.run(&[b"dump", b"b"])), dumped);
        }

        #[test]
        fn noise_is_refused(noise in prop::collection::vec(any::<u8>(), 0..64)) {
            let bench = Bench::new(TESTED, Default::default());
            prop_assert!(restore(&bench, "0", &noise, "").starts_with("-ERR"));
        }
    }
}
