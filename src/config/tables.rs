//! Stores and namespaces: the `[store.NAME]` and `[[namespace]]` tables of the file. Their keys are
//! declared once, in [`STORE_KEYS`] and [`NAMESPACE_KEYS`], for the reader and for the docs.

use std::{path::PathBuf, time::Duration};

use toml_edit::{Item, TableLike, Value as Toml};

use crate::{
    policy::{MODE_NAMES, Read, TtlMeans, Write, behind, mode_name, mode_named},
    store::{
        breaker::Settings as Breaker, faulty::Regular, replicated::ReplicatedOptions,
        sharded::Router,
    },
};

use super::{
    composed::{self, COMPOSED_KEYS},
    file::{Origin, Span, key_span, parse, unknown},
    http,
    kind::{Kind, Unit, Value},
    settings::{Settings, nearest, same_name},
    upstream,
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

/// A key prefix and what a miss and a write do to its store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespaceConfig {
    /// The prefix; the longest that fits a key wins, and `""` fits every key.
    pub prefix: String,
    /// What a miss does.
    pub read: Read,
    /// What a write does.
    pub write: Write,
    /// The name of its store; none where neither asks for one.
    pub store: Option<String>,
    /// How long a copy is fresh.
    pub ttl: Option<Duration>,
    /// By up to this percentage of it `ttl` is shorter, by chance.
    pub jitter: u8,
    /// What a client's deadline limits.
    pub ttl_means: TtlMeans,
    /// With [`Write::Behind`]: how changes are brought to the store.
    pub behind: behind::Settings,
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

/// All keys of `[[namespace]]`.
static ALL_NAMESPACE_KEYS: &[&[TableKey]] = &[NAMESPACE_KEYS];
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
        kind: Kind::Choice(MODE_NAMES),
        default: "required, or `read` and `write`",
        help: "`cache-aside`: no store, the application loads and writes. `read-through`: a miss \
               is loaded from the store. Beside that, `write-through`: a write is in the store before the \
               reply; `write-behind`: it is in the journal before the reply, and the store gets it later; \
               `write-around`: it is in the store before the reply, and the cached copy goes.",
    },
    TableKey {
        name: "read",
        kind: Kind::Choice(Read::NAMES),
        default: "by `mode`",
        help: "What a miss does: with `aside` it is a miss, with `through` it is loaded from the store.",
    },
    TableKey {
        name: "write",
        kind: Kind::Choice(Write::NAMES),
        default: "by `mode`",
        help: "What a write does to the store: `none`, `through`, `behind`, `around`, as in `mode`. One that \
               depends on the old value has it from the store, whatever `read` says.",
    },
    TableKey {
        name: "store",
        kind: Kind::Text,
        default: "required unless it is cache-aside",
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
        name: "ttl-means",
        kind: Kind::Choice(TtlMeans::NAMES),
        default: "`cache` with SQL of your own, else `data`",
        help: "What a deadline that a client sets (EXPIRE, SET EX) limits: the `data`, so that the store gets \
               it, or the `cache`d copy alone.",
    },
    TableKey {
        name: "behind-delay",
        kind: Kind::Time(Unit::Millis, 0, TTL_MAX),
        default: "`\"1s\"`",
        help: "`write = \"behind\"`: how long a change waits for newer ones of its key before the store gets \
               the newest.",
    },
    TableKey {
        name: "behind-batch",
        kind: Kind::Integer(1, 100_000),
        default: "500",
        help: "`write = \"behind\"`: keys that the store gets in one call at most.",
    },
    TableKey {
        name: "behind-batch-bytes",
        kind: Kind::Bytes(1, 1 << 30),
        default: "`\"4mb\"`",
        help: "`write = \"behind\"`: bytes after which a call takes no further key.",
    },
    TableKey {
        name: "behind-tries",
        kind: Kind::Integer(1, 1_000_000),
        default: "8",
        help: "`write = \"behind\"`: how often the store may refuse a change before it becomes a dead letter. \
               A store that is down is tried for ever.",
    },
    TableKey {
        name: "behind-partitions",
        kind: Kind::Integer(1, 64),
        default: "4",
        help: "`write = \"behind\"`: calls that are under way at once, each with keys of its own.",
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
    let (mut stores, mut tables) = (Vec::<StoreConfig>::new(), Vec::new());
    for (name, item) in all.iter() {
        let key = key_span(all, name);
        let table = item.as_table_like().ok_or_else(|| wrong(&key))?;
        let table = Reader { origin, table, span: item.span().or(key), keys: ALL_STORE_KEYS };
        let kind = read_store(&table, name, settings)?;
        if let Some(other) = stores.iter().find(|other| shares_file(&other.kind, &kind)) {
            let message = format!("store `{name}` has the same file as store `{}`", other.name);
            return Err(table.error("path", message));
        }
        let breaker = read_breaker(&table)?.filter(|_| kind.may_have_breaker());
        stores.push(StoreConfig { name: name.to_owned(), kind, breaker });
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
        let is_common = *key == "kind" || key.starts_with("breaker");
        composed::is_stray(kind, key).unwrap_or(!is_common && !own.contains(key))
    };
    let known = table.known().map(|key| key.name);
    if let Some(key) = known.filter(stray).find(|key| table.find(key).is_some()) {
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
    let set = table.known().filter(is_set).find(|key| table.find(key.name).is_some());
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
        let table = Reader { origin, table, span, keys: ALL_NAMESPACE_KEYS };
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
    let (read, write) = read_mode(table)?;
    let store = read_store_name(table, read, write, stores)?;
    let store_config = stores.iter().find(|known| Some(&known.name) == store.as_ref());
    if let Some(store) = store_config {
        for (store, write) in composed::with_writes(store, write, stores) {
            composed::check_prefix(table, store, &prefix)?;
            check_store(table, store, write, &prefix)?;
        }
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
    let ttl_means = match table.value("ttl-means")? {
        Some(Value::Choice(name)) => TtlMeans::named(name).unwrap_or_default(),
        _ if store_config.is_some_and(|store| has_own_sql(&store.kind)) => TtlMeans::Cache,
        _ => TtlMeans::Data,
    };
    let behind = read_behind(table, write)?;
    if write == Write::Behind && ttl.is_some_and(|ttl| ttl < behind.delay) {
        let message =
            "`ttl` is shorter than `behind-delay`: each copy would end before it is stored";
        return Err(table.error("ttl", message));
    }
    let db = read_db(table, settings)?;
    Ok(NamespaceConfig { prefix, read, write, store, ttl, jitter, ttl_means, behind, db })
}

/// What a miss and a write do: by a shorthand or each by itself.
fn read_mode(table: &Reader<'_>) -> Result<(Read, Write), String> {
    let choice = |name| match table.value(name)? {
        Some(Value::Choice(name)) => Ok::<_, String>(Some(name)),
        _ => Ok(None),
    };
    let (mode, read, write) = (choice("mode")?, choice("read")?, choice("write")?);
    let part = if read.is_some() { "read" } else { "write" };
    match (mode, read, write) {
        (Some(mode), None, None) => Ok(mode_named(mode).unwrap_or_default()),
        (Some(_), ..) => Err(table.error(part, format!("`{part}` beside `mode`, which says it"))),
        (None, None, None) => table.required("mode").map(|_| Default::default()),
        (None, read, write) => Ok((
            read.and_then(Read::named).unwrap_or_default(),
            write.and_then(Write::named).unwrap_or_default(),
        )),
    }
}

/// How changes are brought to the store.
fn read_behind(table: &Reader<'_>, write: Write) -> Result<behind::Settings, String> {
    let is_set =
        |key: &&TableKey| key.name.starts_with("behind-") && table.find(key.name).is_some();
    if write != Write::Behind
        && let Some(key) = table.known().find(is_set)
    {
        let message = format!("`{}` where nothing is written behind", key.name);
        return Err(table.error(key.name, message));
    }
    let default = behind::Settings::default();
    let number = |name, default: usize| match table.value(name)? {
        Some(Value::Integer(number)) => Ok(usize::try_from(number).unwrap_or(default)),
        _ => Ok::<_, String>(default),
    };
    Ok(behind::Settings {
        delay: match table.value("behind-delay")? {
            Some(Value::Time(Some(delay))) => delay,
            _ => default.delay,
        },
        batch: number("behind-batch", default.batch)?,
        batch_bytes: match table.value("behind-batch-bytes")? {
            Some(Value::Bytes(bytes)) => usize::try_from(bytes).unwrap_or(default.batch_bytes),
            _ => default.batch_bytes,
        },
        tries: number("behind-tries", default.tries as usize)? as u32,
        partitions: number("behind-partitions", default.partitions)?,
    })
}

/// The store of a namespace, one that exists; none where neither a miss nor a write asks for one.
fn read_store_name(
    table: &Reader<'_>,
    read: Read,
    write: Write,
    stores: &[StoreConfig],
) -> Result<Option<String>, String> {
    let mode = mode_name(read, write);
    let needs_one = (read, write) != (Read::Aside, Write::None);
    match table.text("store")? {
        None if !needs_one => Ok(None),
        Some(_) if !needs_one => {
            let message = format!("mode `{mode}` has no store; leave out `store`");
            Err(table.error("store", message))
        }
        None => Err(table.error("mode", format!("mode `{mode}` needs a `store`"))),
        Some(name) if stores.iter().any(|store| store.name == name) => Ok(Some(name)),
        Some(name) => Err(table.error("store", no_such_store(&name, stores))),
    }
}

/// Whether a store speaks SQL of the user's own, which mostly has no column for a deadline.
#[cfg(feature = "postgres")]
fn has_own_sql(kind: &StoreKind) -> bool {
    matches!(kind, StoreKind::Postgres(options) if options.has_own_sql())
}

/// No store does.
#[cfg(not(feature = "postgres"))]
fn has_own_sql(_: &StoreKind) -> bool {
    false
}

/// Refuses a store that can't do what the namespace wants of it.
#[cfg(feature = "postgres")]
fn check_store(
    table: &Reader<'_>,
    store: &StoreConfig,
    write: Write,
    prefix: &str,
) -> Result<(), String> {
    let StoreKind::Postgres(options) = &store.kind else { return Ok(()) };
    let name = &store.name;
    if write != Write::None
        && let Some(key) = options.missing_for_writes()
    {
        let message = format!("`write = \"{}\"` needs a `{key}` in `[store.{name}]`", write.name());
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
fn check_store(_: &Reader<'_>, _: &StoreConfig, _: Write, _: &str) -> Result<(), String> {
    Ok(())
}

pub(super) fn no_such_store(name: &str, stores: &[StoreConfig]) -> String {
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

/// One table on its way in.
pub(super) struct Reader<'a> {
    pub(super) origin: Origin<'a>,
    pub(super) table: &'a dyn TableLike,
    pub(super) span: Span,
    pub(super) keys: &'static [&'static [TableKey]],
}

impl<'a> Reader<'a> {
    fn known(&self) -> impl Iterator<Item = &'static TableKey> {
        self.keys.iter().copied().flatten()
    }

    /// Refuses keys that the table doesn't know, and one key in two spellings.
    pub(super) fn check_keys(&self) -> Result<(), String> {
        for (key, _) in self.table.iter() {
            let span = key_span(self.table, key);
            if !self.known().any(|known| same_name(known.name, key)) {
                let known = self.known().map(|known| known.name);
                return Err(unknown(self.origin, &span, key, known));
            }
            if self.find(key).is_some_and(|(first, _)| first != key) {
                return Err(self.origin.error(&span, format!("`{key}` is set twice")));
            }
        }
        Ok(())
    }

    pub(super) fn find(&self, name: &str) -> Option<(&'a str, &'a Item)> {
        self.table.iter().find(|(key, _)| same_name(name, key))
    }

    /// The value of a key, if it is there.
    pub(super) fn value(&self, name: &'static str) -> Result<Option<Value>, String> {
        let Some(known) = self.known().find(|known| known.name == name) else {
            return Ok(None);
        };
        let Some((key, item)) = self.find(name) else { return Ok(None) };
        parse(self.origin, key, known.kind, item, &key_span(self.table, key)).map(Some)
    }

    pub(super) fn required(&self, name: &'static str) -> Result<Value, String> {
        self.value(name)?
            .ok_or_else(|| self.origin.error(&self.span, format!("`{name}` is missing")))
    }

    /// The text of a key, if it is there.
    pub(super) fn text(&self, name: &'static str) -> Result<Option<String>, String> {
        Ok(self.value(name)?.map(into_text))
    }

    /// An error at the value of a key, or at the table where the key isn't there.
    pub(super) fn error(&self, name: &str, message: impl AsRef<str>) -> String {
        let span = self.find(name).and_then(|(_, item)| item.span()).or_else(|| self.span.clone());
        self.origin.error(&span, message)
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
