//! What a store over a Redis is told: where the server is, how long it may take, and whether versions are
//! kept there. Everything is checked when it is set, so that a mistake ends the start and not a request.

use std::{fmt, time::Duration};

use ::redis::{ConnectionAddr, IntoConnectionInfo, RedisConnectionInfo};

use crate::store::times::Times;

/// Connections, unless told otherwise: each has one call at a time.
const POOL: usize = 16;

const FORM: &str = "expected \"redis://user@host:6379/0\"";

/// How to reach a Redis. Its debug output hides the password.
#[derive(Clone)]
pub struct RedisOptions {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) login: RedisConnectionInfo,
    pub(super) pool: usize,
    pub(super) times: Times,
    pub(super) versions: bool,
}

impl RedisOptions {
    /// Reads `redis://user@host:port/db`.
    ///
    /// # Errors
    /// What is wrong with it; never a part of it that may be a password.
    pub fn new(url: &str) -> Result<Self, String> {
        if url.starts_with("rediss://") || url.starts_with("valkeys://") {
            let text = "TLS is not supported yet; reach the server through a tunnel, or over a \
                        network that you trust";
            return Err(text.into());
        }
        let rest = url.strip_prefix("redis://").or_else(|| url.strip_prefix("valkey://"));
        let rest = rest.ok_or(FORM)?;
        let user = rest.rsplit_once('@').map_or("", |(user, _)| user);
        if user.contains(':') || rest.contains("pass=") || rest.contains("password=") {
            return Err("no password here; name `password-env` or `password-file`".into());
        }
        if rest.contains(['?', '#']) {
            return Err(format!("{FORM}, without options"));
        }
        let info = url.into_connection_info().map_err(|_| FORM.to_owned())?;
        let ConnectionAddr::Tcp(host, port) = info.addr().clone() else {
            return Err(FORM.into());
        };
        let login = info.redis_settings().clone().set_lib_name("larder", env!("CARGO_PKG_VERSION"));
        let (pool, times) = (POOL, Times::default());
        Ok(Self { host, port, login, pool, times, versions: false })
    }

    /// The password.
    pub fn set_password(&mut self, password: &str) {
        self.login = self.login.clone().set_password(password);
    }

    /// Whether there is a user, who could not log in without a password.
    pub fn lacks_password(&self) -> bool {
        self.login.username().is_some() && self.login.password().is_none()
    }

    /// How many connections there may be at most.
    pub fn set_pool(&mut self, connections: usize) {
        self.pool = connections.max(1);
    }

    /// How long the caller waits for the store, and how long an answer may take: half of that unless told
    /// otherwise.
    ///
    /// # Errors
    /// If an answer might take as long as the caller waits.
    pub fn set_timeouts(
        &mut self,
        store: Duration,
        answer: Option<Duration>,
    ) -> Result<(), String> {
        self.times = Times::within(store, answer)?;
        Ok(())
    }

    /// Whether each key's version is kept in a key beside it; without, records have version 0.
    pub fn set_versions(&mut self, kept: bool) {
        self.versions = kept;
    }
}

impl fmt::Debug for RedisOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisOptions")
            .field("host", &self.host)
            .field("port", &self.port)
            .field("db", &self.login.db())
            .field("user", &self.login.username())
            .field("pool", &self.pool)
            .field("times", &self.times)
            .field("versions", &self.versions)
            .finish_non_exhaustive()
    }
}

impl PartialEq for RedisOptions {
    fn eq(&self, other: &Self) -> bool {
        let login = |options: &Self| {
            let login = &options.login;
            let (user, password) = (login.username(), login.password());
            (login.db(), user.map(str::to_owned), password.map(str::to_owned))
        };
        (&self.host, self.port, self.pool, self.times, self.versions, login(self))
            == (&other.host, other.port, other.pool, other.times, other.versions, login(other))
    }
}

impl Eq for RedisOptions {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_checked_and_never_quoted() {
        let options = RedisOptions::new("redis://app@cache:6380/3").unwrap();
        assert_eq!((&*options.host, options.port, options.login.db()), ("cache", 6380, 3));
        assert_eq!(options.login.username(), Some("app"));
        assert!(options.lacks_password());
        let options = RedisOptions::new("valkey://cache").unwrap();
        assert_eq!((options.port, options.login.db(), options.lacks_password()), (6379, 0, false));
        for url in [
            "redis://app:hunter2@db/0",
            "redis://:hunter2@db",
            "redis://app:hun@ter2@db/0",
            "redis://db/0?pass=hunter2",
            "redis://db/hunter2",
            "redis://db/0?protocol=hunter2",
            "rediss://hunter2@db",
            "unix:///hunter2",
            "hunter2",
        ] {
            let why = RedisOptions::new(url).unwrap_err();
            assert!(!why.contains("ter2"), "{url}: {why}");
        }
        assert!(RedisOptions::new("rediss://db").unwrap_err().starts_with("TLS is not supported"));
    }

    #[test]
    fn a_password_shows_in_no_debug_output() {
        let mut options = RedisOptions::new("redis://app@db/0").unwrap();
        let before = options.clone();
        options.set_password("hunter2");
        assert!(!format!("{options:?}").contains("hunter2") && options != before);
    }
}
