//! INFO over a socket: the fields of each section beside those of a redis-server 7.0, the fields that
//! redis_exporter reads, and that figures are true where they can be made to move. `docs/info.md` says
//! which fields are left out, and which are added; it is read here.

mod common;

use std::{collections::BTreeMap, fs, thread, time::Duration};

use common::{PATIENCE, Raw, Server, encode, eventually, expect, redis7};

/// Fields and their values, in their order, by section.
type Sections = BTreeMap<String, Vec<(String, String)>>;

/// Sections that have a line for each command, error, latency or database, or are only Larder's.
const BY_CONTENT: [&str; 7] =
    ["Commandstats", "Errorstats", "Latencystats", "Keyspace", "Tiers", "Namespaces", "Stores"];

/// The fields that redis_exporter reads from INFO of a primary of Redis 7.2 by itself, but for those that
/// are there only with an AOF, with replicas, or in a cluster.
const EXPORTED: &str = "
    uptime_in_seconds process_id io_threads_active hz configured_hz connected_clients blocked_clients
    maxclients tracking_clients clients_in_timeout_table total_blocking_keys total_blocking_keys_on_nokey
    client_recent_max_output_buffer client_recent_max_input_buffer
    allocator_active allocator_allocated allocator_resident allocator_frag_ratio allocator_frag_bytes
    allocator_rss_ratio allocator_rss_bytes used_memory used_memory_rss used_memory_peak used_memory_lua
    used_memory_vm_eval used_memory_scripts_eval used_memory_overhead used_memory_startup
    used_memory_dataset used_memory_vm_functions used_memory_scripts used_memory_functions
    used_memory_vm_total maxmemory mem_fragmentation_ratio mem_fragmentation_bytes mem_clients_slaves
    mem_clients_normal mem_cluster_links mem_aof_buffer mem_replication_backlog expired_stale_perc
    mem_not_counted_for_evict mem_total_replication_buffers lazyfree_pending_objects lazyfreed_objects
    active_defrag_running migrate_cached_sockets active_defrag_hits active_defrag_misses
    active_defrag_key_hits active_defrag_key_misses number_of_cached_scripts number_of_functions
    number_of_libraries total_system_memory
    loading async_loading rdb_changes_since_last_save rdb_bgsave_in_progress rdb_last_save_time
    rdb_last_bgsave_status rdb_last_bgsave_time_sec rdb_current_bgsave_time_sec rdb_saves
    rdb_last_cow_size rdb_last_load_keys_expired rdb_last_load_keys_loaded aof_enabled
    aof_rewrite_in_progress aof_rewrite_scheduled aof_last_rewrite_time_sec aof_current_rewrite_time_sec
    aof_last_cow_size aof_last_bgrewrite_status aof_last_write_status module_fork_in_progress
    module_fork_last_cow_size
    current_eviction_exceeded_time total_eviction_exceeded_time pubsub_channels pubsub_patterns
    pubsubshard_channels latest_fork_usec tracking_total_keys tracking_total_items
    tracking_total_prefixes instantaneous_eventloop_cycles_per_sec instantaneous_eventloop_duration_usec
    connected_slaves repl_backlog_size repl_backlog_active repl_backlog_first_byte_offset
    repl_backlog_histlen master_repl_offset second_repl_offset slave_expires_tracked_keys sync_full
    sync_partial_ok sync_partial_err
    total_connections_received total_commands_processed rejected_connections total_net_input_bytes
    total_net_output_bytes total_net_repl_input_bytes total_net_repl_output_bytes expired_keys
    expired_time_cap_reached_count expire_cycle_cpu_milliseconds evicted_keys evicted_clients
    keyspace_hits keyspace_misses eventloop_cycles eventloop_duration_sum eventloop_duration_cmd_sum
    used_cpu_sys used_cpu_user used_cpu_sys_children used_cpu_user_children used_cpu_sys_main_thread
    used_cpu_user_main_thread unexpected_error_replies total_error_replies dump_payload_sanitizations
    total_reads_processed total_writes_processed io_threaded_reads_processed
    io_threaded_writes_processed client_query_buffer_limit_disconnections
    client_output_buffer_limit_disconnections reply_buffer_shrinks reply_buffer_expands
    acl_access_denied_auth acl_access_denied_cmd acl_access_denied_key acl_access_denied_channel
    role redis_version redis_build_id redis_mode os maxmemory_policy tcp_port run_id master_replid";

fn sections(client: &mut Raw, which: &str) -> Sections {
    let reply = client.ask_line(&format!("INFO {which}"));
    let (_, text) = reply.split_once("\r\n").expect("a bulk string");
    let (mut all, mut section) = (Sections::new(), String::new());
    for line in text.split("\r\n").filter(|line| !line.is_empty()) {
        if let Some(title) = line.strip_prefix("# ") {
            title.clone_into(&mut section);
            all.insert(section.clone(), Vec::new());
        } else {
            let (name, value) = line.split_once(':').unwrap_or_else(|| panic!("no field: {line}"));
            let fields = all.get_mut(&section).expect("a title comes first");
            fields.push((name.to_owned(), value.to_owned()));
        }
    }
    all
}

/// The value of a field.
fn text(client: &mut Raw, name: &str) -> String {
    let all = sections(client, "everything");
    let mut fields = all.into_values().flatten();
    fields.find(|(field, _)| field == name).unwrap_or_else(|| panic!("no {name}")).1
}

/// The value of a field that is a number.
fn number(client: &mut Raw, name: &str) -> u64 {
    let text = text(client, name);
    text.parse().unwrap_or_else(|_| panic!("{name}: {text}"))
}

/// The rows of one of the tables of `docs/info.md`: section and field; each has a reason.
fn documented(title: &str) -> Vec<(String, String)> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/info.md");
    let page = fs::read_to_string(path).expect("the page is there");
    let (_, table) = page.split_once(&format!("### {title}\n")).expect("the table is there");
    let rows = table.lines().skip(3).take_while(|line| line.starts_with('|'));
    rows.map(|row| {
        let cells: Vec<_> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let [section, field, reason] = cells[..] else { panic!("{row}") };
        assert!(reason.len() > 7, "a reason, please: {row}");
        (section.to_owned(), field.trim_matches('`').to_owned())
    })
    .collect()
}

/// What a value looks like: numbers by their decimals.
fn form(value: &str) -> String {
    let is_number = |text: &str| text.parse::<f64>().is_ok();
    let decimals = |text: &str| text.split_once('.').map_or(0, |(_, behind)| behind.len());
    if let Some(part) = value.strip_suffix('%').filter(|part| is_number(part)) {
        return format!("percent with {} decimals", decimals(part));
    }
    let human = value.strip_suffix(['B', 'K', 'M', 'G', 'T']).filter(|part| is_number(part));
    match value {
        _ if human.is_some() => "bytes for people".to_owned(),
        _ if is_number(value) => format!("number with {} decimals", decimals(value)),
        _ => "text".to_owned(),
    }
}

#[test]
fn each_section_has_the_fields_of_redis_in_their_forms() {
    let Some(redis) = redis7() else { return };
    let larder = Server::start(&[]);
    let theirs = sections(&mut Raw::connect(redis.port()), "everything");
    let ours = sections(&mut larder.raw(), "everything");
    let (left_out, added) = (documented("Left out"), documented("Added"));
    let (mut wrong, mut seen) = (Vec::new(), Vec::new());
    for (section, fields) in &theirs {
        let Some(own) = ours.get(section) else { panic!("no section {section}") };
        if BY_CONTENT.contains(&section.as_str()) {
            continue;
        }
        for (name, value) in fields {
            let found = own.iter().filter(|(own, _)| own == name).collect::<Vec<_>>();
            let is_left_out = left_out.contains(&(section.clone(), name.clone()));
            match found[..] {
                [] if is_left_out => seen.push(name.clone()),
                [(_, own)] if !is_left_out && form(own) == form(value) => {}
                _ => wrong.push(format!("{section}: {name}:{value}, ours {found:?}")),
            }
        }
        for (name, value) in
            own.iter().filter(|(own, _)| !fields.iter().any(|(name, _)| name == own))
        {
            if added.contains(&(section.clone(), name.clone())) {
                seen.push(name.clone());
            } else {
                wrong.push(format!("{section}: {name}:{value} is only ours, and not documented"));
            }
        }
    }
    for (section, _) in ours.iter().filter(|(section, _)| !theirs.contains_key(*section)) {
        assert!(BY_CONTENT.contains(&section.as_str()), "{section}");
    }
    for (section, name) in left_out.iter().chain(&added) {
        if !seen.contains(name) {
            wrong.push(format!("{section}: {name} is documented, and isn't so"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn what_redis_exporter_reads_is_there() {
    let larder = Server::start(&[]);
    let all = sections(&mut larder.raw(), "all");
    let left_out = documented("Left out");
    for name in EXPORTED.split_whitespace() {
        let is_there = all.values().flatten().any(|(field, _)| field == name);
        let is_left_out = left_out.iter().any(|(_, field)| field == name);
        assert!(is_there != is_left_out, "{name}");
    }
}

#[test]
fn traffic_and_rounds_are_counted_and_start_again() {
    let server = Server::start(&["--workers", "1"]);
    let client = &mut server.raw();
    let (reads, writes) =
        (number(client, "total_reads_processed"), number(client, "total_writes_processed"));
    (0..100).for_each(|_| expect(client, "PING", "+PONG"));
    // One read and one write for each, and those of the two questions.
    assert_eq!(number(client, "total_reads_processed"), reads + 102);
    assert_eq!(number(client, "total_writes_processed"), writes + 102);
    let cycles = number(client, "eventloop_cycles");
    client.send(encode(&["SET", "k", "v"]).repeat(50_000));
    (0..50_000).for_each(|_| drop(client.reply()));
    assert!(number(client, "eventloop_cycles") > cycles);
    let spent = number(client, "eventloop_duration_sum");
    let in_commands = number(client, "eventloop_duration_cmd_sum");
    assert!(spent > 0 && in_commands > 0, "{spent} {in_commands}");
    // The worker looks for expired keys ten times a second, whoever else is there.
    eventually("a rate", || number(client, "instantaneous_eventloop_cycles_per_sec") >= 5);
    eventually("a duration", || number(client, "instantaneous_eventloop_duration_usec") > 0);
    assert_eq!(client.ask_line("GET"), "-ERR wrong number of arguments for 'get' command\r\n");
    assert_eq!(number(client, "total_error_replies"), 1);
    expect(client, "CONFIG RESETSTAT", "+OK");
    let names = "total_reads_processed total_writes_processed total_commands_processed \
                 total_net_input_bytes eventloop_cycles total_error_replies";
    for name in names.split(' ') {
        assert!(number(client, name) < 50_000, "{name}");
    }
    assert_eq!(number(client, "total_error_replies"), 0);
    assert!(number(client, "total_reads_processed") < 20);
}

#[test]
fn what_expires_is_counted_and_so_are_the_times() {
    let server = Server::start(&[]);
    let client = &mut server.raw();
    for key in 0..200 {
        let seconds = 100 + 200 * (key % 2);
        expect(client, &format!("SET {key} v EX {seconds}"), "+OK");
    }
    (200..300).for_each(|key| expect(client, &format!("SET {key} v"), "+OK"));
    let keyspace = text(client, "db0");
    let ttl = keyspace.strip_prefix("keys=300,expires=200,avg_ttl=").expect("Redis's form");
    let ttl: u64 = ttl.parse().expect("a number");
    assert!((190_000..=200_000).contains(&ttl), "{ttl}");
    // Past their end, and left lying.
    expect(client, "DEBUG SET-ACTIVE-EXPIRE 0", "+OK");
    (0..200).for_each(|key| expect(client, &format!("PEXPIRE {key} 1"), ":1"));
    thread::sleep(Duration::from_millis(20));
    assert_eq!(text(client, "expired_stale_perc"), "100.00");
    assert_eq!(number(client, "expired_keys"), 0);
    expect(client, "DEBUG SET-ACTIVE-EXPIRE 1", "+OK");
    eventually("they leave unread", || number(client, "expired_keys") == 200);
    assert_eq!(text(client, "expired_stale_perc"), "0.00");
    assert_eq!(text(client, "db0"), "keys=100,expires=0,avg_ttl=0");
    // Enough of them take a millisecond.
    let many = (0..200_000).map(|key| format!("SET key:{key} v PX 300\r\n")).collect::<String>();
    client.send(many);
    (0..200_000).for_each(|_| drop(client.reply()));
    eventually("time is spent on it", || number(client, "expire_cycle_cpu_milliseconds") > 0);
    expect(client, "CONFIG RESETSTAT", "+OK");
    eventually("the rest goes", || text(client, "db0").starts_with("keys=100,"));
    expect(client, "CONFIG RESETSTAT", "+OK");
    assert_eq!(
        number(client, "expired_keys") + number(client, "expired_time_cap_reached_count"),
        0
    );
    // A look that finds nothing takes its time, too.
    assert!(number(client, "expire_cycle_cpu_milliseconds") < 50);
}

#[test]
fn clients_who_go_too_far_are_counted() {
    let server = Server::start(&["--requirepass", "right", "--client-query-buffer-limit", "1mb"]);
    let client = &mut server.raw();
    for line in
        ["AUTH wrong", "AUTH default wrong", "AUTH somebody right", "HELLO 3 AUTH default x"]
    {
        assert!(client.ask_line(line).starts_with("-WRONGPASS"), "{line}");
    }
    expect(client, "AUTH right", "+OK");
    assert_eq!(number(client, "acl_access_denied_auth"), 4);
    assert_eq!(text(client, "errorstat_WRONGPASS"), "count=4");
    let mut other = server.raw();
    expect(&mut other, "AUTH right", "+OK");
    other.send(format!("*2\r\n$3\r\nGET\r\n${}\r\n", 4 << 20));
    other.send(vec![b'x'; 2 << 20]);
    let name = "client_query_buffer_limit_disconnections";
    eventually("it is cut off", || number(client, name) == 1);
    expect(client, "CONFIG RESETSTAT", "+OK");
    assert_eq!(number(client, name), 0);
    assert_eq!(number(client, "acl_access_denied_auth"), 4);
}

#[test]
fn memory_above_its_limit_is_timed() {
    let server = Server::start(&["--maxmemory-policy", "noeviction", "--memory", "64mb"]);
    let client = &mut server.raw();
    let value = "v".repeat(1 << 20);
    (0..16).for_each(|key| drop(client.ask(&["SET", &key.to_string(), &value])));
    assert_eq!(number(client, "total_eviction_exceeded_time"), 0);
    expect(client, "CONFIG SET maxmemory 8mb", "+OK");
    eventually("it is above", || number(client, "current_eviction_exceeded_time") >= 100);
    expect(client, "CONFIG SET maxmemory 64mb", "+OK");
    eventually("it is below", || number(client, "current_eviction_exceeded_time") == 0);
    let total = number(client, "total_eviction_exceeded_time");
    assert!((100..PATIENCE.as_millis() as u64).contains(&total), "{total}");
    assert_eq!(number(client, "total_eviction_exceeded_time"), total);
    expect(client, "CONFIG RESETSTAT", "+OK");
    assert_eq!(number(client, "total_eviction_exceeded_time"), 0);
}

#[test]
fn what_is_freed_beside_the_commands_is_counted() {
    let server = Server::start(&[]);
    let client = &mut server.raw();
    client.send((0..6_000).map(|key| format!("SET {key} v\r\n")).collect::<String>());
    (0..6_000).for_each(|_| drop(client.reply()));
    expect(client, "FLUSHALL", "+OK");
    eventually("they are free", || number(client, "lazyfreed_objects") == 6_000);
    assert_eq!(number(client, "lazyfree_pending_objects"), 0);
    expect(client, "CONFIG RESETSTAT", "+OK");
    assert_eq!(number(client, "lazyfreed_objects"), 0);
}

#[test]
fn the_server_says_where_it_listens_and_what_it_began_with() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("socket");
    let path = path.to_str().expect("a plain path");
    let server = Server::start(&[
        "--bind",
        "127.0.0.1 127.0.0.2",
        "--unixsocket",
        path,
        "--memory",
        "256mb",
    ]);
    let client = &mut server.raw();
    let port = server.port();
    let tcp = format!("name=tcp,bind=127.0.0.1,bind=127.0.0.2,port={port}");
    assert_eq!(text(client, "listener0"), tcp);
    assert_eq!(text(client, "listener1"), format!("name=unix,bind={path}"));
    assert_eq!((number(client, "hz"), number(client, "loading")), (10, 0));
    let startup = number(client, "used_memory_startup");
    let value = "v".repeat(32 << 20);
    client.ask(&["SET", "k", &value]);
    assert_eq!(number(client, "used_memory_startup"), startup);
    assert!(startup > 0 && number(client, "used_memory") > startup + (32 << 20));
    let part = text(client, "used_memory_dataset_perc");
    let part: f64 = part.trim_end_matches('%').parse().expect("a number");
    assert!((50.0..=100.0).contains(&part), "{part}");
    eventually("memory is back", || number(client, "larder_warming") == 0);
}
