//! The log: one line for each event, for people or as JSON, with a level and a form that CONFIG SET changes
//! while the server runs.
//!
//! An event is one line whatever is in it: what clients, paths and stores bring along is escaped here, once,
//! and no call site has to care. In JSON a line is
//! `{"timestamp":"...","level":"INFO","message":"...","fields":{"name":value}}`, without `fields` where
//! there are none.

use std::{
    fmt, fs,
    fs::OpenOptions,
    io::{self, IsTerminal},
    path::{Path, PathBuf},
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicU8, Ordering::Relaxed},
    },
};

use parking_lot::Mutex;
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    Layer,
    filter::dynamic_filter_fn,
    fmt::{
        FmtContext, FormatEvent, FormatFields, format,
        time::{FormatTime, SystemTime},
    },
    layer::SubscriberExt,
    registry,
    registry::LookupSpan,
};

use crate::{
    config::{LogFormat, LogLevel, Settings},
    error::Error,
};

/// The level in force, as its place in [`LEVELS`].
static LEVEL: AtomicU8 = AtomicU8::new(2);
const LEVELS: [Level; 5] = [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG, Level::TRACE];
/// Whether lines are JSON.
static JSON: AtomicBool = AtomicBool::new(false);
/// Where lines go, once that is known.
static PLACE: OnceLock<Place> = OnceLock::new();

enum Place {
    StandardError,
    File(PathBuf, Mutex<fs::File>),
}

/// Starts logging to the file of `logfile`, or to standard error. Panics are logged, too.
pub fn init(settings: &Settings) -> Result<(), Error> {
    set_level(settings.loglevel);
    set_format(settings.log_format);
    let place = match &settings.logfile {
        None => Place::StandardError,
        Some(path) => Place::File(path.clone(), Mutex::new(open(path)?)),
    };
    let is_seen = matches!(place, Place::StandardError) && io::stderr().is_terminal();
    let shown =
        dynamic_filter_fn(|event, _| *event.level() <= LEVELS[usize::from(LEVEL.load(Relaxed))]);
    let lines = tracing_subscriber::fmt::layer()
        .event_format(Form)
        .with_ansi(is_seen)
        .with_writer(|| Output)
        .with_filter(shown);
    tracing::subscriber::set_global_default(registry().with(lines)).map_err(io::Error::other)?;
    // Set once: the subscriber was.
    let _ = PLACE.set(place);
    std::panic::set_hook(Box::new(|why| tracing::error!("{why}")));
    Ok(())
}

fn open(path: &Path) -> Result<fs::File, Error> {
    let fail = |why| Error::Config(format!("logfile {}: {why}", path.display()));
    OpenOptions::new().append(true).create(true).open(path).map_err(fail)
}

/// Opens the file of the log again, if there is one: the old one may have been moved away. Says whether
/// there is.
///
/// # Errors
/// It can't be opened; then the log goes on where it was.
pub fn reopen() -> Result<bool, Error> {
    let Some(Place::File(path, file)) = PLACE.get() else { return Ok(false) };
    let new = open(path)?;
    *file.lock() = new;
    Ok(true)
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

/// Changes the form from the next line on.
pub fn set_format(format: LogFormat) {
    JSON.store(format == LogFormat::Json, Relaxed);
}

/// Says what ends the program: in the log, if there is one yet, and on standard error to whoever started it.
pub fn fail(error: &Error) {
    let place = PLACE.get();
    if place.is_some() {
        tracing::error!("larder ends: {error}");
    }
    if !matches!(place, Some(Place::StandardError)) {
        eprintln!("larder: {error}");
    }
}

/// Writes to the place of the log.
struct Output;

impl Output {
    fn to<T>(act: impl FnOnce(&mut dyn io::Write) -> io::Result<T>) -> io::Result<T> {
        match PLACE.get() {
            Some(Place::File(_, file)) => act(&mut *file.lock()),
            _ => act(&mut io::stderr().lock()),
        }
    }
}

impl io::Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Self::to(|place| place.write(bytes))
    }

    /// A line in one piece: no other comes between.
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        Self::to(|place| place.write_all(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Self::to(|place| place.flush())
    }
}

/// Makes the line of an event.
struct Form;

impl<S, N> FormatEvent<S, N> for Form
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: format::Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut line = Line { level: *event.metadata().level(), ..Line::default() };
        SystemTime.format_time(&mut format::Writer::new(&mut line.timestamp))?;
        event.record(&mut line);
        if JSON.load(Relaxed) {
            line.write_json(&mut writer)
        } else {
            let colours = writer.has_ansi_escapes();
            line.write_text(&mut writer, colours)
        }
    }
}

/// What an event says.
struct Line {
    timestamp: String,
    level: Level,
    message: String,
    fields: Vec<(&'static str, Value)>,
}

/// The value of a field.
enum Value {
    /// A number, true or false: it stands as it is.
    Plain(String),
    Text(String),
}

impl Default for Line {
    fn default() -> Self {
        Self {
            timestamp: String::new(),
            level: Level::INFO,
            message: String::new(),
            fields: Vec::new(),
        }
    }
}

impl Line {
    fn write_text(&self, out: &mut dyn fmt::Write, colours: bool) -> fmt::Result {
        let (on, off) = if colours { (colour(self.level), "\x1b[0m") } else { ("", "") };
        // Its Display doesn't pad.
        let level = self.level.as_str();
        write!(out, "{} {on}{level:>5}{off} ", self.timestamp)?;
        escape(&self.message, out)?;
        for (name, value) in &self.fields {
            write!(out, " {name}=")?;
            match value {
                Value::Plain(text) => out.write_str(text)?,
                Value::Text(text) if is_word(text) => escape(text, out)?,
                Value::Text(text) => quote(text, out)?,
            }
        }
        out.write_char('\n')
    }

    fn write_json(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let (timestamp, level) = (&self.timestamp, self.level);
        write!(out, r#"{{"timestamp":"{timestamp}","level":"{level}","message":"#)?;
        quote(&self.message, out)?;
        for (at, (name, value)) in self.fields.iter().enumerate() {
            out.write_str(if at == 0 { r#","fields":{"# } else { "," })?;
            quote(name, out)?;
            out.write_char(':')?;
            match value {
                Value::Plain(text) => out.write_str(text)?,
                Value::Text(text) => quote(text, out)?,
            }
        }
        out.write_str(if self.fields.is_empty() { "}\n" } else { "}}\n" })
    }

    fn plain(&mut self, field: &Field, value: impl fmt::Display) {
        self.fields.push((field.name(), Value::Plain(value.to_string())));
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.message = value.to_owned(),
            name => self.fields.push((name, Value::Text(value.to_owned()))),
        }
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.plain(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.plain(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.plain(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has no others.
        if value.is_finite() {
            self.plain(field, value);
        } else {
            self.record_debug(field, &value);
        }
    }
}

/// The escape sequence of a level's colour.
fn colour(level: Level) -> &'static str {
    match level {
        Level::ERROR => "\x1b[31m",
        Level::WARN => "\x1b[33m",
        Level::INFO => "\x1b[32m",
        _ => "\x1b[2m",
    }
}

/// Whether a character may move the cursor, end the line, or turn the direction of what follows.
fn is_unsafe(char: char) -> bool {
    let turns =
        matches!(char, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    char.is_control() || matches!(char, '\u{2028}' | '\u{2029}') || turns
}

/// Whether a value needs no quotes to be told from what stands around it.
fn is_word(text: &str) -> bool {
    let is_part = |char: char| !char.is_whitespace() && !matches!(char, '"' | '=');
    !text.is_empty() && text.chars().all(is_part)
}

/// Writes text for people.
fn escape(text: &str, out: &mut dyn fmt::Write) -> fmt::Result {
    text.chars().try_for_each(|char| match char {
        char if is_unsafe(char) => write!(out, "{}", char.escape_default()),
        char => out.write_char(char),
    })
}

/// Writes text in quotes, as JSON has it (RFC 8259, 7).
fn quote(text: &str, out: &mut dyn fmt::Write) -> fmt::Result {
    out.write_char('"')?;
    text.chars().try_for_each(|char| match char {
        '"' | '\\' => write!(out, "\\{char}"),
        '\n' => out.write_str("\\n"),
        '\r' => out.write_str("\\r"),
        '\t' => out.write_str("\\t"),
        // All of them have four digits.
        char if is_unsafe(char) => write!(out, "\\u{:04x}", u32::from(char)),
        char => out.write_char(char),
    })?;
    out.write_char('"')
}

#[cfg(test)]
mod tests {
    use super::*;

    const NASTY: &str = "a\n\"b\"\\\r\t\u{1b}[2J\u{9b}31m\0\u{7f}\u{202e}\u{2028}é";

    fn line() -> Line {
        let text = |text: &str| Value::Text(text.to_owned());
        Line {
            timestamp: "2026-01-02T03:04:05.000006Z".into(),
            level: Level::WARN,
            message: format!("key {NASTY}"),
            fields: vec![
                ("count", Value::Plain("7".into())),
                ("plain", text("127.0.0.1:6379")),
                ("spaced", text("a b")),
                ("empty", text("")),
                ("nasty", text(NASTY)),
            ],
        }
    }

    #[test]
    fn a_line_for_people_is_one_line() {
        let mut text = String::new();
        line().write_text(&mut text, false).expect("a string");
        let expected = "2026-01-02T03:04:05.000006Z  WARN key a\\n\"b\"\\\\r\\t\\u{1b}[2J\\u{9b}31m\\u{0}\
                        \\u{7f}\\u{202e}\\u{2028}é count=7 plain=127.0.0.1:6379 spaced=\"a b\" empty=\"\" \
                        nasty=\"a\\n\\\"b\\\"\\\\\\r\\t\\u001b[2J\\u009b31m\\u0000\\u007f\\u202e\\u2028é\"\n";
        assert_eq!(text, expected);
        text.clear();
        line().write_text(&mut text, true).expect("a string");
        assert_eq!(text.matches('\u{1b}').count(), 2, "{text}");
    }

    #[test]
    fn a_line_for_machines_is_an_object() {
        let mut text = String::new();
        line().write_json(&mut text).expect("a string");
        let nasty = "a\\n\\\"b\\\"\\\\\\r\\t\\u001b[2J\\u009b31m\\u0000\\u007f\\u202e\\u2028é";
        let expected = format!(
            "{{\"timestamp\":\"2026-01-02T03:04:05.000006Z\",\"level\":\"WARN\",\"message\":\"key {nasty}\",\
             \"fields\":{{\"count\":7,\"plain\":\"127.0.0.1:6379\",\"spaced\":\"a b\",\"empty\":\"\",\
             \"nasty\":\"{nasty}\"}}}}\n"
        );
        assert_eq!(text, expected);
        text.clear();
        Line { fields: Vec::new(), ..line() }.write_json(&mut text).expect("a string");
        assert!(text.ends_with(&format!("\"message\":\"key {nasty}\"}}\n")), "{text}");
    }

    #[test]
    fn events_are_taken_apart() {
        struct Take;
        impl<S: Subscriber> Layer<S> for Take {
            fn on_event(&self, event: &Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
                let mut line = Line::default();
                event.record(&mut line);
                let mut text = String::new();
                line.write_json(&mut text).expect("a string");
                *SEEN.lock() = text;
            }
        }
        static SEEN: Mutex<String> = Mutex::new(String::new());
        tracing::subscriber::with_default(registry().with(Take), || {
            let (path, nan) = (Path::new("/a\nb"), f64::NAN);
            tracing::info!(port = 1, low = -2, on = true, nan, half = 0.5, path = %path.display(), "ready {}", 7);
        });
        let seen = SEEN.lock().clone();
        assert!(
            seen.ends_with(
                "\"message\":\"ready 7\",\"fields\":{\"port\":1,\"low\":-2,\"on\":true,\
                 \"nan\":\"NaN\",\"half\":0.5,\"path\":\"/a\\nb\"}}\n"
            ),
            "{seen}"
        );
    }
}
