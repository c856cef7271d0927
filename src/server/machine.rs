//! What the operating system gives: file descriptors, and randomness for the run's name.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::Settings;

/// Descriptors that are not for clients: listeners, stores, the runtimes.
const RESERVED: u64 = 64;

/// Raises the soft limit of file descriptors to the hard one, and trims `maxclients` to what that
/// allows; both are said.
pub(super) fn fit_descriptors(settings: &mut Settings) {
    let limit = getrlimit(Resource::Nofile);
    let hard = limit.maximum.unwrap_or(u64::MAX);
    let wanted = u64::from(settings.maxclients) + RESERVED;
    let mut soft = limit.current.unwrap_or(u64::MAX);
    if soft < wanted && soft < hard {
        let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
        if setrlimit(Resource::Nofile, raised).is_ok() {
            tracing::info!("raised the limit of open files from {soft} to {hard}");
            soft = hard;
        }
    }
    if soft < wanted {
        let clients = soft.saturating_sub(RESERVED).max(1) as u32;
        tracing::warn!(
            "at most {soft} open files: maxclients is {clients}, not {}",
            settings.maxclients
        );
        settings.maxclients = clients;
    }
}

/// Forty random hexadecimal digits.
pub(super) fn run_id() -> String {
    let word = || ahash::RandomState::new().hash_one(std::process::id());
    format!("{:016x}{:016x}{:08x}", word(), word(), word() as u32)
}
