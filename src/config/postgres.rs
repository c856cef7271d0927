//! The keys of a `[store.NAME]` of kind `postgres`. What they say is checked here, so that a mistake is
//! shown with its line.

use super::{
    password::{read_limit, read_password, read_pool, wrong},
    settings::Settings,
    tables::Reader,
};
use crate::store::{PostgresOptions, SqlTexts};

/// Reads the table of a store over Postgres.
pub(super) fn read(table: &Reader<'_>, settings: &Settings) -> Result<PostgresOptions, String> {
    let Some(url) = table.text("url")? else {
        return Err(table.error("kind", "a store of kind `postgres` needs a `url`"));
    };
    let mut options = PostgresOptions::new(&url).map_err(|why| wrong(table, "url", &why))?;
    if let Some(password) = read_password(table)? {
        options.set_password(&password);
    }
    if let Some(pool) = read_pool(table)? {
        options.set_pool(pool);
    }
    options
        .set_timeouts(settings.store_timeout, read_limit(table)?)
        .map_err(|why| wrong(table, "statement-timeout", &why))?;
    read_layout(table, &mut options)?;
    Ok(options)
}

/// A table of its own, or SQL.
fn read_layout(table: &Reader<'_>, options: &mut PostgresOptions) -> Result<(), String> {
    let name = table.text("table")?;
    let [pattern, load, save, delete] =
        [table.text("pattern")?, table.text("load")?, table.text("save")?, table.text("delete")?];
    let sql = [("pattern", &pattern), ("load", &load), ("save", &save), ("delete", &delete)];
    let first = sql.into_iter().find(|(_, text)| text.is_some()).map(|(key, _)| key);
    match (name, first) {
        (None, None) => Ok(()),
        (Some(_), Some(key)) => Err(table.error(
            key,
            format!("a store has a `table` of its own or SQL: leave out `table` or `{key}`"),
        )),
        (Some(name), None) => options.set_table(&name).map_err(|why| wrong(table, "table", &why)),
        (None, Some(key)) => {
            let (Some(pattern), Some(load)) = (&pattern, &load) else {
                let missing = if pattern.is_none() { "pattern" } else { "load" };
                return Err(table.error(key, format!("`{key}` needs a `{missing}` beside it")));
            };
            let (save, delete) = (save.as_deref(), delete.as_deref());
            let texts = SqlTexts { pattern, load, save, delete };
            options.set_sql(texts).map_err(|(key, why)| wrong(table, key, &why))
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, StoreKind};

    const STORE: &str = "[store.a]\nkind = 'postgres'\n";
    const URL: &str = "url = 'postgres://app@localhost/shop'\n";

    fn read(text: &str) -> Result<Config, String> {
        Config::from_toml(&format!("{STORE}{text}"), "larder.toml")
    }

    fn error(text: &str) -> String {
        read(text).map(|_| ()).expect_err(text)
    }

    #[test]
    fn a_store_with_a_table_or_with_sql() {
        let config = read(URL).expect("a store");
        assert!(matches!(&config.stores[0].kind, StoreKind::Postgres(_)));
        let sql = "pattern = 'user:{id}'\nload = 'select name from users where id = :id'\n";
        for more in ["table = 'cache.kv'\npool = 2\n", sql, "statement_timeout = '50ms'\n"] {
            read(&format!("{URL}{more}")).expect(more);
        }
    }

    #[test]
    fn errors_say_where() {
        let sql = "pattern = 'user:{id}'\nload = 'select name from users where id = :id'\n";
        for (text, message) in [
            ("", "2:8: a store of kind `postgres` needs a `url`"),
            ("path = 'x'\n", "3:8: a store of kind `postgres` has no `path`"),
            ("url = 'mysql://x'\n", "3:7: `url`: expected \"postgres://user@host:5432/database\""),
            (
                "url = 'postgres://app:hunter2@localhost/shop'\n",
                "3:7: `url`: no password here; name `password-env` or `password-file`",
            ),
            (
                &format!("{URL}pool = 0\n"),
                "4:8: `pool`: expected an integer from 1 to 1000 (found: integer)",
            ),
            (
                &format!("{URL}statement-timeout = '2s'\n"),
                "4:21: `statement-timeout`: not below `store-timeout`, which is 2s",
            ),
            (
                &format!("{URL}password-env = 'LARDER_NO_SUCH_NAME'\n"),
                "4:16: `password-env`: the environment has no text `LARDER_NO_SUCH_NAME`",
            ),
            (
                &format!("{URL}password-env = 'A'\npassword-file = 'B'\n"),
                "5:17: `password-env` and `password-file`: only one of them",
            ),
            (
                &format!("{URL}table = 'a b'\n"),
                "4:9: `table`: expected `name` or `schema.name`, of letters, digits and `_`",
            ),
            (
                &format!("{URL}table = 'a'\n{sql}"),
                "5:11: a store has a `table` of its own or SQL: leave out `table` or `pattern`",
            ),
            (&format!("{URL}save = 'x'\n"), "4:8: `save` needs a `pattern` beside it"),
            (&format!("{URL}pattern = 'x'\n"), "4:11: `pattern` needs a `load` beside it"),
            (
                &format!("{URL}{sql}delete = 'delete from users where id = :di'\n"),
                "6:10: `delete`: nothing is called `:di`; there are `:id`, `:version`",
            ),
            (
                &format!("{URL}pattern = '{{a}}{{b}}'\nload = 'x'\n"),
                "4:11: `pattern`: nothing tells where `{b}` begins",
            ),
            (
                &format!(
                    "{URL}{sql}[[namespace]]\nprefix = 'user:'\nmode = 'write-through'\nstore = 'a'\n"
                ),
                "9:9: `write = \"through\"` needs a `save` in `[store.a]`",
            ),
            (
                &format!(
                    "{URL}{sql}[[namespace]]\nprefix = 'usr:'\nmode = 'read-through'\nstore = 'a'\n"
                ),
                "9:9: no key with this `prefix` fits the `pattern` of `[store.a]`",
            ),
        ] {
            assert_eq!(error(text), format!("larder.toml:{message}"), "{text}");
        }
        assert!(error("[store.b]\nkind = 'memory'\nurl = 'x'").contains("needs a `url`"));
        let other = Config::from_toml("[store.b]\nkind = 'memory'\nurl = 'x'", "f").map(|_| ());
        assert_eq!(other, Err("f:3:7: a store of kind `memory` has no `url`".into()));
    }

    #[test]
    fn a_password_comes_from_a_file_and_shows_nowhere() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("password");
        std::fs::write(&path, "hunter2\n").expect("a file");
        let text = format!("{URL}password-file = '{}'\n", path.display());
        let config = read(&text).expect("a store");
        assert!(!format!("{config:?}").contains("hunter2"));
        std::fs::write(&path, "\n").expect("a file");
        let why = error(&text);
        assert!(why.ends_with("`password-file`: its first line is empty"), "{why}");
        std::fs::remove_file(&path).expect("it is there");
        assert!(error(&text).starts_with("larder.toml:4:17: `password-file`: "));
    }
}
