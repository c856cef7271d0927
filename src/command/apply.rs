//! Settings that changed, brought to where they act, and what else the server does once a second.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::{Session, TIME_EACH_BELOW, figures, rates::Reading, shared::Shared};
use crate::{
    cache::counter::Counter,
    config::{NamespaceConfig, Settings},
    tier::eviction::Eviction,
};

/// Descriptors that aren't for clients: listeners, stores, the runtimes.
const RESERVED: u64 = 64;

/// How many clients the hard limit of file descriptors allows.
pub fn most_clients() -> u32 {
    let descriptors = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    u32::try_from(descriptors.saturating_sub(RESERVED).max(1)).unwrap_or(u32::MAX)
}

/// Raises the soft limit of file descriptors to the hard one if so many clients need it.
fn make_descriptors(clients: u32) {
    let limit = getrlimit(Resource::Nofile);
    let wanted = u64::from(clients) + RESERVED;
    if limit.current.is_some_and(|soft| soft < wanted) && limit.current != limit.maximum {
        let raised = Rlimit { current: limit.maximum, ..limit };
        if let Err(why) = setrlimit(Resource::Nofile, raised) {
            tracing::warn!("can't raise the limit of open files: {why}");
        }
    }
}

impl Shared {
    /// Brings the live settings to the cache. Call it after the settings have changed, and at start.
    pub fn apply_settings(&self) {
        let settings = self.live.get();
        crate::log::set_level(settings.loglevel);
        crate::log::set_format(settings.log_format);
        let memory = self.cache.memory();
        memory.set_limit(usize::try_from(settings.memory_limit()).unwrap_or(usize::MAX));
        memory.set_eviction(eviction(&settings));
        memory.set_sampling(
            settings.maxmemory_samples,
            settings.lfu_log_factor,
            settings.lfu_decay_time,
        );
        let longest = usize::try_from(settings.proto_max_bulk_len).unwrap_or(usize::MAX);
        self.cache.set_max_string(longest);
        self.cache.set_journal_patience(settings.journal_wait);
        self.cache.set_disk_limits(settings.disk_read_timeout, settings.disk_write_rate);
        make_descriptors(settings.maxclients);
        self.slowlog.trim(settings.slowlog_max_len as usize);
        self.watch_traffic();
    }

    /// Reads the configuration file again, and brings what changed in it to the cache. Returns that in words.
    ///
    /// # Errors
    /// As [`Live::reload`](crate::config::Live::reload): then nothing has changed.
    pub fn reload(&self) -> Result<Vec<String>, String> {
        let changed = self.live.reload(most_clients(), |all| self.apply_namespaces(all))?;
        self.apply_settings();
        Ok(changed)
    }

    /// Brings what may change of namespaces to the cache.
    pub fn apply_namespaces(&self, namespaces: &[NamespaceConfig]) {
        namespaces.iter().for_each(|config| self.cache.change_namespace(&config.namespace()));
    }

    /// Bytes that a worker's own cache may hold.
    pub fn local_limit(&self) -> usize {
        self.live.get().l1_limit() as usize / self.workers.len().max(1)
    }

    /// Whether keys past their deadline are removed without being read (DEBUG SET-ACTIVE-EXPIRE).
    pub fn expires_actively(&self) -> bool {
        !self.expiry_off.load(Relaxed)
    }

    /// Takes the figures that INFO shows as rates and peaks, and what is known of the traffic. Call it once a
    /// second.
    pub fn tick(&self) {
        self.rates.note(Reading {
            at: self.started.elapsed(),
            commands: self.sum(|worker| worker.commands.get()),
            received: self.sum(|worker| worker.received.get()),
            sent: self.sum(|worker| worker.sent.get()),
            cycles: self.sum(|worker| worker.cycles.get()),
            timed_cycles: self.sum(|worker| worker.timed_cycles.get()),
            cycle_nanos: self.sum(|worker| worker.cycle_nanos.get()),
        });
        self.note_peak(figures::used_memory(self.cache.memory()));
        self.tick_traffic();
    }

    /// Looks whether more memory is used than allowed, for INFO. Call it often, from one thread.
    pub fn note_excess(&self) {
        let memory = self.cache.memory();
        let is_above = memory.used() > memory.rules().limit();
        self.excess.note(is_above, self.cache.clock().now());
    }

    /// Notes what is used before there are any keys.
    pub fn note_startup(&self) {
        self.startup_memory.store(figures::used_memory(self.cache.memory()), Relaxed);
    }

    /// Notes a look at used memory, and returns the peak.
    pub fn note_peak(&self, used: u64) -> u64 {
        self.peak_memory.fetch_max(used, Relaxed).max(used)
    }

    /// Starts all counters again (CONFIG RESETSTAT).
    pub fn reset_statistics(&self) {
        for worker in &self.workers {
            worker.keys.reset();
            let counters = [
                &worker.commands,
                &worker.connections,
                &worker.received,
                &worker.sent,
                &worker.reads,
                &worker.writes,
                &worker.errors,
                &worker.query_limit_closed,
                &worker.output_limit_closed,
                &worker.cycles,
                &worker.timed_cycles,
                &worker.cycle_nanos,
                &worker.expire_nanos,
                &worker.expire_cut_short,
            ];
            counters.into_iter().for_each(Counter::reset);
            worker.turns.reset();
            for row in &worker.rows {
                [&row.calls, &row.rejected, &row.failed].into_iter().for_each(Counter::reset);
                row.durations.reset();
            }
        }
        self.errors.clear();
        self.refused.store(0, Relaxed);
        self.excess.reset();
        self.lazily_freed.freed.store(0, Relaxed);
        self.cache.memory().reset_counters();
        for namespace in self.cache.policies().iter() {
            let stats = &namespace.stats;
            let figures = [
                &stats.loads,
                &stats.load_errors,
                &stats.load_micros,
                &stats.writes,
                &stats.write_errors,
                &stats.stale_served,
                &stats.negative_hits,
                &stats.joined,
                &stats.refreshes,
                &stats.refresh_errors,
            ];
            figures.into_iter().for_each(|figure| figure.store(0, Relaxed));
        }
    }
}

impl Session {
    /// Takes the settings as they are now, and what it derives from them.
    pub fn refresh_settings(&mut self) {
        self.settings = self.shared.live.get().clone();
        let slow = self.settings.slowlog_log_slower_than;
        let monitored = self.settings.latency_monitor_threshold;
        self.tracks = self.settings.latency_tracking;
        self.times_each = slow.is_some_and(|least| least.as_micros() < TIME_EACH_BELOW)
            || !monitored.is_zero() && monitored < Duration::from_millis(2);
    }
}

/// The tier's policy of the name that the settings have.
fn eviction(settings: &Settings) -> Eviction {
    Eviction::from_name(settings.maxmemory_policy.name()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{command::testing::session, config::MaxmemoryPolicy};

    #[test]
    fn settings_reach_the_cache() {
        let session = session();
        let pairs: [(&[u8], &[u8]); 3] = [
            (b"maxmemory", b"123456789"),
            (b"maxmemory-policy", b"volatile-lfu"),
            (b"maxmemory-samples", b"7"),
        ];
        session.shared.live.config_set(&pairs).unwrap();
        session.shared.apply_settings();
        let rules = session.cache().memory().rules();
        assert_eq!((rules.limit(), rules.samples()), (123_456_789, 7));
        assert_eq!(rules.eviction(), Eviction::VolatileLfu);
    }

    #[test]
    fn every_policy_of_the_settings_is_one_of_the_tier() {
        for policy in MaxmemoryPolicy::ALL {
            let settings = Settings { maxmemory_policy: *policy, ..Settings::default() };
            assert_eq!(eviction(&settings).name(), policy.name());
        }
    }

    #[test]
    fn statistics_start_again() {
        let session = session();
        session.stats.rows[0].calls.add(3);
        session.stats.keys.others.hits.add(3);
        session.shared.count_error("ERR");
        session.shared.reset_statistics();
        let lookups = session.shared.lookups(|tally| &tally.hits);
        assert_eq!(session.stats.rows[0].calls.get() + lookups, 0);
        assert!(session.shared.errors.is_empty());
    }

    #[test]
    fn a_tick_notes_the_peak() {
        let session = session();
        session.shared.note_peak(u64::MAX / 2);
        session.shared.tick();
        assert_eq!(session.shared.note_peak(1), u64::MAX / 2);
    }
}
