//! Stores: the `[store.NAME]` tables of the file. Their keys are declared once, in [`STORE_KEYS`], for the
//! reader and for the docs.

use std::{path::PathBuf, time::Duration};

use toml_edit::Item;

use crate::store::{
    breaker::Settings as Breaker, faulty::Regular, replicated::ReplicatedOptions, sharded::Router,
};

pub(super) use super::reader::Reader;
use super::{
    composed::{self, COMPOSED_KEYS},
    copies,
    file::{Origin, Span, key_span},
    http,
    kind::{Kind, Unit, Value},
    settings::{Settings, nearest},
    upstream,
};

/// The longest TTL: a hundred years, in milliseconds.
pub(super) const TTL_MAX: i64 = 36_500 * 86_400_000;
/// The longest name of a store.
const MAX_NAME: usize = 64;
/// The most stores, and the most namespaces.
pub(super) const MAX_TABLES: usize = 1024;

/// A store that namespaces refer to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreConfig {
    /// The name: NAME of `[store.NAME]`.
    pub name: String,
    /// What it is.
    pub kind: StoreKind,
    /// When it isn't asked for a while; `None`: it always is.
    pub breaker: Option<Breaker>,
    /// Keys that are loaded with one call at most.
    pub load_batch: usize,
    /// Calls that load, under way at once at most.
    pub loads_at_once: usize,
}

/// What a store is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreKind {
    /// In this process's memory: it forgets at a restart, so it is for tests and trials.
    Memory,
    /// The embedded database, in one file.
    Redb {
        /// The file; where the configuration names none, `store.redb` in `dir`.
        path: PathBuf,
    },
    /// A PostgreSQL server.
    #[cfg(feature = "postgres")]
    Postgres(Box<crate::store::PostgresOptions>),
    /// Stores that each have a part of the keys.
    Sharded {
        /// Which key is where.
        router: Router,
        /// The shards' names, in the router's order.
        stores: Vec<String>,
    },
    /// A store that is written, and copies of it that are read.
    Replicated {
        /// The name of the one that is written.
        primary: String,
        /// The names of its copies.
        replicas: Vec<String>,
        /// How they are asked.
        options: ReplicatedOptions,
    },
    /// A store with faults in front of it, for trials.
    Faulty {
        /// The name of the store behind it.
        over: String,
        /// Its faults.
        faults: Regular,
    },
    /// A server that speaks the Redis protocol.
    #[cfg(feature = "redis-store")]
    Redis(Box<crate::store::RedisOptions>),
    /// An origin, over HTTP.
    #[cfg(feature = "http")]
    Http(Box<crate::store::HttpOptions>),
}

/// One key of a table: what the docs say of it.
#[derive(Debug)]
pub struct TableKey {
    /// The name.
    pub name: &'static str,
    /// What values it takes.
    pub kind: Kind,
    /// What holds where it is left out.
    pub default: &'static str,
    /// What it is for.
    pub help: &'static str,
}

/// The kinds of stores.
const STORE_KINDS: &[&str] =
    &["memory", "redb", "postgres", "redis", "http", "sharded", "replicated", "faulty"];
/// The keys that a store over Postgres has.
const POSTGRES_KEYS: &[&str] = &[
    "url",
    "password-env",
    "password-file",
    "pool",
    "statement-timeout",
    "table",
    "pattern",
    "load",
    "save",
    "delete",
];
/// The keys that say how a store is loaded from.
const LOADS: [&str; 2] = ["load-batch", "loads-at-once"];
/// The most connections to one server.
const MAX_POOL: i64 = 1000;

/// All keys of `[store.NAME]`.
static ALL_STORE_KEYS: &[&[TableKey]] = &[STORE_KEYS, COMPOSED_KEYS];
/// The keys of `[store.NAME]`, but for those of stores that are made of others.
pub static STORE_KEYS: &[TableKey] = &[
    TableKey {
        name: "kind",
        kind: Kind::Choice(STORE_KINDS),
        default: "required",
        help: "`memory` lives and dies with the process; `redb` is a database in one file; `postgres` \
               is a PostgreSQL server; `redis` is a server that speaks the Redis protocol; `http` is an \
               origin. `sharded` and `replicated` are made of other stores; `faulty` is one with \
               faults, for trials.",
    },
    TableKey {
        name: "path",
        kind: Kind::Path,
        default: "`store.redb` in `dir`",
        help: "`redb`: its file; no two stores share one.",
    },
    TableKey {
        name: "url",
        kind: Kind::Text,
        default: "required with `postgres`, `redis`, `http`",
        help: "`postgres`: `postgres://user@host:5432/database`; `redis`: `redis://user@host:6379/0`; \
               `http`: `http://host:80/path/`, behind which, or in the place of `{key}`, comes the key. \
               Without a password. There is no TLS yet: a URL that asks for it is refused.",
    },
    TableKey {
        name: "password-env",
        kind: Kind::Text,
        default: "none",
        help: "The name of the environment variable that has the password of `url`'s user (`http` without \
               one: the bearer's token).",
    },
    TableKey {
        name: "password-file",
        kind: Kind::Path,
        default: "none",
        help: "The file whose first line is the password, read at the start.",
    },
    TableKey {
        name: "pool",
        kind: Kind::Integer(1, MAX_POOL),
        default: "8; `redis`, `http`: 16",
        help: "Connections at most; each has one call at a time.",
    },
    TableKey {
        name: "statement-timeout",
        kind: Kind::Time(Unit::Millis, 1, i32::MAX as i64),
        default: "half of `store-timeout`",
        help: "`postgres`: what the server may take for a statement before it stops it; `redis`, `http`: \
               what an answer may take before it is given up. Below `store-timeout`.",
    },
    TableKey {
        name: "table",
        kind: Kind::Text,
        default: "`larder`, without SQL",
        help: "`postgres`: a table of keys and values, `name` or `schema.name`, made if it isn't there.",
    },
    TableKey {
        name: "pattern",
        kind: Kind::Text,
        default: "none",
        help: "`postgres` with SQL, `sharded` by range: what keys look like, with names for their parts: \
               `user:{id}`. Other keys are refused.",
    },
    TableKey {
        name: "load",
        kind: Kind::Text,
        default: "required with `pattern`",
        help: "`postgres` with SQL: the statement that finds a value, such as `select name from users \
               where id = :id`.",
    },
    TableKey {
        name: "save",
        kind: Kind::Text,
        default: "required for `write-through`",
        help: "`postgres` with SQL: the statement that stores `:value`; it may use `:version` and \
               `:deadline`.",
    },
    TableKey {
        name: "delete",
        kind: Kind::Text,
        default: "required for `write-through`",
        help: "`postgres` with SQL: the statement that deletes; it may use `:version`.",
    },
    upstream::VERSIONS,
    http::MAX_BODY,
    http::ETAG_CACHE,
    TableKey {
        name: "load-batch",
        kind: Kind::Integer(1, 10_000),
        default: "128",
        help: "Keys that are loaded with one call at most; `http` loads one.",
    },
    TableKey {
        name: "loads-at-once",
        kind: Kind::Integer(1, 1_000),
        default: "4",
        help: "Calls that load, under way at once at most. While there are fewer a load goes out at once; \
               otherwise keys gather and leave together.",
    },
    TableKey {
        name: "breaker",
        kind: Kind::Bool,
        default: "`true`",
        help: "Whether a circuit breaker stands before the store: while that fails it isn't asked, and \
               what needs it gets `-STOREDOWN` at once.",
    },
    TableKey {
        name: "breaker-window",
        kind: Kind::Integer(1, 10_000),
        default: "100",
        help: "How many of the last calls the breaker looks at.",
    },
    TableKey {
        name: "breaker-least-calls",
        kind: Kind::Integer(1, 10_000),
        default: "10",
        help: "With fewer calls than this it concludes nothing.",
    },
    TableKey {
        name: "breaker-failures",
        kind: Kind::Integer(1, 100),
        default: "50",
        help: "It opens when this percentage of them failed: the store was down, or gave no answer. A \
               refusal is an answer.",
    },
    TableKey {
        name: "breaker-slow",
        kind: Kind::Time(Unit::Millis, 1, TTL_MAX),
        default: "`\"1s\"`",
        help: "A call that takes this long is slow.",
    },
    TableKey {
        name: "breaker-slow-calls",
        kind: Kind::Integer(1, 100),
        default: "100",
        help: "It opens when this percentage of them was slow.",
    },
    TableKey {
        name: "breaker-open-for",
        kind: Kind::Time(Unit::Millis, 1, TTL_MAX),
        default: "`\"5s\"`",
        help: "How long it stays open before it lets probes through.",
    },
    TableKey {
        name: "breaker-probes",
        kind: Kind::Integer(1, 10_000),
        default: "3",
        help: "Probes that have to succeed before it closes; one that fails opens it again.",
    },
];

/// Reads `[store.NAME]` for every NAME.
pub(super) fn read_stores(
    origin: Origin<'_>,
    item: Option<&Item>,
    settings: &Settings,
) -> Result<Vec<StoreConfig>, String> {
    let Some(item) = item else { return Ok(Vec::new()) };
    let wrong = |span: &Span| origin.error(span, "stores are tables, `[store.NAME]`");
    let all = item.as_table_like().ok_or_else(|| wrong(&item.span()))?;
    let (mut stores, mut tables) = (Vec::<StoreConfig>::new(), Vec::new());
    for (name, item) in all.iter() {
        let key = key_span(all, name);
        let table = item.as_table_like().ok_or_else(|| wrong(&key))?;
        let table = Reader::new(origin, table, item.span().or(key), ALL_STORE_KEYS);
        let kind = read_store(&table, name, settings)?;
        if let Some(other) = stores.iter().find(|other| shares_file(&other.kind, &kind)) {
            let message = format!("store `{name}` has the same file as store `{}`", other.name);
            return Err(table.error("path", message));
        }
        let breaker = read_breaker(&table)?.filter(|_| kind.may_have_breaker());
        let (load_batch, loads_at_once) = copies::read_loads(&table)?;
        let name = name.to_owned();
        stores.push(StoreConfig { name, kind, breaker, load_batch, loads_at_once });
        tables.push(table);
    }
    if stores.len() > MAX_TABLES {
        return Err(wrong(&item.span()) + ", and at most 1024 of them");
    }
    composed::check(&tables, &stores)?;
    Ok(stores)
}

fn read_store(table: &Reader<'_>, name: &str, settings: &Settings) -> Result<StoreKind, String> {
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(letter) {
        let message = "a store's name is made of letters, digits, `-` and `_`, at most 64";
        return Err(table.origin.error(&table.span, message));
    }
    table.check_keys()?;
    let Value::Choice(kind) = table.required("kind")? else { return Ok(StoreKind::Memory) };
    let own: &[&str] = match kind {
        "redb" => &["path"],
        "postgres" => POSTGRES_KEYS,
        "redis" => upstream::KEYS,
        "http" => http::KEYS,
        _ => &[],
    };
    let stray = |key: &&str| {
        let is_common = *key == "kind" || key.starts_with("breaker") || LOADS.contains(key);
        composed::is_stray(kind, key).unwrap_or(!is_common && !own.contains(key))
    };
    let known = table.known().map(|key| key.name);
    if let Some(key) = known.filter(stray).find(|key| table.has(key)) {
        return Err(table.error(key, format!("a store of kind `{kind}` has no `{key}`")));
    }
    let absent = |feature: &str| {
        table.error("kind", format!("this larder was built without the feature `{feature}`"))
    };
    if let Some(composed) = composed::read(table, kind) {
        return composed;
    }
    match kind {
        "redb" if !cfg!(feature = "redb") => Err(absent("redb")),
        "redb" => match table.text("path")? {
            Some(path) if path.is_empty() => Err(table.error("path", "`path` is empty")),
            Some(path) => Ok(StoreKind::Redb { path: path.into() }),
            None => Ok(StoreKind::Redb { path: settings.dir.join("store.redb") }),
        },
        #[cfg(feature = "postgres")]
        "postgres" => Ok(StoreKind::Postgres(Box::new(super::postgres::read(table, settings)?))),
        #[cfg(not(feature = "postgres"))]
        "postgres" => Err(absent("postgres")),
        #[cfg(feature = "redis-store")]
        "redis" => Ok(StoreKind::Redis(Box::new(upstream::read(table, settings)?))),
        #[cfg(not(feature = "redis-store"))]
        "redis" => Err(absent("redis-store")),
        #[cfg(feature = "http")]
        "http" => Ok(StoreKind::Http(Box::new(http::read(table, settings)?))),
        #[cfg(not(feature = "http"))]
        "http" => Err(absent("http")),
        _ => Ok(StoreKind::Memory),
    }
}

/// When a store's breaker opens; `None` if it has none.
fn read_breaker(table: &Reader<'_>) -> Result<Option<Breaker>, String> {
    let default = Breaker::default();
    let number = |name, default: usize| match table.value(name)? {
        Some(Value::Integer(number)) => Ok(usize::try_from(number).unwrap_or(default)),
        _ => Ok::<_, String>(default),
    };
    let percent = |name, default: u8| {
        number(name, default.into()).map(|number| u8::try_from(number).unwrap_or(default))
    };
    let time = |name, default: Duration| match table.value(name)? {
        Some(Value::Time(time)) => Ok(time.unwrap_or(default)),
        _ => Ok::<_, String>(default),
    };
    let breaker = Breaker {
        window: number("breaker-window", default.window)?,
        least_calls: number("breaker-least-calls", default.least_calls)?,
        failure_percent: percent("breaker-failures", default.failure_percent)?,
        slow: time("breaker-slow", default.slow)?,
        slow_percent: percent("breaker-slow-calls", default.slow_percent)?,
        open_for: time("breaker-open-for", default.open_for)?,
        probes: number("breaker-probes", default.probes)?,
        limit: default.limit,
    };
    if breaker.least_calls > breaker.window {
        let message = "`breaker-least-calls` is more than `breaker-window`";
        return Err(table.error("breaker-least-calls", message));
    }
    let is_off = table.value("breaker")? == Some(Value::Bool(false));
    let is_set = |key: &&TableKey| key.name.starts_with("breaker-");
    let set = table.known().filter(is_set).find(|key| table.has(key.name));
    match set {
        Some(key) if is_off => {
            Err(table.error(key.name, format!("`{}` without a breaker", key.name)))
        }
        _ => Ok((!is_off).then_some(breaker)),
    }
}

fn shares_file(a: &StoreKind, b: &StoreKind) -> bool {
    matches!((a, b), (StoreKind::Redb { path: a }, StoreKind::Redb { path: b }) if a == b)
}

pub(super) fn no_such_store(name: &str, stores: &[StoreConfig]) -> String {
    let hint = nearest(name, stores.iter().map(|store| store.name.as_str()));
    let hint = hint.map_or_else(String::new, |near| format!("; did you mean `{near}`?"));
    format!("no `[store.{}]`{hint}", name.escape_debug())
}

pub(super) fn into_text(value: Value) -> String {
    match value {
        Value::Text(text) => text,
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::{Config, Copies, NamespaceConfig},
        policy::{Read, Restart, TtlMeans, Write, behind},
    };

    fn config(text: &str) -> Config {
        Config::from_toml(text, "larder.toml").expect(text)
    }

    fn error(text: &str) -> String {
        Config::from_toml(text, "larder.toml").map(|_| ()).expect_err(text)
    }

    const STORES: &str = "[store.main]\nkind = 'redb'\n[store.trial]\nkind = 'memory'\n";

    #[test]
    fn stores_and_namespaces() {
        let text = format!(
            "dir = 'd'\n{STORES}\
             [[namespace]]\nprefix = 'user:'\nmode = 'write-through'\nstore = 'main'\nttl = '10m'\n\
             [[namespace]]\nprefix = ''\nmode = 'cache-aside'\n\
             [[namespace]]\nprefix = ''\nmode = 'read-through'\nstore = 'trial'\ndb = 15\n"
        );
        let config = config(&text);
        let path = PathBuf::from("d/store.redb");
        assert_eq!(
            config.stores[0],
            StoreConfig {
                name: "main".into(),
                kind: StoreKind::Redb { path },
                breaker: Some(Breaker::default()),
                load_batch: 128,
                loads_at_once: 4,
            }
        );
        assert_eq!(config.stores[1].kind, StoreKind::Memory);
        let user = NamespaceConfig {
            prefix: "user:".into(),
            read: Read::Through,
            write: Write::Through,
            store: Some("main".into()),
            ttl: Some(Duration::from_secs(600)),
            jitter: 0,
            ttl_means: TtlMeans::Data,
            behind: behind::Settings::default(),
            copies: Copies::default(),
            restart: Restart::default(),
            quota: None,
            db: 0,
        };
        assert_eq!(config.namespaces[0], user);
        assert_eq!(config.namespaces[1].store, None);
        assert_eq!(config.namespaces[2].db, 15);
    }

    #[test]
    fn inline_tables_are_tables() {
        let text = "store = { a = { kind = 'redb', path = 'x' } }\n\
                    namespace = [{ prefix = '', mode = 'read-through', store = 'a' }]\n";
        let config = config(text);
        assert_eq!(config.stores[0].kind, StoreKind::Redb { path: "x".into() });
        assert_eq!(config.namespaces[0].store.as_deref(), Some("a"));
    }

    #[test]
    fn a_store_has_a_breaker_unless_told() {
        let breaker = |text: &str| {
            config(&format!("[store.a]\nkind = 'memory'\n{text}")).stores[0].breaker.clone()
        };
        assert_eq!(breaker("breaker = false"), None);
        let set = "breaker-window = 20\nbreaker_least_calls = 5\nbreaker-failures = 30\n\
                   breaker-slow = '50ms'\nbreaker-slow-calls = 80\nbreaker-open-for = '1m'\n\
                   breaker-probes = 1";
        let wanted = Breaker {
            window: 20,
            least_calls: 5,
            failure_percent: 30,
            slow: Duration::from_millis(50),
            slow_percent: 80,
            open_for: Duration::from_secs(60),
            probes: 1,
            ..Breaker::default()
        };
        assert_eq!(breaker(set), Some(wanted));
    }

    #[test]
    fn errors_of_stores() {
        for (text, message) in [
            ("store = 1", "1:9: stores are tables, `[store.NAME]`"),
            ("[store.a]\npath = 'x'", "1:1: `kind` is missing"),
            (
                "[store.a]\nkind = 'oracle'",
                "2:8: `kind`: expected one of memory, redb, postgres, redis, http, sharded, \
                 replicated, faulty",
            ),
            ("[store.a]\nkidn = 'redb'", "2:1: unknown key `kidn`; did you mean `kind`?"),
            (
                "[store.a]\nkind = 'memory'\npath = 'x'",
                "3:8: a store of kind `memory` has no `path`",
            ),
            (
                "[store.a]\nkind = 'memory'\nbreaker-window = 5",
                "1:1: `breaker-least-calls` is more than `breaker-window`",
            ),
            (
                "[store.a]\nkind = 'memory'\nbreaker = false\nbreaker-probes = 2",
                "4:18: `breaker-probes` without a breaker",
            ),
            (
                "[store.a]\nkind = 'redb'\n[store.b]\nkind = 'redb'",
                "3:1: store `b` has the same file as store `a`",
            ),
            (
                "[store.'a b']\nkind = 'memory'",
                "1:1: a store's name is made of letters, digits, `-` and `_`, at most 64",
            ),
        ] {
            assert_eq!(error(text), format!("larder.toml:{message}"), "{text}");
        }
    }
}
