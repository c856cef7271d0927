//! Tables that are there, through your own SQL.
//!
//! Parameters go to Postgres as text (`bytea` as its bytes), so that Postgres itself reads them as the
//! type that the place has: `user:17` finds the `bigint` 17, and what is no number is refused. A value
//! comes back as its bytes where the column is `bytea` or a kind of text, and else as the text that a
//! cast to `text` makes of it. NULL, or no row, is an absent key.
//!
//! Nothing is kept of versions and deadlines but what the statements keep: by themselves they take every
//! change, and a TTL ends the cached copy only (SEMANTICS 13, 14). Of what a `where` of theirs passes over
//! nothing is told: nobody knows by which version.

use std::{borrow::Cow, pin::Pin, task::Poll, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use tokio::time::Instant;
use tokio_postgres::{
    Client, Statement,
    types::{Format, FromSql, IsNull, Kind, ToSql, Type, to_sql_checked},
};

use super::{
    MAX_BATCH, MAX_POSTGRES_VALUE, RETRIES,
    error::Trouble,
    link::{Lease, Link},
    options::Statements,
    sql::{Binding, Sql},
};
use crate::store::{Applied, BoxFuture, Change, Record, Store, StoreError, check};

type PostgresError = tokio_postgres::Error;

/// See the module's doc.
pub(super) struct RowStore {
    link: Link,
    statements: Statements,
    /// `load`, its first column as a text.
    load_text: String,
}

/// A parameter of a statement; NULL if it is none.
#[derive(Debug)]
struct Parameter<'a>(Option<Cow<'a, [u8]>>);

/// A column's bytes.
struct Raw(Vec<u8>);

/// A change on its way: which statement, with which parameters.
struct Order<'a> {
    is_delete: bool,
    parameters: Vec<Parameter<'a>>,
}

impl RowStore {
    /// A store through these statements.
    pub(super) fn new(link: Link, statements: Statements) -> Self {
        let load_text = format!(
            "with larder_load(larder_value) as (\n{}\n) \
             select larder_value::text from larder_load",
            statements.load.text
        );
        Self { link, statements, load_text }
    }

    fn parts_of<'k>(&self, key: &'k [u8]) -> Result<Vec<&'k [u8]>, StoreError> {
        let stray = || StoreError::Refused("the key doesn't fit the store's `pattern`".into());
        self.statements.pattern.parts_of(key).ok_or_else(stray)
    }

    /// The parameters of a statement for a key, and for a change if there is one.
    fn parameters<'a>(
        &self,
        sql: &Sql,
        key: &'a Bytes,
        change: Option<&'a Change>,
    ) -> Result<Vec<Parameter<'a>>, StoreError> {
        let parts = self.parts_of(key)?;
        let record = match change {
            Some(Change::Put(record)) => Some(record),
            _ => None,
        };
        let number = |number: u64| Cow::Owned(number.to_string().into_bytes());
        let bind = |binding: &Binding| match binding {
            Binding::Part(place) => parts.get(*place).map(|part| Cow::Borrowed(*part)),
            Binding::Value => record.map(|record| Cow::Borrowed(&*record.value)),
            Binding::Version => change.map(|change| number(change.version())),
            Binding::Deadline => {
                record.filter(|record| record.deadline != 0).map(|record| number(record.deadline))
            }
        };
        Ok(sql.bindings.iter().map(|binding| Parameter(bind(binding))).collect())
    }

    async fn load_all(&self, keys: &[Bytes]) -> Result<Vec<Option<Record>>, StoreError> {
        let parameters = keys.iter().map(|key| self.parameters(&self.statements.load, key, None));
        let parameters = parameters.collect::<Result<Vec<_>, _>>()?;
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let mut tries = 0;
        loop {
            match self.load_once(&parameters).await {
                Err(why) if tries < RETRIES && why.is_stale() => self.link.forget(),
                Err(why) if tries < RETRIES && why.is_lost() => {}
                other => return other.map_err(Trouble::of_load),
            }
            tries += 1;
        }
    }

    async fn load_once(
        &self,
        parameters: &[Vec<Parameter<'_>>],
    ) -> Result<Vec<Option<Record>>, Trouble> {
        let (lease, statement) = self.link.ready(self.ready_to_load()).await?;
        let client = lease.client();
        let mut calls: Vec<Call<'_, Option<Record>>> = Vec::with_capacity(parameters.len());
        for parameters in parameters {
            calls.push(Box::pin(find(client, &statement, parameters)));
        }
        let answer = self.link.answer(in_one_go(calls)).await;
        lease.settle(answer)
    }

    /// A connection and the statement that loads; which one depends on the type of the column.
    async fn ready_to_load(&self) -> Result<(Lease, Statement), Trouble> {
        let lease = self.link.lease().await?;
        let (lease, statement) = lease.prepare(&self.statements.load.text).await?;
        match statement.columns().first().map(|column| column.type_().clone()) {
            None => {
                lease.give_back();
                Err(StoreError::Refused("`load` answers with no column".into()).into())
            }
            Some(column) if is_bytes(&column) => Ok((lease, statement)),
            Some(_) => lease.prepare(&self.load_text).await,
        }
    }

    async fn apply_all(&self, changes: &[(Bytes, Change)]) -> Applied {
        check(changes, MAX_POSTGRES_VALUE)?;
        let bytes: u64 = changes.iter().map(|(_, change)| change.value_len() as u64).sum();
        if bytes > MAX_BATCH {
            let text = format!("a batch of {bytes} bytes, at most {MAX_BATCH}");
            return Err(StoreError::Refused(text));
        }
        let orders = changes.iter().map(|change| self.order(change));
        let orders = orders.collect::<Result<Vec<_>, _>>()?;
        if orders.is_empty() {
            return Ok(Vec::new());
        }
        let mut tries = 0;
        loop {
            match self.apply_once(&orders).await {
                Ok(()) => return Ok(Vec::new()),
                Err((why, _)) if tries < RETRIES && why.is_stale() => self.link.forget(),
                Err((why, Some(sent))) => return Err(self.link.dead(why, sent).await),
                Err((why, None)) => return Err(why.unchanged()),
            }
            tries += 1;
        }
    }

    fn order<'a>(&self, (key, change): &'a (Bytes, Change)) -> Result<Order<'a>, StoreError> {
        let is_delete = matches!(change, Change::Delete { .. });
        let parameters = self.parameters(self.statement(is_delete)?, key, Some(change))?;
        Ok(Order { is_delete, parameters })
    }

    fn statement(&self, is_delete: bool) -> Result<&Sql, StoreError> {
        let (sql, name) = match is_delete {
            true => (&self.statements.delete, "delete"),
            false => (&self.statements.save, "save"),
        };
        sql.as_ref().ok_or_else(|| StoreError::Refused(format!("the store has no `{name}`")))
    }

    /// Applies changes: one in a round trip of its own, several in a transaction that is committed only
    /// when all of them are done. So a connection that is lost before has changed nothing. With an error
    /// comes when that was sent after which nobody may know the outcome.
    async fn apply_once(&self, orders: &[Order<'_>]) -> Result<(), (Trouble, Option<Instant>)> {
        let ready = self.link.ready(self.ready_to_apply(orders)).await;
        let (lease, statements) = ready.map_err(|why| (why, None))?;
        let client = lease.client();
        if let [order] = orders {
            let sent = Instant::now();
            let done = self.link.answer(carry_out(client, &statements, order)).await;
            return lease.settle(done).map_err(|why| (why, Some(sent)));
        }
        let mut calls: Vec<Call<'_, ()>> = vec![Box::pin(client.batch_execute("begin"))];
        for order in orders {
            calls.push(Box::pin(carry_out(client, &statements, order)));
        }
        if let Err(trouble) = self.link.answer(in_one_go(calls)).await {
            let undone = self.link.answer(client.batch_execute("rollback")).await.is_ok();
            if undone && trouble.leaves_connection() {
                lease.give_back();
            }
            return Err((trouble, None));
        }
        let sent = Instant::now();
        let done = self.link.answer(client.batch_execute("commit")).await;
        lease.settle(done).map_err(|why| (why, Some(sent)))
    }

    /// A connection, and `save` and `delete`, as far as they are needed.
    async fn ready_to_apply(&self, orders: &[Order<'_>]) -> Result<(Lease, Prepared), Trouble> {
        let mut lease = self.link.lease().await?;
        let mut prepared: Prepared = [None, None];
        for is_delete in [false, true] {
            if orders.iter().any(|order| order.is_delete == is_delete) {
                let text = &self.statement(is_delete)?.text;
                let (same, statement) = lease.prepare(text).await?;
                (lease, prepared[usize::from(is_delete)]) = (same, Some(statement));
            }
        }
        Ok((lease, prepared))
    }

    /// Has all statements prepared, so that a mistake in them is seen.
    async fn prepare_all(&self) -> Result<(), Trouble> {
        let (mut lease, _) = self.link.ready(self.ready_to_load()).await?;
        for sql in [&self.statements.save, &self.statements.delete].into_iter().flatten() {
            (lease, _) = self.link.ready(lease.prepare(&sql.text)).await?;
        }
        let answer = self.link.answer(lease.client().check_connection()).await;
        lease.settle(answer)
    }
}

impl Store for RowStore {
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
        Box::pin(async { self.prepare_all().await.map_err(Trouble::of_load) })
    }

    fn kind(&self) -> &'static str {
        "postgres"
    }

    /// What doesn't fit the pattern is in no part.
    fn part(&self, key: &[u8]) -> Result<u32, StoreError> {
        self.parts_of(key).map(|_| 0)
    }

    fn lag(&self) -> BoxFuture<'_, Option<Duration>> {
        Box::pin(self.link.lag())
    }
}

type Call<'a, T> = Pin<Box<dyn Future<Output = Result<T, PostgresError>> + Send + 'a>>;

/// `save` and `delete`, as far as they are prepared.
type Prepared = [Option<Statement>; 2];

fn as_sql<'a>(parameters: &'a [Parameter<'_>]) -> Vec<&'a (dyn ToSql + Sync)> {
    parameters.iter().map(|parameter| parameter as &(dyn ToSql + Sync)).collect()
}

/// Loads one key.
async fn find(
    client: &Client,
    statement: &Statement,
    parameters: &[Parameter<'_>],
) -> Result<Option<Record>, PostgresError> {
    let rows = client.query(statement, &as_sql(parameters)).await?;
    let value = rows.first().map(|row| row.try_get::<_, Option<Raw>>(0)).transpose()?;
    let record = |Raw(value)| Record { value: Bytes::from(value), ..Record::default() };
    Ok(value.flatten().map(record))
}

/// Makes one change; its statement is prepared.
async fn carry_out(
    client: &Client,
    statements: &Prepared,
    order: &Order<'_>,
) -> Result<(), PostgresError> {
    match &statements[usize::from(order.is_delete)] {
        Some(statement) => client.execute(statement, &as_sql(&order.parameters)).await.map(drop),
        None => Ok(()),
    }
}

/// Sends all calls in their order without waiting for answers in between, then waits for all of them;
/// the first error is the answer.
async fn in_one_go<T>(mut calls: Vec<Call<'_, T>>) -> Result<Vec<T>, PostgresError> {
    let mut early = Vec::with_capacity(calls.len());
    std::future::poll_fn(|context| {
        // A call is sent when it is first polled.
        early.extend(calls.iter_mut().map(|call| call.as_mut().poll(context)));
        Poll::Ready(())
    })
    .await;
    let mut answers = Vec::with_capacity(calls.len());
    for (call, early) in calls.into_iter().zip(early) {
        answers.push(match early {
            Poll::Ready(answer) => answer,
            Poll::Pending => call.await,
        });
    }
    answers.into_iter().collect()
}

/// Whether the bytes that Postgres sends of a type are the value.
fn is_bytes(column: &Type) -> bool {
    let alike = [Type::BYTEA, Type::TEXT, Type::VARCHAR, Type::BPCHAR, Type::NAME, Type::JSON];
    alike.contains(column)
}

fn is_bytea(place: &Type) -> bool {
    match place.kind() {
        Kind::Domain(inner) => is_bytea(inner),
        _ => *place == Type::BYTEA,
    }
}

impl ToSql for Parameter<'_> {
    fn to_sql(
        &self,
        _: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        Ok(match &self.0 {
            Some(bytes) => {
                out.put_slice(bytes);
                IsNull::No
            }
            None => IsNull::Yes,
        })
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, place: &Type) -> Format {
        if is_bytea(place) { Format::Binary } else { Format::Text }
    }

    to_sql_checked!();
}

impl<'a> FromSql<'a> for Raw {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(raw.to_vec()))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}
