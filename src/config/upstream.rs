//! The keys of a `[store.NAME]` of kind `redis`: a server upstream that speaks the Redis protocol.

use super::{kind::Kind, tables::TableKey};
#[cfg(feature = "redis-store")]
use super::{
    kind::Value,
    password::{read_limit, read_password, read_pool, wrong},
    settings::Settings,
    tables::Reader,
};
#[cfg(feature = "redis-store")]
use crate::store::RedisOptions;

/// The keys that such a store has.
pub(super) const KEYS: &[&str] =
    &["url", "password-env", "password-file", "pool", "statement-timeout", "versions"];

/// Whether versions are kept.
pub(super) const VERSIONS: TableKey = TableKey {
    name: "versions",
    kind: Kind::Bool,
    default: "`false`",
    help: "`redis`: whether the version of each key is kept beside it, in `larder:version:KEY`, so that \
           an older write never wins; it takes a server with scripts.",
};

/// Reads the table of a store over a Redis.
#[cfg(feature = "redis-store")]
pub(super) fn read(table: &Reader<'_>, settings: &Settings) -> Result<RedisOptions, String> {
    let Some(url) = table.text("url")? else {
        return Err(table.error("kind", "a store of kind `redis` needs a `url`"));
    };
    let mut options = RedisOptions::new(&url).map_err(|why| wrong(table, "url", &why))?;
    if let Some(password) = read_password(table)? {
        options.set_password(&password);
    }
    if options.lacks_password() {
        return Err(wrong(table, "url", "a user needs a `password-env` or `password-file`"));
    }
    if let Some(pool) = read_pool(table)? {
        options.set_pool(pool);
    }
    options
        .set_timeouts(settings.store_timeout, read_limit(table)?)
        .map_err(|why| wrong(table, "statement-timeout", &why))?;
    options.set_versions(table.value("versions")? == Some(Value::Bool(true)));
    Ok(options)
}

#[cfg(all(test, feature = "redis-store"))]
mod tests {
    use crate::config::{Config, StoreKind};

    const STORE: &str = "[store.a]\nkind = 'redis'\n";
    const URL: &str = "url = 'redis://cache:6379/0'\n";

    fn read(text: &str) -> Result<Config, String> {
        Config::from_toml(&format!("{STORE}{text}"), "larder.toml")
    }

    #[test]
    fn a_store_upstream() {
        let more = "pool = 2\nversions = true\nstatement-timeout = '50ms'\nbreaker = false\n";
        let config = read(&format!("{URL}{more}")).expect("a store");
        assert!(matches!(&config.stores[0].kind, StoreKind::Redis(_)));
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("password");
        std::fs::write(&path, "hunter2\n").expect("a file");
        let user = "url = 'redis://app@cache'\n";
        let config = read(&format!("{user}password-file = '{}'\n", path.display()));
        assert!(!format!("{:?}", config.expect("a store")).contains("hunter2"));
    }

    #[test]
    fn errors_say_where() {
        for (text, message) in [
            ("", "2:8: a store of kind `redis` needs a `url`"),
            (
                "url = 'redis://app:hunter2@cache'\n",
                "3:7: `url`: no password here; name `password-env` or `password-file`",
            ),
            (
                "url = 'redis://app@cache'\n",
                "3:7: `url`: a user needs a `password-env` or `password-file`",
            ),
            (&format!("{URL}table = 'x'\n"), "4:9: a store of kind `redis` has no `table`"),
            (
                &format!("{URL}max-body = '1mb'\n"),
                "4:12: a store of kind `redis` has no `max-body`",
            ),
            (
                &format!("{URL}statement-timeout = '2s'\n"),
                "4:21: `statement-timeout`: not below `store-timeout`, which is 2s",
            ),
        ] {
            let error = read(text).map(|_| ()).expect_err(text);
            assert_eq!(error, format!("larder.toml:{message}"), "{text}");
        }
        let tls = read("url = 'rediss://cache'\n").map(|_| ()).expect_err("TLS");
        assert!(tls.starts_with("larder.toml:3:7: `url`: TLS is not supported yet"), "{tls}");
    }
}
