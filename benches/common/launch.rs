//! Starting children well: on their cores, and dead when the bench is.
//!
//! A server is started by way of the bench's own binary, which pins itself, asks the kernel for
//! SIGKILL when its parent dies, and then becomes the server: the process id stays, affinity and
//! death signal survive the `exec`, and neither needs `unsafe` as a hook after `fork` would.

use std::{
    env, io,
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, ExitCode},
};

use rustix::{
    process::{Signal, set_parent_process_death_signal},
    thread::{CpuSet, sched_setaffinity},
};

use super::floor;

const LAUNCH: &str = "--launch";
const FLOOR: &str = "--floor-server";

/// A command that runs `program` on the given cores.
pub fn command(program: &Path, cores: &[usize]) -> io::Result<Command> {
    let list: Vec<String> = cores.iter().map(usize::to_string).collect();
    let mut command = Command::new(env::current_exe()?);
    command.arg(LAUNCH).arg(list.join(",")).arg(program);
    Ok(command)
}

/// A command that runs the floor server on the given cores.
pub fn floor_command(cores: &[usize]) -> io::Result<Command> {
    let mut command = command(&env::current_exe()?, cores)?;
    command.arg(FLOOR);
    Ok(command)
}

/// If this process was started as a child, does the child's work. Every bench calls it first.
pub fn run_as_child() -> Option<ExitCode> {
    let mut arguments = env::args_os().skip(1);
    let result = match arguments.next()?.to_str()? {
        LAUNCH => {
            let (cores, program) = (arguments.next()?, arguments.next()?);
            become_server(cores.to_str()?, Command::new(program).args(arguments))
        }
        FLOOR => floor::run(),
        _ => return None,
    };
    Some(report(result))
}

/// Returns only if it fails.
fn become_server(cores: &str, command: &mut Command) -> io::Result<()> {
    let cores: Vec<usize> = cores.split(',').filter_map(|core| core.parse().ok()).collect();
    pin(&cores)?;
    set_parent_process_death_signal(Some(Signal::KILL))?;
    Err(command.exec())
}

/// Keeps the calling thread, and the threads and children it starts, on the given cores. On a machine
/// with fewer, the last one it has stands for those it lacks.
pub fn pin(cores: &[usize]) -> io::Result<()> {
    let last = highest_core()?;
    let mut set = CpuSet::new();
    cores.iter().for_each(|&core| set.set(core.min(last)));
    Ok(sched_setaffinity(None, &set)?)
}

/// The highest core in `/proc/stat`, whatever this thread is now pinned to.
fn highest_core() -> io::Result<usize> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let number = |line: &str| line.strip_prefix("cpu")?.split(' ').next()?.parse().ok();
    Ok(stat.lines().filter_map(number).max().unwrap_or(0))
}

/// Prints an error, if it is one, and gives the exit code.
pub fn report(result: io::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
