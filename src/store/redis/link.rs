//! Connections to a Redis: each has one call at a time. The `redis` crate speaks on them, over a wire of
//! ours, since the crate doesn't tell whether a request has left.

use std::sync::Arc;

use ::redis::{
    AsyncConnectionConfig, Cmd, Pipeline, RedisConnectionInfo, Value, aio::MultiplexedConnection,
};
use tokio::task::JoinHandle;

use super::{
    error::{self, Trouble},
    options::RedisOptions,
};
use crate::store::{
    StoreError,
    link::{Link, Silence},
    pool::{Connection, Lease},
    wire::{Meter, Wire},
};

/// The longest answer to a greeting.
const GREETING: u64 = 1 << 20;

/// All connections.
pub(super) struct Connections {
    link: Link<Open>,
    host: String,
    port: u16,
    login: RedisConnectionInfo,
}

/// One that is open.
struct Open {
    client: MultiplexedConnection,
    /// Carries bytes; it ends when the server closes the connection.
    driver: JoinHandle<()>,
    meter: Arc<Meter>,
    knows_pexpiretime: bool,
}

impl Connection for Open {
    fn has_ended(&self) -> bool {
        self.driver.is_finished()
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// One that a call has.
pub(super) struct Leased<'a> {
    lease: Lease<'a, Open>,
    link: &'a Link<Open>,
}

impl Connections {
    pub(super) fn new(options: &RedisOptions) -> Self {
        Self {
            link: Link::new(options.pool, options.times, "redis"),
            host: options.host.clone(),
            port: options.port,
            login: options.login.clone(),
        }
    }

    /// A connection for one call.
    pub(super) async fn ready(&self) -> Result<Leased<'_>, StoreError> {
        let lease = self.link.ready(async || self.open().await).await?;
        Ok(Leased { lease, link: &self.link })
    }

    /// The answer to a write that has none, when it is taken for dead.
    pub(super) async fn dead(&self, silence: Silence) -> StoreError {
        self.link.dead(silence).await
    }

    /// Connects and logs in. Whoever isn't let in has a store that is down, whatever the reply's code.
    async fn open(&self) -> Result<Open, StoreError> {
        let wire = Wire::connect(&self.host, self.port).await;
        let (wire, meter) =
            wire.map_err(|why| StoreError::Down(format!("error connecting to redis: {why}")))?;
        meter.begin(GREETING);
        let config = AsyncConnectionConfig::new().set_response_timeout(None);
        let made = MultiplexedConnection::new_with_config(&self.login, wire, config).await;
        let (mut client, driver) = made.map_err(|why| {
            let text = error::answered(&why).unwrap_or_else(|| why.to_string());
            StoreError::Down(format!("redis doesn't let us in: {text}"))
        })?;
        let driver = tokio::spawn(driver);
        // Before Redis 7 there is none, and a user may not be allowed to ask.
        let probe = client.send_packed_command(::redis::cmd("PEXPIRETIME").arg("larder")).await;
        let knows_pexpiretime = matches!(probe, Ok(Value::Int(_)));
        Ok(Open { client, driver, meter, knows_pexpiretime })
    }
}

impl Leased<'_> {
    /// Whether the server knows PEXPIRETIME.
    pub(super) fn knows_pexpiretime(&self) -> bool {
        self.lease.connection.knows_pexpiretime
    }

    /// Sends one command; the answer has at most so many bytes.
    pub(super) async fn ask(mut self, command: &Cmd, most: u64) -> Result<Value, Trouble> {
        let Open { client, meter, .. } = &mut self.lease.connection;
        let call = async {
            match client.send_packed_command(command).await {
                Ok(Value::ServerError(why)) => Ok(Err(error::text(&why))),
                Ok(value) => Ok(Ok(value)),
                Err(why) => error::answered(&why).map(Err).ok_or(why),
            }
        };
        let answer = self.link.answer(meter, most, call).await.map_err(Trouble::Silent)?;
        self.settle(answer)
    }

    /// Sends commands as one transaction; the answer has one reply for each.
    pub(super) async fn transaction(
        mut self,
        commands: &Pipeline,
        most: u64,
    ) -> Result<Vec<Value>, Trouble> {
        let mut all = Pipeline::with_capacity(commands.len() + 2);
        all.cmd("MULTI");
        commands.cmd_iter().for_each(|command| _ = all.add_command(command.clone()));
        all.cmd("EXEC");
        let count = all.len();
        let Open { client, meter, .. } = &mut self.lease.connection;
        let call = client.send_packed_commands(&all, 0, count);
        let replies = self.link.answer(meter, most, call).await.map_err(Trouble::Silent)?;
        self.settle(executed(replies))
    }

    fn settle<T>(self, answer: Result<T, String>) -> Result<T, Trouble> {
        let Self { lease, link } = self;
        match answer {
            Ok(value) => {
                lease.give_back();
                Ok(value)
            }
            Err(text) => {
                if error::is_elsewhere(&text) {
                    link.forget();
                } else {
                    lease.give_back();
                }
                Err(Trouble::Reply(text))
            }
        }
    }
}

/// The replies within a transaction; the error of the command that spoiled it, if one did.
fn executed(mut replies: Vec<Value>) -> Result<Vec<Value>, String> {
    match replies.pop() {
        Some(Value::Array(found)) => Ok(found),
        Some(Value::ServerError(aborted)) => {
            let first = replies.into_iter().find_map(error::reply);
            Err(first.unwrap_or_else(|| error::text(&aborted)))
        }
        _ => Err("ERR the transaction wasn't executed".into()),
    }
}
