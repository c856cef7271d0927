//! The types of settings that the language doesn't have: choices, addresses, limits, secrets; and
//! [`Field`], by which the table of settings moves values in and out of them.

use std::{fmt, path::PathBuf, time::Duration};

use super::kind::Value;

/// A type that a setting can have: out to a [`Value`], in from one of the same variant.
///
/// A kind and a field that disagree are a mistake in the table, which its tests find.
pub(super) trait Field {
    fn value(&self) -> Value;
    fn put(&mut self, value: Value);
}

/// Implements [`Field`] for a type whose values come and go in one variant of [`Value`].
macro_rules! field {
    ($type:ty, |$me:ident| $out:expr, $($variant:pat => $into:expr),+) => {
        impl Field for $type {
            fn value(&self) -> Value {
                let $me = self;
                $out
            }

            fn put(&mut self, value: Value) {
                match value {
                    $($variant => *self = $into,)+
                    other => debug_assert!(false, "{} can't hold {other:?}", stringify!($type)),
                }
            }
        }
    };
}

field!(bool, |me| Value::Bool(*me), Value::Bool(yes) => yes);
field!(
    u16,
    |me| Value::Integer(i64::from(*me)),
    Value::Integer(n) => n.try_into().unwrap_or(Self::MAX)
);
field!(
    u32,
    |me| Value::Integer(i64::from(*me)),
    Value::Integer(n) => n.try_into().unwrap_or(Self::MAX)
);
field!(u64, |me| Value::Bytes(*me), Value::Bytes(bytes) => bytes);
field!(Duration, |me| Value::Time(Some(*me)), Value::Time(Some(time)) => time);
field!(Option<Duration>, |me| Value::Time(*me), Value::Time(time) => time);
field!(
    PathBuf,
    |me| Value::Text(me.to_string_lossy().into_owned()),
    Value::Text(text) => text.into()
);
field!(
    Option<PathBuf>,
    |me| {
        let text = me.as_ref().map(|path| path.to_string_lossy().into_owned());
        Value::Text(text.unwrap_or_default())
    },
    Value::Text(text) => (!text.is_empty()).then(|| text.into())
);

/// A set of names of which a setting is one, in the order in which errors list them.
macro_rules! choice {
    ($(#[$doc:meta])* $type:ident {
        $($(#[$variant_doc:meta])* $variant:ident = $name:literal),+ $(,)?
    }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $type {
            $($(#[$variant_doc])* $variant,)+
        }

        impl $type {
            /// Every choice, in the order of the names.
            pub const ALL: &[Self] = &[$(Self::$variant),+];
            /// The names of the choices.
            pub const NAMES: &[&str] = &[$($name),+];

            /// The name as the configuration has it.
            pub const fn name(self) -> &'static str {
                Self::NAMES[self as usize]
            }

            /// The choice of that name, in either case.
            pub fn named(name: &str) -> Option<Self> {
                let at = Self::NAMES.iter().position(|known| known.eq_ignore_ascii_case(name))?;
                Self::ALL.get(at).copied()
            }
        }

        impl Field for $type {
            fn value(&self) -> Value {
                Value::Choice(self.name())
            }

            fn put(&mut self, value: Value) {
                match value {
                    Value::Choice(name) => *self = Self::named(name).unwrap_or(*self),
                    other => debug_assert!(false, "{} can't hold {other:?}", stringify!($type)),
                }
            }
        }
    };
}

choice! {
    /// Which keys make room when memory is full; Redis's eight and ours, the default.
    MaxmemoryPolicy {
        /// The scan-resistant S3-FIFO family, among all keys.
        AllkeysS3Fifo = "allkeys-s3fifo",
        /// The least recently used of the keys with a TTL.
        VolatileLru = "volatile-lru",
        /// The least frequently used of the keys with a TTL.
        VolatileLfu = "volatile-lfu",
        /// Any of the keys with a TTL.
        VolatileRandom = "volatile-random",
        /// Of the keys with a TTL the one that expires first.
        VolatileTtl = "volatile-ttl",
        /// The least recently used.
        AllkeysLru = "allkeys-lru",
        /// The least frequently used.
        AllkeysLfu = "allkeys-lfu",
        /// Any key.
        AllkeysRandom = "allkeys-random",
        /// None: writes that need room are refused with `-OOM`.
        Noeviction = "noeviction",
    }
}

choice! {
    /// How much the log says.
    LogLevel {
        /// Everything.
        Debug = "debug",
        /// Much, for a closer look.
        Verbose = "verbose",
        /// What matters in production.
        Notice = "notice",
        /// Only what someone should look at.
        Warning = "warning",
    }
}

choice! {
    /// What a line of the log looks like.
    LogFormat {
        /// For people.
        Text = "text",
        /// An object of JSON.
        Json = "json",
    }
}

choice! {
    /// When what is on disk at the start is believed.
    Recover {
        /// After a clean stop, or if only the process had ended since.
        Strict = "strict",
        /// Always; after a power loss some of it may be older than what was acknowledged.
        BestEffort = "best-effort",
        /// Never.
        None = "none",
    }
}

choice! {
    /// When the journal of write-behind is synced.
    JournalFsync {
        /// Before a write is acknowledged.
        Always = "always",
        /// At an interval.
        Interval = "interval",
        /// When the system likes.
        Never = "never",
    }
}

choice! {
    /// What a start does about a damaged journal.
    JournalRecover {
        /// It refuses.
        Strict = "strict",
        /// It goes on behind the damage.
        BestEffort = "best-effort",
    }
}

/// A text that no log and no debug output shows.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The text itself; empty means that there is none.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_empty() { "(none)" } else { "(hidden)" })
    }
}

field!(Secret, |me| Value::Text(me.0.clone()), Value::Text(text) => Self(text));

/// One address to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindAddress {
    /// An IP address or a host name, to be resolved; `*` of Redis is `0.0.0.0` here, `::*` is `::`.
    pub host: String,
    /// Whether the server starts without it where the machine doesn't have it (a leading `-`).
    pub optional: bool,
}

impl BindAddress {
    /// Reads `127.0.0.1`, `-::1`, `*`, `localhost`; not `127.0.0.1:6379`.
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        let (optional, host) = text.strip_prefix('-').map_or((false, text), |host| (true, host));
        let host = match host {
            "*" => "0.0.0.0",
            "::*" => "::",
            host => host,
        };
        if host.parse::<std::net::IpAddr>().is_err() {
            let name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._%".contains(&byte);
            if host.contains(':') {
                return Err("an address has no port and no brackets; the port is `port`");
            }
            if host.is_empty()
                || host.starts_with('-')
                || host.len() > 253
                || !host.bytes().all(name)
            {
                return Err("not an address");
            }
        }
        Ok(Self { host: host.to_owned(), optional })
    }
}

impl fmt::Display for BindAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.optional { "-" } else { "" }, self.host)
    }
}

field!(
    Vec<BindAddress>,
    |me| Value::Words(me.iter().map(ToString::to_string).collect()),
    Value::Words(words) => words.iter().filter_map(|word| BindAddress::parse(word).ok()).collect()
);

/// Percentiles, as INFO shows them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Percentiles(Vec<String>);

impl Percentiles {
    /// Redis's: the median, and the two that tell of the slowest.
    pub fn usual() -> Self {
        Self(["50", "99", "99.9"].map(str::to_owned).into())
    }

    /// Reads one, from 0 to 100; its usual writing.
    pub(super) fn parse(text: &str) -> Result<String, &'static str> {
        let percent: f64 =
            text.parse().map_err(|_| "Invalid latency-tracking-info-percentiles parameters")?;
        match (0.0..=100.0).contains(&percent) {
            true => Ok(percent.to_string()),
            false => {
                Err("latency-tracking-info-percentiles parameters should sit between [0.0,100.0]")
            }
        }
    }

    /// Each with its writing.
    pub fn iter(&self) -> impl Iterator<Item = (&str, f64)> {
        self.0.iter().map(|text| (text.as_str(), text.parse().unwrap_or_default()))
    }
}

field!(Percentiles, |me| Value::Words(me.0.clone()), Value::Words(words) => Self(words));

/// An address with a port to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The address.
    pub bind: BindAddress,
    /// The port; 0 lets the system choose one.
    pub port: u16,
}

impl Endpoint {
    /// Reads `127.0.0.1:9379`, `[::1]:9379`, `*:0`, with a leading `-` if the server may start without it.
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        let (host, port) = text.rsplit_once(':').ok_or("an address and a port belong here")?;
        let is_port = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
        let port = port.parse().ok().filter(|_| is_port).ok_or("not a port")?;
        let (sign, inside) = host.strip_prefix('-').map_or(("", host), |host| ("-", host));
        let bare = inside.strip_prefix('[').and_then(|inside| inside.strip_suffix(']'));
        if bare.is_none() && inside.contains(':') {
            return Err("an IPv6 address stands in brackets");
        }
        let bind = BindAddress::parse(&format!("{sign}{}", bare.unwrap_or(inside)))?;
        Ok(Self { bind, port })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let BindAddress { host, optional } = &self.bind;
        let sign = if *optional { "-" } else { "" };
        match host.contains(':') {
            true => write!(f, "{sign}[{host}]:{}", self.port),
            false => write!(f, "{sign}{host}:{}", self.port),
        }
    }
}

field!(
    Option<Endpoint>,
    |me| Value::Text(me.as_ref().map(ToString::to_string).unwrap_or_default()),
    Value::Text(text) => Endpoint::parse(&text).ok()
);

/// When a client that doesn't read its replies is cut off; 0 is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutputLimit {
    /// Bytes of pending replies at which the client is closed at once.
    pub hard: u64,
    /// Bytes that it may have pending for `soft_time`, but not longer.
    pub soft: u64,
    /// How long the soft limit may be exceeded.
    pub soft_time: Duration,
}

/// `client-output-buffer-limit`: the limit of each class of clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutputLimits {
    /// Clients that ask and are answered.
    pub normal: OutputLimit,
}

impl OutputLimits {
    /// The classes by name.
    const CLASSES: [&str; 1] = ["normal"];

    /// Reads Redis's form, `normal 64mb 0 0`; a class left out keeps its limit.
    pub(super) fn parse(text: &str) -> Result<Vec<(&'static str, OutputLimit)>, &'static str> {
        let words: Vec<&str> = text.split_ascii_whitespace().collect();
        let groups = words.chunks_exact(4);
        if !groups.remainder().is_empty() {
            return Err("Wrong number of arguments in buffer limit configuration.");
        }
        groups.map(|group| Ok((Self::class(group)?, OutputLimit::parse(group)?))).collect()
    }

    fn class(group: &[&str]) -> Result<&'static str, &'static str> {
        let known =
            |class: &&str| group.first().is_some_and(|name| class.eq_ignore_ascii_case(name));
        let class = Self::CLASSES.into_iter().find(known);
        class.ok_or("Invalid client class specified in buffer limit configuration.")
    }
}

impl OutputLimit {
    /// Reads the three numbers behind the name of the class.
    fn parse(group: &[&str]) -> Result<Self, &'static str> {
        use super::unit::{Measure, parse_size};
        let size = |text: &&str| match parse_size(text)? {
            Measure::Bare(bytes) | Measure::With(bytes) => Some(bytes),
        };
        let read = || {
            let seconds = group.get(3)?.parse::<u32>().ok()?;
            let soft_time = Duration::from_secs(u64::from(seconds));
            Some(Self { hard: size(group.get(1)?)?, soft: size(group.get(2)?)?, soft_time })
        };
        read().ok_or("Error in hard, soft or soft_seconds setting in buffer limit configuration.")
    }
}

impl Field for OutputLimits {
    fn value(&self) -> Value {
        Value::Limits(vec![("normal", self.normal)])
    }

    fn put(&mut self, value: Value) {
        let Value::Limits(limits) = value else {
            debug_assert!(false, "OutputLimits can't hold {value:?}");
            return;
        };
        for (_, limit) in limits {
            self.normal = limit;
        }
    }
}
