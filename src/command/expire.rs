//! Commands on deadlines: the EXPIRE family, the TTL family, PERSIST.
//!
//! A deadline is unix milliseconds throughout. As in Redis, EXPIRE accepts negative times, and a
//! deadline that has passed deletes the key. One past [`MAX_DEADLINE`] (the year 10889) is kept as that.

use super::{
    Args,
    row::{Flags, Group, READ_1, Row, Run, WRITE_1},
};
use crate::{
    cache::tx::{Stop, Tx},
    error::ClientError,
    protocol::Reply,
    tier::entry::{Entry, MAX_DEADLINE},
};

/// What the rows that set a deadline share; each names the rest.
const SET: Row = Row {
    name: "",
    arity: -3,
    flags: Flags::WRITE.with(Flags::FAST),
    keys: WRITE_1,
    run: Run::Sub(&[]),
    group: Group::Generic,
    since: "1.0.0",
    complexity: "O(1)",
    summary: "",
    syntax: "",
};

/// What the rows that show a deadline share.
const SHOW: Row =
    Row { arity: 2, flags: Flags::READONLY.with(Flags::FAST), keys: READ_1, syntax: "key", ..SET };

/// The rows of this family.
pub const ROWS: &[Row] = &[
    Row {
        name: "expire",
        run: Run::Keys(|tx, args, reply| EXPIRE.run(tx, args, reply)),
        summary: "Sets how many seconds a key has to live.",
        syntax: "key seconds [NX | XX | GT | LT]",
        ..SET
    },
    Row {
        name: "pexpire",
        run: Run::Keys(|tx, args, reply| PEXPIRE.run(tx, args, reply)),
        since: "2.6.0",
        summary: "Sets how many milliseconds a key has to live.",
        syntax: "key milliseconds [NX | XX | GT | LT]",
        ..SET
    },
    Row {
        name: "expireat",
        run: Run::Keys(|tx, args, reply| EXPIREAT.run(tx, args, reply)),
        since: "1.2.0",
        summary: "Sets the unix second at which a key ends.",
        syntax: "key unix-time-seconds [NX | XX | GT | LT]",
        ..SET
    },
    Row {
        name: "pexpireat",
        run: Run::Keys(|tx, args, reply| PEXPIREAT.run(tx, args, reply)),
        since: "2.6.0",
        summary: "Sets the unix millisecond at which a key ends.",
        syntax: "key unix-time-milliseconds [NX | XX | GT | LT]",
        ..SET
    },
    Row {
        name: "persist",
        arity: 2,
        run: Run::Keys(persist),
        since: "2.2.0",
        summary: "Takes a key's deadline away.",
        syntax: "key",
        ..SET
    },
    Row {
        name: "ttl",
        run: Run::Keys(|tx, args, reply| show(tx, args, reply, |end, now| seconds(end - now))),
        summary: "Says how many seconds a key has to live.",
        ..SHOW
    },
    Row {
        name: "pttl",
        run: Run::Keys(|tx, args, reply| show(tx, args, reply, |end, now| end - now)),
        since: "2.6.0",
        summary: "Says how many milliseconds a key has to live.",
        ..SHOW
    },
    Row {
        name: "expiretime",
        run: Run::Keys(|tx, args, reply| show(tx, args, reply, |end, _| seconds(end))),
        since: "7.0.0",
        summary: "Says at which unix second a key ends.",
        ..SHOW
    },
    Row {
        name: "pexpiretime",
        run: Run::Keys(|tx, args, reply| show(tx, args, reply, |end, _| end)),
        since: "7.0.0",
        summary: "Says at which unix millisecond a key ends.",
        ..SHOW
    },
];

/// One of the EXPIRE family: how it reads its number.
struct Setter {
    name: &'static str,
    /// Milliseconds.
    unit: i64,
    /// Whether the number counts from now.
    relative: bool,
}

const EXPIRE: Setter = Setter { name: "expire", unit: 1000, relative: true };
const PEXPIRE: Setter = Setter { name: "pexpire", unit: 1, relative: true };
const EXPIREAT: Setter = Setter { name: "expireat", unit: 1000, relative: false };
const PEXPIREAT: Setter = Setter { name: "pexpireat", unit: 1, relative: false };

impl Setter {
    fn run(&self, tx: &mut Tx<'_>, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
        let condition = Condition::parse(args)?;
        let deadline = self.deadline(args.integer(2)?, tx.now())?;
        let (key, now) = (args.key(1), tx.now());
        let current = tx.peek(key)?.map(Entry::deadline);
        let sets = current.is_some_and(|current| condition.allows(current, deadline));
        if sets {
            match u64::try_from(deadline) {
                Ok(deadline) if deadline > now => {
                    tx.set_deadline(key, deadline.min(MAX_DEADLINE))?
                }
                _ => tx.remove(key)?,
            };
        }
        reply.integer(i64::from(sets));
        Ok(())
    }

    /// The deadline that a number means, unless it is out of range.
    fn deadline(&self, number: i64, now: u64) -> Result<i64, ClientError> {
        let base = if self.relative { now as i64 } else { 0 };
        let deadline = number.checked_mul(self.unit).and_then(|time| time.checked_add(base));
        deadline.ok_or_else(|| {
            ClientError::from(format!("ERR invalid expire time in '{}' command", self.name))
        })
    }
}

/// On what the old deadline decides: no option allows all.
#[derive(Default)]
struct Condition {
    nx: bool,
    xx: bool,
    gt: bool,
    lt: bool,
}

const NX_ALONE: ClientError =
    ClientError::new("ERR NX and XX, GT or LT options at the same time are not compatible");
const GT_OR_LT: ClientError =
    ClientError::new("ERR GT and LT options at the same time are not compatible");
/// Bytes of an unknown option that its error shows.
const SHOWN: usize = 128;

impl Condition {
    fn parse(args: Args<'_>) -> Result<Self, ClientError> {
        let mut condition = Self::default();
        for at in 3..args.len() {
            *condition.option(args, at)? = true;
        }
        if condition.nx && (condition.xx || condition.gt || condition.lt) {
            return Err(NX_ALONE);
        }
        if condition.gt && condition.lt {
            return Err(GT_OR_LT);
        }
        Ok(condition)
    }

    fn option(&mut self, args: Args<'_>, at: usize) -> Result<&mut bool, ClientError> {
        let options = [
            ("nx", &mut self.nx),
            ("xx", &mut self.xx),
            ("gt", &mut self.gt),
            ("lt", &mut self.lt),
        ];
        let named = options.into_iter().find(|(name, _)| args.is(at, name));
        named.map(|(_, option)| option).ok_or_else(|| {
            let shown = super::shown(args.get(at), SHOWN);
            ClientError::from(format!("ERR Unsupported option {shown}"))
        })
    }

    /// Whether a key that ends at `current` (0: never) may be made to end at `new`.
    fn allows(&self, current: u64, new: i64) -> bool {
        // Deadlines have 48 bits: both are compared as they are kept.
        let never = current == 0;
        let (current, new) = (current as i64, new.min(MAX_DEADLINE as i64));
        !(self.nx && !never
            || self.xx && never
            || self.gt && (never || new <= current)
            || self.lt && !never && new >= current)
    }
}

fn persist(tx: &mut Tx<'_>, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let key = args.key(1);
    let had = tx.peek(key)?.is_some_and(|entry| entry.deadline() != 0);
    if had {
        tx.set_deadline(key, 0)?;
    }
    reply.integer(i64::from(had));
    Ok(())
}

/// Replies with what `of` makes of deadline and time; -1: no deadline; -2: no key.
fn show(
    tx: &mut Tx<'_>,
    args: Args<'_>,
    reply: &mut Reply<'_>,
    of: fn(u64, u64) -> u64,
) -> Result<(), Stop> {
    let now = tx.now();
    reply.integer(match tx.peek(args.key(1))?.map(Entry::deadline) {
        None => -2,
        Some(0) => -1,
        // A live entry's deadline is still to come.
        Some(deadline) => of(deadline.max(now), now) as i64,
    });
    Ok(())
}

/// Milliseconds as the nearest number of seconds.
fn seconds(millis: u64) -> u64 {
    (millis + 500) / 1000
}

#[cfg(test)]
mod tests {
    use super::{
        super::keys::testing::{Bench, NOW},
        Condition, ROWS,
    };
    use proptest::prelude::*;

    #[test]
    fn deadlines_are_set_and_shown() {
        let mut bench = Bench::new(ROWS, Default::default());
        bench.put("a", b"1", 0);
        assert_eq!((bench.say("ttl a"), bench.say("pttl x")), (":-1".into(), ":-2".into()));
        assert_eq!(bench.say("persist a"), ":0");
        assert_eq!(bench.say("expire a 10"), ":1");
        bench.now += 499;
        assert_eq!((bench.say("ttl a"), bench.say("pttl a")), (":10".into(), ":9501".into()));
        assert_eq!(bench.say("pexpiretime a"), format!(":{}", NOW + 10_000));
        assert_eq!(bench.say("expiretime a"), format!(":{}", NOW / 1000 + 10));
        assert_eq!(bench.say("pexpire a 1"), ":1");
        assert_eq!(bench.say("persist a"), ":1");
        assert_eq!(bench.say("expireat a 2000"), ":1");
        assert_eq!(bench.say("pexpiretime a"), ":2000000");
        assert_eq!(bench.say("pexpireat a 1500000"), ":1");
        bench.now = 1_500_000;
        assert_eq!((bench.say("ttl a"), bench.say("expire a 10")), (":-2".into(), ":0".into()));
    }

    #[test]
    fn a_deadline_in_the_past_deletes() {
        let bench = Bench::new(ROWS, Default::default());
        for command in ["expire a -1", "pexpire a 0", "expireat a -5", "pexpireat a 1000000"] {
            bench.put("a", b"1", 0);
            assert_eq!(bench.say(command), ":1");
            assert_eq!(bench.say("ttl a"), ":-2", "{command}");
        }
    }

    #[test]
    fn a_deadline_too_far_is_the_last_one() {
        let bench = Bench::new(ROWS, Default::default());
        bench.put("a", b"1", 0);
        assert_eq!(bench.say("expire a 9223372036854"), ":1");
        assert_eq!(bench.say("pexpiretime a"), format!(":{}", (1u64 << 48) - 1));
    }

    #[test]
    fn refusals_come_in_redis_order() {
        let bench = Bench::new(ROWS, Default::default());
        for (command, error) in [
            ("expire a x", "value is not an integer or out of range"),
            ("expire a x foo", "Unsupported option foo"),
            ("expire a x nx gt foo", "Unsupported option foo"),
            ("expire a x NX xx", "NX and XX, GT or LT options at the same time are not compatible"),
            ("expire a 1 lt gt", "GT and LT options at the same time are not compatible"),
            ("expire a 9223372036854775", "invalid expire time in 'expire' command"),
            ("expireat a -9223372036854776", "invalid expire time in 'expireat' command"),
            ("pexpire a 9223372036854775807", "invalid expire time in 'pexpire' command"),
        ] {
            assert_eq!(bench.say(command), format!("-ERR {error}"), "{command}");
        }
        assert_eq!(bench.say("pexpireat a 9223372036854775807 xx gt"), ":0");
        assert_eq!(bench.say("pexpire a -9223372036854775808"), ":0");
    }

    proptest! {
        /// GT takes no deadline for the latest, LT for the latest too, as Redis documents.
        #[test]
        fn conditions_agree_with_the_documentation(
            current in 0u64..5, new in -1i64..6,
            nx: bool, xx: bool, gt: bool, lt: bool,
        ) {
            let end = if current == 0 { i64::MAX } else { current as i64 };
            let expected = (!nx || current == 0)
                && (!xx || current != 0)
                && (!gt || new > end)
                && (!lt || new < end);
            prop_assert_eq!(Condition { nx, xx, gt, lt }.allows(current, new), expected);
        }
    }
}
