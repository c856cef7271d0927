//! Namespaces: the `[[namespace]]` tables of the file. Their keys are declared once, in [`NAMESPACE_KEYS`],
//! for the reader and for the docs.

use std::time::Duration;

use toml_edit::{Item, TableLike, Value as Toml};

use super::{
    composed,
    copies::{self, Copies},
    file::{Origin, Span},
    kind::{Kind, Unit, Value},
    reader::Reader,
    settings::Settings,
    tables::{MAX_TABLES, StoreConfig, StoreKind, TTL_MAX, TableKey, into_text, no_such_store},
};
use crate::policy::{
    MODE_NAMES, Namespace, Read, Restart, TtlMeans, Write, behind, mode_name, mode_named,
};

/// The longest prefix in bytes.
const MAX_PREFIX: usize = 1024;

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
    /// What becomes of copies that are old, and of keys that the store doesn't have.
    pub copies: Copies,
    /// What a restart does with copies from before it.
    pub restart: Restart,
    /// Bytes that its keys may take in memory; `None`: any.
    pub quota: Option<u64>,
    /// The database that it applies to.
    pub db: u32,
}

impl NamespaceConfig {
    /// The namespace, but for its store.
    pub fn namespace(&self) -> Namespace {
        Namespace {
            prefix: self.prefix.as_bytes().into(),
            db: self.db as usize,
            read: self.read,
            write: self.write,
            ttl: self.ttl,
            jitter: self.jitter,
            refresh_after: self.copies.refresh_after,
            stale_if_error: self.copies.stale_if_error,
            negative_ttl: self.copies.negative_ttl,
            timeout_soft: self.copies.timeout_soft,
            timeout_hard: self.copies.timeout_hard,
            ttl_means: self.ttl_means,
            restart: self.restart,
            quota: self.quota.map(|quota| usize::try_from(quota).unwrap_or(usize::MAX)),
            behind: self.behind.clone(),
            ..Namespace::default()
        }
    }
}

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
        default: "`cache` with SQL of your own without `:deadline`, else `data`",
        help: "What a deadline that a client sets (EXPIRE, SET EX) limits: the `data`, so that the store gets \
               it, or the `cache`d copy alone.",
    },
    TableKey {
        name: "behind-delay",
        kind: Kind::Time(Unit::Millis, 0, TTL_MAX),
        default: "`\"1s\"`",
        help: "`write = \"behind\"`: how long a change waits for newer ones of its key before the store gets \
               the newest; with others that are due it goes up to an eighth of that earlier.",
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
               down, its breaker is open, or it is slower than `timeout-soft`. While the server runs it can \
               only become longer.",
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
        name: "restart",
        kind: Kind::Choice(Restart::NAMES),
        default: "`keep`",
        help: "What a restart does with copies from before it, on disk or saved by `warm-restart`, for stores \
               that others write to: `keep`: they serve as ever, and are never older than the last write \
               through Larder. `revalidate`: the store is asked before one serves; while it fails they serve \
               for `stale-if-error`. `drop`: they are gone.",
    },
    TableKey {
        name: "quota-memory",
        kind: Kind::Bytes(1, u64::MAX),
        default: "none",
        help: "What its keys may take in memory, at most `memory`: keys and values with what is kept beside each, \
               as the allocator rounds them. What a new one would take more is made room for by keys of its \
               own, which go to disk if there is a disk tier. Where the eviction policy lets none go, and for \
               a value that is larger by itself, a write gets `-OOM`; what is loaded then is answered and not \
               kept.",
    },
    TableKey {
        name: "db",
        kind: Kind::Integer(0, 255),
        default: "0",
        help: "The database that it applies to, below `databases`.",
    },
];

/// Reads every `[[namespace]]`.
pub(super) fn read_namespaces(
    origin: Origin<'_>,
    item: Option<&Item>,
    settings: &Settings,
    stores: &[StoreConfig],
) -> Result<Vec<NamespaceConfig>, String> {
    let mut namespaces: Vec<NamespaceConfig> = Vec::new();
    for (table, span) in item.map_or_else(|| Ok(Vec::new()), |item| tables(origin, item))? {
        let table = Reader::new(origin, table, span, ALL_NAMESPACE_KEYS);
        let namespace = read_namespace(&table, settings, stores)?;
        if namespaces.iter().any(|other| other.is_same(&namespace)) {
            return Err(table.error("prefix", "another namespace has the same prefix"));
        }
        namespaces.push(namespace);
    }
    Ok(namespaces)
}

/// Where a key of a namespace stands.
pub(super) fn place(
    origin: Origin<'_>,
    item: &Item,
    namespace: &NamespaceConfig,
    key: &str,
) -> Span {
    let tables = tables(origin, item).ok()?.into_iter();
    let mut tables =
        tables.map(|(table, span)| Reader::new(origin, table, span, ALL_NAMESPACE_KEYS));
    let is_it = |table: &Reader<'_>| {
        let prefix = table.text("prefix").ok().flatten().unwrap_or_default();
        let db = match table.value("db") {
            Ok(Some(Value::Integer(db))) => usize::try_from(db).unwrap_or(0),
            _ => 0,
        };
        namespace.is(prefix.as_bytes(), db)
    };
    tables.find(is_it)?.place(key)
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
        _ if store_config.is_some_and(|store| forgets_deadlines(&store.kind)) => TtlMeans::Cache,
        _ => TtlMeans::Data,
    };
    let behind = read_behind(table, write)?;
    if write == Write::Behind && ttl.is_some_and(|ttl| ttl < behind.delay) {
        let message =
            "`ttl` is shorter than `behind-delay`: each copy would end before it is stored";
        return Err(table.error("ttl", message));
    }
    let copies = copies::read(table, (read, write), ttl, jitter, settings)?;
    let restart = read_restart(table, read)?;
    let quota = read_quota(table, settings)?;
    let db = read_db(table, settings)?;
    Ok(NamespaceConfig {
        prefix,
        read,
        write,
        store,
        ttl,
        jitter,
        ttl_means,
        behind,
        copies,
        restart,
        quota,
        db,
    })
}

/// What a restart does with copies from before it.
fn read_restart(table: &Reader<'_>, read: Read) -> Result<Restart, String> {
    let restart = match table.value("restart")? {
        Some(Value::Choice(name)) => Restart::named(name).unwrap_or_default(),
        _ => Restart::default(),
    };
    if restart == Restart::Revalidate && read != Read::Through {
        let message =
            "`restart = \"revalidate\"` needs `read = \"through\"`: no store would be asked";
        return Err(table.error("restart", message));
    }
    Ok(restart)
}

/// What its keys may take of memory.
fn read_quota(table: &Reader<'_>, settings: &Settings) -> Result<Option<u64>, String> {
    let Some(Value::Bytes(quota)) = table.value("quota-memory")? else { return Ok(None) };
    let memory = settings.memory_limit();
    if quota > memory {
        let message = format!("`quota-memory` is more than `memory`, which is {memory} bytes");
        return Err(table.error("quota-memory", message));
    }
    Ok(Some(quota))
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
    let is_set = |key: &&TableKey| key.name.starts_with("behind-") && table.has(key.name);
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

/// Whether a store speaks SQL of the user's own that has no place for a deadline.
#[cfg(feature = "postgres")]
fn forgets_deadlines(kind: &StoreKind) -> bool {
    matches!(kind, StoreKind::Postgres(options) if options.forgets_deadlines())
}

/// No store does.
#[cfg(not(feature = "postgres"))]
fn forgets_deadlines(_: &StoreKind) -> bool {
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

#[cfg(test)]
mod tests {
    use crate::config::Config;

    fn error(text: &str) -> String {
        Config::from_toml(text, "larder.toml").map(|_| ()).expect_err(text)
    }

    const STORES: &str = "[store.main]\nkind = 'redb'\n[store.trial]\nkind = 'memory'\n";

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
                "prefix = ''\nmode = 'cache-aside'\nrestart = 'revalidate'",
                "8:11: `restart = \"revalidate\"` needs `read = \"through\"`: no store would be asked",
            ),
            (
                "prefix = ''\nmode = 'cache-aside'\nquota = { memory = '0' }",
                "8:20: `quota-memory`: expected a size with its unit, such as \"512mb\", at least 1b",
            ),
            (
                "prefix = ''\nmode = 'cache-aside'\nquota-memory = '1000gb'",
                "8:16: `quota-memory` is more than `memory`, which is",
            ),
            (
                "prefix = ''\nmode = 'cache-aside'\n\
                 [[namespace]]\nprefix = ''\nmode = 'cache-aside'",
                "9:10: another namespace has the same prefix",
            ),
        ] {
            let text = format!("{STORES}[[namespace]]\n{text}\n");
            let told = error(&text);
            assert!(told.starts_with(&format!("larder.toml:{message}")), "{text}: {told}");
        }
        let message = "larder.toml:1:2: namespaces are an array of tables, `[[namespace]]`";
        assert!(error("[namespace]\nprefix = ''").ends_with(&message["larder.toml:1:2".len()..]));
    }
}
