//! Stores and namespaces: the `[store.NAME]` and `[[namespace]]` tables of the file. Their keys are
//! declared once, in [`STORE_KEYS`] and [`NAMESPACE_KEYS`], for the reader and for the docs.

use std::{path::PathBuf, time::Duration};

use toml_edit::{Item, TableLike, Value as Toml};

use crate::store::breaker::Settings as Breaker;

use super::copies::Copies;
pub(super) use super::reader::Reader;
use super::{
    copies,
    file::{Origin, Span, key_span},
    kind::{Kind, Unit, Value},
    settings::{Settings, nearest},
    types::Mode,
};

/// The longest TTL: a hundred years, in milliseconds.
const TTL_MAX: i64 = 36_500 * 86_400_000;
/// The longest prefix in bytes, and the longest name of a store.
const MAX_PREFIX: usize = 1024;
const MAX_NAME: usize = 64;
/// The most stores, and the most namespaces.
const MAX_TABLES: usize = 1024;

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
}

/// A key prefix and what a miss and a write do to its store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespaceConfig {
    /// The prefix; the longest that fits a key wins, and `""` fits every key.
    pub prefix: String,
    /// How it works with its store.
    pub mode: Mode,
    /// The name of its store; none with [`Mode::CacheAside`], always one otherwise.
    pub store: Option<String>,
    /// How long a copy is fresh.
    pub ttl: Option<Duration>,
    /// By up to this percentage of it `ttl` is shorter, by chance.
    pub jitter: u8,
    /// What becomes of copies that are old, and of keys that the store doesn't have.
    pub copies: Copies,
    /// The database that it applies to.
    pub db: u32,
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
const STORE_KINDS: &[&str] = &["memory", "redb", "postgres"];
/// The keys that only a store over Postgres has.
const POSTGRES_KEYS: [&str; 10] = [
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
/// The most connections to one server.
const MAX_POOL: i64 = 1000;

/// The keys of `[store.NAME]`.
pub static STORE_KEYS: &[TableKey] = &[
    TableKey {
        name: "kind",
        kind: Kind::Choice(STORE_KINDS),
        default: "required",
        help: "`memory` lives and dies with the process; `redb` is a database in one file; `postgres` \
               is a PostgreSQL server.",
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
        default: "required with `postgres`",
        help: "`postgres`: `postgres://user@host:5432/database`, without a password. There is no TLS \
               yet: `sslmode=require` is refused.",
    },
    TableKey {
        name: "password-env",
        kind: Kind::Text,
        default: "none",
        help: "`postgres`: the name of the environment variable that has the password.",
    },
    TableKey {
        name: "password-file",
        kind: Kind::Path,
        default: "none",
        help: "`postgres`: the file whose first line is the password, read at the start.",
    },
    TableKey {
        name: "pool",
        kind: Kind::Integer(1, MAX_POOL),
        default: "8",
        help: "`postgres`: connections at most.",
    },
    TableKey {
        name: "statement-timeout",
        kind: Kind::Time(Unit::Millis, 1, i32::MAX as i64),
        default: "half of `store-timeout`",
        help: "`postgres`: what the server may take for a statement before it stops it, below \
               `store-timeout`.",
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
        help: "`postgres` with SQL: what keys look like, with names for their parts: `user:{id}`. Other \
               keys are refused.",
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
    TableKey {
        name: "load-batch",
        kind: Kind::Integer(1, 10_000),
        default: "128",
        help: "Keys that are loaded with one call at most.",
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

/// The keys of `[[namespace]]`.
pub static NAMESPACE_KEYS: &[TableKey] = &[
    TableKey {
        name: "prefix",
        kind: Kind::Text,
        default: "required",
        help: "Its keys begin with it; the longest prefix wins, `\"\"` is the catch-all.",
    },
    TableKey {
        name: "mode",
        kind: Kind::Choice(Mode::NAMES),
        default: "required",
        help: "`cache-aside`: no store, the application loads and writes. `read-through`: a miss \
               is loaded from the store. `write-through`: that, and a write is in the store before \
               the reply.",
    },
    TableKey {
        name: "store",
        kind: Kind::Text,
        default: "required unless `mode` is `cache-aside`",
        help: "The name of the store.",
    },
    TableKey {
        name: "ttl",
        kind: Kind::Time(Unit::Millis, 1, TTL_MAX),
        default: "none",
        help: "How long a copy is fresh; after that it is loaded again.",
    },
    TableKey {
        name: "jitter",
        kind: Kind::Integer(0, 100),
        default: "0",
        help: "By up to this percentage `ttl` is shorter, by chance for each copy, so that what was \
               loaded together isn't loaded again together.",
    },
    TableKey {
        name: "refresh-after",
        kind: Kind::Time(Unit::Millis, 1, TTL_MAX),
        default: "never",
        help: "A read of a copy that is older than this, and within `ttl`, is answered with it, and a new \
               one is loaded beside it.",
    },
    TableKey {
        name: "stale-if-error",
        kind: Kind::Time(Unit::Millis, 1, TTL_MAX),
        default: "none",
        help: "How long beyond `ttl` a copy is kept: it answers reads, never writes, while the store is \
               down, its breaker is open, or it is slower than `timeout-soft`.",
    },
    TableKey {
        name: "negative-ttl",
        kind: Kind::Time(Unit::Millis, 1, TTL_MAX),
        default: "none",
        help: "How long reads, never writes, believe that the store doesn't have a key. Such keys take at \
               most a 64th of `memory`.",
    },
    TableKey {
        name: "timeout-soft",
        kind: Kind::Time(Unit::Millis, 1, TTL_MAX),
        default: "none",
        help: "A read whose load takes longer is answered with a copy past its `ttl`, where there is one; \
               the load goes on.",
    },
    TableKey {
        name: "timeout-hard",
        kind: Kind::Time(Unit::Millis, 1, TTL_MAX),
        default: "`store-timeout`",
        help: "A load that takes longer, its time in a queue included, fails with `-STORETIMEOUT`.",
    },
    TableKey {
        name: "db",
        kind: Kind::Integer(0, 255),
        default: "0",
        help: "The database that it applies to, below `databases`.",
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
    let mut stores: Vec<StoreConfig> = Vec::new();
    for (name, item) in all.iter() {
        let key = key_span(all, name);
        let table = item.as_table_like().ok_or_else(|| wrong(&key))?;
        let table = Reader::new(origin, table, item.span().or(key), STORE_KEYS);
        let kind = read_store(&table, name, settings)?;
        if let Some(other) = stores.iter().find(|other| shares_file(&other.kind, &kind)) {
            let message = format!("store `{name}` has the same file as store `{}`", other.name);
            return Err(table.error("path", message));
        }
        let (load_batch, loads_at_once) = copies::read_loads(&table)?;
        stores.push(StoreConfig {
            name: name.to_owned(),
            kind,
            breaker: read_breaker(&table)?,
            load_batch,
            loads_at_once,
        });
    }
    if stores.len() > MAX_TABLES {
        return Err(wrong(&item.span()) + ", and at most 1024 of them");
    }
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
    let stray = |key: &&str| match *key {
        "kind" => false,
        "path" => kind != "redb",
        key => POSTGRES_KEYS.contains(&key) && kind != "postgres",
    };
    let known = table.keys.iter().map(|key| key.name);
    if let Some(key) = known.filter(stray).find(|key| table.has(key)) {
        return Err(table.error(key, format!("a store of kind `{kind}` has no `{key}`")));
    }
    let absent = |feature: &str| {
        table.error("kind", format!("this larder was built without the feature `{feature}`"))
    };
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
    let set = table.keys.iter().filter(is_set).find(|key| table.has(key.name));
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

/// Reads every `[[namespace]]`.
pub(super) fn read_namespaces(
    origin: Origin<'_>,
    item: Option<&Item>,
    settings: &Settings,
    stores: &[StoreConfig],
) -> Result<Vec<NamespaceConfig>, String> {
    let mut namespaces: Vec<NamespaceConfig> = Vec::new();
    for (table, span) in item.map_or_else(|| Ok(Vec::new()), |item| tables(origin, item))? {
        let table = Reader::new(origin, table, span, NAMESPACE_KEYS);
        let namespace = read_namespace(&table, settings, stores)?;
        let same = |other: &NamespaceConfig| {
            (&other.prefix, other.db) == (&namespace.prefix, namespace.db)
        };
        if namespaces.iter().any(same) {
            return Err(table.error("prefix", "another namespace has the same prefix"));
        }
        namespaces.push(namespace);
    }
    Ok(namespaces)
}

fn read_namespace(
    table: &Reader<'_>,
    settings: &Settings,
    stores: &[StoreConfig],
) -> Result<NamespaceConfig, String> {
    table.check_keys()?;
    let prefix = table.required("prefix").map(into_text)?;
    if prefix.len() > MAX_PREFIX {
        return Err(table.error("prefix", "a prefix has at most 1024 bytes"));
    }
    let mode = match table.required("mode")? {
        Value::Choice(name) => Mode::named(name).unwrap_or(Mode::CacheAside),
        _ => Mode::CacheAside,
    };
    let store = read_store_name(table, mode, stores)?;
    if let Some(store) = stores.iter().find(|known| Some(&known.name) == store.as_ref()) {
        check_store(table, store, mode, &prefix)?;
    }
    let ttl = match table.value("ttl")? {
        Some(Value::Time(ttl)) => ttl,
        _ => None,
    };
    let jitter = match table.value("jitter")? {
        Some(Value::Integer(percent)) => u8::try_from(percent).unwrap_or(0),
        _ => 0,
    };
    if jitter != 0 && ttl.is_none() {
        return Err(table.error("jitter", "`jitter` without a `ttl`"));
    }
    let copies = copies::read(table, mode, ttl, jitter, settings)?;
    Ok(NamespaceConfig { prefix, mode, store, ttl, jitter, copies, db: read_db(table, settings)? })
}

/// The store of a namespace: none for cache-aside, else one that exists.
fn read_store_name(
    table: &Reader<'_>,
    mode: Mode,
    stores: &[StoreConfig],
) -> Result<Option<String>, String> {
    match (mode, table.text("store")?) {
        (Mode::CacheAside, None) => Ok(None),
        (Mode::CacheAside, Some(_)) => {
            Err(table.error("store", "mode `cache-aside` has no store; leave out `store`"))
        }
        (mode, None) => Err(table.error("mode", format!("mode `{}` needs a `store`", mode.name()))),
        (_, Some(name)) if stores.iter().any(|store| store.name == name) => Ok(Some(name)),
        (_, Some(name)) => Err(table.error("store", no_such_store(&name, stores))),
    }
}

/// Refuses a store that can't do what the namespace wants of it.
#[cfg(feature = "postgres")]
fn check_store(
    table: &Reader<'_>,
    store: &StoreConfig,
    mode: Mode,
    prefix: &str,
) -> Result<(), String> {
    let StoreKind::Postgres(options) = &store.kind else { return Ok(()) };
    let name = &store.name;
    if let (Mode::WriteThrough, Some(key)) = (mode, options.missing_for_writes()) {
        let message = format!("mode `{}` needs a `{key}` in `[store.{name}]`", mode.name());
        return Err(table.error("store", message));
    }
    if options.may_hold(prefix) {
        return Ok(());
    }
    let message = format!("no key with this `prefix` fits the `pattern` of `[store.{name}]`");
    Err(table.error("store", message))
}

/// No other store refuses anything.
#[cfg(not(feature = "postgres"))]
fn check_store(_: &Reader<'_>, _: &StoreConfig, _: Mode, _: &str) -> Result<(), String> {
    Ok(())
}

fn no_such_store(name: &str, stores: &[StoreConfig]) -> String {
    let hint = nearest(name, stores.iter().map(|store| store.name.as_str()));
    let hint = hint.map_or_else(String::new, |near| format!("; did you mean `{near}`?"));
    format!("no `[store.{}]`{hint}", name.escape_debug())
}

fn read_db(table: &Reader<'_>, settings: &Settings) -> Result<u32, String> {
    let db = match table.value("db")? {
        Some(Value::Integer(db)) => u32::try_from(db).unwrap_or(u32::MAX),
        _ => 0,
    };
    if db >= settings.databases {
        let message = format!("`db` is not below `databases`, which is {}", settings.databases);
        return Err(table.error("db", message));
    }
    Ok(db)
}

/// The tables of `[[namespace]]`, or of an array of inline ones.
fn tables<'a>(
    origin: Origin<'_>,
    item: &'a Item,
) -> Result<Vec<(&'a dyn TableLike, Span)>, String> {
    let wrong =
        |span: Span| origin.error(&span, "namespaces are an array of tables, `[[namespace]]`");
    let tables = match item {
        Item::ArrayOfTables(list) => {
            list.iter().map(|table| (table as &dyn TableLike, table.span())).collect()
        }
        Item::Value(Toml::Array(list)) => {
            let inline = |value: &'a Toml| match value {
                Toml::InlineTable(table) => Ok((table as &dyn TableLike, table.span())),
                other => Err(wrong(other.span())),
            };
            list.iter().map(inline).collect::<Result<Vec<_>, _>>()?
        }
        other => return Err(wrong(other.span())),
    };
    if tables.len() > MAX_TABLES {
        Err(wrong(item.span()) + ", and at most 1024")
    } else {
        Ok(tables)
    }
}

fn into_text(value: Value) -> String {
    match value {
        Value::Text(text) => text,
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

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
            mode: Mode::WriteThrough,
            store: Some("main".into()),
            ttl: Some(Duration::from_secs(600)),
            jitter: 0,
            copies: Copies::default(),
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
            ("[store.a]\nkind = 'oracle'", "2:8: `kind`: expected one of memory, redb, postgres"),
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

    #[test]
    fn errors_of_namespaces() {
        for (text, message) in [
            ("mode = 'cache-aside'", "5:1: `prefix` is missing"),
            ("prefix = ''", "5:1: `mode` is missing"),
            ("prefix = ''\nmode = 'read-through'", "7:8: mode `read-through` needs a `store`"),
            (
                "prefix = ''\nmode = 'cache-aside'\nstore = 'main'",
                "8:9: mode `cache-aside` has no store; leave out `store`",
            ),
            (
                "prefix = ''\nmode = 'read-through'\nstore = 'mian'",
                "8:9: no `[store.mian]`; did you mean `main`?",
            ),
            ("prefx = ''", "6:1: unknown key `prefx`; did you mean `prefix`?"),
            ("prefix = 1", "6:10: `prefix`: expected a text (found: integer)"),
            ("prefix = ''\nmode = 'cache-aside'\njitter = 5", "8:10: `jitter` without a `ttl`"),
            (
                "prefix = ''\nmode = 'cache-aside'\nttl = 5",
                "8:7: `ttl`: a bare number has no unit; expected a duration in whole milliseconds \
                 with its unit, such as \"10s\" (found: integer)",
            ),
            (
                "prefix = ''\nmode = 'cache-aside'\ndb = 16",
                "8:6: `db` is not below `databases`, which is 16",
            ),
            (
                "prefix = ''\nmode = 'cache-aside'\n\
                 [[namespace]]\nprefix = ''\nmode = 'cache-aside'",
                "9:10: another namespace has the same prefix",
            ),
        ] {
            let text = format!("{STORES}[[namespace]]\n{text}\n");
            assert_eq!(error(&text), format!("larder.toml:{message}"), "{text}");
        }
        let message = "larder.toml:1:2: namespaces are an array of tables, `[[namespace]]`";
        assert!(error("[namespace]\nprefix = ''").ends_with(&message["larder.toml:1:2".len()..]));
    }
}
