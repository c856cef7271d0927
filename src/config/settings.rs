//! The one table of settings. A row is the whole of a setting: the field of [`Settings`] with its
//! type and default, its name (in the file, as a flag, for CONFIG), Redis's name where that
//! differs, its kind with the bounds, whether CONFIG SET may change it, and its help. The file's
//! reader, the flags, CONFIG and `docs/configuration.md` come from these rows; adding a setting is
//! adding one.

use std::{path::PathBuf, time::Duration};

use super::{
    kind::{Kind, Refusal, Unit, Value},
    machine,
    types::{
        BindAddress, Endpoint, Field, JournalFsync, JournalRecover, LogFormat, LogLevel,
        MaxmemoryPolicy, OutputLimit, OutputLimits, Percentiles, Recover, Secret,
    },
};
use crate::tier::log as disk;

const INT_MAX: i64 = i32::MAX as i64;
const MIB: u64 = 1 << 20;
const SIZE_MAX: u64 = i64::MAX as u64;
/// L1 gets at most so many parts of memory.
const LOCAL_SHARE: u64 = 50;
/// The part of memory that unflushed changes may take where nothing is said, and its bound in bytes.
const JOURNAL_SHARE: u64 = 4;
const JOURNAL_MOST: u64 = 1 << 30;
/// The part of memory that may wait to be written to disk, and its bounds in bytes.
const QUEUE_SHARE: u64 = 32;
const QUEUE_LEAST: u64 = 256 << 10;
const QUEUE_MOST: u64 = 8 << 20;

/// When a new value takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// At once: CONFIG SET may change it.
    Live,
    /// At the next start only.
    Restart,
}

/// One row: what is known of a setting.
#[derive(Debug)]
pub struct Setting {
    /// The name, as the file's key, as a flag behind `--`, and for CONFIG.
    pub name: &'static str,
    /// What Redis calls it: the same, another name (then an alias everywhere), or nothing.
    pub redis: Option<&'static str>,
    /// The group in `--help` and in the docs.
    pub group: &'static str,
    /// What values it takes.
    pub kind: Kind,
    /// When a new value takes effect.
    pub change: Change,
    help: &'static str,
    get: fn(&Settings) -> Value,
    set: fn(&mut Settings, Value),
}

/// Redis's name of a row: the same unless the row says otherwise; `""` says that it has none.
macro_rules! redis_name {
    ($name:literal) => {
        Some($name)
    };
    ($name:literal "") => {
        None
    };
    ($name:literal $redis:literal) => {
        Some($redis)
    };
}

/// Makes [`Settings`], its defaults and [`SETTINGS`] out of the rows.
macro_rules! settings {
    ($(
        $group:literal {
            $(
                $(#[doc = $help:literal])+
                $field:ident: $type:ty = $default:expr,
                $name:literal $(/ $redis:tt)?, $kind:expr, $change:ident;
            )+
        }
    )+) => {
        /// The value of every setting.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct Settings {
            $($($(#[doc = $help])+ pub $field: $type,)+)+
        }

        impl Default for Settings {
            fn default() -> Self {
                Self { $($($field: $default,)+)+ }
            }
        }

        /// Every setting, by group.
        pub static SETTINGS: &[Setting] = &[
            $($(Setting {
                name: $name,
                redis: redis_name!($name $($redis)?),
                group: $group,
                kind: $kind,
                change: Change::$change,
                help: concat!($($help),+),
                get: |settings| settings.$field.value(),
                set: |settings, value| settings.$field.put(value),
            },)+)+
        ];
    };
}

settings! {
    "Network" {
        /// TCP port to listen on; 0 lets the system choose one. An empty `bind` means no TCP.
        port: u16 = 6379, "port", Kind::Integer(0, 65_535), Restart;
        /// Addresses to listen on. One with a leading `-` is left out where the machine doesn't
        /// have it; none at all (`""`) means no TCP.
        bind: Vec<BindAddress> = vec![
            BindAddress { host: "127.0.0.1".to_owned(), optional: false },
            BindAddress { host: "::1".to_owned(), optional: true },
        ], "bind", Kind::Addresses, Restart;
        /// Path of a Unix socket to listen on as well; none if empty.
        unixsocket: Option<PathBuf> = None, "unixsocket", Kind::Path, Restart;
        /// Permissions of the Unix socket; 0 leaves them to the umask.
        unixsocketperm: u32 = 0, "unixsocketperm", Kind::Octal, Restart;
        /// Connections that the system keeps waiting to be accepted.
        tcp_backlog: u32 = 511, "tcp-backlog", Kind::Integer(0, INT_MAX), Restart;
        /// Silence after which a connection is probed, to notice peers that are gone; 0 for never.
        tcp_keepalive: Duration = Duration::from_secs(300),
            "tcp-keepalive", Kind::Time(Unit::Seconds, 0, INT_MAX), Live;
        /// While no password is set, serve clients of this machine only.
        protected_mode: bool = true, "protected-mode", Kind::Bool, Live;
        /// Password that clients must give with AUTH or HELLO; none if empty. It shows nowhere but
        /// in CONFIG GET, as in Redis, for those who gave it.
        requirepass: Secret = Secret::default(), "requirepass", Kind::Secret, Live;
    }

    "Clients" {
        /// Clients served at a time; more are refused with an error.
        maxclients: u32 = 10_000, "maxclients", Kind::Integer(1, 4_294_967_295), Live;
        /// Idle time after which a client is disconnected; 0 for never.
        timeout: Duration = Duration::ZERO,
            "timeout", Kind::Time(Unit::Seconds, 0, INT_MAX), Live;
        /// Databases that SELECT can choose from.
        databases: u32 = 16, "databases", Kind::Integer(1, 256), Restart;
        /// The longest string, and the longest argument of a request.
        proto_max_bulk_len: u64 = 512 * MIB,
            "proto-max-bulk-len", Kind::Bytes(MIB, (1 << 32) - 1), Live;
        /// Bytes of unfinished requests at which a client is disconnected.
        client_query_buffer_limit: u64 = 1024 * MIB,
            "client-query-buffer-limit", Kind::Bytes(MIB, SIZE_MAX), Live;
        /// When a client that doesn't read its replies is cut off: behind the class `normal`, a hard
        /// limit, a soft limit, and the seconds that the soft one may be exceeded; 0 is no limit. A
        /// single value may be longer.
        client_output_buffer_limit: OutputLimits = OutputLimits {
            normal: OutputLimit { hard: 64 * MIB, soft: 0, soft_time: Duration::ZERO },
        }, "client-output-buffer-limit", Kind::Limits, Live;
    }

    "Memory" {
        /// Everything kept in memory, indexes and buffers included; 0 takes a quarter of the
        /// machine's memory, or of the cgroup's limit if that is lower.
        memory: u64 = 0, "memory" / "maxmemory", Kind::Bytes(0, u64::MAX), Live;
        /// Memory of the workers' own caches of the hottest keys, all together, at most a fiftieth of
        /// `memory`, and 1024 keys each; 0: none.
        l1: u64 = 64 * MIB, "l1" / "", Kind::Bytes(0, SIZE_MAX), Live;
        /// Which keys make room when memory is full.
        maxmemory_policy: MaxmemoryPolicy = MaxmemoryPolicy::AllkeysS3Fifo,
            "maxmemory-policy", Kind::Choice(MaxmemoryPolicy::NAMES), Live;
        /// Keys that the sampling policies look at before they evict one; more is more exact and
        /// slower.
        maxmemory_samples: u32 = 5, "maxmemory-samples", Kind::Integer(1, 64), Live;
        /// How slowly the counters of the LFU policies rise: the higher, the more hits it takes.
        lfu_log_factor: u32 = 10, "lfu-log-factor", Kind::Integer(0, INT_MAX), Live;
        /// Minutes after which an LFU counter of a key that isn't used falls by one; 0 for never.
        lfu_decay_time: u32 = 1, "lfu-decay-time", Kind::Integer(0, INT_MAX), Live;
    }

    "Disk" {
        /// Bytes on disk for what doesn't fit into memory (the third tier); 0: none.
        disk_size: u64 = 0, "disk-size" / "", Kind::Bytes(0, disk::MOST), Restart;
        /// Directory of the third tier; `l3` in `dir` if empty.
        disk_path: Option<PathBuf> = None, "disk-path" / "", Kind::Path, Restart;
        /// Bytes a second that the third tier may write; 0: any.
        disk_write_rate: u64 = 0, "disk-write-rate" / "", Kind::Bytes(0, SIZE_MAX), Live;
        /// How long a read of the disk may take; then it is a miss, unless a write needs the value.
        disk_read_timeout: Duration = Duration::from_millis(500),
            "disk-read-timeout" / "", Kind::Time(Unit::Millis, 1, INT_MAX), Live;
        /// When what is on disk at the start is believed: `strict` after a clean stop or when only the
        /// process had ended, `best-effort` also after the machine was started anew (then some of it
        /// may be older than what was acknowledged), `none` never.
        disk_recover: Recover = Recover::Strict,
            "disk-recover" / "", Kind::Choice(Recover::NAMES), Restart;
    }

    "Journal of write-behind" {
        /// Directory of the journal; `journal` in `dir` if empty. There is one if a namespace writes behind.
        journal_path: Option<PathBuf> = None, "journal-path" / "", Kind::Path, Restart;
        /// When the journal is synced: `always` before a write is acknowledged, so that a power loss loses
        /// nothing; `interval`: a power loss loses at most what was acknowledged in one interval; `never`: when
        /// the system likes. A crash of the process alone never loses anything.
        journal_fsync: JournalFsync = JournalFsync::Interval,
            "journal-fsync" / "", Kind::Choice(JournalFsync::NAMES), Restart;
        /// The interval of `journal-fsync = "interval"`.
        journal_interval: Duration = Duration::from_millis(100),
            "journal-interval" / "", Kind::Time(Unit::Millis, 1, INT_MAX), Restart;
        /// Bytes of acknowledged changes that the stores may lack, at most half of `memory`; then writes wait. Each counts
        /// with its key, its value and 200 more.
        /// 0: a quarter of `memory`, at most 1gb.
        journal_limit: u64 = 0, "journal-limit" / "", Kind::Bytes(0, SIZE_MAX), Restart;
        /// How long a write waits for room in the journal; then it gets `-JOURNALFULL`, and so do those after it, at
        /// once, until there is some room again.
        journal_wait: Duration = Duration::from_secs(5),
            "journal-wait" / "", Kind::Time(Unit::Millis, 0, INT_MAX), Live;
        /// How long a clean stop waits for the stores to take what they lack. The rest stays in the journal for
        /// the next start.
        journal_drain: Duration = Duration::from_secs(10),
            "journal-drain" / "", Kind::Time(Unit::Millis, 0, INT_MAX), Live;
        /// What a start does about a damaged journal: `strict` refuses and says where the damage is,
        /// `best-effort` goes on behind it, and changes may be lost.
        journal_recover: JournalRecover = JournalRecover::Strict,
            "journal-recover" / "", Kind::Choice(JournalRecover::NAMES), Restart;
    }

    "Process" {
        /// Threads that serve clients; 0 for one per core.
        workers: u32 = 0, "workers" / "", Kind::Integer(0, 1024), Restart;
        /// Directory of everything on disk; made if it isn't there.
        dir: PathBuf = PathBuf::from("data"), "dir", Kind::Path, Restart;
        /// Keep what is in memory over a clean restart: it goes to disk at the end and comes back at the
        /// next start, while clients are served.
        warm_restart: bool = true, "warm-restart" / "", Kind::Bool, Live;
        /// How long it may take to bring memory to disk at the end.
        warm_timeout: Duration = Duration::from_secs(30),
            "warm-timeout" / "", Kind::Time(Unit::Seconds, 1, INT_MAX), Live;
        /// How long a store may take; then a load fails, and nobody knows what became of a write.
        store_timeout: Duration = Duration::from_secs(2),
            "store-timeout" / "", Kind::Time(Unit::Millis, 10, INT_MAX), Restart;
        /// How long a shutdown may wait for clients to finish.
        shutdown_timeout: Duration = Duration::from_secs(10),
            "shutdown-timeout", Kind::Time(Unit::Seconds, 0, INT_MAX), Live;
    }

    "Logging and monitoring" {
        /// Address and port over which the server is watched: `/metrics` for Prometheus, `/livez` and `/readyz`,
        /// and at `/` a page for people. Whoever can connect there may read all of it: there is no password.
        /// With a leading `-` the server starts without it where that isn't to be had; none if empty.
        admin: Option<Endpoint> = Some(Endpoint {
            bind: BindAddress { host: "127.0.0.1".to_owned(), optional: true },
            port: 9379,
        }), "admin" / "", Kind::Endpoint, Restart;
        /// How much the log says.
        loglevel: LogLevel = LogLevel::Notice,
            "loglevel", Kind::Choice(LogLevel::NAMES), Live;
        /// What a line of the log looks like: `text` for people, or `json`, one object for each event with
        /// `timestamp`, `level`, `message` and, where there are any, `fields`. Control characters are escaped in both.
        log_format: LogFormat = LogFormat::Text,
            "log-format" / "", Kind::Choice(LogFormat::NAMES), Live;
        /// File of the log; standard error if empty. It is opened again at SIGHUP, so that it can be rotated.
        logfile: Option<PathBuf> = None, "logfile", Kind::Path, Restart;
        /// Commands that take longer are kept for SLOWLOG; 0 keeps all.
        slowlog_log_slower_than: Option<Duration> = Some(Duration::from_millis(10)),
            "slowlog-log-slower-than", Kind::Time(Unit::Micros, -1, i64::MAX), Live;
        /// Entries that SLOWLOG keeps.
        slowlog_max_len: u32 = 128, "slowlog-max-len", Kind::Integer(0, 1_000_000), Live;
        /// Events that take longer are kept for LATENCY; 0 keeps none.
        latency_monitor_threshold: Duration = Duration::ZERO,
            "latency-monitor-threshold", Kind::Time(Unit::Millis, 0, i64::MAX / 1_000), Live;
        /// Keep how long commands take, for INFO latencystats, LATENCY HISTOGRAM and the metrics.
        latency_tracking: bool = true, "latency-tracking", Kind::Bool, Live;
        /// The percentiles of that which INFO latencystats shows.
        latency_tracking_info_percentiles: Percentiles = Percentiles::usual(),
            "latency-tracking-info-percentiles", Kind::Percentiles, Live;
        /// Find the hottest and the largest keys while requests are served (LARDER.HOTKEYS, LARDER.BIGKEYS,
        /// and OBJECT FREQ under the default policy).
        hot_keys: bool = true, "hot-keys" / "", Kind::Bool, Live;
        /// Estimate what the hit ratio would be with less or more memory, from a sample of the keys
        /// (LARDER.MRC).
        miss_ratio_curve: bool = true, "miss-ratio-curve" / "", Kind::Bool, Live;
    }
}

impl Setting {
    /// The setting of that name or alias, in any case; underscores count as hyphens.
    pub fn named(name: &str) -> Option<&'static Self> {
        SETTINGS.iter().find(|setting| setting.names().any(|known| same_name(known, name)))
    }

    /// The name, and Redis's if that is another one.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        std::iter::once(self.name).chain(self.alias())
    }

    /// Redis's name if it differs from ours.
    pub fn alias(&self) -> Option<&'static str> {
        self.redis.filter(|redis| *redis != self.name)
    }

    /// The help, as sentences.
    pub fn help(&self) -> &'static str {
        self.help.trim_start()
    }

    /// Whether its value must not be shown.
    pub fn is_secret(&self) -> bool {
        self.kind == Kind::Secret
    }

    /// The value in `settings`.
    pub fn value(&self, settings: &Settings) -> Value {
        (self.get)(settings)
    }

    /// Puts a value that [`Kind::parse`] or [`Kind::parse_toml`] returned for this setting's kind.
    pub fn put(&self, settings: &mut Settings, value: Value) {
        (self.set)(settings, value);
    }

    /// The value as CONFIG GET answers it.
    pub fn redis_text(&self, settings: &Settings) -> String {
        self.kind.redis_text(&self.value(settings))
    }

    /// Reads Redis's form of a value into `settings`.
    pub fn parse_into(&self, settings: &mut Settings, text: &str) -> Result<(), Refusal> {
        self.put(settings, self.kind.parse(text)?);
        Ok(())
    }

    /// The value as the file would have it (`"512mb"`, `true`).
    pub fn text(&self, settings: &Settings) -> String {
        self.kind.toml(&self.value(settings)).to_string()
    }

    /// The default, likewise.
    pub fn default_text(&self) -> String {
        self.text(&Settings::default())
    }
}

impl Settings {
    /// The limit of memory in bytes: `memory`, or where that is 0 the machine's share.
    pub fn memory_limit(&self) -> u64 {
        if self.memory == 0 { machine::memory_share() } else { self.memory }
    }

    /// Bytes that the workers' own caches may hold together.
    pub fn l1_limit(&self) -> u64 {
        self.l1.min(self.memory_limit() / LOCAL_SHARE)
    }

    /// Bytes of acknowledged changes that the stores may lack.
    pub fn journal_limit(&self) -> u64 {
        match self.journal_limit {
            0 => (self.memory_limit() / JOURNAL_SHARE).min(JOURNAL_MOST),
            limit => limit,
        }
    }

    /// Bytes of entries that may wait to be written to disk.
    pub fn disk_queue(&self) -> usize {
        (self.memory_limit() / QUEUE_SHARE).clamp(QUEUE_LEAST, QUEUE_MOST) as usize
    }

    /// What two settings together don't allow: the name of the one to blame, and why.
    pub(super) fn contradiction(&self) -> Option<(&'static str, &'static str)> {
        if self.unixsocket.is_none() && self.unixsocketperm != 0 {
            return Some((
                "unixsocketperm",
                "there is no `unixsocket` that could have permissions",
            ));
        }
        if self.unixsocket.is_none() && self.bind.is_empty() {
            return Some(("bind", "no address and no `unixsocket`: nobody could connect"));
        }
        if self.disk_size != 0 && self.disk_size < disk::LEAST {
            return Some(("disk-size", "less than 512kb, the smallest there is; 0 is none"));
        }
        if self.disk_size == 0 && self.disk_path.is_some() {
            return Some(("disk-path", "without a `disk-size` nothing is kept there"));
        }
        if self.journal_limit > self.memory_limit() / 2 {
            return Some(("journal-limit", "more than half of `memory`, in which it counts"));
        }
        if self.dir.as_os_str().is_empty() {
            return Some(("dir", "empty; `.` is the directory of the start"));
        }
        None
    }
}

/// Names are compared as Redis does, without case, and as TOML is written, `_` like `-`.
pub(super) fn same_name(known: &str, name: &str) -> bool {
    let fold = |byte: u8| if byte == b'_' { b'-' } else { byte.to_ascii_lowercase() };
    known.bytes().map(fold).eq(name.bytes().map(fold))
}

/// The known name that looks most like `name`, if any is near enough to be meant.
pub(super) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let name: String = name.chars().take(64).collect();
    let name = name.to_ascii_lowercase().replace('_', "-");
    let likeness = |known: &str| strsim::jaro_winkler(known, &name);
    let best = known.into_iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)))?;
    let near = likeness(best) > 0.8 || strsim::damerau_levenshtein(best, &name) <= 2;
    near.then_some(best)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_unique_and_well_formed() {
        let mut seen = HashSet::new();
        for name in SETTINGS.iter().flat_map(Setting::names) {
            assert!(seen.insert(name), "{name} twice");
            let is_plain =
                |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            assert!(name.bytes().all(is_plain), "{name}");
            assert_eq!(
                Setting::named(&name.to_uppercase()).map(|found| found.names().any(|n| n == name)),
                Some(true)
            );
        }
        for name in ["store", "namespace", "help", "version", "config"] {
            assert!(!seen.contains(name), "{name} has a meaning of its own");
        }
    }

    #[test]
    fn every_setting_is_documented() {
        for setting in SETTINGS {
            assert!(setting.help().len() > 15, "{}", setting.name);
            assert!(setting.help().ends_with('.'), "{}", setting.name);
            assert!(!setting.help().contains("  "), "{}", setting.name);
        }
    }

    #[test]
    fn groups_are_in_one_piece() {
        let mut groups: Vec<_> = SETTINGS.iter().map(|setting| setting.group).collect();
        groups.dedup();
        let distinct: HashSet<_> = groups.iter().collect();
        assert_eq!(distinct.len(), groups.len());
    }

    #[test]
    fn defaults_parse_back_from_both_renderings() {
        let defaults = Settings::default();
        for setting in SETTINGS {
            let mut settings = Settings::default();
            let text = setting.redis_text(&defaults);
            assert_eq!(setting.parse_into(&mut settings, &text), Ok(()), "{}", setting.name);
            let toml = setting.default_text().parse().expect(setting.name);
            let value = setting.kind.parse_toml(&toml).expect(setting.name);
            setting.put(&mut settings, value);
            assert_eq!(settings, defaults, "{}", setting.name);
        }
    }

    /// A value that isn't the default, in Redis's form.
    fn another(setting: &Setting) -> &'static str {
        match setting.kind {
            Kind::Bool => "no",
            Kind::Integer(..) => "7",
            Kind::Octal => "700",
            Kind::Bytes(..) => "2097152",
            Kind::Time(..) => "61",
            Kind::Choice(names) => names.last().expect("a name"),
            Kind::Text | Kind::Path | Kind::Secret => "some text",
            Kind::Addresses => "10.0.0.1 -::",
            Kind::Endpoint => "-[::1]:80",
            Kind::Percentiles => "1 99.99",
            Kind::Limits => "normal 1 2 3",
            Kind::List(_) => unreachable!("only tables of the file have lists"),
        }
    }

    #[test]
    fn every_setting_goes_in_and_comes_out() {
        for setting in SETTINGS {
            let mut settings = Settings::default();
            let text = another(setting);
            setting.parse_into(&mut settings, text).expect(setting.name);
            assert_ne!(settings, Settings::default(), "{}", setting.name);
            assert_eq!(setting.redis_text(&settings), text, "{}", setting.name);
            let mut again = Settings::default();
            setting.put(&mut again, setting.value(&settings));
            assert_eq!(again, settings, "{}", setting.name);
            let others = SETTINGS.iter().filter(|other| other.name != setting.name);
            for other in others {
                assert_eq!(other.value(&settings), other.value(&Settings::default()));
            }
        }
    }

    #[test]
    fn the_password_is_not_in_debug_output() {
        let mut settings = Settings::default();
        let setting = Setting::named("requirepass").expect("a setting");
        setting.parse_into(&mut settings, "hunter2").expect("a password");
        assert_eq!(settings.requirepass.reveal(), "hunter2");
        assert!(!format!("{settings:?}").contains("hunter2"));
    }

    #[test]
    fn limits_by_class() {
        let mut settings = Settings::default();
        let setting = Setting::named("client-output-buffer-limit").expect("a setting");
        setting.parse_into(&mut settings, "NORMAL 1mb 2kb 3").expect("limits");
        let limit = OutputLimit { hard: 1 << 20, soft: 2 << 10, soft_time: Duration::from_secs(3) };
        assert_eq!(settings.client_output_buffer_limit.normal, limit);
        // There is nothing yet that a client of this class could do.
        assert!(setting.parse_into(&mut settings, "pubsub 1mb 2kb 3").is_err());
    }

    #[test]
    fn the_nearest_name() {
        let names = || SETTINGS.iter().flat_map(Setting::names);
        for (typo, meant) in [
            ("prot", "port"),
            ("max_memory", "maxmemory"),
            ("memmory", "memory"),
            ("maxmemory_polcy", "maxmemory-policy"),
            ("require-pass", "requirepass"),
            ("worker", "workers"),
        ] {
            assert_eq!(nearest(typo, names()), Some(meant), "{typo}");
        }
        assert_eq!(nearest("xyzzy", names()), None);
    }

    #[test]
    fn contradictions_are_seen() {
        let mut settings = Settings::default();
        assert_eq!(settings.contradiction(), None);
        settings.bind.clear();
        assert_eq!(settings.contradiction().map(|(name, _)| name), Some("bind"));
        settings.unixsocket = Some("/tmp/larder.sock".into());
        assert_eq!(settings.contradiction(), None);
    }
}
