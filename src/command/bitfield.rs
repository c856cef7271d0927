//! BITFIELD and BITFIELD_RO: integers of any width inside a string.
//!
//! All operations are read first, so that an error in the last one changes nothing; the string then
//! grows once, to the furthest write, and they run in order. The arithmetic is
//! [`value::bitfield`](crate::value::bitfield); see <https://redis.io/docs/latest/commands/bitfield/>.

use smallvec::SmallVec;

use super::{
    Args,
    row::{self, Flags, Group, Row, Run},
};
use crate::{
    cache::tx::{Stop, Tx},
    error::ClientError,
    protocol::Reply,
    value::bitfield::{FieldType, Overflow},
};

/// The rows.
pub const ROWS: &[Row] = &[
    Row {
        name: "bitfield",
        arity: -2,
        flags: Flags::WRITE.with(Flags::DENYOOM),
        keys: row::WRITE_1,
        run: Run::Keys(bitfield),
        group: Group::Bitmap,
        since: "3.2.0",
        complexity: "O(1) for each subcommand specified",
        summary: "Reads, sets and increments integers of any width in the string at a key.",
        syntax: "key [GET encoding offset | [OVERFLOW <WRAP | SAT | FAIL>] \
                 <SET encoding offset value | INCRBY encoding offset increment> \
                 [GET encoding offset | [OVERFLOW <WRAP | SAT | FAIL>] \
                 <SET encoding offset value | INCRBY encoding offset increment> ...]]",
    },
    Row {
        name: "bitfield_ro",
        arity: -2,
        flags: Flags::READONLY.with(Flags::FAST),
        keys: row::READ_1,
        run: Run::Keys(bitfield_ro),
        group: Group::Bitmap,
        since: "6.0.0",
        complexity: "O(1) for each subcommand specified",
        summary: "Reads integers of any width in the string at a key.",
        syntax: "key [GET encoding offset [GET encoding offset ...]]",
    },
];

const ONLY_GET: ClientError = ClientError::new("ERR BITFIELD_RO only supports the GET subcommand");

#[derive(Clone, Copy, Debug)]
enum Action {
    Get,
    Set(i64),
    Add(i64),
}

#[derive(Clone, Copy, Debug)]
struct Operation {
    action: Action,
    field: FieldType,
    /// In bits.
    offset: u64,
    overflow: Overflow,
}

type Operations = SmallVec<[Operation; 4]>;

/// Reads the operations of a request on strings of at most `max_bytes`.
fn parse(args: Args<'_>, max_bytes: u64) -> Result<Operations, ClientError> {
    let mut operations = Operations::new();
    let mut overflow = Overflow::Wrap;
    let mut at = 2;
    while at < args.len() {
        if args.is(at, "overflow") && at + 1 < args.len() {
            overflow = Overflow::parse(args.get(at + 1))?;
            at += 2;
        } else {
            let operation = Operation::parse(args, at, overflow, max_bytes)?;
            at += if operation.writes() { 4 } else { 3 };
            operations.push(operation);
        }
    }
    Ok(operations)
}

impl Operation {
    fn parse(
        args: Args<'_>,
        at: usize,
        overflow: Overflow,
        max_bytes: u64,
    ) -> Result<Self, ClientError> {
        let behind = args.len() - at - 1;
        let action = if args.is(at, "get") && behind >= 2 {
            Action::Get
        } else if args.is(at, "set") && behind >= 3 {
            Action::Set(0)
        } else if args.is(at, "incrby") && behind >= 3 {
            Action::Add(0)
        } else {
            return Err(ClientError::SYNTAX);
        };
        let field = FieldType::parse(args.get(at + 1))?;
        let offset = field.parse_offset(args.get(at + 2), max_bytes)?;
        let action = match action {
            Action::Get => Action::Get,
            Action::Set(_) => Action::Set(args.integer(at + 3)?),
            Action::Add(_) => Action::Add(args.integer(at + 3)?),
        };
        Ok(Self { action, field, offset, overflow })
    }

    fn writes(&self) -> bool {
        !matches!(self.action, Action::Get)
    }

    /// The length that the string must have for this operation to write.
    fn bytes_needed(&self) -> usize {
        if self.writes() { self.field.bytes_needed(self.offset) as usize } else { 0 }
    }

    /// Carries it out on a string that is long enough; what it answers, `None` for nil.
    fn apply(&self, bytes: &mut [u8]) -> Option<i64> {
        let Self { action, field, offset, overflow } = *self;
        let old = field.get(bytes, offset);
        let (new, answer) = match action {
            Action::Get => return Some(old),
            Action::Set(value) => (field.fit(value, overflow)?, old),
            Action::Add(increment) => {
                let sum = field.add(old, increment, overflow)?;
                (sum, sum)
            }
        };
        field.set(bytes, offset, new);
        Some(answer)
    }
}

fn bitfield(tx: &mut Tx<'_>, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let operations = parse(args, tx.max_string() as u64)?;
    if !operations.iter().any(Operation::writes) {
        return read(tx, args, &operations, reply);
    }
    let key = args.key(1);
    let old = tx.peek(key)?.map_or(0, |entry| entry.value().len());
    let len = operations.iter().map(Operation::bytes_needed).fold(old, usize::max);
    reply.array(operations.len());
    tx.edit(key, len, |bytes| {
        for operation in &operations {
            match operation.apply(bytes) {
                Some(answer) => reply.integer(answer),
                None => reply.null(),
            }
        }
    })
}

fn bitfield_ro(tx: &mut Tx<'_>, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let operations = parse(args, tx.max_string() as u64)?;
    if operations.iter().any(Operation::writes) {
        return Err(ONLY_GET.into());
    }
    read(tx, args, &operations, reply)
}

/// Carries out operations that are all GETs.
fn read(
    tx: &mut Tx<'_>,
    args: Args<'_>,
    operations: &[Operation],
    reply: &mut Reply<'_>,
) -> Result<(), Stop> {
    let bytes = tx.string(args.key(1))?.unwrap_or_default();
    reply.array(operations.len());
    for operation in operations {
        reply.integer(operation.field.get(bytes, operation.offset));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::fixture::Fixture;
    use crate::protocol::Resp;

    #[test]
    fn operations_run_in_order() {
        let at = Fixture::new();
        let line = "bitfield k set u8 #1 255 incrby u8 #1 2 get u8 8 overflow sat incrby i5 100 99";
        assert_eq!(at.run(line), "*4|:0|:1|:1|:15|");
        assert_eq!(at.run("strlen k"), ":14|");
        assert_eq!(at.run("bitfield_ro k get u8 8 GET i64 9999"), "*2|:1|:0|");
        assert_eq!(at.run("bitfield none get u8 0"), "*1|:0|");
        assert_eq!(at.run("bitfield none"), "*0|");
        assert_eq!(at.run("get none"), "$-1|");
    }

    #[test]
    fn what_does_not_fit_may_fail() {
        let at = Fixture::new();
        assert_eq!(at.run("bitfield k overflow fail set u8 10 300"), "*1|$-1|");
        assert_eq!(at.run("strlen k"), ":3|");
        let at = Fixture::with(Resp::V3, 1 << 20);
        assert_eq!(at.run("bitfield k overflow fail incrby u1 0 2"), "*1|_|");
    }

    #[test]
    fn errors_change_nothing() {
        let at = Fixture::new();
        let syntax = "-ERR syntax error|";
        let offset = "-ERR bit offset is not an integer or out of range|";
        for (line, error) in [
            ("set u8 0 1 get u8", syntax),
            ("overflow", syntax),
            ("set u8 0", syntax),
            ("set u8 0 1 get u8 -1", offset),
            ("set u8 99999999999 x", offset),
            ("set u8 0 x", "-ERR value is not an integer or out of range|"),
            ("overflow bad", "-ERR Invalid OVERFLOW type specified|"),
        ] {
            assert_eq!(at.run(&format!("bitfield k {line}")), error, "{line}");
        }
        let only = "-ERR BITFIELD_RO only supports the GET subcommand|";
        assert_eq!(at.run("bitfield_ro k set u8 0 1"), only);
        assert_eq!(at.run("get k"), "$-1|");
    }
}
