//! `docs/configuration.md`, made from the tables of settings, stores and namespaces. A test
//! compares the file with what [`markdown`] returns; run it with `LARDER_UPDATE_DOCS=1` to write
//! the file.

use super::{
    composed::COMPOSED_KEYS,
    kind::{Kind, Unit},
    namespaces::{NAMESPACE_KEYS, NamespaceConfig},
    settings::{Change, SETTINGS, Setting},
    tables::{STORE_KEYS, TableKey},
};

const INTRODUCTION: &str = "\
<!-- Made from src/config by `LARDER_UPDATE_DOCS=1 cargo test --lib config::docs`; don't edit. -->

# Configuration

`larder [CONFIG] [--flag value ...]` reads a TOML file, if one is named, and then its flags, which
win. A setting has one name: it is the key in the file (`tcp-keepalive = \"5m\"`; underscores do as
well), the flag (`--tcp-keepalive 5m`) and the parameter of `CONFIG GET` and `CONFIG SET`
(`CONFIG SET tcp-keepalive 300`). It is Redis's name where Redis has the setting. An unknown key, a
value that doesn't fit or a contradiction ends the start with exit code 2 and the line.

- **Sizes** have a unit in either case, as in redis.conf: `1k` is 1000 bytes, `1kb` 1024; `m`, `mb`,
  `g`, `gb` likewise, `b` for bytes.
- **Durations** have a unit: `us`, `ms`, `s`, `m`, `h`, `d`.
- In the file a bare number where a unit is needed is an error (0 needs none). Flags and
  `CONFIG SET` also take bare numbers, as Redis does: bytes, or the unit that the setting is
  counted in. `CONFIG GET` answers in such numbers.
- **Live** settings can be changed with `CONFIG SET`, several at once and all or none; the others
  take a restart. `CONFIG REWRITE` puts what was changed into the file and keeps its comments.
- At **SIGHUP** the server reads the file again: live settings, and what may change of namespaces, are
  as the file and the flags have them from then on, also where `CONFIG SET` or `LARDER.NAMESPACE SET`
  had changed them. If the file is wrong, or anything in it that takes a restart has changed, nothing
  changes, and the log says what it was and where it stands.
- `requirepass` shows in no log, error or help; `CONFIG GET requirepass` answers it, as in Redis,
  to clients that have authenticated.
";

/// The reference page of all settings.
pub fn markdown() -> String {
    let mut page = INTRODUCTION.to_owned();
    let mut group = "";
    for setting in SETTINGS {
        if setting.group != group {
            group = setting.group;
            page += &format!("\n## {group}\n\n{SETTINGS_HEAD}");
        }
        page += &row(setting);
    }
    page + STORES
        + &key_rows(STORE_KEYS)
        + &key_rows(COMPOSED_KEYS)
        + NAMESPACES
        + &NAMESPACE_KEYS.iter().map(namespace_row).collect::<String>()
}

const SETTINGS_HEAD: &str = "\
| Key and flag | Redis's name | Values | Default | Live | |
|---|---|---|---|---|---|
";

const STORES: &str = "
## Stores

`[store.NAME]` declares a store, a system of record behind the cache; namespaces refer to it by NAME
(letters, digits, `-`, `_`). Stores and namespaces are in the file only. Stores take a restart.

| Key | Values | Default | |
|---|---|---|---|
";

const NAMESPACES: &str = "
## Namespaces

Each `[[namespace]]` says what a miss and a write of the keys with its prefix do. A prefix is unique
within its database. Live keys change at SIGHUP, and with `LARDER.NAMESPACE SET prefix key value ...`
(`default` takes a key out, `LARDER.NAMESPACE GET prefix` shows them); `CONFIG REWRITE` puts them into
the file. A new `ttl` is that of copies loaded from then on; of those that are there, one that would be
fresh for longer than it is loaded again.

| Key | Values | Default | Live | |
|---|---|---|---|---|
";

fn row(setting: &Setting) -> String {
    format!(
        "| `{name}`<br>`--{name}` | {redis} | {values} | `{default}` | {live} | {help} |\n",
        name = setting.name,
        redis = setting.redis.map_or_else(|| "none".to_owned(), |name| format!("`{name}`")),
        values = values(setting.kind),
        default = setting.default_text(),
        live = if setting.change == Change::Live { "yes" } else { "no" },
        help = setting.help(),
    )
}

fn key_rows(keys: &[TableKey]) -> String {
    let row = |key: &TableKey| {
        format!("| `{}` | {} | {} | {} |\n", key.name, values(key.kind), key.default, key.help)
    };
    keys.iter().map(row).collect()
}

fn namespace_row(key: &TableKey) -> String {
    format!(
        "| `{}` | {} | {} | {} | {} |\n",
        key.name,
        values(key.kind),
        key.default,
        if NamespaceConfig::live_key(key.name).is_some() { "yes" } else { "no" },
        key.help
    )
}

/// What values a kind takes, in few words.
fn values(kind: Kind) -> String {
    match kind {
        Kind::Bool => "`true`, `false`; for flags and CONFIG `yes`, `no`".to_owned(),
        Kind::Integer(..) => kind.expected().trim_start_matches("an ").to_owned(),
        Kind::Octal => "permissions in octal (`\"700\"`)".to_owned(),
        Kind::Bytes(..) => {
            let bounds = kind.expected();
            format!("size{}", bounds.split_once("\"512mb\"").map_or("", |(_, bounds)| bounds))
        }
        Kind::Time(unit, low, _) => duration(unit, low < 0),
        Kind::Choice(names) => {
            names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
        }
        Kind::Text | Kind::Secret => "text".to_owned(),
        Kind::Path => "path".to_owned(),
        Kind::Addresses => "list of addresses; for CONFIG separated by blanks".to_owned(),
        Kind::Percentiles => "list of percentiles; for CONFIG separated by blanks".to_owned(),
        Kind::List(what) => what.to_owned(),
        Kind::Endpoint => "`\"ADDRESS:PORT\"`".to_owned(),
        Kind::Limits => "`\"CLASS HARD SOFT SECONDS ...\"`".to_owned(),
    }
}

fn duration(unit: Unit, off: bool) -> String {
    let off = if off { "; `\"off\"`, for CONFIG -1" } else { "" };
    format!("duration, counted in {}{off}", unit.name())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configuration.md");

    #[test]
    fn the_page_is_up_to_date() {
        let page = markdown();
        if std::env::var_os("LARDER_UPDATE_DOCS").is_some() {
            std::fs::write(PATH, &page).expect("docs/configuration.md can be written");
        }
        let found = std::fs::read_to_string(PATH).unwrap_or_default();
        assert!(
            found == page,
            "docs/configuration.md is out of date: run with LARDER_UPDATE_DOCS=1"
        );
    }

    #[test]
    fn every_row_has_its_columns() {
        for line in markdown().lines().filter(|line| line.starts_with('|')) {
            let columns = line.matches('|').count();
            assert!((5..=7).contains(&columns), "{line}");
        }
    }

    #[test]
    fn every_name_is_on_the_page() {
        let page = markdown();
        for name in SETTINGS.iter().flat_map(Setting::names) {
            assert!(page.contains(&format!("`{name}`")), "{name}");
        }
    }
}
