//! The command line: `larder [CONFIG] [--flag value ...]`. The flags, their help and their groups
//! come from the table of settings; what they say wins over the file.

use std::{ffi::OsString, path::PathBuf};

use clap::{Arg, ArgAction, ArgMatches, Command, error::ErrorKind};

use super::{
    Config,
    file::{self, Flags, Origin},
    kind::Kind,
    settings::{SETTINGS, Setting},
};
use crate::error::Error;

/// How the program is called. (A configuration of the name `simulate` is `./simulate`.)
const USAGE: &str = if cfg!(feature = "simulate") {
    "larder [CONFIG] [--flag value ...]\n       larder dead-letter <list | retry | drop>\n       \
     larder health [ADDRESS:PORT[/livez]]\n       larder simulate TRACE [--flag value ...]"
} else {
    "larder [CONFIG] [--flag value ...]\n       larder dead-letter <list | retry | drop>\n       \
     larder health [ADDRESS:PORT[/livez]]"
};

/// Why the program ends before it has served.
#[derive(Debug)]
pub enum Exit {
    /// `--help`: print this and exit with 0.
    Help(String),
    /// `--version`: print this and exit with 0.
    Version(String),
    /// The arguments or the file are wrong: report this and exit with its code.
    Error(Error),
}

impl From<String> for Exit {
    fn from(text: String) -> Self {
        Self::Error(Error::Config(text))
    }
}

/// Reads the arguments, the program's name first, and the file that they name.
pub(super) fn read<I>(args: I) -> Result<Config, Exit>
where
    I: IntoIterator<Item: Into<OsString> + Clone>,
{
    let matches = command().try_get_matches_from(args).map_err(|error| exit(&error))?;
    let flags = read_flags(&matches)?;
    let Some(path) = matches.get_one::<PathBuf>("CONFIG") else {
        return Ok(file::read(Origin { name: "command line", text: "" }, flags)?);
    };
    let text = file::load(path)?;
    let name = path.to_string_lossy();
    let mut config = file::read(Origin { name: &name, text: &text }, flags)?;
    config.path = Some(std::path::absolute(path).unwrap_or_else(|_| path.clone()));
    Ok(config)
}

/// What clap has to say, sorted into help, version and mistakes.
fn exit(error: &clap::Error) -> Exit {
    let text = error.render().to_string();
    match error.kind() {
        ErrorKind::DisplayHelp => Exit::Help(text),
        ErrorKind::DisplayVersion => Exit::Version(text),
        _ => text.strip_prefix("error: ").unwrap_or(&text).trim_end().to_owned().into(),
    }
}

fn read_flags(matches: &ArgMatches) -> Result<Flags, String> {
    SETTINGS.iter().filter_map(|setting| read_flag(setting, matches)).collect()
}

fn read_flag<'a>(
    setting: &'static Setting,
    matches: &'a ArgMatches,
) -> Option<Result<Flag, String>> {
    let words: Vec<&'a str> =
        matches.get_many::<String>(setting.name)?.map(String::as_str).collect();
    let value = setting.kind.parse(&words.join(" "));
    let explain = |refusal| format!("--{}: {}", setting.name, setting.kind.explain(&refusal));
    Some(value.map(|value| (setting, value)).map_err(explain))
}

type Flag = (&'static Setting, super::kind::Value);

/// The command line as clap knows it.
pub(super) fn command() -> Command {
    Command::new("larder")
        .version(env!("CARGO_PKG_VERSION"))
        .about("A cache server that speaks the Redis protocol and knows the database behind it.")
        .override_usage(USAGE)
        .after_help(
            "Sizes are bytes or have a unit (1kb is 1024 bytes, 1k is 1000; mb, gb, m, g alike). \
             Durations have a unit (us, ms, s, m, h, d) or count in the one that is named. A flag \
             wins over the file. Stores and namespaces are in the file only: see \
             docs/configuration.md.",
        )
        .arg(
            Arg::new("CONFIG")
                .help("The configuration, a TOML file; without it every setting has its default")
                .value_parser(clap::value_parser!(PathBuf)),
        )
        .args(SETTINGS.iter().map(flag))
}

fn flag(setting: &'static Setting) -> Arg {
    let repeats = setting.kind == Kind::Addresses;
    // With the hyphen of an address that may be missing.
    let begins = matches!(setting.kind, Kind::Addresses | Kind::Endpoint);
    Arg::new(setting.name)
        .long(setting.name)
        .visible_aliases(setting.alias())
        .value_name(setting.kind.placeholder())
        .help(help(setting))
        .help_heading(setting.group)
        .action(if repeats { ArgAction::Append } else { ArgAction::Set })
        .allow_hyphen_values(begins)
        .allow_negative_numbers(!begins)
}

/// The help of a flag: the table's, the unit or the choices, the default.
fn help(setting: &Setting) -> String {
    let notes = match setting.kind {
        Kind::Choice(names) => format!(" One of {}.", names.join(", ")),
        Kind::Time(unit, low, _) => {
            let off = if low < 0 { ", or off" } else { "" };
            format!(" In {}{off}.", unit.name())
        }
        Kind::Addresses => " May be given several times.".to_owned(),
        _ => String::new(),
    };
    format!("{}{notes} [default: {}]", setting.help().replace('`', ""), default(setting))
}

/// The default as one would write it behind the flag.
fn default(setting: &Setting) -> String {
    let settings = super::Settings::default();
    let text = match setting.kind {
        Kind::Bool | Kind::Addresses => setting.redis_text(&settings),
        _ => setting.default_text().trim_matches('"').to_owned(),
    };
    if text.is_empty() { "none".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, time::Duration};

    use super::*;

    fn from(args: &[&str]) -> Result<Config, Exit> {
        Config::from_args(std::iter::once(&"larder").chain(args))
    }

    fn error(args: &[&str]) -> String {
        match from(args) {
            Err(Exit::Error(error)) => {
                assert_eq!(error.exit_code(), 2);
                error.to_string()
            }
            other => panic!("{args:?}: {other:?}"),
        }
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(text.as_bytes()).expect("written");
        file
    }

    #[test]
    fn clap_has_nothing_against_it() {
        command().debug_assert();
    }

    #[test]
    fn no_arguments_are_the_defaults() {
        let config = from(&[]).expect("defaults");
        assert_eq!(Config { source: Default::default(), ..config }, Config::default());
    }

    #[test]
    fn flags_win_over_the_file() {
        let file = file("port = 1\nmemory = '1gb'\ndir = 'x'\n[store.a]\nkind = 'redb'\n");
        let path = file.path().to_str().expect("a path");
        let config = from(&[path, "--port", "0", "--dir=y", "--timeout", "90"]).expect("a config");
        assert_eq!(config.settings.port, 0);
        assert_eq!(config.settings.memory, 1 << 30);
        assert_eq!(config.settings.timeout, Duration::from_secs(90));
        assert_eq!(
            config.stores[0].kind,
            crate::config::StoreKind::Redb { path: "y/store.redb".into() }
        );
        assert_eq!(config.path.as_deref(), Some(file.path()));
    }

    #[test]
    fn redis_forms_and_names_are_accepted() {
        let args = ["--maxmemory", "100mb", "--bind", "-::1", "--bind", "10.0.0.1 10.0.0.2"];
        let config = from(&args).expect("a config");
        assert_eq!(config.settings.memory, 100 << 20);
        let bind: Vec<_> = config.settings.bind.iter().map(ToString::to_string).collect();
        assert_eq!(bind, ["-::1", "10.0.0.1", "10.0.0.2"]);
        let config = from(&["--slowlog-log-slower-than", "-1", "--tcp-keepalive", "1m"]);
        let settings = config.expect("a config").settings;
        assert_eq!(settings.slowlog_log_slower_than, None);
        assert_eq!(settings.tcp_keepalive, Duration::from_secs(60));
    }

    #[test]
    fn no_tcp_with_an_empty_bind() {
        let config = from(&["--bind", "", "--unixsocket", "/tmp/l.sock"]).expect("a config");
        assert!(config.settings.bind.is_empty());
        assert_eq!(
            error(&["--bind", ""]),
            "command line: `bind`: no address and no `unixsocket`: nobody could connect"
        );
    }

    #[test]
    fn mistakes_are_explained() {
        assert_eq!(error(&["--port", "x"]), "--port: expected an integer from 0 to 65535");
        assert!(error(&["--prot", "1"]).contains("'--port'"), "{}", error(&["--prot", "1"]));
        assert!(error(&["--port"]).contains("value is required"));
        assert!(error(&["--dir", "--port", "1"]).contains("value is required"));
        assert!(error(&["--bind", "--port", "1"]).starts_with("--bind: not an address"));
        assert!(error(&["--port", "-1"]).starts_with("--port: expected"));
        assert!(error(&["/no/such/file"]).starts_with("/no/such/file: No such file"));
        let bad = file("port = 'x'\n");
        let path = bad.path().to_str().expect("a path");
        assert!(error(&[path]).starts_with(&format!("{path}:1:8: `port`")));
    }

    #[test]
    fn help_is_grouped_and_complete() {
        let Err(Exit::Help(help)) = from(&["--help"]) else { panic!("no help") };
        for setting in SETTINGS {
            assert!(help.contains(&format!("{}:\n", setting.group)), "{}", setting.group);
            for name in setting.names() {
                assert!(help.contains(&format!("--{name}")), "{name}");
            }
        }
        assert!(help.contains("[default: 6379]"));
        assert!(help.contains("larder health [ADDRESS"));
        assert_eq!(help.contains("larder simulate TRACE"), cfg!(feature = "simulate"));
    }

    #[test]
    fn the_version() {
        let Err(Exit::Version(text)) = from(&["--version"]) else { panic!("no version") };
        assert_eq!(text.trim(), concat!("larder ", env!("CARGO_PKG_VERSION")));
    }
}
