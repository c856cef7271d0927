//! What a store over HTTP is told: where the origin is, how a key becomes a URL, and its bounds. Everything
//! is checked when it is set, so that a mistake ends the start and not a request.

use std::{fmt, fmt::Write as _, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyper::{
    Uri,
    header::HeaderValue,
    http::uri::{Authority, PathAndQuery},
};

use crate::store::{MAX_VALUE, StoreError, times::Times};

/// Connections, unless told otherwise: each has one request at a time.
const POOL: usize = 16;
/// The longest body, unless told otherwise.
const MAX_BODY: u64 = 64 << 20;
/// Bytes of bodies with an `ETag`, unless told otherwise.
const ETAG_CACHE: usize = 8 << 20;
/// Where the key goes.
const KEY: &str = "{key}";
/// The longest target of a request, in bytes.
const MAX_TARGET: usize = 65_000;

const FORM: &str = "expected \"http://host:port/path/\" or \"http://host:port/path?k={key}\"";

/// How to reach an origin. Its debug output hides the password.
#[derive(Clone, PartialEq, Eq)]
pub struct HttpOptions {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) host_header: HeaderValue,
    user: Option<String>,
    /// What a request with a password carries; marked as a secret.
    authorization: Option<HeaderValue>,
    /// Before and behind the key.
    around: (String, String),
    pub(super) pool: usize,
    pub(super) times: Times,
    pub(super) max_body: u64,
    pub(super) etag_cache: usize,
}

impl HttpOptions {
    /// Reads `http://user@host:port/path/`. The key, percent-encoded, comes behind it, or in the place of
    /// `{key}`.
    ///
    /// # Errors
    /// What is wrong with it; never a part of it that may be a password.
    pub fn new(url: &str) -> Result<Self, String> {
        if url.starts_with("https://") {
            let text = "TLS is not supported yet; reach the origin through a tunnel, or over a network \
                        that you trust, by `http://`";
            return Err(text.into());
        }
        let rest = url.strip_prefix("http://").ok_or(FORM)?;
        let (place, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
        if path.contains('@') || place.rsplit_once('@').is_some_and(|(user, _)| user.contains(':'))
        {
            return Err("no password here; name `password-env` or `password-file`".into());
        }
        let (user, place) = match place.rsplit_once('@') {
            Some((user, place)) => (Some(user.to_owned()), place),
            None => (None, place),
        };
        let authority: Authority = place.parse().map_err(|_| FORM.to_owned())?;
        let port = match authority.port() {
            Some(_) => authority.port_u16().ok_or(FORM)?,
            None if authority.host().len() == place.len() => 80,
            None => return Err(FORM.into()),
        };
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() {
            return Err("no host".into());
        }
        Ok(Self {
            host,
            port,
            host_header: authority.as_str().parse().map_err(|_| FORM.to_owned())?,
            user,
            authorization: None,
            around: around(path)?,
            pool: POOL,
            times: Times::default(),
            max_body: MAX_BODY,
            etag_cache: ETAG_CACHE,
        })
    }

    /// The password of the URL's user; without a user, the bearer's token.
    ///
    /// # Errors
    /// If it can't be sent.
    pub fn set_password(&mut self, password: &str) -> Result<(), String> {
        let text = match &self.user {
            Some(user) => format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))),
            None => format!("Bearer {password}"),
        };
        let header = HeaderValue::from_str(&text);
        let mut header = header.map_err(|_| "it has a character that HTTP can't send")?;
        header.set_sensitive(true);
        self.authorization = Some(header);
        Ok(())
    }

    /// Whether there is a user, who could not be told without a password.
    pub fn lacks_password(&self) -> bool {
        self.user.is_some() && self.authorization.is_none()
    }

    /// How many connections there may be at most.
    pub fn set_pool(&mut self, connections: usize) {
        self.pool = connections.max(1);
    }

    /// How long the caller waits for the store, and how long an answer may take: half of that unless told
    /// otherwise.
    ///
    /// # Errors
    /// If an answer might take as long as the caller waits.
    pub fn set_timeouts(
        &mut self,
        store: Duration,
        answer: Option<Duration>,
    ) -> Result<(), String> {
        self.times = Times::within(store, answer)?;
        Ok(())
    }

    /// The longest value, in bytes.
    pub fn set_max_body(&mut self, bytes: u64) {
        self.max_body = bytes.min(MAX_VALUE);
    }

    /// Bytes of bodies with an `ETag` that are kept, so as not to be sent again; 0: none.
    pub fn set_etag_cache(&mut self, bytes: usize) {
        self.etag_cache = bytes;
    }

    pub(super) fn authorization(&self) -> Option<HeaderValue> {
        self.authorization.clone()
    }

    /// What is asked for a key.
    pub(super) fn target(&self, key: &[u8]) -> Result<Uri, StoreError> {
        if key == b"." || key == b".." {
            return Err(StoreError::Refused("a key of dots is another place in a URL".into()));
        }
        let (before, behind) = &self.around;
        let mut target = before.clone();
        encode(key, &mut target);
        target += behind;
        if target.len() > MAX_TARGET {
            let text = format!("a URL of {} bytes, at most {MAX_TARGET}", target.len());
            return Err(StoreError::Refused(text));
        }
        target.parse().map_err(|_| StoreError::Refused("the key makes no URL".into()))
    }
}

/// The path before and behind the key.
fn around(path: &str) -> Result<(String, String), String> {
    let (before, behind) = match path.split_once(KEY) {
        Some((before, behind)) => (before, behind),
        None if path.ends_with('/') || path.ends_with('=') => (path, ""),
        None => return Err("end it with `/`, or say where the key goes with `{key}`".into()),
    };
    let is_plain = |part: &str| {
        part.bytes().all(|byte| byte.is_ascii_graphic() && !b"{}#\"<>\\^`|".contains(&byte))
    };
    let sample = format!("{before}key{behind}");
    if !is_plain(&sample) || sample.parse::<PathAndQuery>().is_err() {
        return Err(format!("{FORM}; a special character is written as %XX"));
    }
    Ok((before.to_owned(), behind.to_owned()))
}

/// Everything but letters, digits, `-`, `.`, `_` and `~` as `%XX`: a key can't be two segments of a path.
fn encode(key: &[u8], out: &mut String) {
    for &byte in key {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(byte as char);
        } else {
            _ = write!(out, "%{byte:02X}");
        }
    }
}

impl fmt::Debug for HttpOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpOptions")
            .field("host", &self.host)
            .field("port", &self.port)
            .field("around", &self.around)
            .field("pool", &self.pool)
            .field("times", &self.times)
            .field("max_body", &self.max_body)
            .field("etag_cache", &self.etag_cache)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_becomes_a_url() {
        for (url, key, target) in [
            ("http://h/base/", "user:1", "/base/user%3A1"),
            ("http://h", "a/b?c#d%", "/a%2Fb%3Fc%23d%25"),
            ("http://h/v1/{key}.json", "x", "/v1/x.json"),
            ("http://h/get?k={key}&x=1", "é \n", "/get?k=%C3%A9%20%0A&x=1"),
            ("http://h/get?k=", "", "/get?k="),
        ] {
            let options = HttpOptions::new(url).unwrap();
            assert_eq!(options.target(key.as_bytes()).unwrap(), target, "{url}");
        }
        let options = HttpOptions::new("http://[::1]:81/").unwrap();
        assert_eq!((&*options.host, options.port), ("::1", 81));
        assert_eq!(options.host_header, "[::1]:81");
        for key in [&b"."[..], b"..", &[b'x'; MAX_TARGET]] {
            assert!(matches!(options.target(key), Err(StoreError::Refused(_))));
        }
    }

    #[test]
    fn urls_are_checked_and_never_quoted() {
        for url in [
            "http://app:hunter2@h/",
            "http://app:hun/ter2@h/",
            "http://h/hunter2",
            "http://h/ hunter2/",
            "http://h/hunter2{x}/",
            "http://h/#hunter2/",
            "http://h:hunter2/",
            "http:///hunter2/",
            "https://hunter2/",
            "ftp://hunter2/",
            "hunter2",
        ] {
            let why = HttpOptions::new(url).unwrap_err();
            assert!(!why.contains("ter2"), "{url}: {why}");
        }
        assert!(HttpOptions::new("https://h/").unwrap_err().starts_with("TLS is not supported"));
    }

    #[test]
    fn a_password_is_sent_and_shows_in_no_debug_output() {
        let mut options = HttpOptions::new("http://app@h/").unwrap();
        assert!(options.lacks_password());
        options.set_password("hunter2").unwrap();
        assert_eq!(options.authorization.as_ref().unwrap(), "Basic YXBwOmh1bnRlcjI=");
        let shown = format!("{options:?} {:?}", options.authorization);
        assert!(!shown.contains("hunter2") && !shown.contains("YXBw"), "{shown}");
        let mut options = HttpOptions::new("http://h/").unwrap();
        options.set_password("token").unwrap();
        assert_eq!(options.authorization.as_ref().unwrap(), "Bearer token");
        assert!(options.set_password("hunter2\n").is_err_and(|why| !why.contains("hunter2")));
    }
}
