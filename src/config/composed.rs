//! The keys of `[store.NAME]` of the kinds that are made of other stores: `sharded`, `replicated` and
//! `faulty`. The stores that they name may stand anywhere in the file; a name that isn't there, and a
//! store that would be made of itself, are shown where they stand.

use std::{ops::Range, time::Duration};

use toml_edit::{Item, TableLike, Value as Toml};

use super::{
    file::Span,
    kind::{Kind, Unit, Value},
    tables::{Reader, StoreConfig, StoreKind, TableKey, no_such_store},
};
use crate::{
    policy::Write,
    store::{
        balance::Spread,
        faulty::Regular,
        pattern::Pattern,
        replicated::ReplicatedOptions,
        ring::Ring,
        sharded::{Ranges, Router},
    },
};

/// The most stores that one is made of, and the most ranges.
const MAX_COMPONENTS: usize = 128;
const MAX_RANGES: usize = 4096;
/// The largest weight.
const MAX_WEIGHT: i64 = 100;
/// The longest time, in milliseconds: a day.
const MAX_TIME: i64 = 86_400_000;

const KINDS: [&str; 3] = ["sharded", "replicated", "faulty"];

const fn key(
    name: &'static str,
    kind: Kind,
    default: &'static str,
    help: &'static str,
) -> TableKey {
    TableKey { name, kind, default, help }
}

/// The keys of these kinds.
pub static COMPOSED_KEYS: &[TableKey] = &[
    key(
        "by",
        Kind::Choice(&["range", "hash"]),
        "required with `sharded`",
        "`sharded`: `range` splits the keys by a number in them, `hash` by a consistent hash.",
    ),
    key(
        "part",
        Kind::Text,
        "the only one",
        "`sharded` by range: which part of the `pattern` is the number.",
    ),
    key(
        "ranges",
        Kind::List("list of tables"),
        "required by range",
        "`sharded` by range: `{ from = 0, to = 33_000_000, store = \"NAME\" }`, `to` not included. They may \
         leave gaps, but not overlap; a key in none is refused.",
    ),
    key(
        "stores",
        Kind::List("list of names"),
        "required by hash",
        "`sharded` by hash: the stores. A key with a `{tag}` goes where its tag goes.",
    ),
    key(
        "weights",
        Kind::List("list of integers from 1 to 100"),
        "1 for each",
        "`sharded` by hash: each store's weight. `replicated` with `spread = \"weighted\"`: each replica's, \
         then the primary's if it takes part in loads.",
    ),
    key(
        "primary",
        Kind::Text,
        "required with `replicated`",
        "`replicated`: the store that gets the writes.",
    ),
    key(
        "replicas",
        Kind::List("list of names"),
        "required with `replicated`",
        "`replicated`: the stores that loads are spread over. Their databases follow the primary's by \
         themselves.",
    ),
    key(
        "spread",
        Kind::Choice(Spread::NAMES),
        "`round-robin`",
        "`replicated`: how loads are spread; `least-connections` asks the replica with the fewest requests \
         in progress.",
    ),
    key(
        "read-from-primary",
        Kind::Bool,
        "`false`",
        "`replicated`: whether the primary takes part in loads. If no replica can answer, it is asked \
         anyway.",
    ),
    key(
        "max-lag",
        Kind::Time(Unit::Millis, 1, MAX_TIME),
        "none",
        "`replicated`: a replica that lags more, or can't tell, isn't asked. Only `postgres` and `faulty` \
         can tell.",
    ),
    key(
        "lag-check",
        Kind::Time(Unit::Millis, 1, MAX_TIME),
        "`\"1s\"`",
        "`replicated`: how often a replica is asked for its lag at most.",
    ),
    key(
        "load-from",
        Kind::Choice(&["primary", "replicas"]),
        "`primary`",
        "`replicated`: where a namespace that writes loads from. With `replicas`, which needs `max-lag`, a \
         key is loaded from the primary for `max-lag` and two `lag-check` after a write of it.",
    ),
    key(
        "over",
        Kind::Text,
        "required with `faulty`",
        "`faulty`: the store behind it. For trying out how an application behaves when its store fails; \
         not for production.",
    ),
    key(
        "fail-every",
        Kind::Integer(1, i64::MAX),
        "never",
        "`faulty`: each n-th load and each n-th write fails.",
    ),
    key(
        "fail-percent",
        Kind::Integer(0, 100),
        "0",
        "`faulty`: this percentage of the loads and of the writes fails, by chance.",
    ),
    key(
        "seed",
        Kind::Integer(0, i64::MAX),
        "0",
        "`faulty`: decides which ones; the same at every run.",
    ),
    key(
        "hang-every",
        Kind::Integer(1, i64::MAX),
        "never",
        "`faulty`: each n-th load and each n-th write hangs, and is never done.",
    ),
    key(
        "hang-for",
        Kind::Time(Unit::Millis, 1, MAX_TIME),
        "`\"10s\"`",
        "`faulty`: how long a call hangs; what it was for isn't known until then.",
    ),
    key(
        "delay",
        Kind::Time(Unit::Millis, 1, MAX_TIME),
        "none",
        "`faulty`: how much longer every load and write takes.",
    ),
    key(
        "lag",
        Kind::Time(Unit::Millis, 0, MAX_TIME),
        "what the store tells",
        "`faulty`: the lag that it tells of.",
    ),
];

/// Whether a store of this kind doesn't have this key; `None`: it isn't for us to say.
pub(super) fn is_stray(kind: &str, key: &str) -> Option<bool> {
    let owners: &[&str] = match key {
        // A shard or a replica that is down must not stop the others, which have breakers themselves.
        key if key.starts_with("breaker") => {
            return ["sharded", "replicated"].contains(&kind).then_some(true);
        }
        "pattern" => return (kind == "sharded").then_some(false),
        "by" | "part" | "ranges" | "stores" => &["sharded"],
        "weights" => &["sharded", "replicated"],
        "primary" | "replicas" | "spread" | "read-from-primary" | "max-lag" | "lag-check"
        | "load-from" => &["replicated"],
        key if COMPOSED_KEYS.iter().any(|known| known.name == key) => &["faulty"],
        _ => return None,
    };
    Some(!owners.contains(&kind))
}

/// Reads the table of such a store; `None` if it is of another kind.
pub(super) fn read(table: &Reader<'_>, kind: &str) -> Option<Result<StoreKind, String>> {
    match kind {
        "sharded" => Some(read_sharded(table)),
        "replicated" => Some(read_replicated(table)),
        "faulty" => Some(read_faulty(table)),
        _ => None,
    }
}

fn read_sharded(table: &Reader<'_>) -> Result<StoreKind, String> {
    let by = needed(table, "sharded", "by")?;
    let others: &[&str] = match by {
        Value::Choice("range") => &["stores", "weights"],
        _ => &["pattern", "part", "ranges"],
    };
    if let Some(other) = others.iter().find(|other| table.has(other)) {
        let by = if others.len() == 2 { "range" } else { "hash" };
        return Err(table.error(other, format!("a store that is sharded by {by} has no `{other}`")));
    }
    if by == Value::Choice("range") {
        return read_ranges(table);
    }
    needed_item(table, "sharded by hash", "stores")?;
    let stores = names(table, "stores")?;
    let weights = weights(table, stores.len())?;
    let ring: Vec<_> = stores.iter().map(String::as_str).zip(weights).collect();
    Ok(StoreKind::Sharded { router: Router::Hash(Ring::new(&ring)), stores })
}

fn read_ranges(table: &Reader<'_>) -> Result<StoreKind, String> {
    let Value::Text(pattern) = needed(table, "sharded by range", "pattern")? else {
        return Err(table.error("pattern", "`pattern`: expected a text"));
    };
    let pattern = Pattern::parse(&pattern)
        .map_err(|why| table.error("pattern", format!("`pattern`: {why}")))?;
    let part = match (table.text("part")?, pattern.names().collect::<Vec<_>>().as_slice()) {
        (Some(part), _) => part,
        (None, [part]) => (*part).to_owned(),
        (None, []) => return Err(table.error("pattern", "`pattern` has no part, such as `{id}`")),
        (None, _) => {
            let message = "`pattern` has several parts; `part` says which one is the number";
            return Err(table.error("pattern", message));
        }
    };
    needed_item(table, "sharded by range", "ranges")?;
    let mut stores: Vec<String> = Vec::new();
    let mut ranges: Vec<(Range<u64>, usize)> = Vec::new();
    let rows = range_rows(table)?;
    for row in &rows {
        let (range, store) = read_range(row)?;
        let known = stores.iter().position(|known| *known == store);
        ranges.push((range, known.unwrap_or(stores.len())));
        if known.is_none() {
            stores.push(store);
        }
    }
    check_count(table, "ranges", stores.len())?;
    let ranges = Ranges::new(pattern, &part, ranges).map_err(|(at, why)| match at {
        Some(at) => rows[at].error("", why),
        None => table.error("part", why),
    })?;
    Ok(StoreKind::Sharded { router: Router::Range(ranges), stores })
}

/// The keys of one range.
static RANGE_KEYS: &[&[TableKey]] = &[&[
    key("from", Kind::Integer(0, i64::MAX), "required", ""),
    key("to", Kind::Integer(1, i64::MAX), "required", ""),
    key("store", Kind::Text, "required", ""),
]];

/// The tables of `ranges`.
fn range_rows<'a>(table: &Reader<'a>) -> Result<Vec<Reader<'a>>, String> {
    let wrong = |span: Span| {
        let message = "`ranges`: expected a list of `{ from = 0, to = 10, store = \"NAME\" }`";
        table.origin.error(&span, message)
    };
    let Some(item) = table.item("ranges") else { return Ok(Vec::new()) };
    let rows: Vec<(&dyn TableLike, Span)> = match item {
        Item::ArrayOfTables(rows) => {
            rows.iter().map(|row| (row as &dyn TableLike, row.span())).collect()
        }
        Item::Value(Toml::Array(rows)) => rows
            .iter()
            .map(|row| match row {
                Toml::InlineTable(row) => Ok((row as &dyn TableLike, row.span())),
                other => Err(wrong(other.span())),
            })
            .collect::<Result<_, _>>()?,
        other => return Err(wrong(other.span())),
    };
    if rows.is_empty() || rows.len() > MAX_RANGES {
        return Err(table.error("ranges", format!("`ranges`: expected 1 to {MAX_RANGES} of them")));
    }
    let row = |(row, span)| Reader::new(table.origin, row, span, RANGE_KEYS);
    Ok(rows.into_iter().map(row).collect())
}

fn read_range(row: &Reader<'_>) -> Result<(Range<u64>, String), String> {
    row.check_keys()?;
    let number = |name| match row.required(name)? {
        Value::Integer(number) => Ok(u64::try_from(number).unwrap_or(0)),
        _ => Ok::<u64, String>(0),
    };
    let range = number("from")?..number("to")?;
    if range.is_empty() {
        return Err(
            row.error("to", "`to` is not above `from`: it is the first number not included")
        );
    }
    row.required("store")?;
    Ok((range, row.text("store")?.unwrap_or_default()))
}

fn read_replicated(table: &Reader<'_>) -> Result<StoreKind, String> {
    needed(table, "replicated", "primary")?;
    let primary = table.text("primary")?.unwrap_or_default();
    needed_item(table, "replicated", "replicas")?;
    let replicas = names(table, "replicas")?;
    if replicas.contains(&primary) {
        return Err(table.error("replicas", format!("`replicas`: `{primary}` is the primary")));
    }
    let default = ReplicatedOptions::default();
    let spread = match table.value("spread")? {
        Some(Value::Choice(name)) => Spread::named(name).unwrap_or_default(),
        _ => default.spread,
    };
    let read_from_primary = table.value("read-from-primary")? == Some(Value::Bool(true));
    if spread != Spread::Weighted && table.has("weights") {
        return Err(table.error("weights", "`weights` without `spread = \"weighted\"`"));
    }
    let options = ReplicatedOptions {
        spread,
        weights: weights(table, replicas.len() + usize::from(read_from_primary))?,
        read_from_primary,
        max_lag: time(table, "max-lag")?,
        lag_check: time(table, "lag-check")?.unwrap_or(default.lag_check),
        load_from_replicas: table.value("load-from")? == Some(Value::Choice("replicas")),
    };
    if options.load_from_replicas && options.max_lag.is_none() {
        return Err(table.error("load-from", "`load-from = \"replicas\"` needs a `max-lag`"));
    }
    Ok(StoreKind::Replicated { primary, replicas, options })
}

fn read_faulty(table: &Reader<'_>) -> Result<StoreKind, String> {
    needed(table, "faulty", "over")?;
    let number = |name| match table.value(name)? {
        Some(Value::Integer(number)) => Ok(u64::try_from(number).unwrap_or(0)),
        _ => Ok::<u64, String>(0),
    };
    let faults = Regular {
        fail_every: number("fail-every")?,
        fail_percent: u8::try_from(number("fail-percent")?).unwrap_or(100),
        seed: number("seed")?,
        hang_every: number("hang-every")?,
        hang_for: time(table, "hang-for")?.unwrap_or(Regular::default().hang_for),
        delay: time(table, "delay")?.unwrap_or_default(),
        lag: time(table, "lag")?,
    };
    Ok(StoreKind::Faulty { over: table.text("over")?.unwrap_or_default(), faults })
}

fn needed(table: &Reader<'_>, kind: &str, name: &'static str) -> Result<Value, String> {
    needed_item(table, kind, name)?;
    table.required(name)
}

fn needed_item(table: &Reader<'_>, kind: &str, name: &str) -> Result<(), String> {
    let missing = || {
        let what =
            if KINDS.contains(&kind) { format!("of kind `{kind}`") } else { kind.to_owned() };
        table.error("kind", format!("a store {what} needs `{name}`"))
    };
    table.item(name).map(drop).ok_or_else(missing)
}

fn time(table: &Reader<'_>, name: &'static str) -> Result<Option<Duration>, String> {
    match table.value(name)? {
        Some(Value::Time(time)) => Ok(time),
        _ => Ok(None),
    }
}

fn check_count(table: &Reader<'_>, name: &str, count: usize) -> Result<(), String> {
    if (1..=MAX_COMPONENTS).contains(&count) {
        return Ok(());
    }
    Err(table.error(name, format!("`{name}`: expected 1 to {MAX_COMPONENTS} stores")))
}

/// The elements of a list that is there.
fn list<'a>(table: &Reader<'a>, name: &str, what: &str) -> Result<Vec<&'a Toml>, String> {
    let Some(item) = table.item(name) else { return Ok(Vec::new()) };
    match item {
        Item::Value(Toml::Array(list)) => Ok(list.iter().collect()),
        _ => Err(table.error(name, format!("`{name}`: expected a list of {what}"))),
    }
}

/// A list of names of stores, and where each stands.
fn spanned_names(table: &Reader<'_>, name: &str) -> Result<Vec<(String, Span)>, String> {
    let wrong =
        |span: Span| table.origin.error(&span, format!("`{name}`: expected the name of a store"));
    let element = |element: &Toml| match element {
        Toml::String(text) => Ok((text.value().clone(), element.span())),
        other => Err(wrong(other.span())),
    };
    list(table, name, "names")?.into_iter().map(element).collect()
}

/// A list of different stores.
fn names(table: &Reader<'_>, name: &str) -> Result<Vec<String>, String> {
    let mut names: Vec<String> = Vec::new();
    for (text, span) in spanned_names(table, name)? {
        if names.contains(&text) {
            let message = format!("`{name}`: `{}` comes twice", text.escape_debug());
            return Err(table.origin.error(&span, message));
        }
        names.push(text);
    }
    check_count(table, name, names.len())?;
    Ok(names)
}

/// As many weights as there are stores; 1 for each where there are none.
fn weights(table: &Reader<'_>, count: usize) -> Result<Vec<u32>, String> {
    if !table.has("weights") {
        return Ok(vec![1; count]);
    }
    let wrong = |span: Span| {
        let message = format!("`weights`: expected an integer from 1 to {MAX_WEIGHT}");
        table.origin.error(&span, message)
    };
    let weight = |element: &Toml| match element {
        Toml::Integer(weight) if (1..=MAX_WEIGHT).contains(weight.value()) => {
            Ok(u32::try_from(*weight.value()).unwrap_or(1))
        }
        other => Err(wrong(other.span())),
    };
    let weights = list(table, "weights", "integers")?.into_iter().map(weight);
    let weights = weights.collect::<Result<Vec<_>, _>>()?;
    if weights.len() != count {
        let message = format!("`weights`: {} of them, for {count} stores", weights.len());
        return Err(table.error("weights", message));
    }
    Ok(weights)
}

/// The stores that a table names, and where.
fn references(table: &Reader<'_>) -> Result<Vec<(String, Span)>, String> {
    let mut found = Vec::new();
    for name in ["over", "primary"] {
        let text = table.item(name).and_then(|item| Some((item.as_str()?, item.span())));
        found.extend(text.map(|(text, span)| (text.to_owned(), span)));
    }
    for name in ["replicas", "stores"] {
        found.extend(spanned_names(table, name)?);
    }
    for row in range_rows(table)? {
        let text = row.item("store").and_then(|item| Some((item.as_str()?, item.span())));
        found.extend(text.map(|(text, span)| (text.to_owned(), span)));
    }
    Ok(found)
}

/// Refuses stores that are made of one that isn't there, or of themselves.
pub(super) fn check(tables: &[Reader<'_>], stores: &[StoreConfig]) -> Result<(), String> {
    for (table, store) in tables.iter().zip(stores) {
        for (name, span) in references(table)? {
            let Some(part) = stores.iter().find(|store| store.name == name) else {
                return Err(table.origin.error(&span, no_such_store(&name, stores)));
            };
            if below(part, stores).iter().any(|below| below.name == store.name) {
                let message = format!("store `{}` would be made of itself", store.name);
                return Err(table.origin.error(&span, message));
            }
        }
    }
    Ok(())
}

/// A store and all that it is made of, each once, also if it is made of itself.
fn below<'a>(store: &'a StoreConfig, stores: &'a [StoreConfig]) -> Vec<&'a StoreConfig> {
    let mut found = vec![store];
    let mut at = 0;
    while let Some(store) = found.get(at) {
        for name in store.kind.components() {
            let part = stores.iter().find(|store| store.name == name);
            let is_new = |part: &&StoreConfig| !found.iter().any(|known| known.name == part.name);
            found.extend(part.filter(is_new));
        }
        at += 1;
    }
    found
}

/// A store and all that it is made of, each with what a namespace with such writes does to it: what is behind
/// a replica is only read.
pub(super) fn with_writes<'a>(
    store: &'a StoreConfig,
    write: Write,
    stores: &'a [StoreConfig],
) -> Vec<(&'a StoreConfig, Write)> {
    let named = |name: &str| stores.iter().find(|store| store.name == name);
    let mut found = vec![(store, write)];
    let mut at = 0;
    while let Some((store, write)) = found.get(at).copied() {
        for name in store.kind.components() {
            let is_replica = match &store.kind {
                StoreKind::Replicated { primary, .. } => *primary != name,
                _ => false,
            };
            let write = if is_replica { Write::None } else { write };
            found
                .extend(named(name).map(|part| (part, write)).filter(|part| !found.contains(part)));
        }
        at += 1;
    }
    found
}

/// Refuses a namespace of which no key is in a range.
pub(super) fn check_prefix(
    table: &Reader<'_>,
    store: &StoreConfig,
    prefix: &str,
) -> Result<(), String> {
    match &store.kind {
        StoreKind::Sharded { router: Router::Range(ranges), .. } if !ranges.may_fit(prefix) => {
            let name = &store.name;
            let message =
                format!("no key with this `prefix` fits the `pattern` of `[store.{name}]`");
            Err(table.error("store", message))
        }
        _ => Ok(()),
    }
}

impl StoreKind {
    /// The names of the stores that it is made of.
    pub fn components(&self) -> Vec<&str> {
        match self {
            Self::Sharded { stores, .. } => stores.iter().map(String::as_str).collect(),
            Self::Replicated { primary, replicas, .. } => {
                std::iter::once(primary).chain(replicas).map(String::as_str).collect()
            }
            Self::Faulty { over, .. } => vec![over],
            _ => Vec::new(),
        }
    }

    /// Whether a breaker may stand before it: not where it would stop shards and replicas that work, too.
    pub(super) fn may_have_breaker(&self) -> bool {
        !matches!(self, Self::Sharded { .. } | Self::Replicated { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    /// `[store.a]` with these lines, before stores of which it may be made.
    fn read(text: &str) -> Result<Config, String> {
        let text = format!(
            "[store.a]\n{text}\n[store.m1]\nkind = 'memory'\n[store.m2]\nkind = 'memory'\n\
             [store.z]\nkind = 'faulty'\nover = 'a'\n"
        );
        Config::from_toml(&text, "larder.toml")
    }

    fn kind(text: &str) -> StoreKind {
        let config = read(text).expect(text);
        assert_eq!(config.stores[0].breaker.is_some(), config.stores[0].kind.may_have_breaker());
        config.stores[0].kind.clone()
    }

    const RANGE: &str = "kind = 'sharded'\nby = 'range'\npattern = 'user:{id}'\n";
    const HASH: &str = "kind = 'sharded'\nby = 'hash'\n";
    const COPIES: &str = "kind = 'replicated'\nprimary = 'm1'\n";

    #[test]
    fn ranges_in_both_forms_of_a_list() {
        let pattern = Pattern::parse("user:{id}").expect("a pattern");
        let ranges = vec![(0..33, 0), (33..66, 1), (66..100, 0)];
        let ranges = Ranges::new(pattern, "id", ranges).expect("ranges");
        let stores = vec!["m1".to_owned(), "m2".to_owned()];
        let wanted = StoreKind::Sharded { router: Router::Range(ranges), stores };
        let inline = "ranges = [{ from = 66, to = 100, store = 'm1' }, { from = 33, to = 66, store = \
                      'm2' },\n{ from = 0, to = 33, store = 'm1' }]";
        assert_eq!(kind(&format!("{RANGE}{inline}")), wanted);
        let tables = "part = 'id'\n[[store.a.ranges]]\nfrom = 0\nto = 33\nstore = 'm1'\n\
                      [[store.a.ranges]]\nfrom = 33\nto = 66\nstore = 'm2'\n\
                      [[store.a.ranges]]\nfrom = 66\nto = 100\nstore = 'm1'";
        assert_eq!(kind(&format!("{RANGE}{tables}")), wanted);
    }

    #[test]
    fn a_ring_replicas_and_faults() {
        let stores = vec!["m2".to_owned(), "m1".to_owned()];
        let router = Router::Hash(Ring::new(&[("m2", 1), ("m1", 3)]));
        assert_eq!(
            kind(&format!("{HASH}stores = ['m2', 'm1']\nweights = [1, 3]")),
            StoreKind::Sharded { router, stores }
        );
        let text = format!(
            "{COPIES}replicas = ['m2']\nspread = 'weighted'\nweights = [2, 1]\n\
             read-from-primary = true\nmax-lag = '2s'\nlag_check = '100ms'\nload-from = 'replicas'"
        );
        let options = ReplicatedOptions {
            spread: Spread::Weighted,
            weights: vec![2, 1],
            read_from_primary: true,
            max_lag: Some(Duration::from_secs(2)),
            lag_check: Duration::from_millis(100),
            load_from_replicas: true,
        };
        let (primary, replicas) = ("m1".to_owned(), vec!["m2".to_owned()]);
        assert_eq!(kind(&text), StoreKind::Replicated { primary, replicas, options });
        let faults = Regular {
            fail_every: 3,
            fail_percent: 10,
            seed: 7,
            hang_every: 5,
            hang_for: Duration::from_secs(1),
            delay: Duration::from_millis(10),
            lag: Some(Duration::from_secs(3)),
        };
        let text = "kind = 'faulty'\nover = 'm1'\nfail-every = 3\nfail-percent = 10\nseed = 7\n\
                    hang-every = 5\nhang-for = '1s'\ndelay = '10ms'\nlag = '3s'";
        assert_eq!(kind(text), StoreKind::Faulty { over: "m1".into(), faults });
    }

    #[test]
    fn errors_say_where() {
        let overlap =
            "ranges = [{ from = 0, to = 10, store = 'm1' }, { from = 9, to = 12, store = 'm2' }]";
        for (text, message) in [
            ("kind = 'sharded'", "2:8: a store of kind `sharded` needs `by`"),
            (HASH, "2:8: a store sharded by hash needs `stores`"),
            (RANGE, "2:8: a store sharded by range needs `ranges`"),
            ("kind = 'sharded'\nby = 'range'", "2:8: a store sharded by range needs `pattern`"),
            (
                &format!("{RANGE}stores = ['m1']"),
                "5:10: a store that is sharded by range has no `stores`",
            ),
            (
                &format!("{HASH}stores = ['m1']\npattern = 'x'"),
                "5:11: a store that is sharded by hash has no `pattern`",
            ),
            (
                &format!("{RANGE}ranges = 1"),
                "5:10: `ranges`: expected a list of `{ from = 0, to = 10, \
              store = \"NAME\" }`",
            ),
            (&format!("{RANGE}ranges = []"), "5:10: `ranges`: expected 1 to 4096 of them"),
            (&format!("{RANGE}{overlap}"), "5:48: 9-12 overlaps 0-10"),
            (
                &format!("{RANGE}ranges = [{{ from = 5, to = 5, store = 'm1' }}]"),
                "5:28: `to` is not above `from`: it is the first number not included",
            ),
            (&format!("{RANGE}ranges = [{{ from = 5, till = 6 }}]"), "5:23: unknown key `till`"),
            (
                &format!("{RANGE}ranges = [{{ from = 5, to = 6, store = 'm3' }}]"),
                "5:39: no `[store.m3]`; did you mean `m2`?",
            ),
            (
                &format!("{RANGE}part = 'ID'\nranges = [{{ from = 5, to = 6, store = 'm1' }}]"),
                "5:8: the pattern has no `{ID}`",
            ),
            (
                "kind = 'sharded'\nby = 'range'\npattern = '{a}:{b}'",
                "4:11: `pattern` has several parts; `part` says which one is the number",
            ),
            (&format!("{HASH}stores = ['m1', 'm1']"), "4:17: `stores`: `m1` comes twice"),
            (&format!("{HASH}stores = ['m1', 7]"), "4:17: `stores`: expected the name of a store"),
            (&format!("{HASH}stores = []"), "4:10: `stores`: expected 1 to 128 stores"),
            (&format!("{HASH}stores = ['m1', 'm9']"), "4:17: no `[store.m9]`; did you mean `m2`?"),
            (
                &format!("{HASH}stores = ['m1']\nweights = [0]"),
                "5:12: `weights`: expected an integer from 1 to 100",
            ),
            (
                &format!("{HASH}stores = ['m1']\nweights = [1, 2]"),
                "5:11: `weights`: 2 of them, for 1 stores",
            ),
            (&format!("{HASH}stores = ['a']"), "4:11: store `a` would be made of itself"),
            (&format!("{HASH}stores = ['m1', 'z']"), "4:17: store `a` would be made of itself"),
            (
                &format!("{HASH}stores = ['m1']\nbreaker-probes = 2"),
                "5:18: a store of kind `sharded` has no `breaker-probes`",
            ),
            (COPIES, "2:8: a store of kind `replicated` needs `replicas`"),
            (&format!("{COPIES}replicas = ['m1']"), "4:12: `replicas`: `m1` is the primary"),
            (
                &format!("{COPIES}replicas = ['m2']\nweights = [1]"),
                "5:11: `weights` without `spread = \"weighted\"`",
            ),
            (
                &format!("{COPIES}replicas = ['m2']\nload-from = 'replicas'"),
                "5:13: `load-from = \"replicas\"` needs a `max-lag`",
            ),
            (
                &format!("{COPIES}replicas = ['m2']\nbreaker = true"),
                "5:11: a store of kind `replicated` has no `breaker`",
            ),
            ("kind = 'faulty'", "2:8: a store of kind `faulty` needs `over`"),
            ("kind = 'memory'\nover = 'm1'", "3:8: a store of kind `memory` has no `over`"),
            (
                "kind = 'faulty'\nover = 'm1'\npattern = 'x'",
                "4:11: a store of kind `faulty` has no `pattern`",
            ),
        ] {
            let why = read(text).map(drop).expect_err(text);
            assert!(why.starts_with(&format!("larder.toml:{message}")), "{text}: {why}");
        }
    }

    #[test]
    fn a_namespace_over_one_is_checked_down_to_the_last() {
        let ranges = "ranges = [{ from = 0, to = 10, store = 'm1' }]";
        let namespace = "[[namespace]]\nprefix = 'usr:'\nmode = 'read-through'\nstore = 'z'";
        let why = read(&format!("{RANGE}{ranges}\n{namespace}")).map(drop).expect_err("a prefix");
        let message = "no key with this `prefix` fits the `pattern` of `[store.a]`";
        assert!(why.ends_with(message), "{why}");
    }

    #[cfg(feature = "postgres")]
    #[test]
    fn a_replica_needs_no_statements_for_writes() {
        let sql = "kind = 'postgres'\nurl = 'postgres://app@localhost/shop'\npattern = 'k:{id}'\n\
                   load = 'select name from users where id = :id'\n";
        let text = |primary: &str, replica: &str| {
            format!(
                "[store.sql]\n{sql}[store.m]\nkind = 'memory'\n[store.r]\nkind = 'replicated'\n\
                 primary = '{primary}'\nreplicas = ['{replica}']\n\
                 [[namespace]]\nprefix = 'k:'\nmode = 'write-through'\nstore = 'r'"
            )
        };
        Config::from_toml(&text("m", "sql"), "f").expect("a replica is only read");
        let why = Config::from_toml(&text("sql", "m"), "f").map(drop).expect_err("no `save`");
        assert!(why.ends_with("`write = \"through\"` needs a `save` in `[store.sql]`"), "{why}");
    }
}
