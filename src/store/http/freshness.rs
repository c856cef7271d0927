//! What an answer says of how long a copy of it is good for (RFC 9111): `Cache-Control`, less the `Age` that
//! it has already. `Expires` and heuristics are not looked at: then the namespace's `ttl` alone holds.

use std::time::Duration;

use hyper::{HeaderMap, header};

/// How long a copy is good for; zero: there is to be none. `None`: the answer says nothing of it.
pub(super) fn of(headers: &HeaderMap) -> Option<Duration> {
    if directives(headers).any(|(name, _)| is(name, &["no-store", "no-cache", "private"])) {
        return Some(Duration::ZERO);
    }
    // Larder is a cache that many share.
    let most = seconds(headers, "s-maxage").or_else(|| seconds(headers, "max-age"))?;
    let age = headers.get(header::AGE).and_then(|age| age.to_str().ok()?.trim().parse().ok());
    Some(Duration::from_secs(most.saturating_sub(age.unwrap_or(0))))
}

/// Whether not even a copy that is asked for again may be kept.
pub(super) fn forbids_keeping(headers: &HeaderMap) -> bool {
    directives(headers).any(|(name, _)| is(name, &["no-store", "private"]))
}

fn is(name: &str, names: &[&str]) -> bool {
    names.iter().any(|known| name.eq_ignore_ascii_case(known))
}

/// A number of seconds; what isn't one is over already, as the RFC advises.
fn seconds(headers: &HeaderMap, name: &str) -> Option<u64> {
    let (_, value) = directives(headers).find(|(found, _)| is(found, &[name]))?;
    let digits = value.trim_matches('"');
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    // More than fits is for ever, nearly.
    Some(if is_number {
        digits.parse().unwrap_or(u64::from(u32::MAX)).min(u32::MAX.into())
    } else {
        0
    })
}

fn directives(headers: &HeaderMap) -> impl Iterator<Item = (&str, &str)> {
    let lines = headers.get_all(header::CACHE_CONTROL).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(|part| {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        (name.trim(), value.trim())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh(lines: &[(&'static str, &'static str)]) -> Option<u64> {
        let pairs = lines.iter().map(|(name, value)| {
            (name.parse::<header::HeaderName>().unwrap(), value.parse().unwrap())
        });
        of(&pairs.collect()).map(|fresh| fresh.as_secs())
    }

    #[test]
    fn cache_control_says_how_long() {
        let control = |value| fresh(&[("cache-control", value)]);
        assert_eq!(fresh(&[]), None);
        assert_eq!(control("public"), None);
        assert_eq!(control("max-age=60"), Some(60));
        assert_eq!(control("Max-Age=\"60\" , must-revalidate"), Some(60));
        assert_eq!(control("max-age=60, s-maxage=5"), Some(5));
        assert_eq!(control("max-age=60, no-cache"), Some(0));
        assert_eq!(control("no-store"), Some(0));
        assert_eq!(control("private, max-age=9"), Some(0));
        assert_eq!(control("max-age=soon"), Some(0));
        assert_eq!(control("max-age=99999999999999999999"), Some(u32::MAX.into()));
        assert_eq!(fresh(&[("cache-control", "max-age=60"), ("age", "50")]), Some(10));
        assert_eq!(fresh(&[("cache-control", "max-age=60"), ("age", "70")]), Some(0));
    }
}
