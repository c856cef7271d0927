//! The keys of tables that say how copies are loaded, how long they are good, and what answers when they
//! aren't; and which of them contradict each other.

use std::time::Duration;

use super::{kind::Value, reader::Reader, settings::Settings};
use crate::policy::{Read, Write, mode_name};

/// What becomes of a namespace's copies that are old, and of keys that its store doesn't have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Copies {
    /// A copy that is older is renewed when it is read, beside the answer.
    pub refresh_after: Option<Duration>,
    /// How long beyond its `ttl` a copy answers reads for want of a better one.
    pub stale_if_error: Option<Duration>,
    /// How long reads believe that the store doesn't have a key.
    pub negative_ttl: Option<Duration>,
    /// How long a load may take before a copy past its `ttl` is the answer.
    pub timeout_soft: Option<Duration>,
    /// How long a load may take before it fails; `None`: `store-timeout`.
    pub timeout_hard: Option<Duration>,
}

/// How many keys a store loads with one call, and how many calls are under way at once.
pub(super) fn read_loads(table: &Reader<'_>) -> Result<(usize, usize), String> {
    let number = |name, default| match table.value(name)? {
        Some(Value::Integer(number)) => Ok(usize::try_from(number).unwrap_or(default)),
        _ => Ok::<_, String>(default),
    };
    Ok((number("load-batch", 128)?, number("loads-at-once", 4)?))
}

fn time(table: &Reader<'_>, name: &'static str) -> Result<Option<Duration>, String> {
    match table.value(name)? {
        Some(Value::Time(time)) => Ok(time),
        _ => Ok(None),
    }
}

/// Reads a namespace's keys.
pub(super) fn read(
    table: &Reader<'_>,
    (read, write): (Read, Write),
    ttl: Option<Duration>,
    jitter: u8,
    settings: &Settings,
) -> Result<Copies, String> {
    let names = ["refresh-after", "stale-if-error", "negative-ttl", "timeout-soft", "timeout-hard"];
    if read == Read::Aside
        && let Some(name) = names.into_iter().find(|name| table.has(name))
    {
        let mode = mode_name(read, write);
        let message = format!("mode `{mode}` loads nothing; leave out `{name}`");
        return Err(table.error(name, message));
    }
    let copies = Copies {
        refresh_after: time(table, "refresh-after")?,
        stale_if_error: time(table, "stale-if-error")?,
        negative_ttl: time(table, "negative-ttl")?,
        timeout_soft: time(table, "timeout-soft")?,
        timeout_hard: time(table, "timeout-hard")?,
    };
    match copies.contradiction(ttl, jitter, settings.store_timeout) {
        Some((name, why)) => Err(table.error(name, why)),
        None => Ok(copies),
    }
}

impl Copies {
    fn contradiction(
        &self,
        ttl: Option<Duration>,
        jitter: u8,
        store_timeout: Duration,
    ) -> Option<(&'static str, String)> {
        let hard = self.timeout_hard.unwrap_or(store_timeout);
        let whose = if self.timeout_hard.is_some() { "timeout-hard" } else { "store-timeout" };
        let wrong = |name, why: &str| Some((name, why.to_owned()));
        match (self.refresh_after, ttl) {
            (Some(_), None) => return wrong("refresh-after", "`refresh-after` without a `ttl`"),
            (Some(after), Some(ttl)) if after >= ttl => {
                return wrong("refresh-after", "`refresh-after` isn't below `ttl`");
            }
            // The shortest life of a copy is longer than the time before its end at which it is due.
            (Some(after), Some(ttl)) if after <= ttl * u32::from(jitter) / 100 => {
                let why = "`jitter` shortens some copies' `ttl` so much that they are due for a refresh \
                           at once; `refresh-after` has to be more than that part of `ttl`";
                return wrong("refresh-after", why);
            }
            _ => {}
        }
        match (self.stale_if_error, ttl) {
            (Some(_), None) => wrong("stale-if-error", "`stale-if-error` without a `ttl`"),
            (None, _) if self.timeout_soft.is_some() => {
                let why =
                    "`timeout-soft` without `stale-if-error`: no copy is kept that could answer";
                wrong("timeout-soft", why)
            }
            _ if self.timeout_soft.is_some_and(|soft| soft >= hard) => {
                Some(("timeout-soft", format!("`timeout-soft` isn't below `{whose}`")))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    const STORES: &str = "[store.main]\nkind = 'memory'\n[[namespace]]\nprefix = ''\n";

    fn read(text: &str) -> Result<Copies, String> {
        let text = format!("{STORES}mode = 'read-through'\nstore = 'main'\n{text}");
        Config::from_toml(&text, "x").map(|config| config.namespaces[0].copies)
    }

    fn error(text: &str) -> String {
        read(text).expect_err(text)
    }

    #[test]
    fn all_of_them_in_either_spelling() {
        let secs = |secs| Some(Duration::from_secs(secs));
        let wanted = Copies {
            refresh_after: secs(480),
            stale_if_error: secs(7200),
            negative_ttl: secs(5),
            timeout_soft: Some(Duration::from_millis(50)),
            timeout_hard: secs(2),
        };
        let first =
            "ttl = '10m'\nrefresh_after = '8m'\nstale-if-error = '2h'\nnegative_ttl = '5s'\n";
        for timeouts in [
            "timeout = { soft = '50ms', hard = '2s' }",
            "timeout-soft = '50ms'\ntimeout_hard = '2s'",
            "timeout-soft = '50ms'\nTimeout = { hard = '2s' }",
        ] {
            assert_eq!(read(&format!("{first}{timeouts}")), Ok(wanted), "{timeouts}");
        }
        assert_eq!(read(""), Ok(Copies::default()));
    }

    #[test]
    fn a_stores_loads_and_breaker_in_groups() {
        let text = "[store.a]\nkind = 'memory'\nload = { batch = 10 }\nloads_at_once = 2\n\
                    breaker = { failures = 30, open_for = '1s' }";
        let config = Config::from_toml(text, "x").expect("good");
        let store = &config.stores[0];
        assert_eq!((store.load_batch, store.loads_at_once), (10, 2));
        let breaker = store.breaker.as_ref().expect("there is one");
        assert_eq!((breaker.failure_percent, breaker.open_for), (30, Duration::from_secs(1)));
    }

    #[test]
    fn contradictions_and_mistakes_are_shown_where_they_are() {
        for (text, message) in [
            ("refresh-after = '1s'", "7:17: `refresh-after` without a `ttl`"),
            ("ttl = '1s'\nrefresh-after = '1s'", "8:17: `refresh-after` isn't below `ttl`"),
            ("stale-if-error = '1s'", "7:18: `stale-if-error` without a `ttl`"),
            (
                "ttl = '1s'\ntimeout = { soft = '1s' }",
                "8:20: `timeout-soft` without `stale-if-error`: no copy is kept that could answer",
            ),
            (
                "ttl = '1s'\nstale-if-error = '1s'\ntimeout = { soft = '1s', hard = '1s' }",
                "9:20: `timeout-soft` isn't below `timeout-hard`",
            ),
            (
                "ttl = '1s'\nstale-if-error = '1s'\ntimeout-soft = '2s'",
                "9:16: `timeout-soft` isn't below `store-timeout`",
            ),
            (
                "timeout = { sof = '1s' }",
                "7:13: unknown key `timeout-sof`; did you mean `timeout-soft`?",
            ),
            ("timeout-hard = '1s'\ntimeout = { hard = '1s' }", "8:13: `timeout-hard` is set twice"),
            ("jitter = { x = 1 }", "7:10: `jitter`: expected an integer"),
        ] {
            let told = error(text);
            assert!(told.starts_with(&format!("x:{message}")), "{text}: {told}");
        }
        let told = error("ttl = '10s'\njitter = 50\nrefresh-after = '5s'");
        assert!(told.starts_with("x:9:17: `jitter` shortens some copies' `ttl`"), "{told}");
        let aside = format!("{STORES}mode = 'cache-aside'\nnegative-ttl = '1s'");
        let told = Config::from_toml(&aside, "x").map(drop).expect_err("nothing is loaded");
        assert_eq!(told, "x:6:16: mode `cache-aside` loads nothing; leave out `negative-ttl`");
    }
}
