//! The `larder` program: arguments to configuration to server; an error to its exit code.

use std::{ffi::OsString, process::ExitCode};

use larder::{
    config::{Config, Exit},
    error::Error,
    server::Server,
};

#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// How the allocator is to behave: huge pages (a lookup touches three random places, and each would
/// miss the TLB otherwise), freed memory back to the system after ten seconds (after one, pages that are
/// about to be used again go back and break huge ones up), no page added to large allocations, and slabs
/// for short strings so large that their bookkeeping doesn't matter.
#[cfg(feature = "jemalloc")]
#[allow(unsafe_code, reason = "jemalloc reads its options from a symbol of this name")]
// SAFETY: the name is jemalloc's own for this purpose, and the text ends in a zero byte.
#[unsafe(export_name = "_rjem_malloc_conf")]
pub static MALLOC_CONF: &[u8; 199] = b"thp:always,metadata_thp:auto,dirty_decay_ms:10000,muzzy_decay_ms:0,cache_oblivious:false,\
    slab_sizes:33-48:6|49-64:8|65-80:10|81-96:12|97-112:14|113-128:16|129-160:20|161-192:24|193-224:28|225-256:32\0";

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().collect();
    if args.get(1).is_some_and(|word| word == larder::dead_letter::WORD) {
        return end(larder::dead_letter::run(args));
    }
    if args.get(1).is_some_and(|word| word == larder::health::WORD) {
        return end(larder::health::run(args));
    }
    #[cfg(feature = "simulate")]
    let is_simulation = args.get(1).is_some_and(|word| word == larder::simulate::WORD);
    #[cfg(feature = "simulate")]
    if is_simulation {
        return end(larder::simulate::run(args));
    }
    end(serve(args))
}

fn serve(args: Vec<OsString>) -> Result<(), Exit> {
    let config = Config::from_args(args)?;
    run(&config).map_err(Exit::Error)
}

fn run(config: &Config) -> Result<(), Error> {
    larder::log::init(&config.settings)?;
    let server = Server::start(config)?;
    print!("{}", server.banner());
    println!("ready port={}", server.port());
    server.run()
}

fn end(result: Result<(), Exit>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Exit::Help(text) | Exit::Version(text)) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(Exit::Error(error)) => fail(&error),
    }
}

fn fail(error: &Error) -> ExitCode {
    larder::log::fail(error);
    ExitCode::from(error.exit_code())
}
