//! A table of our own:
//!
//! | column | type | |
//! |---|---|---|
//! | `key` | `bytea primary key` | the whole key; of one longer than 1024 bytes those, and SHA-256 of all |
//! | `value` | `bytea not null` | the value's bytes |
//! | `deadline` | `bigint not null` | when the data ends, in unix milliseconds; 0: never |
//! | `version` | `bigint not null` | the version of the write, in two's complement |
//!
//! An index of Postgres has no room for a key of more than 2704 bytes, therefore the digest. A load is
//! one statement, and so is a batch of changes, deletes and all: one round trip, and one transaction. It
//! answers with what it passed over. A row past its deadline is absent, and stays until its key is written
//! again.

use std::{borrow::Cow, collections::HashMap, time::Duration};

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::time::Instant;
use tokio_postgres::{Row, error::SqlState, types::ToSql};

use super::{MAX_BATCH, MAX_POSTGRES_VALUE, RETRIES, error::Trouble, link::Link};
use crate::{
    clock::Clock,
    store::{
        Applied, BoxFuture, Change, MAX_KEY, Overtaken, Record, Stamp, Store, StoreError, check,
        check_lengths,
    },
};

/// The longest key that is its own name in the table.
const PLAIN_KEY: usize = 1024;

/// See the module's doc.
pub(super) struct TableStore {
    link: Link,
    create: String,
    load: String,
    apply: String,
    clock: Clock,
}

impl TableStore {
    /// A store over the table of this quoted name.
    pub(super) fn new(link: Link, name: &str, clock: Clock) -> Self {
        let create = format!(
            "create table if not exists {name} (key bytea primary key, value bytea not null, \
             deadline bigint not null default 0, version bigint not null default 0)"
        );
        let load = format!("select key, value, deadline, version from {name} where key = any($1)");
        Self { link, create, load, apply: apply_text(name), clock }
    }

    async fn load_all(&self, keys: &[Bytes]) -> Result<Vec<Option<Record>>, StoreError> {
        keys.iter().try_for_each(|key| check_lengths(key.len(), 0, 0))?;
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let names: Vec<_> = keys.iter().map(|key| name_of(key)).collect();
        let rows = self.retry_load(&names).await.map_err(Trouble::of_load)?;
        let now = self.clock.now();
        let mut found = HashMap::with_capacity(rows.len());
        for row in rows {
            let (name, record) = read(&row).map_err(|why| Trouble::from(why).unchanged())?;
            if !Stamp::of(&record).is_past(now) {
                found.insert(name, record);
            }
        }
        Ok(names.iter().map(|name| found.get(&**name).cloned()).collect())
    }

    async fn retry_load(&self, names: &[Cow<'_, [u8]>]) -> Result<Vec<Row>, Trouble> {
        let mut tries = 0;
        loop {
            match self.load_once(names).await {
                Err(why) if tries < RETRIES && why.is_missing_table() => self.create().await?,
                Err(why) if tries < RETRIES && why.is_stale() => self.link.forget(),
                Err(why) if tries < RETRIES && why.is_lost() => {}
                other => return other,
            }
            tries += 1;
        }
    }

    async fn load_once(&self, names: &[Cow<'_, [u8]>]) -> Result<Vec<Row>, Trouble> {
        let (lease, statement) =
            self.link.ready(async { self.link.lease().await?.prepare(&self.load).await }).await?;
        let names: Vec<&[u8]> = names.iter().map(|name| &**name).collect();
        let answer = self.link.answer(lease.client().query(&statement, &[&names])).await;
        lease.settle(answer)
    }

    async fn apply_all(&self, changes: &[(Bytes, Change)]) -> Applied {
        check(changes, MAX_POSTGRES_VALUE)?;
        let bytes = |(key, change): &(Bytes, Change)| (key.len() + change.value_len()) as u64;
        let bytes: u64 = changes.iter().map(bytes).sum();
        if bytes > MAX_BATCH {
            let text = format!("a batch of {bytes} bytes, at most {MAX_BATCH}");
            return Err(StoreError::Refused(text));
        }
        let rounds = rounds(changes);
        let mut tries = 0;
        loop {
            match self.apply_once(&rounds).await {
                Ok(passed) => match overtaken(changes, &passed) {
                    Some(overtaken) => return Ok(overtaken),
                    // Another server came between: which version it has shows the next time.
                    None if tries < RETRIES => {}
                    None => {
                        let text = "others change the same keys all the time";
                        return Err(StoreError::Timeout(text.into()));
                    }
                },
                Err((why, _)) if tries < RETRIES && why.is_missing_table() => {
                    self.create().await.map_err(Trouble::unchanged)?;
                }
                Err((why, _)) if tries < RETRIES && why.is_stale() => self.link.forget(),
                Err((why, Some(sent))) => return Err(self.link.dead(why, sent).await),
                Err((why, None)) => return Err(why.unchanged()),
            }
            tries += 1;
        }
    }

    /// Applies rounds; what they passed over by its name, with the version that was there. With an error comes when that was sent after which nobody may know the outcome.
    async fn apply_once(
        &self,
        rounds: &[Round<'_>],
    ) -> Result<HashMap<Vec<u8>, u64>, (Trouble, Option<Instant>)> {
        let mut passed = HashMap::new();
        if rounds.is_empty() {
            return Ok(passed);
        }
        let (lease, statement) = self
            .link
            .ready(async { self.link.lease().await?.prepare(&self.apply).await })
            .await
            .map_err(|why| (why, None))?;
        let now = self.clock.now() as i64;
        let client = lease.client();
        if let [round] = rounds {
            let sent = Instant::now();
            let done = self.link.answer(round.execute(client, &statement, now, &mut passed)).await;
            return lease.settle(done).map(|()| passed).map_err(|why| (why, Some(sent)));
        }
        let all = async {
            client.batch_execute("begin").await?;
            for round in rounds {
                round.execute(client, &statement, now, &mut passed).await?;
            }
            Ok::<(), tokio_postgres::Error>(())
        };
        if let Err(trouble) = self.link.answer(all).await {
            // The connection goes, and what was begun with it.
            return Err((trouble, None));
        }
        let sent = Instant::now();
        let done = self.link.answer(client.batch_execute("commit")).await;
        lease.settle(done).map(|()| passed).map_err(|why| (why, Some(sent)))
    }

    /// Makes the table. Another server may be making it too: one of them is told that it is there.
    async fn create(&self) -> Result<(), Trouble> {
        let lease = self.link.ready(self.link.lease()).await?;
        let made = self.link.answer(lease.client().batch_execute(&self.create)).await;
        match lease.settle(made) {
            Err(Trouble::Postgres(error)) if is_there(&error) => Ok(()),
            other => other,
        }
    }
}

fn is_there(error: &tokio_postgres::Error) -> bool {
    let codes =
        [&SqlState::UNIQUE_VIOLATION, &SqlState::DUPLICATE_TABLE, &SqlState::DUPLICATE_OBJECT];
    error.code().is_some_and(|code| codes.contains(&code))
}

impl Store for TableStore {
    fn load<'a>(
        &'a self,
        keys: &'a [Bytes],
    ) -> BoxFuture<'a, Result<Vec<Option<Record>>, StoreError>> {
        Box::pin(self.load_all(keys))
    }

    fn apply<'a>(&'a self, changes: &'a [(Bytes, Change)]) -> BoxFuture<'a, Applied> {
        Box::pin(self.apply_all(changes))
    }

    /// A load of no key: it makes the table if it isn't there.
    fn ping(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async { self.retry_load(&[]).await.map(drop).map_err(Trouble::of_load) })
    }

    fn kind(&self) -> &'static str {
        "postgres"
    }

    fn lag(&self) -> BoxFuture<'_, Option<Duration>> {
        Box::pin(self.link.lag())
    }
}

/// What of a batch was overtaken, by the versions that were seen there beforehand: `None` if one of them
/// overtakes nothing, so that it isn't the one that did.
fn overtaken(
    changes: &[(Bytes, Change)],
    passed: &HashMap<Vec<u8>, u64>,
) -> Option<Vec<Overtaken>> {
    if passed.is_empty() {
        return Some(Vec::new());
    }
    // The last of each key.
    let places: HashMap<_, _> =
        changes.iter().enumerate().map(|(place, (key, _))| (name_of(key), place)).collect();
    let one = |(name, by): (&Vec<u8>, &u64)| {
        let place = *places.get(&**name)?;
        (*by > changes[place].1.version()).then_some(Overtaken { place, by: *by })
    };
    passed.iter().map(one).collect()
}

/// The statement of a round. Versions and deadlines are unsigned; with the sign bit turned over they
/// compare as such. It answers with the rows that it passed over, as they were before it: of one that
/// another server has changed since, an older version, or none.
fn apply_text(name: &str) -> String {
    let sign = "(-9223372036854775808)::bigint";
    let yields = |version: &str| {
        format!(
            "(t.version # {sign}) <= ({version} # {sign}) \
             or (t.deadline <> 0 and (t.deadline # {sign}) <= ($7::bigint # {sign}))"
        )
    };
    let (to_delete, to_put) = (yields("c.version"), yields("excluded.version"));
    format!(
        "with gone as (\
           delete from {name} t using unnest($1::bytea[], $2::bigint[]) as c(key, version) \
           where t.key = c.key and ({to_delete}) returning t.key), \
         put as (\
           insert into {name} as t (key, value, deadline, version) \
           select c.key, c.value, c.deadline, c.version \
           from unnest($3::bytea[], $4::bytea[], $5::bigint[], $6::bigint[]) \
             as c(key, value, deadline, version) \
           on conflict (key) do update \
           set value = excluded.value, deadline = excluded.deadline, version = excluded.version \
           where {to_put} returning t.key) \
         select c.key, t.version from unnest($1::bytea[]) as c(key) join {name} t using (key) \
         where c.key not in (select key from gone) \
         union all \
         select c.key, t.version from unnest($3::bytea[]) as c(key) left join {name} t using (key) \
         where c.key not in (select key from put)"
    )
}

/// What a key is called in the table.
fn name_of(key: &[u8]) -> Cow<'_, [u8]> {
    if key.len() <= PLAIN_KEY {
        return Cow::Borrowed(key);
    }
    let digest: [u8; 32] = Sha256::digest(key).into();
    Cow::Owned([&key[..PLAIN_KEY], &digest[..]].concat())
}

fn read(row: &Row) -> Result<(Vec<u8>, Record), tokio_postgres::Error> {
    let value = Bytes::copy_from_slice(row.try_get(1)?);
    let (deadline, version) = (row.try_get::<_, i64>(2)? as u64, row.try_get::<_, i64>(3)? as u64);
    Ok((row.try_get::<_, &[u8]>(0)?.to_vec(), Record { value, deadline, version, fresh_for: None }))
}

/// Changes of different keys, as arrays.
#[derive(Default)]
struct Round<'a> {
    deleted: Vec<Cow<'a, [u8]>>,
    delete_versions: Vec<i64>,
    put: Vec<Cow<'a, [u8]>>,
    values: Vec<&'a [u8]>,
    deadlines: Vec<i64>,
    versions: Vec<i64>,
}

impl<'a> Round<'a> {
    fn add(&mut self, name: Cow<'a, [u8]>, change: &'a Change) {
        match change {
            Change::Put(record) => {
                self.put.push(name);
                self.values.push(&record.value);
                self.deadlines.push(record.deadline as i64);
                self.versions.push(record.version as i64);
            }
            Change::Delete { version } => {
                self.deleted.push(name);
                self.delete_versions.push(*version as i64);
            }
        }
    }

    async fn execute(
        &self,
        client: &tokio_postgres::Client,
        statement: &tokio_postgres::Statement,
        now: i64,
        passed: &mut HashMap<Vec<u8>, u64>,
    ) -> Result<(), tokio_postgres::Error> {
        let deleted: Vec<&[u8]> = self.deleted.iter().map(|name| &**name).collect();
        let put: Vec<&[u8]> = self.put.iter().map(|name| &**name).collect();
        let (delete_versions, versions) = (&self.delete_versions, &self.versions);
        let (values, deadlines) = (&self.values, &self.deadlines);
        let parameters: [&(dyn ToSql + Sync); 7] =
            [&deleted, delete_versions, &put, values, deadlines, versions, &now];
        for row in client.query(statement, &parameters).await? {
            let version: Option<i64> = row.try_get(1)?;
            passed.insert(row.try_get(0)?, version.unwrap_or(0) as u64);
        }
        Ok(())
    }
}

/// Changes in rounds that each have a key once, sorted by key, since two servers that change the same
/// rows in different orders wait for each other in vain.
///
/// A change that is followed by one of its key with a version no older needs no round: the later one
/// wins whatever is there. So there is one round, unless versions of a key fall within a batch.
fn rounds(changes: &[(Bytes, Change)]) -> Vec<Round<'_>> {
    let mut chains: HashMap<&Bytes, Vec<&Change>> = HashMap::with_capacity(changes.len());
    for (key, change) in changes {
        let chain = chains.entry(key).or_default();
        while chain.last().is_some_and(|earlier| earlier.version() <= change.version()) {
            chain.pop();
        }
        chain.push(change);
    }
    let mut chains: Vec<_> = chains.into_iter().collect();
    chains.sort_unstable_by_key(|(key, _)| *key);
    let count = chains.iter().map(|(_, chain)| chain.len()).max().unwrap_or(0);
    let mut rounds: Vec<Round<'_>> = (0..count).map(|_| Round::default()).collect();
    for (key, chain) in chains {
        for (round, change) in rounds.iter_mut().zip(chain) {
            round.add(name_of(key), change);
        }
    }
    rounds
}

const _: () = assert!(PLAIN_KEY + 32 < 2704 && MAX_KEY > PLAIN_KEY);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::suite::{delete, put};

    #[test]
    fn one_round_unless_versions_fall() {
        let changes = [put("a", "1", 0, 1), put("b", "1", 0, 1), put("a", "2", 0, 2)];
        let one = rounds(&changes);
        assert_eq!(one.len(), 1);
        assert_eq!(one[0].values, [b"2", b"1"]);
        let changes = [put("a", "1", 0, 5), put("a", "2", 0, 3), delete("a", 4)];
        let two = rounds(&changes);
        assert_eq!((two.len(), two[1].delete_versions.as_slice()), (2, &[4][..]));
        assert!(rounds(&[]).is_empty());
    }

    #[test]
    fn long_keys_have_a_name_of_their_own() {
        let long = vec![7; PLAIN_KEY + 32];
        assert_eq!(&*name_of(&long[..PLAIN_KEY]), &long[..PLAIN_KEY]);
        assert_eq!(name_of(&long).len(), PLAIN_KEY + 32);
        assert_ne!(&*name_of(&long), &long[..]);
    }
}
