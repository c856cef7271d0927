//! Reads the TOML file: the settings at its top, then stores and namespaces. Every error says where
//! (`file:line:column`) and what was expected; an unknown key names the nearest known one. Messages
//! never show a value, which may be a secret.

use std::{collections::HashMap, ops::Range, path::Path};

use toml_edit::{Document, Item, TableLike, Value as Toml};

use super::{
    Config,
    kind::{Kind, Value},
    namespaces::{self, NamespaceConfig},
    reload::Source,
    settings::{SETTINGS, Setting, Settings, nearest},
    tables,
};

/// The largest file that is read, in bytes.
pub(super) const MAX_FILE: u64 = 1 << 20;

/// Where something stands in the file, in bytes.
pub(super) type Span = Option<Range<usize>>;

/// A file's name and text, for positions.
#[derive(Clone, Copy)]
pub(super) struct Origin<'a> {
    pub name: &'a str,
    pub text: &'a str,
}

impl Origin<'_> {
    /// The same at a place, if it is there.
    pub fn error_at(&self, place: &Place<'_>, message: impl AsRef<str>) -> String {
        self.error(&place.find(*self), message)
    }

    /// `file:line:column: message`; lines and columns (characters) count from 1.
    pub fn error(&self, span: &Span, message: impl AsRef<str>) -> String {
        let (name, message) = (self.name, message.as_ref());
        let Some(before) = span.as_ref().and_then(|span| self.text.get(..span.start)) else {
            return format!("{name}: {message}");
        };
        let line = before.matches('\n').count() + 1;
        let start = before.rfind('\n').map_or(0, |at| at + 1);
        let column = before.get(start..).unwrap_or_default().chars().count() + 1;
        format!("{name}:{line}:{column}: {message}")
    }
}

/// Something in a file.
pub(super) enum Place<'a> {
    /// A setting, by its name.
    Setting(&'a str),
    /// A store, by its name.
    Store(&'a str),
    /// A key of a namespace.
    Namespace(&'a NamespaceConfig, &'a str),
    /// It isn't there.
    Nowhere,
}

impl Place<'_> {
    /// Where it stands in a text that has been read without an error.
    fn find(&self, origin: Origin<'_>) -> Span {
        let document = Document::parse(origin.text).ok()?;
        let root = document.as_table();
        match self {
            Self::Setting(name) => read_settings(origin, root).ok()?.1.remove(name)?,
            Self::Store(name) => {
                let stores = root.get("store")?.as_table_like()?;
                stores.get(name).and_then(Item::span).or_else(|| key_span(stores, name))
            }
            Self::Namespace(namespace, key) => {
                namespaces::place(origin, root.get("namespace")?, namespace, key)
            }
            Self::Nowhere => None,
        }
    }
}

/// The settings that the command line gave, already read.
pub(super) type Flags = Vec<(&'static Setting, Value)>;

/// The text of the file, if it isn't too large.
pub(super) fn load(path: &Path) -> Result<String, String> {
    let fail = |why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
    let length = std::fs::metadata(path).map_err(|why| fail(&why))?.len();
    if length > MAX_FILE {
        return Err(fail(&"larger than 1 MiB; not a configuration"));
    }
    std::fs::read_to_string(path).map_err(|why| fail(&why))
}

/// Reads a whole configuration; flags win over the file.
pub(super) fn read(origin: Origin<'_>, flags: Flags) -> Result<Config, String> {
    let document = Document::parse(origin.text)
        .map_err(|error| origin.error(&error.span(), error.message().trim().replace('\n', "; ")))?;
    let root = document.as_table();
    let (mut settings, spans) = read_settings(origin, root)?;
    let given = flags.iter().map(|(setting, value)| (setting.name, value.clone())).collect();
    for (setting, value) in flags {
        setting.put(&mut settings, value);
    }
    if let Some((name, why)) = settings.contradiction() {
        let span = spans.get(name).cloned().flatten();
        return Err(origin.error(&span, format!("`{name}`: {why}")));
    }
    let stores = tables::read_stores(origin, root.get("store"), &settings)?;
    let namespaces =
        namespaces::read_namespaces(origin, root.get("namespace"), &settings, &stores)?;
    let source =
        Source { name: origin.name.to_owned(), text: origin.text.to_owned(), flags: given };
    Ok(Config { settings, stores, namespaces, path: None, source })
}

/// The settings in the file, and where each key stands.
fn read_settings(
    origin: Origin<'_>,
    root: &dyn TableLike,
) -> Result<(Settings, HashMap<&'static str, Span>), String> {
    let mut settings = Settings::default();
    let mut spans = HashMap::new();
    let mut read = |key: &str, item: &Item, span: Span| {
        let setting =
            Setting::named(key).ok_or_else(|| unknown(origin, &span, key, top_names()))?;
        let (name, kind) = (setting.name, setting.kind);
        if spans.insert(name, span.clone()).is_some() {
            return Err(origin.error(&span, format!("`{key}` is `{name}`, which is set above")));
        }
        let value = parse(origin, key, kind, item, &span)?;
        setting.put(&mut settings, value);
        Ok(())
    };
    for (key, item) in root.iter().filter(|(key, _)| !TABLES.contains(key)) {
        match item.as_table_like().filter(|_| is_group(key)) {
            Some(group) => {
                for (part, item) in group.iter() {
                    read(&format!("{key}-{part}"), item, key_span(group, part))?;
                }
            }
            None => read(key, item, key_span(root, key))?,
        }
    }
    Ok((settings, spans))
}

/// Whether settings begin with this word, so that a table may hold them: `disk = { size = "1gb" }` is
/// `disk-size = "1gb"`.
fn is_group(word: &str) -> bool {
    let begins = |name: &str| name.strip_prefix(word).is_some_and(|rest| rest.starts_with('-'));
    Setting::named(word).is_none() && SETTINGS.iter().any(|setting| begins(setting.name))
}

/// The tables at the top of the file.
pub(super) const TABLES: [&str; 2] = ["store", "namespace"];

fn top_names() -> impl Iterator<Item = &'static str> {
    SETTINGS.iter().flat_map(Setting::names).chain(TABLES)
}

/// Reads the value of one key as a kind.
pub(super) fn parse(
    origin: Origin<'_>,
    key: &str,
    kind: Kind,
    item: &Item,
    span: &Span,
) -> Result<Value, String> {
    let at = item.span().or_else(|| span.clone());
    let Some(toml) = item.as_value() else {
        let message = format!("`{key}`: expected {}, found a table", kind.expected());
        return Err(origin.error(span, message));
    };
    kind.parse_toml(toml).map_err(|refusal| {
        let found = if matches!(toml, Toml::String(_)) { "" } else { toml.type_name() };
        let found = if found.is_empty() { String::new() } else { format!(" (found: {found})") };
        origin.error(&at, format!("`{key}`: {}{found}", kind.explain(&refusal)))
    })
}

/// Where a key of a table stands.
pub(super) fn key_span(table: &dyn TableLike, key: &str) -> Span {
    table.get_key_value(key).and_then(|(key, _)| key.span())
}

/// The error for a key that nobody knows.
pub(super) fn unknown(
    origin: Origin<'_>,
    span: &Span,
    key: &str,
    known: impl IntoIterator<Item = &'static str>,
) -> String {
    let hint =
        nearest(key, known).map_or_else(String::new, |name| format!("; did you mean `{name}`?"));
    origin.error(span, format!("unknown key `{}`{hint}", key.escape_debug()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::config::MaxmemoryPolicy;

    fn config(text: &str) -> Config {
        Config::from_toml(text, "larder.toml").expect(text)
    }

    fn error(text: &str) -> String {
        Config::from_toml(text, "larder.toml").map(|_| ()).expect_err(text)
    }

    #[test]
    fn an_empty_file_is_the_default() {
        assert_eq!(Config { source: Source::default(), ..config("") }, Config::default());
    }

    #[test]
    fn settings_of_every_kind() {
        let text = r#"
            port = 0
            bind = ["0.0.0.0", "-::"]
            unixsocket = "/run/larder.sock"
            unixsocketperm = "770"
            protected_mode = false
            memory = "4gb"
            maxmemory_policy = "allkeys-lru"
            tcp-keepalive = "1m"
            slowlog-log-slower-than = "off"
            client-output-buffer-limit = "normal 1mb 0 0"
        "#;
        let settings = config(text).settings;
        assert_eq!(settings.port, 0);
        assert_eq!(settings.bind.len(), 2);
        assert_eq!(settings.unixsocketperm, 0o770);
        assert!(!settings.protected_mode);
        assert_eq!(settings.memory_limit(), 4 << 30);
        assert_eq!(settings.maxmemory_policy, MaxmemoryPolicy::AllkeysLru);
        assert_eq!(settings.tcp_keepalive, Duration::from_secs(60));
        assert_eq!(settings.slowlog_log_slower_than, None);
        assert_eq!(settings.client_output_buffer_limit.normal.hard, 1 << 20);
    }

    #[test]
    fn aliases_and_spellings_are_the_same_key() {
        for key in ["memory", "maxmemory"] {
            assert_eq!(config(&format!("{key} = '1gb'")).settings.memory, 1 << 30);
        }
        let message = error("memory = '1gb'\nmaxmemory = '2gb'\n");
        assert_eq!(message, "larder.toml:2:1: `maxmemory` is `memory`, which is set above");
        let message = error("tcp-backlog = 5\ntcp_backlog = 6\n");
        assert_eq!(message, "larder.toml:2:1: `tcp_backlog` is `tcp-backlog`, which is set above");
    }

    #[test]
    fn a_table_holds_settings_that_begin_alike() {
        let text = "[disk]\nsize = '1gb'\nwrite_rate = '5mb'\n";
        for text in [text, "disk = { size = '1gb', write_rate = '5mb' }", "disk-size = '1gb'"] {
            assert_eq!(config(text).settings.disk_size, 1 << 30);
        }
        assert_eq!(config(text).settings.disk_write_rate, 5 << 20);
        let message = error("disk = { siz = '1gb' }");
        assert_eq!(message, "larder.toml:1:10: unknown key `disk-siz`; did you mean `disk-size`?");
    }

    #[test]
    fn errors_say_where_and_what_was_expected() {
        for (text, message) in [
            ("port = 1\n prot = 6379\n", "2:2: unknown key `prot`; did you mean `port`?"),
            ("namespaces = 1", "1:1: unknown key `namespaces`; did you mean `namespace`?"),
            ("xyzzy = 1", "1:1: unknown key `xyzzy`"),
            ("dir = ''", "1:1: `dir`: empty; `.` is the directory of the start"),
            ("port = 70000", "1:8: `port`: expected an integer from 0 to 65535 (found: integer)"),
            ("port = '6379'", "1:8: `port`: expected an integer from 0 to 65535"),
            ("[port]", "1:2: `port`: expected an integer from 0 to 65535, found a table"),
            (
                "memory = 100",
                "1:10: `memory`: a bare number has no unit; expected a size with its unit, such as \
                 \"512mb\" (found: integer)",
            ),
            (
                "# ü\ntimeout = \"60\"",
                "2:11: `timeout`: a bare number has no unit; expected a duration in whole seconds \
                 with its unit, such as \"10s\"",
            ),
            (
                "loglevel = \"loud\"",
                "1:12: `loglevel`: expected one of debug, verbose, notice, warning",
            ),
            (
                "unixsocketperm = '700'",
                "1:1: `unixsocketperm`: there is no `unixsocket` that could have permissions",
            ),
        ] {
            assert_eq!(error(text), format!("larder.toml:{message}"), "{text}");
        }
        assert!(error("port = 1\nport = 2\n").starts_with("larder.toml:2:1: "));
        assert!(error("a = \n").starts_with("larder.toml:1:"));
    }

    #[test]
    fn an_error_does_not_show_a_secret() {
        for text in
            ["requirepass = hunter2", "requirepass = \"hunter2", "requirepass = ['hunter2']"]
        {
            assert!(!error(text).contains("hunter2"), "{}", error(text));
        }
    }

    proptest! {
        #[test]
        fn any_file_is_read_without_a_panic(
            text in "([a-z\\[\\]=\"'{},.0-9# \n]|port|store|namespace|memory){0,40}",
        ) {
            let _ = Config::from_toml(&text, "x");
        }
    }
}
