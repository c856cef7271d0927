//! The keys of a `[store.NAME]` of kind `http`: an origin.

use super::{kind::Kind, tables::TableKey};
#[cfg(feature = "http")]
use super::{
    kind::Value,
    password::{read_limit, read_password, read_pool, wrong},
    settings::Settings,
    tables::Reader,
};
#[cfg(feature = "http")]
use crate::store::HttpOptions;
use crate::store::MAX_VALUE;

/// The keys that such a store has.
pub(super) const KEYS: &[&str] = &[
    "url",
    "password-env",
    "password-file",
    "pool",
    "statement-timeout",
    "max-body",
    "etag-cache",
];

/// The longest value.
pub(super) const MAX_BODY: TableKey = TableKey {
    name: "max-body",
    kind: Kind::Bytes(1, MAX_VALUE),
    default: "`\"64mb\"`",
    help: "`http`: the longest value; a longer one is refused, and not read to its end.",
};
/// What is kept for the next time.
pub(super) const ETAG_CACHE: TableKey = TableKey {
    name: "etag-cache",
    kind: Kind::Bytes(0, u32::MAX as u64),
    default: "`\"8mb\"`",
    help: "`http`: memory for values that came with an `ETag`, so that those that haven't changed aren't \
           sent again; `0`: none. It comes on top of `memory`.",
};

/// Reads the table of a store over HTTP.
#[cfg(feature = "http")]
pub(super) fn read(table: &Reader<'_>, settings: &Settings) -> Result<HttpOptions, String> {
    let Some(url) = table.text("url")? else {
        return Err(table.error("kind", "a store of kind `http` needs a `url`"));
    };
    let mut options = HttpOptions::new(&url).map_err(|why| wrong(table, "url", &why))?;
    if let Some(password) = read_password(table)? {
        let is_file = table.text("password-file")?.is_some();
        let key = if is_file { "password-file" } else { "password-env" };
        options.set_password(&password).map_err(|why| wrong(table, key, &why))?;
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
    if let Some(Value::Bytes(bytes)) = table.value("max-body")? {
        options.set_max_body(bytes);
    }
    if let Some(Value::Bytes(bytes)) = table.value("etag-cache")? {
        options.set_etag_cache(usize::try_from(bytes).unwrap_or(usize::MAX));
    }
    Ok(options)
}

#[cfg(all(test, feature = "http"))]
mod tests {
    use crate::config::{Config, StoreKind};

    const STORE: &str = "[store.a]\nkind = 'http'\n";
    const URL: &str = "url = 'http://origin:8080/base/'\n";

    fn read(text: &str) -> Result<Config, String> {
        Config::from_toml(&format!("{STORE}{text}"), "larder.toml")
    }

    #[test]
    fn an_origin() {
        let more = "pool = 2\nmax-body = '1mb'\netag-cache = 0\nstatement-timeout = '50ms'\n";
        let config = read(&format!("{URL}{more}")).expect("a store");
        assert!(matches!(&config.stores[0].kind, StoreKind::Http(_)));
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("password");
        std::fs::write(&path, "hunter2\n").expect("a file");
        let password = format!("password-file = '{}'\n", path.display());
        for url in ["http://app@origin/", "http://origin/"] {
            let config = read(&format!("url = '{url}'\n{password}")).expect("a store");
            assert!(!format!("{config:?}").contains("hunter2"));
        }
        std::fs::write(&path, "hunter\u{7}2\n").expect("a file");
        let why = read(&format!("{URL}{password}")).map(|_| ()).expect_err("no header");
        let message = "`password-file`: it has a character that HTTP can't send";
        assert!(why.ends_with(message), "{why}");
    }

    #[test]
    fn errors_say_where() {
        for (text, message) in [
            ("", "2:8: a store of kind `http` needs a `url`"),
            (
                "url = 'http://app:hunter2@origin/'\n",
                "3:7: `url`: no password here; name `password-env` or `password-file`",
            ),
            (
                "url = 'http://origin/base'\n",
                "3:7: `url`: end it with `/`, or say where the key goes with `{key}`",
            ),
            (&format!("{URL}versions = true\n"), "4:12: a store of kind `http` has no `versions`"),
        ] {
            let error = read(text).map(|_| ()).expect_err(text);
            assert_eq!(error, format!("larder.toml:{message}"), "{text}");
        }
        let tls = read("url = 'https://origin/'\n").map(|_| ()).expect_err("TLS");
        assert!(tls.starts_with("larder.toml:3:7: `url`: TLS is not supported yet"), "{tls}");
    }
}
