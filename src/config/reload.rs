//! A configuration that changes while the server runs. What may change is said once, here; all of a change
//! takes effect or none, and what takes a restart is refused with the place where it stands.

use std::fmt;

use super::{
    Config, NamespaceConfig, StoreConfig,
    file::{self, Flags, Origin, Place},
    kind::Value,
    settings::{Change, SETTINGS, Setting, Settings, same_name},
};
use crate::policy::behind;

/// What a configuration was read from, to read it again.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Source {
    /// What errors call it.
    pub(super) name: String,
    pub(super) text: String,
    /// The settings that the command line gave, by name.
    pub(super) flags: Vec<(&'static str, Value)>,
}

impl fmt::Debug for Source {
    /// There may be a password in the text.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Source {
    fn origin(&self) -> Origin<'_> {
        Origin { name: &self.name, text: &self.text }
    }

    /// An error of it without its place, for who doesn't know the text.
    pub(super) fn message<'a>(&self, error: &'a str) -> &'a str {
        let rest = error.strip_prefix(&self.name).unwrap_or(error);
        rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == ':').trim_start()
    }

    fn flags(&self) -> Flags {
        let flag = |(name, value): &(&'static str, Value)| {
            Setting::named(name).map(|setting| (setting, value.clone()))
        };
        self.flags.iter().filter_map(flag).collect()
    }
}

/// A key of a namespace that may change while the server runs, and what a namespace has there.
pub(super) type LiveKey = (&'static str, fn(&NamespaceConfig) -> Value);

/// All of them; `every_key_is_live_or_takes_a_restart` holds the table of keys to it.
pub(super) static LIVE_NAMESPACE_KEYS: &[LiveKey] = &[
    ("ttl", |namespace| Value::Time(namespace.ttl)),
    ("jitter", |namespace| Value::Integer(namespace.jitter.into())),
    ("behind-delay", |namespace| Value::Time(Some(namespace.behind.delay))),
    ("behind-batch", |namespace| Value::Integer(namespace.behind.batch as i64)),
    ("behind-batch-bytes", |namespace| Value::Bytes(namespace.behind.batch_bytes as u64)),
    ("behind-tries", |namespace| Value::Integer(namespace.behind.tries.into())),
    ("refresh-after", |namespace| Value::Time(namespace.copies.refresh_after)),
    ("stale-if-error", |namespace| Value::Time(namespace.copies.stale_if_error)),
    ("negative-ttl", |namespace| Value::Time(namespace.copies.negative_ttl)),
    ("timeout-soft", |namespace| Value::Time(namespace.copies.timeout_soft)),
    ("timeout-hard", |namespace| Value::Time(namespace.copies.timeout_hard)),
];

/// The others, beside those by which namespaces are known: whether two namespaces have the same there.
type Same = fn(&NamespaceConfig, &NamespaceConfig) -> bool;
static FIXED: &[(&str, Same)] = &[
    ("mode", |one, other| (one.read, one.write) == (other.read, other.write)),
    ("store", |one, other| one.store == other.store),
    ("ttl-means", |one, other| one.ttl_means == other.ttl_means),
    ("behind-partitions", |one, other| one.behind.partitions == other.behind.partitions),
    ("restart", |one, other| one.restart == other.restart),
    ("quota-memory", |one, other| one.quota == other.quota),
];

impl NamespaceConfig {
    /// Whether it is the namespace of this prefix in this database.
    pub(super) fn is(&self, prefix: &[u8], db: usize) -> bool {
        self.prefix.as_bytes() == prefix && self.db as usize == db
    }

    /// Whether it is the same one as another, however that may have changed.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        (&self.prefix, self.db) == (&other.prefix, other.db)
    }

    /// The key of this name that may change while the server runs.
    pub(super) fn live_key(name: &str) -> Option<&'static LiveKey> {
        LIVE_NAMESPACE_KEYS.iter().find(|(known, _)| same_name(known, name))
    }

    /// It with what may change of another one.
    fn with_live_of(&self, other: &Self) -> Self {
        let partitions = self.behind.partitions;
        let behind = behind::Settings { partitions, ..other.behind.clone() };
        let (ttl, jitter, copies) = (other.ttl, other.jitter, other.copies);
        Self { ttl, jitter, copies, behind, ..self.clone() }
    }
}

impl Config {
    /// Why these settings don't go together, or with the namespaces.
    pub(super) fn refuses(&self, settings: &Settings) -> Option<String> {
        if let Some((name, why)) = settings.contradiction() {
            return Some(format!("{name}: {why}"));
        }
        let memory = settings.memory_limit();
        let too_large = |found: &&NamespaceConfig| found.quota.is_some_and(|quota| quota > memory);
        let namespace = self.namespaces.iter().find(too_large)?;
        Some(format!("the quota of namespace '{}' is more", namespace.prefix.escape_debug()))
    }

    /// Reads the file again, if there is one; the flags win, as at the start.
    pub(super) fn read_again(&self) -> Result<Self, String> {
        let text = match &self.path {
            Some(path) => file::load(path)?,
            None => String::new(),
        };
        self.with_text(text)
    }

    /// The same with another text of the file.
    pub(super) fn with_text(&self, text: String) -> Result<Self, String> {
        let source = Source { text, ..self.source.clone() };
        let config = file::read(source.origin(), source.flags())?;
        Ok(Self { path: self.path.clone(), ..config })
    }

    /// What is another in a new configuration, in words; an error, with its place, if something of it takes a
    /// restart.
    pub(super) fn difference(&self, new: &Self) -> Result<Vec<String>, String> {
        let refuse = |place: Place<'_>, what: String| {
            let text = format!("{what} takes a restart");
            new.source.origin().error_at(&place, text)
        };
        let mut changed = Vec::new();
        let differs =
            |setting: &&Setting| setting.value(&self.settings) != setting.value(&new.settings);
        for setting in SETTINGS.iter().filter(differs) {
            let name = setting.name;
            if setting.change == Change::Restart {
                return Err(refuse(Place::Setting(name), format!("a change of `{name}`")));
            }
            changed.push(name.to_owned());
        }
        if let Some(store) = new.stores.iter().find(|store| !self.stores.contains(store)) {
            let what = format!("a new or changed store `{}`", store.name);
            return Err(refuse(Place::Store(&store.name), what));
        }
        let is_gone = |store: &&StoreConfig| new.stores.iter().all(|it| it.name != store.name);
        if let Some(store) = self.stores.iter().find(is_gone) {
            return Err(refuse(Place::Nowhere, format!("that store `{}` is gone", store.name)));
        }
        for namespace in &new.namespaces {
            let known = self.namespaces.iter().find(|known| known.is_same(namespace));
            let Some(known) = known else {
                let place = Place::Namespace(namespace, "prefix");
                return Err(refuse(place, format!("a new namespace `{}`", namespace.prefix)));
            };
            if let Some((key, _)) = FIXED.iter().find(|(_, same)| !same(known, namespace)) {
                return Err(refuse(
                    Place::Namespace(namespace, key),
                    format!("a change of `{key}` of namespace `{}`", namespace.prefix),
                ));
            }
            debug_assert_eq!(known.with_live_of(namespace), *namespace, "all keys are looked at");
            // Copies know when their keeping ends; what of that is `ttl` follows from this.
            if namespace.copies.stale_if_error < known.copies.stale_if_error {
                let key = "stale-if-error";
                return Err(refuse(
                    Place::Namespace(namespace, key),
                    format!("a shorter `{key}` of namespace `{}`", namespace.prefix),
                ));
            }
            for (key, value) in LIVE_NAMESPACE_KEYS {
                if value(known) != value(namespace) {
                    changed.push(format!("`{key}` of namespace `{}`", namespace.prefix));
                }
            }
        }
        let is_gone = |known: &&NamespaceConfig| !new.namespaces.iter().any(|it| it.is_same(known));
        if let Some(namespace) = self.namespaces.iter().find(is_gone) {
            let what = format!("that namespace `{}` is gone", namespace.prefix);
            return Err(refuse(Place::Nowhere, what));
        }
        Ok(changed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::NAMESPACE_KEYS;

    const FILE: &str = "\
timeout = '60s'
port = 7000
[store.main]
kind = 'memory'
[store.other]
kind = 'memory'
[[namespace]]
prefix = 'user:'
mode = 'write-behind'
store = 'main'
ttl = '10m'
behind = { delay = '2s', batch = 10 }
[[namespace]]
prefix = 'plain:'
mode = 'cache-aside'
";

    fn config(text: &str) -> Config {
        Config::from_toml(text, "larder.toml").expect(text)
    }

    fn difference(from: &str, to: &str) -> Result<Vec<String>, String> {
        let text = FILE.replace(from, to);
        assert!(from.is_empty() || text != FILE, "{from}");
        config(FILE).difference(&config(&text))
    }

    #[test]
    fn what_is_safe_is_told() {
        assert_eq!(difference("", ""), Ok(vec![]));
        for (from, to, changed) in [
            ("timeout = '60s'", "timeout = '1m'", &[][..]),
            ("timeout = '60s'", "memory = '1gb'", &["memory", "timeout"]),
            ("ttl = '10m'", "ttl = '5m'", &["`ttl` of namespace `user:`"]),
            ("ttl = '10m'\n", "", &["`ttl` of namespace `user:`"]),
            (
                "'2s', batch = 10",
                "'1s'",
                &["`behind-delay` of namespace `user:`", "`behind-batch` of namespace `user:`"],
            ),
            (
                "mode = 'cache-aside'",
                "mode = 'cache-aside'\nttl = '1s'\njitter = 5",
                &["`ttl` of namespace `plain:`", "`jitter` of namespace `plain:`"],
            ),
        ] {
            let expected: Vec<String> = changed.iter().map(|text| (*text).to_owned()).collect();
            let mut found = difference(from, to).expect(to);
            found.sort();
            let mut sorted = expected.clone();
            sorted.sort();
            assert_eq!(found, sorted, "{to}");
        }
        // Their order says nothing.
        let (head, tables) = FILE.split_at(FILE.find("[[").expect("a namespace"));
        let (first, second) = tables.split_at(tables.rfind("[[").expect("another"));
        assert_eq!(config(FILE).difference(&config(&format!("{head}{second}{first}"))), Ok(vec![]));
    }

    #[test]
    fn what_takes_a_restart_is_refused_with_its_place() {
        for (from, to, why) in [
            ("port = 7000", "port = 7001", "2:1: a change of `port`"),
            ("port = 7000\n", "", "a change of `port`"),
            (
                "[store.other]\nkind = 'memory'",
                "[store.other]\nkind = 'redb'",
                "5:1: a new or changed store `other`",
            ),
            ("[store.other]", "[store.third]", "5:1: a new or changed store `third`"),
            ("[store.other]\nkind = 'memory'\n", "", "that store `other` is gone"),
            (
                "'write-behind'\nstore = 'main'",
                "'write-behind'\nstore = 'other'",
                "10:9: a change of `store` of namespace `user:`",
            ),
            (
                "'plain:'\nmode = 'cache-aside'",
                "'plain:'\nmode = 'read-through'\nstore = 'main'",
                "15:8: a change of `mode` of namespace `plain:`",
            ),
            (
                "ttl = '10m'",
                "ttl-means = 'cache'",
                "11:13: a change of `ttl-means` of namespace `user:`",
            ),
            (
                "batch = 10",
                "partitions = 2",
                "12:39: a change of `behind-partitions` of namespace `user:`",
            ),
            (
                "batch = 10 }",
                "batch = 10 }\nquota-memory = '1mb'",
                "13:16: a change of `quota-memory` of namespace `user:`",
            ),
            (
                "batch = 10 }",
                "batch = 10 }\nrestart = 'drop'",
                "13:11: a change of `restart` of namespace `user:`",
            ),
            ("'plain:'", "'other:'", "14:10: a new namespace `other:`"),
            (
                "mode = 'cache-aside'",
                "mode = 'cache-aside'\ndb = 1",
                "14:10: a new namespace `plain:`",
            ),
            (
                "[[namespace]]\nprefix = 'plain:'\nmode = 'cache-aside'\n",
                "",
                "that namespace `plain:` is gone",
            ),
        ] {
            let colon = if why.as_bytes()[0].is_ascii_digit() { ":" } else { ": " };
            let expected = format!("larder.toml{colon}{why} takes a restart");
            assert_eq!(difference(from, to), Err(expected), "{to}");
        }
    }

    /// A copy that was to be kept for longer would be taken for fresh while it is stale.
    #[test]
    fn what_is_stale_is_kept_for_longer_but_not_for_less() {
        let with = |hours| {
            let text = format!("ttl = '10m'\nstale-if-error = '{hours}h'");
            config(&FILE.replace("ttl = '10m'", &text))
        };
        let changed = Ok(vec!["`stale-if-error` of namespace `user:`".to_owned()]);
        assert_eq!(with(1).difference(&with(2)), changed);
        let why =
            "larder.toml:12:18: a shorter `stale-if-error` of namespace `user:` takes a restart";
        assert_eq!(with(2).difference(&with(1)), Err(why.to_owned()));
    }

    #[test]
    fn every_key_is_live_or_takes_a_restart() {
        for key in NAMESPACE_KEYS {
            let is_identity = ["prefix", "db"].contains(&key.name);
            // `mode` is a word for the two.
            let name = if ["read", "write"].contains(&key.name) { "mode" } else { key.name };
            let is_fixed = FIXED.iter().any(|(fixed, _)| *fixed == name);
            let is_live = NamespaceConfig::live_key(name).is_some();
            assert_eq!(
                [is_identity, is_fixed, is_live].iter().filter(|is| **is).count(),
                1,
                "{name}"
            );
        }
        for (name, _) in LIVE_NAMESPACE_KEYS {
            assert!(NAMESPACE_KEYS.iter().any(|key| key.name == *name), "{name}");
        }
    }

    #[test]
    fn flags_go_on_winning_and_secrets_stay_secret() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("larder.toml");
        let write = |text: &str| std::fs::write(&path, text).expect("written");
        write("timeout = '1s'\nrequirepass = 'hunter2'");
        let args = ["larder".as_ref(), path.as_os_str(), "--timeout".as_ref(), "9".as_ref()];
        let config = Config::from_args(args).expect("a configuration");
        assert!(!format!("{config:?}").contains("hunter2"));
        write("timeout = '2s'\nmaxclients = 7\nrequirepass = 'hunter2'");
        let new = config.read_again().expect("a configuration");
        assert_eq!(new.settings.timeout.as_secs(), 9);
        assert_eq!(config.difference(&new), Ok(vec!["maxclients".to_owned()]));
        assert_eq!(new.path, config.path);
        write("timeout = 2");
        assert!(config.read_again().expect_err("no unit").contains(":1:11: `timeout`"));
    }
}
