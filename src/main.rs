//! The `larder` program: arguments to configuration to server; an error to its exit code.

use std::process::ExitCode;

use larder::{
    config::{Config, Exit, LogLevel},
    error::Error,
    server::Server,
};

#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let config = match Config::from_args(std::env::args_os()) {
        Ok(config) => config,
        Err(Exit::Help(text) | Exit::Version(text)) => {
            print!("{text}");
            return ExitCode::SUCCESS;
        }
        Err(Exit::Error(error)) => return fail(&error),
    };
    if let Err(error) = init_log(&config) {
        return fail(&error);
    }
    match run(&config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn run(config: &Config) -> Result<(), Error> {
    let server = Server::start(config)?;
    print!("{}", server.banner());
    println!("ready port={}", server.port());
    server.run()
}

fn fail(error: &Error) -> ExitCode {
    eprintln!("larder: {error}");
    ExitCode::from(error.exit_code())
}

/// Logs go to the file of `logfile`, or to standard error.
fn init_log(config: &Config) -> Result<(), Error> {
    let level = match config.settings.loglevel {
        LogLevel::Debug => tracing::Level::DEBUG,
        LogLevel::Verbose | LogLevel::Notice => tracing::Level::INFO,
        LogLevel::Warning => tracing::Level::WARN,
    };
    let log = tracing_subscriber::fmt().with_max_level(level).with_target(false);
    match &config.settings.logfile {
        None => log.with_writer(std::io::stderr).init(),
        Some(path) => {
            let file = std::fs::OpenOptions::new().append(true).create(true).open(path)?;
            log.with_ansi(false).with_writer(std::sync::Mutex::new(file)).init();
        }
    }
    Ok(())
}
