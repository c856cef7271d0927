//! CONFIG REWRITE: edits the file in place. A key whose value still says the same stays as it is
//! written; another value replaces it where it stands; a setting that the file lacks and that isn't
//! at its default is added behind the last one at the top. Comments and order stay. Keys of namespaces are
//! treated alike, where LARDER.NAMESPACE SET has changed them.
//!
//! The new text goes to a file beside the old one, is synced, and takes its place by a rename, so a
//! crash leaves one or the other.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use toml_edit::{DocumentMut, Item, Table, TableLike, Value as Toml};

use super::{
    Config, NAMESPACE_KEYS, NamespaceConfig, TableKey, file,
    kind::Value,
    reload::LIVE_NAMESPACE_KEYS,
    settings::{SETTINGS, Setting, Settings, same_name},
};

/// Keys of a namespace, and what they are to be; `None`: not there.
pub(super) type Edits = [(&'static TableKey, Option<Value>)];

/// Puts `settings`, and what may change of the configuration's namespaces, into the file at `path`.
pub(super) fn rewrite(path: &Path, settings: &Settings, config: &Config) -> Result<(), String> {
    // The file itself, should the path be a link to it.
    let path = path.canonicalize().map_err(|why| why.to_string())?;
    let old = file::load(&path)?;
    let mut new = edit(&old, settings)?;
    if !config.namespaces.is_empty() {
        let written = config.with_text(old.clone())?;
        for namespace in &written.namespaces {
            let own = config.namespaces.iter().find(|own| own.is_same(namespace));
            let edits = own.map_or_else(Vec::new, |own| edits(namespace, own));
            new = edit_namespace(&new, namespace, &edits)?;
        }
    }
    if new == old { Ok(()) } else { replace(&path, &new).map_err(|why| why.to_string()) }
}

/// The text with the values of `settings`.
fn edit(text: &str, settings: &Settings) -> Result<String, String> {
    let mut document: DocumentMut =
        text.parse().map_err(|_| "the file is no longer valid TOML".to_owned())?;
    for setting in SETTINGS {
        edit_setting(document.as_table_mut(), setting, settings);
    }
    Ok(document.to_string())
}

/// What has to change of a namespace, so that it is like another one.
fn edits(from: &NamespaceConfig, to: &NamespaceConfig) -> Vec<(&'static TableKey, Option<Value>)> {
    let differ = LIVE_NAMESPACE_KEYS.iter().filter(|(_, value)| value(from) != value(to));
    let edit = |(name, value): &super::reload::LiveKey| {
        let key = NAMESPACE_KEYS.iter().find(|key| key.name == *name)?;
        Some((key, Some(value(to)).filter(|value| *value != Value::Time(None))))
    };
    differ.filter_map(edit).collect()
}

/// The text with other keys of a namespace.
pub(super) fn edit_namespace(
    text: &str,
    namespace: &NamespaceConfig,
    edits: &Edits,
) -> Result<String, String> {
    let mut document: DocumentMut =
        text.parse().map_err(|_| "the file is no longer valid TOML".to_owned())?;
    let mut tables: Vec<&mut dyn TableLike> = match document.get_mut("namespace") {
        Some(Item::ArrayOfTables(list)) => {
            list.iter_mut().map(|table| table as &mut dyn TableLike).collect()
        }
        Some(Item::Value(Toml::Array(list))) => {
            let inline = list.iter_mut().filter_map(Toml::as_inline_table_mut);
            inline.map(|table| table as &mut dyn TableLike).collect()
        }
        _ => Vec::new(),
    };
    let is_it = |table: &&mut &mut dyn TableLike| {
        let prefix = table.get("prefix").and_then(Item::as_str).unwrap_or_default();
        let db = table.get("db").and_then(Item::as_integer).unwrap_or(0);
        namespace.is(prefix.as_bytes(), usize::try_from(db).unwrap_or(0))
    };
    let table = tables.iter_mut().find(is_it).ok_or("the file has no such namespace")?;
    for (key, value) in edits {
        edit_key(&mut **table, key, value.as_ref());
    }
    drop(tables);
    Ok(document.to_string())
}

/// Changes a key of a table where it stands, in whatever spelling, by itself or in a group.
fn edit_key(table: &mut dyn TableLike, key: &TableKey, value: Option<&Value>) {
    let (table, name) = match place_of(table, |found| same_name(key.name, found)) {
        Some(place) => held_by(table, place),
        None => (table, key.name.to_owned()),
    };
    let Some(value) = value else {
        table.remove(&name);
        return;
    };
    let mut toml = key.kind.toml(value);
    if let Some(old) = table.get(&name).and_then(Item::as_value) {
        *toml.decor_mut() = old.decor().clone();
    }
    table.insert(&name, Item::Value(toml));
}

/// Where a key stands: in which group, if in one, and its name there.
type Place = (Option<String>, String);

/// Finds a key by its whole name.
fn place_of(table: &dyn TableLike, is_it: impl Fn(&str) -> bool) -> Option<Place> {
    table.iter().find_map(|(found, item)| {
        if is_it(found) {
            return Some((None, found.to_owned()));
        }
        let mut parts = item.as_table_like()?.iter().map(|(part, _)| part);
        let part = parts.find(|part| is_it(&format!("{found}-{part}")))?;
        Some((Some(found.to_owned()), part.to_owned()))
    })
}

/// The table that has a key, and the key's name in it.
fn held_by(table: &mut dyn TableLike, (group, name): Place) -> (&mut dyn TableLike, String) {
    match group {
        Some(group) if table.get(&group).is_some_and(Item::is_table_like) => {
            let group = table.get_mut(&group).and_then(Item::as_table_like_mut);
            (group.expect("it is a table"), name)
        }
        _ => (table, name),
    }
}

fn edit_setting(root: &mut Table, setting: &Setting, settings: &Settings) {
    let value = setting.value(settings);
    let mut toml = setting.kind.toml(&value);
    let is_it = |found: &str| setting.names().any(|name| same_name(name, found));
    // What stands in these tables is no setting.
    let place = place_of(root, is_it).filter(|(group, _)| {
        group.as_ref().is_none_or(|group| !file::TABLES.contains(&group.as_str()))
    });
    if let Some(place) = place {
        let (table, key) = held_by(root, place);
        let Some(item) = table.get_mut(&key) else { return };
        if written(setting, item) == Some(value) {
            return;
        }
        if let Some(old) = item.as_value() {
            *toml.decor_mut() = old.decor().clone();
        }
        *item = Item::Value(toml);
    } else if value != setting.value(&Settings::default()) {
        root.insert(setting.name, Item::Value(toml));
    }
}

/// What the file says now, with the defaults for what it leaves open.
fn written(setting: &Setting, item: &Item) -> Option<Value> {
    let value = item.as_value().and_then(|toml: &Toml| setting.kind.parse_toml(toml).ok())?;
    let mut settings = Settings::default();
    setting.put(&mut settings, value);
    Some(setting.value(&settings))
}

/// Replaces the file's text, and keeps its permissions.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let temporary = beside(path);
    let written = write_new(&temporary, path, text).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // Best effort: the error that counts is the first one.
        let _ = fs::remove_file(&temporary);
    }
    written?;
    path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}

fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}.tmp", std::process::id()))
}

/// Readable by nobody else until it has the old file's permissions: it may hold a password.
fn write_new(temporary: &Path, like: &Path, text: &str) -> io::Result<()> {
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(temporary)?;
    file.write_all(text.as_bytes())?;
    file.set_permissions(fs::metadata(like)?.permissions())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::config::{Config, Live};

    const FILE: &str = "\
# Our cache.
port = 7000        # not the default

# How much it may take.
maxmemory = \"1gb\"  # of sixteen
tcp_keepalive = \"1m\"
client-output-buffer-limit = \"normal 1mb 0 0\"

# The database.
[store.main]
kind = \"redb\"      # embedded

[[namespace]]
prefix = \"user:\"
mode = \"read-through\"
store = \"main\"
";

    fn parsed(text: &str) -> Settings {
        Config::from_toml(text, "file").expect("a configuration").settings
    }

    fn changed(pairs: &[(&str, &str)]) -> (Settings, String) {
        let mut settings = parsed(FILE);
        for (name, text) in pairs {
            let setting = Setting::named(name).expect("a setting");
            setting.parse_into(&mut settings, text).expect("a value");
        }
        let text = edit(FILE, &settings).expect("edited");
        (settings, text)
    }

    #[test]
    fn what_stands_in_groups_is_changed_there() {
        let text = "disk = { size = \"1gb\", path = \"l3\" }  # fast\nslowlog = { max-len = 5 }\n\
                    [journal]\nlimit = \"8mb\"\n[store.timeout]\nkind = \"memory\"\n";
        let mut settings = parsed(text);
        assert_eq!(edit(text, &settings).as_deref(), Ok(text));
        for (name, value) in [("slowlog-max-len", "6"), ("store-timeout", "3000")] {
            let setting = Setting::named(name).expect("a setting");
            setting.parse_into(&mut settings, value).expect("a value");
        }
        let new = edit(text, &settings).expect("edited");
        assert!(new.contains("slowlog = { max-len = 6 }\nstore-timeout = \"3s\"\n"), "{new}");
        assert_eq!(parsed(&new), settings);
    }

    #[test]
    fn nothing_changed_nothing_touched() {
        assert_eq!(changed(&[]).1, FILE);
        assert_eq!(changed(&[("maxmemory", "1024mb"), ("tcp-keepalive", "60")]).1, FILE);
    }

    #[test]
    fn values_change_where_they_stand() {
        let (settings, text) = changed(&[("maxmemory", "2gb"), ("tcp-keepalive", "90")]);
        let expected = FILE.replace("\"1gb\"", "\"2gb\"").replace("\"1m\"", "\"90s\"");
        assert_eq!(text, expected);
        assert_eq!(parsed(&text), settings);
    }

    #[test]
    fn new_ones_come_behind_the_last() {
        let (settings, text) =
            changed(&[("requirepass", "a\"b\\c\n"), ("protected-mode", "no"), ("timeout", "7")]);
        let (top, tables) = FILE.split_once("\n# The database.").expect("two parts");
        assert!(text.starts_with(top), "{text}");
        assert!(text.ends_with(tables), "{text}");
        for line in ["protected-mode = false\n", "timeout = \"7s\"\n"] {
            assert!(text.contains(line), "{text}");
        }
        assert_eq!(parsed(&text), settings);
    }

    #[test]
    fn every_setting_survives() {
        let mut settings = Settings {
            unixsocket: Some("/tmp/s".into()),
            unixsocketperm: 0o700,
            slowlog_log_slower_than: None,
            bind: Vec::new(),
            maxmemory_policy: crate::config::MaxmemoryPolicy::Noeviction,
            ..Settings::default()
        };
        settings.client_output_buffer_limit.normal.hard = 1_500;
        for text in ["", "# only a comment", "[store.a]\nkind = 'memory'\n", FILE] {
            let text = edit(text, &settings).expect("edited");
            assert_eq!(parsed(&text), settings, "{text}");
        }
    }

    #[test]
    fn config_rewrite_end_to_end() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("larder.toml");
        fs::write(&path, FILE).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("permissions");
        let link = directory.path().join("link.toml");
        std::os::unix::fs::symlink(&path, &link).expect("a link");
        let config = Config::from_args(["larder".as_ref(), link.as_os_str()]).expect("a config");
        let live = Live::new(&config);
        live.config_set(&[(b"maxmemory", b"2gb")]).expect("set");
        live.rewrite().expect("rewritten");
        assert_eq!(fs::read_to_string(&path).expect("read"), FILE.replace("1gb", "2gb"));
        assert_eq!(fs::metadata(&path).expect("metadata").permissions().mode() & 0o777, 0o640);
        assert!(fs::symlink_metadata(&link).expect("the link").is_symlink());
        assert_eq!(fs::read_dir(directory.path()).expect("entries").count(), 2);
    }

    #[test]
    fn keys_of_namespaces_change_where_they_stand() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("larder.toml");
        let text = FILE
            .replace("store = \"main\"\n", "store = \"main\"  # it\nttl = '10m' # long\n\n")
            + "# Beside it.\n[[namespace]]\nprefix = ''\nmode = 'write-behind'\nstore = 'main'\n\
               behind = { delay = '1s', batch = 7 }\ntimeout_hard = '1s'\n";
        fs::write(&path, &text).expect("written");
        let config = Config::from_args(["larder".as_ref(), path.as_os_str()]).expect("a config");
        let live = Live::new(&config);
        let set = |prefix: &str, pairs: &[(&str, &str)]| {
            let pairs: Vec<_> = pairs.iter().map(|(k, v)| (k.as_bytes(), v.as_bytes())).collect();
            live.set_namespace((prefix.as_bytes(), 0), &pairs, |_| {}).expect("set");
        };
        set("user:", &[("ttl", "5m"), ("jitter", "10")]);
        set("", &[("behind-delay", "2500"), ("behind-batch", "default"), ("timeout-hard", "90s")]);
        live.rewrite().expect("rewritten");
        let found = fs::read_to_string(&path).expect("read");
        let expected = text
            .replace("ttl = '10m' # long\n", "ttl = \"5m\" # long\njitter = 10\n")
            .replace("{ delay = '1s', batch = 7 }", "{ delay = \"2500ms\", batch = 500 }")
            .replace("timeout_hard = '1s'", "timeout_hard = \"90s\"");
        assert_eq!(found, expected);
        set("user:", &[("ttl", "default"), ("jitter", "default")]);
        live.rewrite().expect("rewritten");
        let found = fs::read_to_string(&path).expect("read");
        assert!(!found.contains("ttl =") && found.contains("# Beside it."), "{found}");
    }

    #[test]
    fn a_file_that_broke_is_left_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("larder.toml");
        fs::write(&path, "port = [").expect("written");
        let error = rewrite(&path, &Settings::default(), &Config::default()).expect_err("broken");
        assert_eq!(error, "the file is no longer valid TOML");
        assert_eq!(fs::read_to_string(&path).expect("read"), "port = [");
        fs::remove_file(&path).expect("removed");
        let error = rewrite(&path, &Settings::default(), &Config::default()).expect_err("gone");
        assert!(error.starts_with("No such file"), "{error}");
    }
}
