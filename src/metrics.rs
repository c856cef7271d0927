//! What a scrape shows: each metric declared once, and the text format that Prometheus reads
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/>).
//!
//! Names, units and types are as Prometheus asks for (<https://prometheus.io/docs/practices/naming/>): base
//! units, `_total` for what only rises. No label holds a key. `docs/metrics.md` is made of these rows.

use std::fmt::{Display, Write};

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only rises, until the server starts again or CONFIG RESETSTAT.
    Counter,
    /// It rises and falls.
    Gauge,
    /// Counts by bucket, their sum and their count.
    Histogram,
}

impl Kind {
    /// The name in the text format.
    pub fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// A metric.
#[derive(Debug)]
pub struct Metric {
    /// The name.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// The labels of each of its samples.
    pub labels: &'static [&'static str],
    help: &'static str,
}

impl Metric {
    /// What it says, in a sentence or two.
    pub fn help(&self) -> &'static str {
        self.help.trim_start()
    }
}

/// Makes a constant of each metric, and the list of all by group.
macro_rules! metrics {
    ($($group:literal { $($(#[doc = $help:literal])+ $id:ident: $kind:ident $name:literal $([$($label:literal),+])?;)+ })+) => {
        $($($(#[doc = $help])+ pub const $id: Metric = Metric {
            name: $name,
            kind: Kind::$kind,
            labels: &[$($($label),+)?],
            help: concat!($($help),+),
        };)+)+

        /// Every metric, by group.
        pub const GROUPS: &[(&str, &[Metric])] = &[$(($group, &[$($id),+])),+];
    };
}

metrics! {
    "Process" {
        /// 1; the labels say what runs.
        BUILD_INFO: Gauge "larder_build_info" ["version", "redis_version"];
        /// Seconds since the server started.
        UPTIME: Gauge "larder_uptime_seconds";
        /// When the process started, in unix seconds.
        PROCESS_START: Gauge "process_start_time_seconds";
        /// CPU time of the process, in the program and in the kernel for it.
        PROCESS_CPU: Counter "process_cpu_seconds_total";
        /// Memory of the process that is resident.
        PROCESS_RESIDENT: Gauge "process_resident_memory_bytes";
        /// Address space of the process.
        PROCESS_VIRTUAL: Gauge "process_virtual_memory_bytes";
        /// Open file descriptors.
        PROCESS_FDS: Gauge "process_open_fds";
        /// The most file descriptors that the process may open.
        PROCESS_MAX_FDS: Gauge "process_max_fds";
        /// Bytes by the allocator: `allocated` by the program, `active` in pages that hold something, `resident`
        /// in physical memory.
        ALLOCATOR: Gauge "larder_allocator_bytes" ["state"];
        /// Threads that serve clients.
        WORKERS: Gauge "larder_workers";
        /// Background tasks that ended though they should not have: more than none, and the server isn't healthy.
        DEAD_TASKS: Gauge "larder_dead_tasks";
    }

    "Clients" {
        /// Connections now.
        CONNECTIONS: Gauge "larder_connections";
        /// The most connections that are served (`maxclients`).
        CONNECTIONS_LIMIT: Gauge "larder_connections_limit";
        /// Connections that were accepted.
        ACCEPTED: Counter "larder_connections_accepted_total";
        /// Connections that were refused: too many of them, or protected mode.
        REJECTED: Counter "larder_connections_rejected_total";
        /// Connections that were closed because their clients did not read their replies.
        CUT_OFF: Counter "larder_connections_output_limit_closed_total";
        /// Bytes of requests that wait to be complete.
        INPUT_BUFFERS: Gauge "larder_input_buffer_bytes";
        /// Bytes of replies that wait to be sent.
        OUTPUT_BUFFERS: Gauge "larder_output_buffer_bytes";
        /// Bytes received from clients.
        RECEIVED: Counter "larder_received_bytes_total";
        /// Bytes sent to clients.
        SENT: Counter "larder_sent_bytes_total";
    }

    "Commands" {
        /// Commands by family, as COMMAND DOCS groups them: `ok`, `error` when they were answered with one, `rejected`
        /// before they ran.
        COMMANDS: Counter "larder_commands_total" ["family", "outcome"];
        /// How long commands took, from their start to the end of their reply, by family. Of fast commands one in 64
        /// is timed, by chance, and counts for all of them.
        COMMAND_DURATION: Histogram "larder_command_duration_seconds" ["family"];
        /// How long the turns of workers took: reading, carrying out and answering what had arrived on all their
        /// connections.
        TURN_DURATION: Histogram "larder_turn_duration_seconds";
        /// Error replies by their code.
        ERRORS: Counter "larder_errors_total" ["code"];
        /// Entries of the slow log.
        SLOW: Gauge "larder_slowlog_entries";
    }

    "Tiers" {
        /// Lookups of keys: a `hit` was answered by a tier, a `miss` by none, whether or not a store then had
        /// the key. A lookup that ends in an error, since the store failed, is neither; see the loads.
        LOOKUPS: Counter "larder_lookups_total" ["outcome"];
        /// Lookups that a tier answered: `l1` of the worker, `l2` shared memory, `l3` on disk.
        HITS: Counter "larder_tier_hits_total" ["tier"];
        /// Lookups that came to a tier and went on to the next.
        MISSES: Counter "larder_tier_misses_total" ["tier"];
        /// Entries in a tier. Those of L1 are in L2, and many of L2 in L3, too.
        ENTRIES: Gauge "larder_tier_entries" ["tier"];
        /// Bytes that a tier uses; of L2, all that `memory` counts.
        BYTES: Gauge "larder_tier_bytes" ["tier"];
        /// Bytes that a tier may use.
        LIMIT: Gauge "larder_tier_limit_bytes" ["tier"];
        /// Keys by database, on disk included.
        KEYS: Gauge "larder_keys" ["db"];
        /// Entries that left memory to make room.
        EVICTIONS: Counter "larder_evictions_total";
        /// Entries whose deadline passed.
        EXPIRATIONS: Counter "larder_expirations_total";
    }

    "Traffic" {
        /// What the hit ratio would be with so many times the memory (`0.5` to `8`), by an estimate from a sample of
        /// the keys. No sample before there is enough to say.
        CURVE: Gauge "larder_mrc_hit_ratio" ["memory"];
        /// Keys of that sample.
        CURVE_KEYS: Gauge "larder_mrc_sampled_keys";
        /// The part of all keys that is sampled.
        CURVE_RATE: Gauge "larder_mrc_sampling_ratio";
    }

    "Disk" {
        /// Entries that left memory for the disk.
        DEMOTIONS: Counter "larder_demotions_total";
        /// Bytes of their records.
        DEMOTED: Counter "larder_demoted_bytes_total";
        /// Entries that left memory and were on the disk as they are.
        UNCHANGED: Counter "larder_demotions_unchanged_total";
        /// Entries that came back to memory.
        PROMOTIONS: Counter "larder_promotions_total";
        /// Entries that left memory and did not get to the disk: `admission` (not worth a place), `queue` (the disk is
        /// behind).
        NOT_DEMOTED: Counter "larder_demotions_rejected_total" ["reason"];
        /// Records that were written again when their segment was reclaimed.
        REINSERTED: Counter "larder_disk_reinserted_total";
        /// Records that went with their segment.
        FORGOTTEN: Counter "larder_disk_forgotten_total";
        /// Records that a change of their key made invalid.
        INVALIDATED: Counter "larder_disk_invalidated_total";
        /// Reads for a key.
        DISK_READS: Counter "larder_disk_reads_total";
        /// Seconds that they took, all together.
        DISK_READ_SECONDS: Counter "larder_disk_read_seconds_total";
        /// Bytes read, for whatever reason.
        DISK_READ_BYTES: Counter "larder_disk_read_bytes_total";
        /// Writes.
        DISK_WRITES: Counter "larder_disk_writes_total";
        /// Bytes written.
        DISK_WRITTEN: Counter "larder_disk_written_bytes_total";
        /// What went wrong with the disk: `read`, `write`, `timeout`, or a `record` that was damaged. Each is a miss.
        DISK_ERRORS: Counter "larder_disk_errors_total" ["cause"];
        /// Entries that wait to be written.
        QUEUE_ENTRIES: Gauge "larder_disk_queue_entries";
        /// Their bytes.
        QUEUE_BYTES: Gauge "larder_disk_queue_bytes";
        /// Memory of the disk's index.
        INDEX_BYTES: Gauge "larder_disk_index_bytes";
    }

    "Namespaces" {
        /// Lookups of a namespace's keys that a tier answered.
        NAMESPACE_HITS: Counter "larder_namespace_hits_total" ["namespace", "db", "tier"];
        /// Lookups of its keys that no tier answered.
        NAMESPACE_MISSES: Counter "larder_namespace_misses_total" ["namespace", "db"];
        /// Its entries in memory.
        NAMESPACE_ENTRIES: Gauge "larder_namespace_entries" ["namespace", "db"];
        /// Their bytes.
        NAMESPACE_BYTES: Gauge "larder_namespace_bytes" ["namespace", "db"];
        /// Bytes that they may take, where there is a quota.
        NAMESPACE_QUOTA: Gauge "larder_namespace_quota_bytes" ["namespace", "db"];
        /// Keys that were loaded from its store, or found missing there: `ok`, or `error` if the store failed.
        LOADS: Counter "larder_namespace_loads_total" ["namespace", "db", "outcome"];
        /// Seconds that loads took, all together.
        LOAD_SECONDS: Counter "larder_namespace_load_seconds_total" ["namespace", "db"];
        /// Reads that were answered with a copy past its `ttl`, since the store failed or was slow.
        STALE: Counter "larder_namespace_stale_served_total" ["namespace", "db"];
        /// Reads that were answered by the memory of an absence.
        NEGATIVE: Counter "larder_namespace_negative_hits_total" ["namespace", "db"];
        /// Reads that waited for a load that somebody else had begun.
        JOINED: Counter "larder_namespace_stampedes_avoided_total" ["namespace", "db"];
        /// Loads in the background, for copies past `refresh-after`.
        REFRESHES: Counter "larder_namespace_refreshes_total" ["namespace", "db", "outcome"];
        /// Keys that were written to its store before the reply.
        STORE_WRITES: Counter "larder_namespace_writes_total" ["namespace", "db", "outcome"];
        /// Writes that met a version in the store that was never issued here.
        CONFLICTS: Counter "larder_namespace_conflicts_total" ["namespace", "db"];
    }

    "Write-behind" {
        /// Keys whose newest value the store doesn't have yet.
        DIRTY: Gauge "larder_dirty_records" ["namespace", "db"];
        /// What they take in memory.
        DIRTY_BYTES: Gauge "larder_dirty_bytes" ["namespace", "db"];
        /// How long the oldest of them has waited.
        LAG: Gauge "larder_flush_lag_seconds" ["namespace", "db"];
        /// Changes that were taken in.
        CHANGES: Counter "larder_behind_changes_total" ["namespace", "db"];
        /// Changes that the store has, each the newest of those that were coalesced.
        FLUSHED: Counter "larder_flushed_total" ["namespace", "db"];
        /// Calls that brought them.
        FLUSHES: Counter "larder_flushes_total" ["namespace", "db"];
        /// Calls that the store failed, and that were or will be tried again.
        RETRIES: Counter "larder_flush_retries_total" ["namespace", "db"];
        /// Changes that the store refused.
        REFUSALS: Counter "larder_flush_refusals_total" ["namespace", "db"];
        /// Changes that were given up, and are kept as dead letters.
        DEAD_LETTERS: Counter "larder_dead_letters_total" ["namespace", "db"];
        /// Bytes of the journal on disk.
        JOURNAL_BYTES: Gauge "larder_journal_bytes";
        /// Its segments.
        JOURNAL_SEGMENTS: Gauge "larder_journal_segments";
        /// Changes in it that the stores lack.
        JOURNAL_RECORDS: Gauge "larder_journal_unflushed_records";
        /// Bytes of their records.
        JOURNAL_UNFLUSHED: Gauge "larder_journal_unflushed_bytes";
        /// Bytes that they may take.
        JOURNAL_LIMIT: Gauge "larder_journal_limit_bytes";
        /// How long ago the oldest of them was written.
        JOURNAL_AGE: Gauge "larder_journal_oldest_seconds";
        /// Bytes written to the journal.
        JOURNAL_WRITTEN: Counter "larder_journal_written_bytes_total";
        /// Syncs of its files.
        SYNCS: Counter "larder_journal_syncs_total";
        /// Seconds that they took, all together.
        SYNC_SECONDS: Counter "larder_journal_sync_seconds_total";
        /// Writes and syncs that failed: more than none, and nothing is written behind until a restart.
        JOURNAL_ERRORS: Counter "larder_journal_write_errors_total";
    }

    "Stores" {
        /// 1 for the state in which the breaker of a store is, 0 for the others: `closed`, `open`, `half-open`.
        BREAKER_STATE: Gauge "larder_breaker_state" ["store", "state"];
        /// Calls that a breaker let through and that have ended: `ok`, or `error` by the store's fault.
        BREAKER_CALLS: Counter "larder_breaker_calls_total" ["store", "outcome"];
        /// Of these, those that were slow.
        BREAKER_SLOW: Counter "larder_breaker_slow_calls_total" ["store"];
        /// Calls that a breaker refused.
        BREAKER_REJECTED: Counter "larder_breaker_rejected_total" ["store"];
        /// How often a breaker opened.
        BREAKER_OPENED: Counter "larder_breaker_opened_total" ["store"];
    }
}

const INTRODUCTION: &str = "\
<!-- Made from src/metrics.rs by `LARDER_UPDATE_DOCS=1 cargo test --lib metrics`; don't edit. -->

# Metrics

`GET /metrics` at the admin address (`admin`, by default 127.0.0.1:9379) answers in the text format of
Prometheus. Nothing has to be switched on, and the request path pays nothing for a scrape: each worker counts
for itself, and a scrape sums up. Counters start from zero with the server and with `CONFIG RESETSTAT`, which
`rate()` copes with. No label holds a key, so the number of series depends on the configuration alone: about
400, and 30 for each namespace. What isn't in use (disk, namespaces, write-behind, breakers) shows no series.

[operations.md](operations.md) has alert rules and a dashboard made of them.

Durations are in buckets that double from 250 ns to 2 s. A scrape job:

```yaml
scrape_configs:
  - job_name: larder
    static_configs:
      - targets: [\"127.0.0.1:9379\"]
```

Hit rate of the cache, and of one namespace:

```promql
sum(rate(larder_lookups_total{outcome=\"hit\"}[5m])) / sum(rate(larder_lookups_total[5m]))

sum by (namespace) (rate(larder_namespace_hits_total[5m]))
  / (sum by (namespace) (rate(larder_namespace_hits_total[5m])) + sum by (namespace) (rate(larder_namespace_misses_total[5m])))
```
";

/// The reference page of all metrics.
pub fn markdown() -> String {
    let mut page = INTRODUCTION.to_owned();
    for (group, metrics) in GROUPS {
        page += &format!("\n## {group}\n\n| Metric | Type | Labels | |\n|---|---|---|---|\n");
        for metric in *metrics {
            let labels: Vec<_> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
            let (name, kind, help) = (metric.name, metric.kind.name(), metric.help());
            page += &format!("| `{name}` | {kind} | {} | {help} |\n", labels.join(", "));
        }
    }
    page
}

/// Text in the making.
#[derive(Debug, Default)]
pub struct Exposition(String);

impl Exposition {
    /// The whole text.
    pub fn finish(self) -> String {
        self.0
    }

    fn head(&mut self, metric: &Metric) {
        let (name, kind) = (metric.name, metric.kind.name());
        self.put(format_args!("# HELP {name} "));
        escape(&mut self.0, metric.help(), false);
        self.put(format_args!("\n# TYPE {name} {kind}\n"));
    }

    /// Writing to a string doesn't fail.
    fn put(&mut self, text: std::fmt::Arguments<'_>) {
        let _ = self.0.write_fmt(text);
    }

    /// A metric without labels.
    pub fn one(&mut self, metric: &Metric, value: impl Display) {
        self.head(metric);
        self.sample(metric, "", &[], value);
    }

    /// A metric with a sample for each of these values of its labels.
    pub fn many<'a, const N: usize, V: Display>(
        &mut self,
        metric: &Metric,
        samples: impl IntoIterator<Item = ([&'a str; N], V)>,
    ) {
        self.head(metric);
        for (values, value) in samples {
            self.sample(metric, "", &values, value);
        }
    }

    /// A histogram with these values of its labels each: the counts of buckets, one bound (in seconds) fewer,
    /// and the sum in seconds.
    pub fn histogram<const N: usize>(
        &mut self,
        metric: &Metric,
        bounds: &[f64],
        samples: impl IntoIterator<Item = ([&'static str; N], Vec<u64>, f64)>,
    ) {
        self.head(metric);
        for (values, counts, sum) in samples {
            let mut below = 0;
            for (at, count) in counts.iter().enumerate() {
                below += count;
                self.0.push_str(metric.name);
                self.0.push_str("_bucket{");
                self.labels(metric, &values);
                let comma = if N == 0 { "" } else { "," };
                match bounds.get(at) {
                    Some(bound) => self.put(format_args!("{comma}le=\"{bound}\"}} {below}\n")),
                    None => self.put(format_args!("{comma}le=\"+Inf\"}} {below}\n")),
                }
            }
            self.sample(metric, "_sum", &values, sum);
            self.sample(metric, "_count", &values, below);
        }
    }

    fn sample(&mut self, metric: &Metric, part: &str, values: &[&str], value: impl Display) {
        self.0.push_str(metric.name);
        self.0.push_str(part);
        if !values.is_empty() {
            self.0.push('{');
            self.labels(metric, values);
            self.0.push('}');
        }
        self.put(format_args!(" {value}\n"));
    }

    fn labels(&mut self, metric: &Metric, values: &[&str]) {
        debug_assert_eq!(metric.labels.len(), values.len(), "{}", metric.name);
        for (at, (label, value)) in metric.labels.iter().zip(values).enumerate() {
            if at > 0 {
                self.0.push(',');
            }
            self.0.push_str(label);
            self.0.push_str("=\"");
            escape(&mut self.0, value, true);
            self.0.push('"');
        }
    }
}

/// Adds a text as the format has it; quotes are escaped in labels only.
fn escape(out: &mut String, text: &str, quotes: bool) {
    for char in text.chars() {
        match char {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '"' if quotes => out.push_str("\\\""),
            char => out.push(char),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn all() -> impl Iterator<Item = &'static Metric> {
        GROUPS.iter().flat_map(|(_, metrics)| *metrics)
    }

    #[test]
    fn names_are_as_prometheus_asks() {
        let mut seen = HashSet::new();
        for metric in all() {
            let name = metric.name;
            assert!(seen.insert(name), "{name} twice");
            let is_plain =
                |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
            assert!(name.bytes().all(is_plain), "{name}");
            assert!(name.starts_with("larder_") || name.starts_with("process_"), "{name}");
            assert_eq!(name.ends_with("_total"), metric.kind == Kind::Counter, "{name}");
            assert!(metric.kind != Kind::Histogram || name.ends_with("_seconds"), "{name}");
            // Reserved, or parts of a histogram.
            for end in ["_count", "_sum", "_bucket"] {
                assert!(!name.ends_with(end), "{name}");
            }
            assert!(metric.labels.iter().all(|label| !["le", "key", "quantile"].contains(label)));
            assert!(metric.help().ends_with('.') && !metric.help().contains("  "), "{name}");
        }
    }

    #[test]
    fn the_page_is_up_to_date() {
        const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");
        let page = markdown();
        if std::env::var_os("LARDER_UPDATE_DOCS").is_some() {
            std::fs::write(PATH, &page).expect("docs/metrics.md can be written");
        }
        let found = std::fs::read_to_string(PATH).unwrap_or_default();
        assert!(found == page, "docs/metrics.md is out of date: run with LARDER_UPDATE_DOCS=1");
    }

    #[test]
    fn the_text_is_as_the_format_has_it() {
        let mut text = Exposition::default();
        text.one(&UPTIME, 1.5);
        text.many(&KEYS, [(["0"], 7), (["a\"\\\n"], 8)]);
        text.histogram(&COMMAND_DURATION, &[0.001, 0.01], [(["string"], vec![1, 2, 4], 0.5)]);
        text.histogram(&TURN_DURATION, &[0.001], [([], vec![0, 1], 2.0)]);
        let text = text.finish();
        let samples: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            samples,
            [
                "larder_uptime_seconds 1.5",
                "larder_keys{db=\"0\"} 7",
                "larder_keys{db=\"a\\\"\\\\\\n\"} 8",
                "larder_command_duration_seconds_bucket{family=\"string\",le=\"0.001\"} 1",
                "larder_command_duration_seconds_bucket{family=\"string\",le=\"0.01\"} 3",
                "larder_command_duration_seconds_bucket{family=\"string\",le=\"+Inf\"} 7",
                "larder_command_duration_seconds_sum{family=\"string\"} 0.5",
                "larder_command_duration_seconds_count{family=\"string\"} 7",
                "larder_turn_duration_seconds_bucket{le=\"0.001\"} 0",
                "larder_turn_duration_seconds_bucket{le=\"+Inf\"} 1",
                "larder_turn_duration_seconds_sum 2",
                "larder_turn_duration_seconds_count 1",
            ]
        );
        assert!(text.starts_with("# HELP larder_uptime_seconds Seconds since"));
        assert!(text.contains("\n# TYPE larder_turn_duration_seconds histogram\n"));
    }
}
