//! INFO: the state of the server, section by section, with Redis's names for what is the same here
//! (<https://redis.io/docs/latest/commands/info/>).
//!
//! Fields that would have no true value in Larder are left out; `docs/info.md` says which, and why.
//! `larder_version`, the sections `tiers`, `namespaces` and `stores`, and fields that begin with `larder_`
//! are our own.

use std::{
    fmt::{Display, Write},
    sync::atomic::Ordering::Relaxed,
};

use rustix::system::uname;

use super::{
    Args, Session, TIDY_EVERY, allocator, breaker_command,
    figures::{CpuFigures, MemoryFigures, human, ratio, system_memory},
    info_counts, namespace_command,
    row::{Row, Run},
    server::{ANYWHERE, SUB},
    tiers,
};
use crate::{cache::tx::Stop, clock, protocol::Reply, tier::eviction::lru_clock};

/// The version of Redis whose commands and replies we follow.
pub const REDIS_VERSION: &str = "7.2.4";
/// Our own version.
pub const LARDER_VERSION: &str = env!("CARGO_PKG_VERSION");

/// INFO.
pub const ROW: Row = Row {
    name: "info",
    arity: -1,
    flags: ANYWHERE,
    run: Run::Session(info),
    summary: "Shows the state of the server and what it has counted.",
    syntax: "[section [section ...]]",
    ..SUB
};

/// Lines of `name:value`.
#[derive(Debug, Default)]
pub(super) struct Text(String);

impl Text {
    /// Adds a field.
    pub(super) fn field(&mut self, name: &str, value: impl Display) {
        // Writing to a string doesn't fail.
        let _ = write!(self.0, "{name}:{value}\r\n");
    }

    /// Adds a number of bytes, once more for people.
    fn bytes(&mut self, name: &str, bytes: u64) {
        self.field(name, bytes);
        self.field(&format!("{name}_human"), human(bytes));
    }

    /// Adds fields that are zero because there is nothing that they could count.
    fn zeros(&mut self, names: &[&str]) {
        self.same(0, names);
    }

    /// Adds fields that always have this value.
    fn same(&mut self, value: impl Display, names: &[&str]) {
        names.iter().for_each(|name| self.field(name, &value));
    }
}

/// When a section is shown without being named.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shown {
    /// Always.
    Default,
    /// With `all` and `everything`.
    All,
    /// With `everything` and by default, but not with `all`.
    Modules,
}

struct Section {
    title: &'static str,
    shown: Shown,
    write: fn(&Session, &mut Text),
}

const fn section(title: &'static str, shown: Shown, write: fn(&Session, &mut Text)) -> Section {
    Section { title, shown, write }
}

/// In the order in which they are written; a section's name is its title.
const SECTIONS: &[Section] = &[
    section("Server", Shown::Default, server),
    section("Clients", Shown::Default, clients),
    section("Memory", Shown::Default, memory),
    section("Persistence", Shown::Default, persistence),
    section("Stats", Shown::Default, stats),
    section("Replication", Shown::Default, replication),
    section("CPU", Shown::Default, cpu),
    section("Modules", Shown::Modules, |_, _| {}),
    section("Commandstats", Shown::All, info_counts::commands),
    section("Errorstats", Shown::Default, info_counts::errors),
    section("Latencystats", Shown::All, info_counts::latencies),
    section("Cluster", Shown::Default, |_, text| text.field("cluster_enabled", 0)),
    section("Keyspace", Shown::Default, info_counts::keyspace),
    section("Tiers", Shown::Default, tiers::info),
    section("Namespaces", Shown::Default, namespace_command::info),
    section("Stores", Shown::Default, breaker_command::info),
];

impl Section {
    /// Whether the words of the request ask for it.
    fn is_asked(&self, args: Args<'_>) -> bool {
        if args.len() == 1 {
            return self.shown != Shown::All;
        }
        (1..args.len()).any(|at| {
            args.is(at, self.title)
                || args.is(at, "everything")
                || args.is(at, "all") && self.shown != Shown::Modules
                || args.is(at, "default") && self.shown != Shown::All
        })
    }
}

fn info(session: &mut Session, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    let mut text = Text::default();
    for section in SECTIONS.iter().filter(|section| section.is_asked(args)) {
        if !text.0.is_empty() {
            text.0.push_str("\r\n");
        }
        let _ = write!(text.0, "# {}\r\n", section.title);
        (section.write)(session, &mut text);
    }
    reply.verbatim("txt", text.0.as_bytes());
    Ok(())
}

fn server(session: &Session, text: &mut Text) {
    let shared = &session.shared;
    let system = uname();
    let names = [system.sysname(), system.release(), system.machine()];
    let uptime = shared.started.elapsed().as_secs();
    text.field("redis_version", REDIS_VERSION);
    text.field("larder_version", LARDER_VERSION);
    // As in a Redis that wasn't built from a checkout.
    text.field("redis_git_sha1", "00000000");
    text.field("redis_git_dirty", 0);
    text.field("redis_mode", "standalone");
    text.field("os", names.map(|name| name.to_string_lossy().into_owned()).join(" "));
    text.field("arch_bits", usize::BITS);
    text.field("monotonic_clock", "POSIX clock_gettime");
    text.field("multiplexing_api", "epoll");
    text.field("process_id", std::process::id());
    text.field("process_supervised", "no");
    text.field("run_id", &shared.run_id);
    text.field("tcp_port", shared.port.load(Relaxed));
    text.field("server_time_usec", clock::micros());
    text.field("uptime_in_seconds", uptime);
    text.field("uptime_in_days", uptime / 86_400);
    text.same(1_000 / TIDY_EVERY.as_millis(), &["hz", "configured_hz"]);
    text.field("lru_clock", lru_clock(session.now));
    text.field("executable", one_line(std::env::current_exe().unwrap_or_default().display()));
    text.field("config_file", one_line(shared.live.path().unwrap_or("".as_ref()).display()));
    text.field("io_threads_active", 0);
    for (name, listener) in shared.listeners.get().into_iter().flatten() {
        text.field(name, one_line(listener));
    }
    text.field("larder_workers", shared.workers.len());
}

/// A path may hold what would end the line.
fn one_line(path: impl Display) -> String {
    path.to_string().replace(char::is_control, "?")
}

fn clients(session: &Session, text: &mut Text) {
    let shared = &session.shared;
    let (mut input, mut output) = (0, 0);
    for client in &shared.clients {
        input = input.max(client.query_bytes.load(Relaxed));
        output = output.max(client.output_bytes.load(Relaxed));
    }
    text.field("connected_clients", shared.clients.len());
    text.field("cluster_connections", 0);
    text.field("maxclients", shared.live.get().maxclients);
    text.field("client_recent_max_input_buffer", input);
    text.field("client_recent_max_output_buffer", output);
    text.zeros(&[
        "blocked_clients",
        "tracking_clients",
        "clients_in_timeout_table",
        "total_blocking_keys",
        "total_blocking_keys_on_nokey",
    ]);
}

fn memory(session: &Session, text: &mut Text) {
    let memory = MemoryFigures::now(&session.shared);
    text.bytes("used_memory", memory.used);
    text.bytes("used_memory_rss", memory.rss);
    text.bytes("used_memory_peak", memory.peak);
    text.field("used_memory_peak_perc", percent(memory.used, memory.peak));
    text.field("used_memory_overhead", memory.overhead());
    text.field("used_memory_startup", memory.startup);
    text.field("used_memory_dataset", memory.dataset);
    text.field("used_memory_dataset_perc", format_args!("{:.2}%", memory.dataset_percent()));
    text.field("larder_used_memory_counted", memory.counted);
    if let Some(figures) = memory.allocator {
        text.field("allocator_allocated", figures.allocated);
        text.field("allocator_active", figures.active);
        text.field("allocator_resident", figures.resident);
    }
    text.bytes("total_system_memory", system_memory());
    // There are no scripts and no functions.
    text.bytes("used_memory_lua", 0);
    text.zeros(&[
        "used_memory_vm_eval",
        "used_memory_scripts_eval",
        "number_of_cached_scripts",
        "number_of_functions",
        "number_of_libraries",
        "used_memory_vm_functions",
    ]);
    text.bytes("used_memory_vm_total", 0);
    text.zeros(&["used_memory_functions"]);
    text.bytes("used_memory_scripts", 0);
    text.bytes("maxmemory", session.cache().memory().rules().limit() as u64);
    text.field("maxmemory_policy", session.cache().memory().rules().eviction().name());
    if let Some(figures) = memory.allocator {
        compare(text, "allocator_frag", figures.active, figures.allocated);
        compare(text, "allocator_rss", figures.resident, figures.active);
        compare(text, "rss_overhead", memory.rss, figures.resident);
    }
    text.field("mem_fragmentation_ratio", format_args!("{:.2}", memory.fragmentation()));
    text.field("mem_fragmentation_bytes", memory.rss.wrapping_sub(memory.used) as i64);
    text.zeros(&[
        "mem_not_counted_for_evict",
        "mem_replication_backlog",
        "mem_total_replication_buffers",
        "mem_clients_slaves",
    ]);
    text.field("mem_clients_normal", memory.clients);
    text.zeros(&["mem_cluster_links", "mem_aof_buffer"]);
    text.field("mem_allocator", allocator::name());
    text.field("active_defrag_running", 0);
    let freed = &session.shared.lazily_freed;
    text.field("lazyfree_pending_objects", freed.pending.load(Relaxed));
    text.field("lazyfreed_objects", freed.freed.load(Relaxed));
}

fn percent(of: u64, all: u64) -> String {
    format!("{:.2}%", 100.0 * ratio(of, all))
}

/// The ratio and the difference of two numbers of bytes.
fn compare(text: &mut Text, name: &str, of: u64, than: u64) {
    text.field(&format!("{name}_ratio"), format_args!("{:.2}", ratio(of, than)));
    text.field(&format!("{name}_bytes"), of.wrapping_sub(than) as i64);
}

/// There are neither RDB files nor an AOF, and no process is forked for them.
fn persistence(session: &Session, text: &mut Text) {
    // Whoever can ask is served: memory comes back beside that.
    text.zeros(&[
        "loading",
        "async_loading",
        "current_cow_peak",
        "current_cow_size",
        "current_cow_size_age",
    ]);
    text.field("current_fork_perc", "0.00");
    text.zeros(&[
        "current_save_keys_processed",
        "current_save_keys_total",
        "rdb_bgsave_in_progress",
    ]);
    text.same(-1, &["rdb_last_bgsave_time_sec", "rdb_current_bgsave_time_sec"]);
    text.zeros(&[
        "rdb_saves",
        "rdb_last_cow_size",
        "rdb_last_load_keys_expired",
        "rdb_last_load_keys_loaded",
        "aof_enabled",
        "aof_rewrite_in_progress",
        "aof_rewrite_scheduled",
    ]);
    text.same(-1, &["aof_last_rewrite_time_sec", "aof_current_rewrite_time_sec"]);
    text.zeros(&[
        "aof_rewrites",
        "aof_rewrites_consecutive_failures",
        "aof_last_cow_size",
        "module_fork_in_progress",
        "module_fork_last_cow_size",
    ]);
    let warming = session.shared.warming.get().is_some_and(|thread| !thread.is_finished());
    text.field("larder_warming", u8::from(warming));
}

fn stats(session: &Session, text: &mut Text) {
    let shared = &session.shared;
    let (rates, memory) = (&shared.rates, session.cache().memory());
    let kilobytes = |bytes| format!("{:.2}", ratio(bytes, 1024));
    text.field("total_connections_received", shared.sum(|worker| worker.connections.get()));
    text.field("total_commands_processed", shared.sum(|worker| worker.commands.get()));
    text.field("instantaneous_ops_per_sec", rates.commands());
    text.field("total_net_input_bytes", shared.sum(|worker| worker.received.get()));
    text.field("total_net_output_bytes", shared.sum(|worker| worker.sent.get()));
    text.zeros(&["total_net_repl_input_bytes", "total_net_repl_output_bytes"]);
    text.field("instantaneous_input_kbps", kilobytes(rates.received()));
    text.field("instantaneous_output_kbps", kilobytes(rates.sent()));
    text.field("instantaneous_input_repl_kbps", kilobytes(0));
    text.field("instantaneous_output_repl_kbps", kilobytes(0));
    text.field("rejected_connections", shared.refused.load(Relaxed));
    text.zeros(&["sync_full", "sync_partial_ok", "sync_partial_err"]);
    text.field("expired_keys", memory.expired());
    let stale = 100.0 * memory.stale_part(session.now);
    text.field("expired_stale_perc", format_args!("{stale:.2}"));
    let cut_short = shared.sum(|worker| worker.expire_cut_short.get());
    text.field("expired_time_cap_reached_count", cut_short);
    let spent = shared.sum(|worker| worker.expire_nanos.get()) / 1_000_000;
    text.field("expire_cycle_cpu_milliseconds", spent);
    text.field("evicted_keys", memory.evicted());
    text.field("evicted_clients", 0);
    text.field("total_eviction_exceeded_time", shared.excess.total(session.now));
    text.field("current_eviction_exceeded_time", shared.excess.current(session.now));
    text.field("keyspace_hits", shared.lookups(|tally| &tally.hits));
    text.field("keyspace_misses", shared.lookups(|tally| &tally.misses));
    text.zeros(&[
        "pubsub_channels",
        "pubsub_patterns",
        "pubsubshard_channels",
        "latest_fork_usec",
        "total_forks",
        "migrate_cached_sockets",
        "slave_expires_tracked_keys",
        "active_defrag_hits",
        "active_defrag_misses",
        "active_defrag_key_hits",
        "active_defrag_key_misses",
        "total_active_defrag_time",
        "current_active_defrag_time",
        "tracking_total_keys",
        "tracking_total_items",
        "tracking_total_prefixes",
        "unexpected_error_replies",
    ]);
    text.field("total_error_replies", shared.sum(|worker| worker.errors.get()));
    // Redis counts those of collections; a string has nothing to be looked into.
    text.field("dump_payload_sanitizations", 0);
    text.field("total_reads_processed", shared.sum(|worker| worker.reads.get()));
    text.field("total_writes_processed", shared.sum(|worker| worker.writes.get()));
    text.zeros(&["io_threaded_reads_processed", "io_threaded_writes_processed"]);
    let closed = shared.sum(|worker| worker.query_limit_closed.get());
    text.field("client_query_buffer_limit_disconnections", closed);
    let closed = shared.sum(|worker| worker.output_limit_closed.get());
    text.field("client_output_buffer_limit_disconnections", closed);
    let cycles = shared.sum(|worker| worker.cycles.get());
    let timed = shared.sum(|worker| worker.timed_cycles.get());
    let nanos = shared.sum(|worker| worker.cycle_nanos.get());
    text.field("eventloop_cycles", cycles);
    let micros = ratio(nanos, timed) * cycles as f64 / 1_000.0;
    text.field("eventloop_duration_sum", micros as u64);
    text.field("eventloop_duration_cmd_sum", info_counts::micros(shared) as u64);
    text.field("instantaneous_eventloop_cycles_per_sec", rates.cycles());
    text.field("instantaneous_eventloop_duration_usec", rates.cycle_nanos() / 1_000);
    text.field("acl_access_denied_auth", shared.sum(|worker| worker.denied.get()));
    text.zeros(&["acl_access_denied_cmd", "acl_access_denied_key", "acl_access_denied_channel"]);
}

fn replication(_: &Session, text: &mut Text) {
    text.field("role", "master");
    text.field("connected_slaves", 0);
    text.field("master_failover_state", "no-failover");
    text.field("master_repl_offset", 0);
    text.field("second_repl_offset", -1);
    text.zeros(&[
        "repl_backlog_active",
        "repl_backlog_size",
        "repl_backlog_first_byte_offset",
        "repl_backlog_histlen",
    ]);
}

fn cpu(_: &Session, text: &mut Text) {
    let (process, main) = (CpuFigures::of_process(), CpuFigures::of_main_thread());
    for (name, seconds) in [
        ("used_cpu_sys", process.system),
        ("used_cpu_user", process.user),
        ("used_cpu_sys_children", process.children_system),
        ("used_cpu_user_children", process.children_user),
        ("used_cpu_sys_main_thread", main.system),
        ("used_cpu_user_main_thread", main.user),
    ] {
        text.field(name, format_args!("{seconds:.6}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        command::testing::{call, put, session},
        protocol::Resp,
    };

    fn titles(words: &[&str]) -> Vec<String> {
        let reply = call(&mut session(), &[&["INFO"], words].concat());
        let titles = reply.split("\r\n").filter_map(|line| line.strip_prefix("# "));
        titles.map(|title| title.to_lowercase()).collect()
    }

    #[test]
    fn sections_are_chosen_by_name() {
        let default = titles(&[]);
        assert_eq!(default, titles(&["Default"]));
        assert!(default.contains(&"modules".to_owned()));
        assert!(!default.contains(&"commandstats".to_owned()));
        let all = titles(&["all"]);
        assert!(all.contains(&"commandstats".to_owned()) && !all.contains(&"modules".to_owned()));
        assert_eq!(titles(&["everything"]).len(), SECTIONS.len());
        assert_eq!(titles(&["keyspace", "nope", "CPU", "cpu"]), ["cpu", "keyspace"]);
        assert!(titles(&["nope"]).is_empty());
    }

    #[test]
    fn replies_are_as_redis_frames_them() {
        let mut session = session();
        assert_eq!(call(&mut session, &["INFO", "nope"]), "$0\r\n\r\n");
        let cluster = "# Cluster\r\ncluster_enabled:0\r\n";
        assert_eq!(call(&mut session, &["INFO", "cluster"]), format!("$30\r\n{cluster}\r\n"));
        session.set_resp(Resp::V3);
        assert_eq!(call(&mut session, &["INFO", "cluster"]), format!("=34\r\ntxt:{cluster}\r\n"));
    }

    #[test]
    fn every_line_is_a_field() {
        let mut session = session();
        put(&session, "a", "x");
        let reply = call(&mut session, &["INFO", "everything"]);
        let (_, text) = reply.split_once("\r\n").unwrap();
        for line in text.split("\r\n").filter(|line| !line.is_empty() && !line.starts_with('#')) {
            assert!(line.split_once(':').is_some_and(|(name, _)| !name.contains(' ')), "{line}");
        }
        for field in ["redis_version:7.2.4", "role:master", "db0:keys=1,expires=0,avg_ttl=0"] {
            assert!(text.contains(&format!("\r\n{field}\r\n")), "{field}");
        }
        assert!(text.contains("\r\nmaxmemory:67108864\r\nmaxmemory_human:64.00M\r\n"));
    }
}
