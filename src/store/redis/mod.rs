//! The store over a server that speaks the Redis protocol: values are plain strings under their own keys,
//! as every other application there sees them; a deadline is the key's.
//!
//! - `options.rs`: where the server is, and how long what may take;
//! - `link.rs`: the connections; none is opened at the start, and one that broke is replaced;
//! - `error.rs`: whose fault an error reply is.
//!
//! A load is one transaction of GET and PEXPIRETIME, so it sees no batch in part. What a batch is depends
//! on `versions`:
//!
//! - without them it is one transaction of SET and DEL. The caller's word, one change of a key at a time,
//!   keeps the order, and records are loaded with version 0;
//! - with them it is one call of a script that keeps each key's version and deadline in a key beside it,
//!   `larder:version:KEY`, passes over what is older, and answers with that.
//!
//! ```text
//! larder:version:KEY = 20 digits of the version, 20 digits of the deadline (0: none); ends when KEY does
//! ```
//!
//! A companion outlives a key that others delete, so it counts only while the key is there.

mod error;
mod link;
mod options;

use ::redis::{Cmd, Pipeline, Script, Value};
use bytes::Bytes;

pub use self::options::RedisOptions;
use self::{error::Trouble, link::Connections};
use super::{
    Applied, BoxFuture, Change, Overtaken, Record, Stamp, Store, StoreError, check, check_lengths,
};
use crate::clock::Clock;

/// How often a load is asked again where the connection was lost.
const RETRIES: u32 = 2;

/// The longest value: a string of Redis has at most 512 MiB.
const MAX_REDIS_VALUE: u64 = 512 << 20;
/// The most bytes of a batch, since Redis bounds what a client has waiting there, and of a load's answer.
const MAX_BATCH: u64 = 768 << 20;
/// The longest answer to anything else.
const SHORT: u64 = 1 << 20;
/// The bytes of an answer for a change that was passed over, at most.
const PASSED: u64 = 64;

/// The companion of a key that has its version.
const COMPANION: &[u8] = b"larder:version:";
/// Digits of a number in it: all of a u64, so that texts compare as numbers do.
const DIGITS: usize = 20;

/// Keys come in pairs, with their companions; arguments are now, then four for each pair: `p` or `d`,
/// version, deadline, value. Numbers have 20 digits and compare as texts, since a number of Lua would lose
/// some of them. The answer has the number of each pair that was passed over, from 1, and the version that is
/// there. An error after a first change is told apart from one that has changed nothing.
const APPLY: &str = r"
local now, none, wrote, passed = ARGV[1], string.rep('0', 20), false, {}
local function write(...)
  local reply = redis.pcall(...)
  if type(reply) == 'table' and reply.err then
    return wrote and { err = 'PARTLY ' .. reply.err } or reply
  end
  wrote = true
end
for i = 1, #KEYS / 2 do
  local key, companion = KEYS[2 * i - 1], KEYS[2 * i]
  local what, version, deadline = ARGV[4 * i - 2], ARGV[4 * i - 1], ARGV[4 * i]
  local known = redis.call('EXISTS', key) == 1 and redis.pcall('GET', companion)
  local overtaken = false
  if type(known) == 'string' and #known == 40 then
    local ends = string.sub(known, 21)
    overtaken = string.sub(known, 1, 20) > version and (ends == none or ends > now)
  end
  if overtaken then
    passed[#passed + 1] = i
    passed[#passed + 1] = string.sub(known, 1, 20)
  else
    local wrong
    if what == 'd' then
      wrong = write('DEL', key, companion)
    else
      wrong = write('SET', key, ARGV[4 * i + 1]) or write('SET', companion, version .. deadline)
      if not wrong and deadline ~= none then
        local ends = string.gsub(deadline, '^0+', '')
        wrong = write('PEXPIREAT', key, ends) or write('PEXPIREAT', companion, ends)
      end
    end
    if wrong then return wrong end
  end
end
return passed
";

/// See the module's doc.
pub(super) struct RedisStore {
    connections: Connections,
    script: Option<Script>,
    clock: Clock,
}

impl RedisStore {
    /// Opens no connection yet.
    pub(super) fn new(options: &RedisOptions, clock: Clock) -> Self {
        let script = options.versions.then(|| Script::new(APPLY));
        Self { connections: Connections::new(options), script, clock }
    }

    async fn load_all(&self, keys: &[Bytes]) -> Result<Vec<Option<Record>>, StoreError> {
        keys.iter().try_for_each(|key| check_lengths(key.len(), 0, 0))?;
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let mut tries = 0;
        let (replies, shape) = loop {
            match self.load_once(keys).await {
                Err(Trouble::Silent(why)) if tries < RETRIES && why.is_lost() => tries += 1,
                other => break other.map_err(Trouble::of_load)?,
            }
        };
        shape.read(keys, replies, self.clock.now())
    }

    async fn load_once(&self, keys: &[Bytes]) -> Result<(Vec<Value>, Shape), Trouble> {
        let connection = self.connections.ready().await?;
        let has_versions = self.script.is_some();
        let shape = Shape { has_versions, is_absolute: connection.knows_pexpiretime() };
        let replies = connection.transaction(&shape.load(keys), MAX_BATCH).await?;
        Ok((replies, shape))
    }

    async fn apply_all(&self, changes: &[(Bytes, Change)]) -> Applied {
        check(changes, MAX_REDIS_VALUE)?;
        let bytes = |(key, change): &(Bytes, Change)| (key.len() + change.value_len()) as u64;
        let bytes: u64 = changes.iter().map(bytes).sum();
        if bytes > MAX_BATCH {
            let text = format!("a batch of {bytes} bytes, at most {MAX_BATCH}");
            return Err(StoreError::Refused(text));
        }
        if changes.is_empty() {
            return Ok(Vec::new());
        }
        let mut tries = 0;
        loop {
            let result = match &self.script {
                Some(script) => self.apply_by_script(script, changes).await,
                None => self.apply_plainly(changes).await.map(|()| Vec::new()),
            };
            match result {
                Ok(overtaken) => return Ok(overtaken),
                // The connection had ended unnoticed.
                Err(Trouble::Silent(why))
                    if tries < RETRIES && why.is_lost() && why.is_unsent() =>
                {
                    tries += 1;
                }
                Err(Trouble::Silent(silence)) => return Err(self.connections.dead(silence).await),
                Err(other) => return Err(other.unchanged()),
            }
        }
    }

    async fn apply_plainly(&self, changes: &[(Bytes, Change)]) -> Result<(), Trouble> {
        let now = self.clock.now();
        let mut commands = Pipeline::new();
        for (key, change) in changes {
            match change {
                Change::Put(record) if !Stamp::of(record).is_past(now) => {
                    commands.cmd("SET").arg(&key[..]).arg(&record.value[..]);
                    if record.deadline != 0 {
                        commands.cmd("PEXPIREAT").arg(&key[..]).arg(unix(record.deadline));
                    }
                }
                // A record past its deadline is not there.
                Change::Put(_) | Change::Delete { .. } => {
                    commands.cmd("DEL").arg(&key[..]);
                }
            }
        }
        let connection = self.connections.ready().await?;
        let replies = connection.transaction(&commands, SHORT * 16).await?;
        match replies.into_iter().find_map(error::reply) {
            // What came before it in the transaction has been done.
            Some(text) => Err(StoreError::Timeout(format!("done in part: {text}")).into()),
            None => Ok(()),
        }
    }

    async fn apply_by_script(
        &self,
        script: &Script,
        changes: &[(Bytes, Change)],
    ) -> Result<Vec<Overtaken>, Trouble> {
        let call = |name: &str, script: &str| self.script_call(name, script, changes);
        let longest = SHORT + PASSED * changes.len() as u64;
        let connection = self.connections.ready().await?;
        match connection.ask(&call("EVALSHA", script.get_hash()), longest).await {
            // A server forgets its scripts when it starts; nothing has been done.
            Err(Trouble::Reply(text)) if text.starts_with("NOSCRIPT") => {}
            other => return Ok(overtaken(other?)?),
        }
        let connection = self.connections.ready().await?;
        Ok(overtaken(connection.ask(&call("EVAL", APPLY), longest).await?)?)
    }

    fn script_call(&self, name: &str, script: &str, changes: &[(Bytes, Change)]) -> Cmd {
        let mut call = ::redis::cmd(name);
        call.arg(script).arg(changes.len() * 2);
        for (key, _) in changes {
            call.arg(&key[..]).arg(companion(key));
        }
        let now = self.clock.now();
        call.arg(digits(now));
        for (_, change) in changes {
            let version = digits(change.version());
            match change {
                Change::Put(record) if !Stamp::of(record).is_past(now) => {
                    let deadline = digits(unix(record.deadline));
                    call.arg("p").arg(version).arg(deadline).arg(&record.value[..])
                }
                Change::Put(_) | Change::Delete { .. } => {
                    call.arg("d").arg(version).arg(digits(0)).arg("")
                }
            };
        }
        call
    }

    async fn ping_once(&self) -> Result<(), StoreError> {
        let ping = async || {
            let connection = self.connections.ready().await?;
            connection.ask(&::redis::cmd("PING"), SHORT).await.map(drop)
        };
        match ping().await {
            Err(Trouble::Silent(why)) if why.is_lost() => ping().await,
            other => other,
        }
        .map_err(Trouble::of_load)
    }
}

/// A deadline that Redis takes: its times have a sign.
fn unix(deadline: u64) -> u64 {
    deadline.min(i64::MAX as u64)
}

fn digits(number: u64) -> String {
    format!("{number:0DIGITS$}")
}

fn companion(key: &[u8]) -> Vec<u8> {
    [COMPANION, key].concat()
}

/// The version that a companion has; one that we haven't written has none.
fn version(companion: &[u8]) -> u64 {
    let digits = companion.get(..DIGITS).filter(|_| companion.len() == 2 * DIGITS);
    digits.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok()).unwrap_or(0)
}

/// What is asked for each key, and how its answer is read.
#[derive(Clone, Copy)]
struct Shape {
    /// Versions are in companions.
    has_versions: bool,
    /// PEXPIRETIME tells when a key ends; without it, TIME and PTTL do.
    is_absolute: bool,
}

impl Shape {
    fn load(self, keys: &[Bytes]) -> Pipeline {
        let mut commands = Pipeline::with_capacity(keys.len() * 3 + 1);
        if !self.is_absolute {
            commands.cmd("TIME");
        }
        let until = if self.is_absolute { "PEXPIRETIME" } else { "PTTL" };
        for key in keys {
            commands.cmd("GET").arg(&key[..]);
            commands.cmd(until).arg(&key[..]);
            if self.has_versions {
                commands.cmd("GET").arg(companion(key));
            }
        }
        commands
    }

    fn read(
        self,
        keys: &[Bytes],
        replies: Vec<Value>,
        now: u64,
    ) -> Result<Vec<Option<Record>>, StoreError> {
        let mut replies = replies.into_iter();
        let from = if self.is_absolute { 0 } else { time(replies.next())? };
        let mut found = Vec::with_capacity(keys.len());
        for key in keys {
            let value = match replies.next() {
                Some(Value::Nil) => None,
                Some(Value::BulkString(value)) => Some(Bytes::from(value)),
                Some(Value::ServerError(_)) if keys.len() == 1 => {
                    return Err(StoreError::Refused(NOT_A_STRING.into()));
                }
                Some(Value::ServerError(_)) => {
                    let key = String::from_utf8_lossy(key).into_owned();
                    return Err(StoreError::Refused(format!("{key}: {NOT_A_STRING}")));
                }
                other => return Err(strange(other)),
            };
            let deadline = match replies.next() {
                Some(Value::Int(until)) if until >= 0 => from.saturating_add(until as u64),
                Some(Value::Int(_)) => 0,
                other => return Err(strange(other)),
            };
            let version = match self.has_versions.then(|| replies.next()) {
                Some(Some(Value::BulkString(companion))) => version(&companion),
                // Somebody else's key of that name, and none: no version.
                None | Some(Some(Value::Nil | Value::ServerError(_))) => 0,
                Some(other) => return Err(strange(other)),
            };
            let record = value.map(|value| Record { value, deadline, version, fresh_for: None });
            found.push(record.filter(|record| !Stamp::of(record).is_past(now)));
        }
        Ok(found)
    }
}

const NOT_A_STRING: &str = "the key holds another type than a string there";

/// What the script passed over.
fn overtaken(reply: Value) -> Result<Vec<Overtaken>, StoreError> {
    // All is done, but who can say what?
    let strange = || StoreError::Timeout("an answer of an unknown form".into());
    let Value::Array(numbers) = reply else { return Err(strange()) };
    let one = |pair: &[Value]| match pair {
        [Value::Int(number @ 1..), Value::BulkString(digits)] => {
            let by = std::str::from_utf8(digits).ok()?.parse().ok()?;
            Some(Overtaken { place: *number as usize - 1, by })
        }
        _ => None,
    };
    numbers.chunks(2).map(one).collect::<Option<_>>().ok_or_else(strange)
}

/// The server's clock in unix milliseconds.
fn time(reply: Option<Value>) -> Result<u64, StoreError> {
    let Some(Value::Array(parts)) = reply else { return Err(strange(reply)) };
    let number = |at: usize| match parts.get(at) {
        Some(Value::BulkString(text)) => std::str::from_utf8(text).ok()?.parse::<u64>().ok(),
        _ => None,
    };
    match (number(0), number(1)) {
        (Some(seconds), Some(micros)) => Ok(seconds * 1000 + micros / 1000),
        _ => Err(strange(None)),
    }
}

/// The server doesn't keep to the protocol.
fn strange(reply: Option<Value>) -> StoreError {
    let what = match reply {
        Some(Value::ServerError(error)) => error::text(&error),
        _ => "an answer of an unknown form".into(),
    };
    StoreError::Down(what)
}

impl Store for RedisStore {
    fn load<'a>(
        &'a self,
        keys: &'a [Bytes],
    ) -> BoxFuture<'a, Result<Vec<Option<Record>>, StoreError>> {
        Box::pin(self.load_all(keys))
    }

    fn apply<'a>(&'a self, changes: &'a [(Bytes, Change)]) -> BoxFuture<'a, Applied> {
        Box::pin(self.apply_all(changes))
    }

    fn ping(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.ping_once())
    }

    fn kind(&self) -> &'static str {
        "redis"
    }
}

#[cfg(test)]
mod tests;
