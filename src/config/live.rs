//! The settings in force, shared by all threads, and CONFIG GET, SET and REWRITE over them.
//!
//! A reader keeps what it derived from the settings and looks at [`Live::version`], one atomic
//! load, to learn that it is out of date. Writers take turns; a CONFIG SET of several settings
//! takes effect in one swap or not at all. The rules and texts are those of Redis 7
//! (<https://redis.io/docs/latest/commands/config-set/>).
//!
//! The file can be read again (SIGHUP), and keys of namespaces can be set (LARDER.NAMESPACE SET): that is a
//! change of the file's text in memory, so one reader judges both.

use std::{
    borrow::Cow,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use arc_swap::{ArcSwap, Guard};
use parking_lot::Mutex;

use super::{
    Config, NAMESPACE_KEYS, NamespaceConfig,
    kind::Value,
    reload::{LIVE_NAMESPACE_KEYS, LiveKey},
    rewrite,
    settings::{Change, SETTINGS, Setting, Settings},
};
use crate::error::ClientError;

const NO_NAMESPACE: ClientError = ClientError::new("ERR no namespace has this prefix");
/// The longest piece of a request that an error repeats, in characters.
const MAX_ECHO: usize = 1024;

/// The settings in force.
#[derive(Debug)]
pub struct Live {
    settings: ArcSwap<Settings>,
    version: AtomicU64,
    /// The configuration in force, but for its settings. Held while it or they change, and while the file
    /// is written.
    config: Mutex<Config>,
    path: Option<PathBuf>,
}

impl Live {
    /// The settings as the start found them.
    pub fn new(config: &Config) -> Self {
        Self {
            settings: ArcSwap::from_pointee(config.settings.clone()),
            version: AtomicU64::new(0),
            config: Mutex::new(config.clone()),
            path: config.path.clone(),
        }
    }

    /// The settings now. Don't keep the guard; clone the `Arc` in it to keep the settings.
    pub fn get(&self) -> Guard<Arc<Settings>> {
        self.settings.load()
    }

    /// Rises with each change. Read it before [`Live::get`]: what that returns is as new or newer.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// CONFIG GET: names and values, by name or by `glob(pattern, name)`, which ignores case. A
    /// plain name comes back as the client wrote it, each name once.
    pub fn config_get(
        &self,
        patterns: &[&[u8]],
        glob: impl Fn(&[u8], &[u8]) -> bool,
    ) -> Vec<(Cow<'static, str>, String)> {
        let settings = self.get();
        let mut found = Vec::new();
        for setting in SETTINGS {
            for name in setting.names() {
                let hit = patterns.iter().find_map(|pattern| matched(pattern, name, &glob));
                found.extend(hit.map(|name| (name, setting.redis_text(&settings))));
            }
        }
        found
    }

    /// CONFIG SET: all of the pairs or none; returns the names of the settings whose value is now
    /// another.
    ///
    /// # Errors
    /// In Redis's words: an unknown name, one that only a restart changes, the same one twice, a
    /// value that is refused.
    pub fn config_set(&self, pairs: &[(&[u8], &[u8])]) -> Result<Vec<&'static str>, ClientError> {
        let named = resolve(pairs)?;
        let config = self.config.lock();
        let before = self.settings.load_full();
        let mut after = Settings::clone(&before);
        for (setting, value) in named {
            set(setting, &mut after, value)?;
        }
        // What the next start would refuse isn't taken now.
        if let (Some(why), Some((name, _))) = (config.refuses(&after), pairs.first()) {
            return Err(failed(&echo(name), &why));
        }
        let changed = SETTINGS.iter().filter(|row| row.value(&before) != row.value(&after));
        let changed: Vec<_> = changed.map(|setting| setting.name).collect();
        if !changed.is_empty() {
            self.put(after);
        }
        Ok(changed)
    }

    fn put(&self, settings: Settings) {
        self.settings.store(Arc::new(settings));
        self.version.fetch_add(1, Ordering::Release);
    }

    /// Reads the file again: what changed in it and may change while the server runs is in force from
    /// here on, and what CONFIG SET had changed is as the file has it. More than `most` clients there aren't.
    /// `apply` brings the namespaces to the cache. Returns what changed, in words.
    ///
    /// # Errors
    /// If there is no file, it can't be read or is wrong, or something of the change takes a restart; then
    /// nothing has changed.
    pub fn reload(
        &self,
        most: u32,
        apply: impl FnOnce(&[NamespaceConfig]),
    ) -> Result<Vec<String>, String> {
        let mut config = self.config.lock();
        if self.path.is_none() {
            return Err("there is no configuration file".to_owned());
        }
        config.settings = Settings::clone(&self.get());
        let mut new = config.read_again()?;
        let clients = &mut new.settings.maxclients;
        *clients = (*clients).min(most.max(config.settings.maxclients));
        let changed = config.difference(&new)?;
        apply(&new.namespaces);
        if new.settings != config.settings {
            self.put(new.settings.clone());
        }
        *config = new;
        Ok(changed)
    }

    /// LARDER.NAMESPACE SET: keys of the namespace of a prefix in a database, all of them or none, as the file
    /// would have them; `default` takes one out. `apply` brings the namespaces to the cache.
    ///
    /// # Errors
    /// There is no such namespace or key, it takes a restart, or the value is refused.
    pub fn set_namespace(
        &self,
        (prefix, db): (&[u8], usize),
        pairs: &[(&[u8], &[u8])],
        apply: impl FnOnce(&[NamespaceConfig]),
    ) -> Result<(), ClientError> {
        let mut config = self.config.lock();
        let known = config.namespaces.iter().find(|namespace| namespace.is(prefix, db));
        let known = known.ok_or(NO_NAMESPACE)?.clone();
        let refused = |why: &str| ClientError::from(format!("ERR {}", echo(why.as_bytes())));
        let mut edits = Vec::new();
        for &(name, value) in pairs {
            let text = |bytes| std::str::from_utf8(bytes).map_err(|_| refused("not UTF-8"));
            let (name, value) = (text(name)?.to_ascii_lowercase(), text(value)?);
            let key = NAMESPACE_KEYS.iter().find(|key| key.name == name);
            let key = key.ok_or_else(|| refused(&format!("a namespace has no `{name}`")))?;
            if NamespaceConfig::live_key(key.name).is_none() {
                return Err(refused(&format!("a change of `{name}` takes a restart")));
            }
            let parsed = (value != "default").then(|| key.kind.parse(value)).transpose();
            let explain = |refusal| refused(&format!("`{name}`: {}", key.kind.explain(&refusal)));
            edits.push((key, parsed.map_err(explain)?));
        }
        let wrong = |why: String| refused(config.source.message(&why));
        let text = rewrite::edit_namespace(&config.source.text, &known, &edits).map_err(wrong)?;
        let new = config.with_text(text).map_err(wrong)?;
        let new = Config { settings: config.settings.clone(), ..new };
        config.difference(&new).map_err(wrong)?;
        apply(&new.namespaces);
        *config = new;
        Ok(())
    }

    /// LARDER.NAMESPACE GET: what may change of the namespace of a prefix in a database, names and values as
    /// CONFIG GET has them; where there is none the value is empty.
    ///
    /// # Errors
    /// There is no such namespace.
    pub fn get_namespace(
        &self,
        prefix: &[u8],
        db: usize,
    ) -> Result<Vec<(&'static str, String)>, ClientError> {
        let config = self.config.lock();
        let known = config.namespaces.iter().find(|namespace| namespace.is(prefix, db));
        let known = known.ok_or(NO_NAMESPACE)?;
        let one = |(name, value): &LiveKey| {
            let kind = NAMESPACE_KEYS.iter().find(|key| key.name == *name)?.kind;
            let text = match value(known) {
                Value::Time(None) => String::new(),
                value => kind.redis_text(&value),
            };
            Some((*name, text))
        };
        Ok(LIVE_NAMESPACE_KEYS.iter().filter_map(one).collect())
    }

    /// CONFIG REWRITE: puts the settings in force into the file that the server was started with,
    /// keeping its comments, its order and what it says in other words.
    ///
    /// # Errors
    /// There is no file, or it can't be read or written.
    pub fn rewrite(&self) -> Result<(), ClientError> {
        const NO_FILE: ClientError =
            ClientError::new("ERR The server is running without a config file");
        let path = self.path.as_deref().ok_or(NO_FILE)?;
        let config = self.config.lock();
        rewrite::rewrite(path, &self.get(), &config).map_err(|why| {
            ClientError::from(format!("ERR Rewriting config file: {}", echo(why.as_bytes())))
        })
    }

    /// The file that the server was started with, for INFO's `config_file`.
    pub fn path(&self) -> Option<&std::path::Path> {
        self.path.as_deref()
    }
}

/// The name to answer with, if the pattern is that name or matches it.
fn matched(
    pattern: &[u8],
    name: &'static str,
    glob: impl Fn(&[u8], &[u8]) -> bool,
) -> Option<Cow<'static, str>> {
    if pattern.iter().any(|byte| b"[*?".contains(byte)) {
        return glob(pattern, name.as_bytes()).then_some(Cow::Borrowed(name));
    }
    let same = pattern.eq_ignore_ascii_case(name.as_bytes());
    same.then(|| String::from_utf8_lossy(pattern).into_owned().into())
}

type Named<'a> = Vec<(&'static Setting, &'a [u8])>;

/// Finds the settings, and refuses what may not be set; nothing has been parsed yet.
fn resolve<'a>(pairs: &[(&[u8], &'a [u8])]) -> Result<Named<'a>, ClientError> {
    let mut named: Named<'a> = Vec::new();
    for &(name, value) in pairs {
        let setting = lookup(name).ok_or_else(|| {
            let name = echo(name);
            format!("ERR Unknown option or number of arguments for CONFIG SET - '{name}'")
        })?;
        if setting.change == Change::Restart {
            return Err(failed(&echo(name), "can't set immutable config"));
        }
        if named.iter().any(|(other, _)| other.name == setting.name) {
            return Err(failed(&echo(name), "duplicate parameter"));
        }
        named.push((setting, value));
    }
    Ok(named)
}

/// By exact name, in any case: for CONFIG, `_` isn't `-`.
fn lookup(name: &[u8]) -> Option<&'static Setting> {
    let same = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
    SETTINGS.iter().find(|setting| setting.names().any(same))
}

fn set(setting: &Setting, settings: &mut Settings, value: &[u8]) -> Result<(), ClientError> {
    let name = setting.redis.unwrap_or(setting.name);
    let Ok(text) = std::str::from_utf8(value) else {
        // A file could not say it.
        return Err(failed(name, "argument must be valid UTF-8"));
    };
    let refused = setting.parse_into(settings, text);
    refused.map_err(|refusal| failed(name, &setting.kind.redis_error(&refusal)))
}

fn failed(name: &str, why: &str) -> ClientError {
    format!("ERR CONFIG SET failed (possibly related to argument '{name}') - {why}").into()
}

/// Bytes of a client, fit for an error line.
fn echo(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes.get(..MAX_ECHO).unwrap_or(bytes));
    text.chars().map(|char| if char.is_control() { ' ' } else { char }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn live() -> Live {
        Live::new(&Config::default())
    }

    fn set(live: &Live, pairs: &[(&str, &str)]) -> Result<Vec<&'static str>, String> {
        let pairs: Vec<_> = pairs.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes())).collect();
        live.config_set(&pairs).map_err(|error| error.text().to_owned())
    }

    fn get(live: &Live, pattern: &str) -> Vec<(String, String)> {
        let found = live.config_get(&[pattern.as_bytes()], prefix);
        found.into_iter().map(|(name, value)| (name.into_owned(), value)).collect()
    }

    /// Enough of a glob for these tests: `prefix*`.
    fn prefix(pattern: &[u8], name: &[u8]) -> bool {
        pattern.strip_suffix(b"*").is_some_and(|start| name.starts_with(start))
    }

    fn pair(name: &str, value: &str) -> (String, String) {
        (name.to_owned(), value.to_owned())
    }

    #[test]
    fn a_change_is_seen_and_counted() {
        let live = live();
        assert_eq!(live.version(), 0);
        assert_eq!(
            set(&live, &[("maxmemory", "100mb"), ("TIMEOUT", "5")]),
            Ok(vec!["timeout", "memory"])
        );
        assert_eq!(live.version(), 1);
        assert_eq!(live.get().memory, 100 << 20);
        assert_eq!(set(&live, &[("timeout", "5")]), Ok(vec![]));
        assert_eq!(live.version(), 1);
    }

    /// CONFIG REWRITE would put it into the file.
    #[test]
    fn what_the_next_start_would_refuse_is_refused() {
        let toml = "memory = '100mb'\njournal = { limit = '20mb' }\n\
                    [[namespace]]\nprefix = 'a:'\nmode = 'cache-aside'\nquota = { memory = '60mb' }";
        let live = Live::new(&Config::from_toml(toml, "file").expect("a configuration"));
        let failed = "ERR CONFIG SET failed (possibly related to argument 'maxmemory') - ";
        for (memory, why) in [
            ("50mb", "the quota of namespace 'a:' is more"),
            ("30mb", "journal-limit: more than half of `memory`, in which it counts"),
        ] {
            let refused = set(&live, &[("maxmemory", memory)]).expect_err(memory);
            assert_eq!(refused, format!("{failed}{why}"));
        }
        assert_eq!(live.get().memory, 100 << 20);
        assert!(set(&live, &[("maxmemory", "60mb")]).is_ok());
    }

    #[test]
    fn get_by_name_and_by_pattern() {
        let live = live();
        assert_eq!(get(&live, "MaxMemory"), [pair("MaxMemory", "0")]);
        assert_eq!(get(&live, "memory"), [pair("memory", "0")]);
        let both = live.config_get(&[b"lfu*", b"lfu-decay-time", b"nosuch"], prefix);
        assert_eq!(
            both,
            [("lfu-log-factor".into(), "10".into()), ("lfu-decay-time".into(), "1".into())]
        );
        let limits = "normal 67108864 0 0";
        assert_eq!(get(&live, "client-out*"), [pair("client-output-buffer-limit", limits)]);
        assert_eq!(get(&live, "bind"), [pair("bind", "127.0.0.1 -::1")]);
        assert_eq!(get(&live, "*").len(), SETTINGS.iter().flat_map(Setting::names).count());
        assert_eq!(get(&live, "maxmemory_policy"), []);
    }

    #[test]
    fn the_password_is_answered_to_who_may_ask() {
        let live = live();
        set(&live, &[("requirepass", "hunter2")]).expect("set");
        assert_eq!(get(&live, "requirepass"), [pair("requirepass", "hunter2")]);
        assert!(!format!("{live:?}").contains("hunter2"));
    }

    #[test]
    fn all_or_nothing_in_redis_words() {
        let live = live();
        let failed = |name: &str, why: &str| {
            Err(format!("ERR CONFIG SET failed (possibly related to argument '{name}') - {why}"))
        };
        let unknown =
            Err("ERR Unknown option or number of arguments for CONFIG SET - 'NoSuch'".to_owned());
        for (pairs, error) in [
            (&[("timeout", "7"), ("NoSuch", "1")][..], unknown.clone()),
            (&[("timeout", "abc"), ("NoSuch", "1")], unknown),
            (&[("timeout", "7"), ("TIMEOUT", "8")], failed("TIMEOUT", "duplicate parameter")),
            (&[("memory", "1"), ("maxmemory", "2")], failed("maxmemory", "duplicate parameter")),
            (
                &[("timeout", "x"), ("DATABASES", "4")],
                failed("DATABASES", "can't set immutable config"),
            ),
            (
                &[("maxclients", "7"), ("TIMEOUT", "abc")],
                failed("timeout", "argument couldn't be parsed into an integer"),
            ),
            (
                &[("maxclients", "0")],
                failed("maxclients", "argument must be between 1 and 4294967295 inclusive"),
            ),
            (&[("memory", "-1")], failed("maxmemory", "argument must be a memory value")),
            (
                &[("loglevel", "loud")],
                failed(
                    "loglevel",
                    "argument(s) must be one of the following: debug, verbose, notice, warning",
                ),
            ),
            (
                &[("protected-mode", "1")],
                failed("protected-mode", "argument must be 'yes' or 'no'"),
            ),
        ] {
            assert_eq!(set(&live, pairs), error);
        }
        assert_eq!(**live.get(), Settings::default());
        assert_eq!(live.version(), 0);
    }

    #[test]
    fn bytes_of_a_client_are_tamed() {
        let live = live();
        let error = live.config_set(&[(b"a\r\n+OK", b"1")]).expect_err("unknown");
        assert!(error.text().ends_with("'a  +OK'"), "{error}");
        let long = vec![b'x'; 1 << 20];
        assert!(live.config_set(&[(&long, b"1")]).expect_err("unknown").text().len() < 2000);
        let error = live.config_set(&[(b"requirepass", b"\xff")]).expect_err("not UTF-8");
        assert!(error.text().ends_with("argument must be valid UTF-8"), "{error}");
    }

    #[test]
    fn what_config_get_answers_config_set_takes() {
        let live = live();
        for setting in SETTINGS.iter().filter(|setting| setting.change == Change::Live) {
            let (name, value) = get(&live, setting.name).remove(0);
            assert_eq!(set(&live, &[(&name, &value)]), Ok(vec![]), "{name}");
        }
    }

    #[test]
    fn no_file_to_rewrite() {
        let error = live().rewrite().expect_err("no file");
        assert_eq!(error.text(), "ERR The server is running without a config file");
    }

    #[test]
    fn threads_see_whole_changes() {
        let live = live();
        std::thread::scope(|scope| {
            for round in 0..4 {
                let live = &live;
                scope.spawn(move || {
                    for step in 1..50 {
                        let number = (round * 50 + step).to_string();
                        set(live, &[("maxclients", &number), ("timeout", &number)]).expect("set");
                        let now = live.get();
                        assert_eq!(u64::from(now.maxclients), now.timeout.as_secs());
                    }
                });
            }
        });
        assert_eq!(live.version(), 196);
    }
}
