//! The log: where it goes, and a level that CONFIG SET changes while the server runs.

use std::{
    fs::OpenOptions,
    io::{self, IsTerminal},
    sync::{
        Mutex,
        atomic::{AtomicU8, Ordering::Relaxed},
    },
};

use tracing::Level;
use tracing_subscriber::{Layer, filter::dynamic_filter_fn, fmt, layer::SubscriberExt, registry};

use crate::{
    config::{LogLevel, Settings},
    error::Error,
};

/// The level in force, as its place in [`LEVELS`].
static LEVEL: AtomicU8 = AtomicU8::new(2);
const LEVELS: [Level; 5] = [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG, Level::TRACE];

/// Starts logging to the file of `logfile`, or to standard error.
pub fn init(settings: &Settings) -> Result<(), Error> {
    set_level(settings.loglevel);
    let shown =
        dynamic_filter_fn(|event, _| *event.level() <= LEVELS[usize::from(LEVEL.load(Relaxed))]);
    let lines = fmt::layer().with_target(false).with_ansi(io::stderr().is_terminal());
    let subscriber: Box<dyn tracing::Subscriber + Send + Sync> = match &settings.logfile {
        None => Box::new(registry().with(lines.with_writer(io::stderr).with_filter(shown))),
        Some(path) => {
            let fail = |why| Error::Config(format!("logfile {}: {why}", path.display()));
            let file = OpenOptions::new().append(true).create(true).open(path).map_err(fail)?;
            let lines = lines.with_ansi(false).with_writer(Mutex::new(file));
            Box::new(registry().with(lines.with_filter(shown)))
        }
    };
    tracing::subscriber::set_global_default(subscriber).map_err(io::Error::other)?;
    Ok(())
}

/// Changes the level from the next line on.
pub fn set_level(level: LogLevel) {
    let place = match level {
        LogLevel::Warning => 1,
        LogLevel::Notice => 2,
        LogLevel::Verbose => 3,
        LogLevel::Debug => 4,
    };
    LEVEL.store(place, Relaxed);
}
