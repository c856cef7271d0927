//! What a store over Postgres is told: where the server is, how long it may take, and what it keeps the
//! data in. Everything is checked when it is set, so that a mistake ends the start and not a request.

use std::time::Duration;

use tokio_postgres::{Config, config::SslMode};

use super::sql::{Binding, Sql};
use crate::store::{pattern::Pattern, times::Times};

/// Connections, unless told otherwise.
const POOL: usize = 8;
/// The table, unless told otherwise.
const TABLE: &str = "larder";
/// Parameters that a part of the key can't be called.
const RESERVED: [&str; 3] = ["value", "version", "deadline"];
/// The longest name in Postgres, in bytes.
const MAX_NAME: usize = 63;

/// How to reach a Postgres, and what to keep there. Its debug output hides the password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PostgresOptions {
    pub(super) server: Config,
    pub(super) pool: usize,
    pub(super) times: Times,
    pub(super) layout: Layout,
}

/// What the data is kept in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// A table of our own, by its quoted name.
    Table(String),
    /// Tables that are there, through SQL.
    Sql(Box<Statements>),
}

/// SQL over tables that are there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Statements {
    pub(super) pattern: Pattern,
    pub(super) load: Sql,
    pub(super) save: Option<Sql>,
    pub(super) delete: Option<Sql>,
}

/// The texts of [`Statements`].
#[derive(Clone, Copy, Debug, Default)]
pub struct SqlTexts<'a> {
    /// The keys, with names for their parts: `user:{id}`.
    pub pattern: &'a str,
    /// Finds the value of a key: the first column of the first row.
    pub load: &'a str,
    /// Stores a value.
    pub save: Option<&'a str>,
    /// Deletes a key.
    pub delete: Option<&'a str>,
}

impl PostgresOptions {
    /// Reads `postgres://user@host:port/database?option=value`.
    ///
    /// # Errors
    /// What is wrong with it; never a part of it that may be a password.
    pub fn new(url: &str) -> Result<Self, String> {
        let rest = url.strip_prefix("postgres://").or_else(|| url.strip_prefix("postgresql://"));
        let rest = rest.ok_or("expected \"postgres://user@host:5432/database\"")?;
        let user = rest.rsplit_once('@').map_or("", |(user, _)| user);
        if user.contains(':') || rest.contains("password=") {
            return Err("no password here; name `password-env` or `password-file`".into());
        }
        if has_mode(rest, &["verify-ca", "verify-full"]) {
            return Err(NO_TLS.into());
        }
        let mut server: Config = url.parse().map_err(|why: tokio_postgres::Error| {
            let text = super::error::describe(&why);
            text.replace("invalid connection string: ", "")
        })?;
        if server.get_password().is_some() {
            return Err("no password here; name `password-env` or `password-file`".into());
        }
        if server.get_ssl_mode() == SslMode::Require {
            return Err(NO_TLS.into());
        }
        if server.get_hosts().is_empty() && server.get_hostaddrs().is_empty() {
            return Err("no host".into());
        }
        if server.get_application_name().is_none() {
            server.application_name("larder");
        }
        let layout = Layout::Table(quoted(TABLE)?);
        Ok(Self { server, pool: POOL, times: Times::default(), layout })
    }

    /// The password.
    pub fn set_password(&mut self, password: &str) {
        self.server.password(password);
    }

    /// How many connections there may be at most.
    pub fn set_pool(&mut self, connections: usize) {
        self.pool = connections.max(1);
    }

    /// How long the caller waits for the store, and how long Postgres may work on a statement: half of
    /// that unless told otherwise.
    ///
    /// # Errors
    /// If Postgres would be given as long as the caller waits: then a write that nobody waits for any
    /// more might still be done.
    pub fn set_timeouts(
        &mut self,
        store: Duration,
        statement: Option<Duration>,
    ) -> Result<(), String> {
        self.times = Times::within(store, statement)?;
        Ok(())
    }

    /// The table of keys and values, made when it is first needed: `name` or `schema.name`.
    ///
    /// # Errors
    /// If it is no name.
    pub fn set_table(&mut self, name: &str) -> Result<(), String> {
        self.layout = Layout::Table(quoted(name)?);
        Ok(())
    }

    /// SQL instead of a table of our own.
    ///
    /// # Errors
    /// Which of the texts is wrong, and why.
    pub fn set_sql(&mut self, texts: SqlTexts<'_>) -> Result<(), (&'static str, String)> {
        let pattern = Pattern::parse(texts.pattern).map_err(|why| ("pattern", why))?;
        if let Some(name) = RESERVED.into_iter().find(|name| pattern.place(name).is_some()) {
            return Err(("pattern", format!("`{{{name}}}`: `:{name}` has a meaning of its own")));
        }
        let read = |name: &'static str, text: &str, more: &[(&str, Binding)]| {
            let known = |name: &str| match more.iter().find(|(known, _)| *known == name) {
                Some((_, binding)) => Some(*binding),
                None => pattern.place(name).map(Binding::Part),
            };
            Sql::parse(text, known).map_err(|why| (name, with_names(why, &pattern, more)))
        };
        let version = ("version", Binding::Version);
        let all = [("value", Binding::Value), version, ("deadline", Binding::Deadline)];
        let load = read("load", texts.load, &[])?;
        let save = texts.save.map(|text| read("save", text, &all)).transpose()?;
        let delete = texts.delete.map(|text| read("delete", text, &[version])).transpose()?;
        self.layout = Layout::Sql(Box::new(Statements { pattern, load, save, delete }));
        Ok(())
    }

    /// Whether it speaks SQL of the user's own that doesn't store deadlines.
    pub fn forgets_deadlines(&self) -> bool {
        let stores = |sql: &Sql| sql.bindings.contains(&Binding::Deadline);
        match &self.layout {
            Layout::Sql(statements) => !statements.save.as_ref().is_some_and(stores),
            Layout::Table(_) => false,
        }
    }

    /// Which statement is missing for writes, if any.
    pub fn missing_for_writes(&self) -> Option<&'static str> {
        match &self.layout {
            Layout::Sql(statements) if statements.save.is_none() => Some("save"),
            Layout::Sql(statements) if statements.delete.is_none() => Some("delete"),
            _ => None,
        }
    }

    /// Whether there may be keys with this prefix.
    pub fn may_hold(&self, prefix: &str) -> bool {
        match &self.layout {
            Layout::Table(_) => true,
            Layout::Sql(statements) => statements.pattern.may_fit(prefix),
        }
    }
}

const NO_TLS: &str = "TLS is not supported yet; reach the server through a tunnel, or over a network \
                      that you trust, and leave `sslmode` out";

fn has_mode(url: &str, modes: &[&str]) -> bool {
    modes.iter().any(|mode| url.contains(&format!("sslmode={mode}")))
}

/// The error of a statement, with the names that there are if one wasn't known.
fn with_names(why: String, pattern: &Pattern, more: &[(&str, Binding)]) -> String {
    if !why.starts_with("nothing is called") {
        return why;
    }
    let names: Vec<_> = pattern.names().chain(more.iter().map(|(name, _)| *name)).collect();
    let names: Vec<_> = names.into_iter().map(|name| format!("`:{name}`")).collect();
    let names = if names.is_empty() { "no names".to_owned() } else { names.join(", ") };
    format!("{why}; there are {names}")
}

/// `name` or `schema.name` as SQL has it.
fn quoted(name: &str) -> Result<String, String> {
    let is_name = |part: &str| {
        let first =
            part.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_');
        first
            && part.len() <= MAX_NAME
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    let parts: Vec<&str> = name.split('.').collect();
    if parts.len() > 2 || !parts.iter().all(|part| is_name(part)) {
        return Err("expected `name` or `schema.name`, of letters, digits and `_`".into());
    }
    Ok(parts.iter().map(|part| format!("\"{part}\"")).collect::<Vec<_>>().join("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_checked_and_never_quoted() {
        let options =
            PostgresOptions::new("postgres://app@db:5433/shop?connect_timeout=3").unwrap();
        assert_eq!(options.server.get_user(), Some("app"));
        for url in [
            "postgres://app:hunter2@db/shop",
            "postgres://app:hun@ter2@db/shop",
            "postgres://app:hunter2?x@db",
            "postgres://db/shop?password=hunter2",
            "postgres://:hunter2@db",
            "host=db password=hunter2",
        ] {
            let why = PostgresOptions::new(url).unwrap_err();
            assert!(!why.contains("hunter2") && !why.contains("ter2"), "{url}: {why}");
        }
        for mode in ["require", "verify-ca", "verify-full"] {
            let url = format!("postgres://db/shop?sslmode={mode}");
            assert_eq!(PostgresOptions::new(&url).unwrap_err(), NO_TLS);
        }
        let unknown = PostgresOptions::new("postgres://db/shop?sslmood=x").unwrap_err();
        assert!(unknown.contains("sslmood"), "{unknown}");
        assert!(PostgresOptions::new("postgres:///shop").is_err());
    }

    #[test]
    fn a_password_shows_in_no_debug_output() {
        let mut options = PostgresOptions::new("postgres://app@db/shop").unwrap();
        options.set_password("hunter2");
        assert!(!format!("{options:?}").contains("hunter2"));
    }

    #[test]
    fn what_postgres_may_take_is_below_what_the_caller_waits() {
        let mut options = PostgresOptions::new("postgres://db/shop").unwrap();
        let second = Duration::from_secs(1);
        assert!(options.set_timeouts(second, Some(second)).is_err());
        options.set_timeouts(second, None).unwrap();
        let times = options.times;
        assert!(times.statement < times.answer && times.connect + times.answer < second);
    }

    #[test]
    fn tables_are_names() {
        let mut options = PostgresOptions::new("postgres://db/shop").unwrap();
        options.set_table("cache.Larder_1").unwrap();
        assert_eq!(options.layout, Layout::Table("\"cache\".\"Larder_1\"".into()));
        for name in ["", ".", "a.b.c", "a b", "a\"b", "1a", "é", &"a".repeat(64)] {
            assert!(options.set_table(name).is_err(), "{name}");
        }
    }

    #[test]
    fn statements_know_their_names() {
        let mut options = PostgresOptions::new("postgres://db/shop").unwrap();
        let texts = SqlTexts { pattern: "u:{id}", load: "select :id", ..SqlTexts::default() };
        let reserved = options.set_sql(SqlTexts { pattern: "u:{value}", ..texts });
        assert_eq!(reserved.unwrap_err().0, "pattern");
        options.set_sql(texts).unwrap();
        assert_eq!(options.missing_for_writes(), Some("save"));
        assert!(options.may_hold("u:") && !options.may_hold("v:"));
        let wrong = options.set_sql(SqlTexts { load: "select :value", ..texts }).unwrap_err();
        assert_eq!(wrong, ("load", "nothing is called `:value`; there are `:id`".into()));
        let wrong = options.set_sql(SqlTexts { delete: Some("x :deadline"), ..texts }).unwrap_err();
        assert_eq!(wrong.0, "delete");
    }
}
