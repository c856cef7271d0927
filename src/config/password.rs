//! What a store's password, and its times, have in common whatever its kind. A secret is read here, and
//! shown nowhere.

use std::{fs, path::Path, time::Duration};

use super::{kind::Value, tables::Reader};

/// The largest file that a password is read from, in bytes.
const MAX_PASSWORD: u64 = 4096;

/// An error at a key of a store.
pub(super) fn wrong(table: &Reader<'_>, key: &str, why: &str) -> String {
    table.error(key, format!("`{key}`: {why}"))
}

/// How long the server may take for an answer.
pub(super) fn read_limit(table: &Reader<'_>) -> Result<Option<Duration>, String> {
    match table.value("statement-timeout")? {
        Some(Value::Time(limit)) => Ok(limit),
        _ => Ok(None),
    }
}

/// The most connections.
pub(super) fn read_pool(table: &Reader<'_>) -> Result<Option<usize>, String> {
    match table.value("pool")? {
        Some(Value::Integer(pool)) => Ok(Some(usize::try_from(pool).unwrap_or(1))),
        _ => Ok(None),
    }
}

/// The password, out of the environment or a file.
pub(super) fn read_password(table: &Reader<'_>) -> Result<Option<String>, String> {
    match (table.text("password-env")?, table.text("password-file")?) {
        (None, None) => Ok(None),
        (Some(_), Some(_)) => {
            let message = "`password-env` and `password-file`: only one of them";
            Err(table.error("password-file", message))
        }
        (Some(name), None) => {
            let missing = || {
                let name = name.escape_debug();
                wrong(table, "password-env", &format!("the environment has no text `{name}`"))
            };
            // Asking for a name that can't be one panics on some systems.
            let is_name = !name.is_empty() && !name.contains(['=', '\0']);
            let found = if is_name { std::env::var(&name).ok() } else { None };
            found.filter(|found| !found.is_empty()).map(Some).ok_or_else(missing)
        }
        (None, Some(path)) => password_in(Path::new(&path))
            .map(Some)
            .map_err(|why| wrong(table, "password-file", &why)),
    }
}

/// The first line of a file.
fn password_in(path: &Path) -> Result<String, String> {
    let length = fs::metadata(path).map_err(|why| why.to_string())?.len();
    if length > MAX_PASSWORD {
        return Err(format!("larger than {MAX_PASSWORD} bytes; no password"));
    }
    let text = fs::read_to_string(path).map_err(|why| why.to_string())?;
    match text.lines().next() {
        Some(line) if !line.is_empty() => Ok(line.to_owned()),
        _ => Err("its first line is empty".into()),
    }
}
