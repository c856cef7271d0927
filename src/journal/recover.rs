//! What a start finds: reads all segments, cuts a torn end off, and refuses what is damaged.
//!
//! A *torn end* is what a killed process or a power loss leaves of the last write. In the newest segment,
//! bytes that are no record are torn if no record follows them. If some do, a power loss may have brought
//! later sectors onto the device and not earlier ones; so they are torn all the same if the machine was
//! started since and no mark behind them says that they had been synced. Everything else is *damage*:
//! segments but the newest were synced before their successor began, which has their length, and sequence
//! numbers have no gaps.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Options, Recover,
    format::{self, Defect, Foreign, HEAD, Head, Kind, MAX_NUMBER, SegmentHead},
    ledger::{Ledger, Place, Segment},
    log_buffer::{self, Left, LogBuffer},
    scan::{Found, Scanner, Step},
};
use crate::{
    error::Error,
    tier::disk::{Disk, File},
};

/// How many places of damage are remembered; more are counted.
const MAX_DAMAGE: usize = 64;

/// Bytes of a segment that couldn't be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The segment.
    pub path: PathBuf,
    /// Where they begin.
    pub at: u64,
    /// How many they are.
    pub bytes: u64,
    /// What is wrong.
    pub why: &'static str,
}

/// What a start found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Effects that the store may not have.
    pub records: u64,
    /// Bytes of their records.
    pub bytes: u64,
    /// Versions up to this may have been issued (SEMANTICS 14).
    pub ceiling: u64,
    /// The torn end of the newest segment, which was cut off: never acknowledged, unless it was lost with
    /// the machine's power and `fsync` isn't `always`.
    pub torn: Option<Damage>,
    /// What `recover = "best-effort"` went on behind, the first of it.
    pub damage: Vec<Damage>,
    /// How many places of damage there were.
    pub damaged: u64,
}

/// What the journal goes on with.
pub(super) struct Recovered {
    pub ledger: Ledger,
    pub start: Start,
    pub buffer: LogBuffer,
    /// What the log buffer has and no segment.
    pub left: Left,
    pub report: Report,
}

/// What the segment has to begin with.
pub(super) struct Start {
    /// The next sequence number.
    pub next: u64,
    /// Its number.
    pub id: u64,
    /// The length of the one before it.
    pub previous_len: u64,
    /// Versions up to this may have been issued.
    pub ceiling: u64,
}

/// The name of a segment.
pub(super) fn path_of(dir: &Path, id: u64) -> PathBuf {
    dir.join(format!("{id:016x}.journal"))
}

fn id_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".journal").filter(|digits| digits.len() == 16)?;
    u64::from_str_radix(digits, 16).ok()
}

fn failed(path: &Path) -> impl Fn(io::Error) -> Error {
    move |why| Error::DataDir(path.to_owned(), why.to_string())
}

struct Recovery<'a> {
    options: &'a Options,
    disk: &'a dyn Disk,
    ledger: Ledger,
    next: Option<u64>,
    /// The number of the first segment that is there.
    first_id: Option<u64>,
    last_id: Option<u64>,
    /// The number of the oldest segment, by the marks; 0: they don't say.
    oldest: u64,
    /// The newest segment had a log buffer beside it, under this start of the machine.
    is_buffered: bool,
    report: Report,
}

/// A segment that is being read.
struct Open {
    path: PathBuf,
    file: Arc<dyn File>,
    size: u64,
    head: SegmentHead,
    is_newest: bool,
}

/// Reads what is in the journal's directory.
pub(super) fn recover(options: &Options, disk: &dyn Disk) -> Result<Recovered, Error> {
    let dir = &options.path;
    disk.make_dir(dir).map_err(failed(dir))?;
    let path = log_buffer::path_of(dir);
    // Before the segments, since another process that uses it shows here.
    let buffer = LogBuffer::open(disk, &path, options.buffer).map_err(failed(&path))?;
    let names = disk.list(dir).map_err(failed(dir))?;
    let mut ids: Vec<u64> =
        names.iter().filter_map(|name| name.to_str()).filter_map(id_of).collect();
    ids.sort_unstable();
    let ledger = Ledger::default();
    let report = Report::default();
    let first_id = ids.first().copied();
    let mut recovery = Recovery {
        options,
        disk,
        ledger,
        next: None,
        first_id,
        last_id: None,
        oldest: 0,
        is_buffered: false,
        report,
    };
    for (index, id) in ids.iter().enumerate() {
        recovery.segment(*id, index + 1 == ids.len())?;
    }
    recovery.check_oldest()?;
    let left = recovery.left(&buffer)?;
    Ok(recovery.finish(buffer, left))
}

impl Recovery<'_> {
    /// Whether the oldest segment is there.
    fn check_oldest(&mut self) -> Result<(), Error> {
        if self.first_id.is_some_and(|first| self.oldest != 0 && self.oldest < first) {
            let path = path_of(&self.options.path, self.oldest);
            self.damage(&path, 0, 0, "the segment is missing")?;
        }
        Ok(())
    }

    /// What the log buffer has beside the segments.
    fn left(&mut self, buffer: &LogBuffer) -> Result<Left, Error> {
        let path = log_buffer::path_of(&self.options.path);
        if let Some(why) = buffer.defect() {
            self.damage(&path, 0, buffer.len(), why)?;
            buffer.clear();
        }
        if buffer.is_new() && self.is_buffered {
            let why =
                "the log buffer is missing (nothing was in it if the last stop was a clean one)";
            self.damage(&path, 0, 0, why)?;
        }
        let behind_gap = |first: &u64| *first > self.next.unwrap_or(1);
        let first = buffer.first().filter(|first| buffer.is_of_boot() && behind_gap(first));
        if first.is_some() {
            self.damage(&path, 0, 0, Defect::Gap.text())?;
            self.next = first;
        }
        let left = buffer.left(self.next.unwrap_or(1));
        if let Some((at, bytes, defect)) = left.cut {
            match buffer.is_of_boot() {
                true => self.damage(&path, at, bytes, defect.text())?,
                false => self.torn(&path, at, bytes, defect.text()),
            }
            buffer.cut_off(&left);
        }
        self.report.ceiling = self.report.ceiling.max(left.version);
        Ok(left)
    }

    fn finish(self, buffer: LogBuffer, left: Left) -> Recovered {
        let start = Start {
            next: self.next.unwrap_or(1),
            id: self.last_id.map_or(1, |id| id + 1),
            previous_len: self.ledger.newest().map_or(0, |segment| segment.len),
            ceiling: self.report.ceiling,
        };
        Recovered { ledger: self.ledger, start, buffer, left, report: self.report }
    }

    fn segment(&mut self, id: u64, is_newest: bool) -> Result<(), Error> {
        let path = path_of(&self.options.path, id);
        if let Some(missing) = self.last_id.map(|last| last + 1).filter(|next| *next != id) {
            let path = path_of(&self.options.path, missing);
            self.damage(&path, 0, 0, "the segment is missing")?;
        }
        if id >= MAX_NUMBER {
            return Err(Error::DataDir(path, "no segment has such a number".into()));
        }
        let file = self.disk.open(&path, false).map_err(failed(&path))?;
        let size = file.size().map_err(failed(&path))?;
        let mut bytes = [0; HEAD];
        let filled = file.read_at(&mut bytes, 0).map_err(failed(&path))?;
        let head = match SegmentHead::decode(&bytes) {
            Err(Foreign::Format(format)) => {
                let [_, ours] = format::FORMATS;
                let why = format!("format {format} of the journal, this program knows {ours}");
                return Err(Error::DataDir(path, why));
            }
            Ok(head) if filled == HEAD => Some(head),
            // Its beginning was cut short: nothing was ever written behind it.
            _ if is_newest && size <= HEAD as u64 => {
                return self.drop_unborn(&path, size);
            }
            _ => None,
        };
        self.last_id = Some(id);
        let sane = |head: &SegmentHead| head.id == id && (1..MAX_NUMBER).contains(&head.next);
        let Some(head) = head.filter(sane) else {
            self.damage(&path, 0, size, "it doesn't begin as a segment")?;
            self.ledger.begin(Segment::new(id, path, file, 0, size));
            return Ok(());
        };
        self.follows(&path, &head)?;
        let boot = self.disk.boot();
        self.is_buffered = head.is_buffered && boot != 0 && head.boot == boot;
        self.ledger.begin(Segment::new(id, path.clone(), file.clone(), head.salt, 0));
        let len = self.records(Open { path, file, size, head, is_newest })?;
        self.ledger.grow(len);
        Ok(())
    }

    /// A segment whose head isn't there had no records: it is removed, and begun again.
    fn drop_unborn(&mut self, path: &Path, size: u64) -> Result<(), Error> {
        self.disk.remove(path).map_err(failed(path))?;
        self.disk.sync_dir(&self.options.path).map_err(failed(path))?;
        self.torn(path, 0, size, "the segment was being begun");
        Ok(())
    }

    /// Whether a segment continues the one before it.
    fn follows(&mut self, path: &Path, head: &SegmentHead) -> Result<(), Error> {
        let previous = self.ledger.newest().map(|segment| (segment.path.clone(), segment.len));
        if let Some((path, len)) = previous.filter(|(_, len)| *len != head.previous_len) {
            let at = len.min(head.previous_len);
            let lost = len.abs_diff(head.previous_len);
            self.damage(&path, at, lost, "it has another length than its successor knows")?;
        }
        let next = self.next.unwrap_or(head.next);
        if next != head.next {
            self.damage(path, 0, 0, Defect::Gap.text())?;
        }
        self.next = Some(next.max(head.next));
        self.report.ceiling = self.report.ceiling.max(head.ceiling);
        Ok(())
    }

    /// Reads a segment's records; gives its length back.
    fn records(&mut self, open: Open) -> Result<u64, Error> {
        let Open { path, file, size, head, is_newest } = open;
        let mut scanner = Scanner::new(file.clone(), head.salt, size);
        let boot = self.disk.boot();
        let may_have_lost_power = boot == 0 || head.boot != boot;
        loop {
            let at = scanner.at();
            match scanner.step().map_err(failed(&path))? {
                Step::Record(found) => self.record(&path, head.id, found)?,
                Step::Bad(defect) => {
                    let next = scanner.find(at + 1).map_err(failed(&path))?;
                    let is_torn = match next {
                        _ if !is_newest => false,
                        None => true,
                        Some(next) if may_have_lost_power => {
                            !was_synced(&mut scanner, next, at).map_err(failed(&path))?
                        }
                        Some(_) => false,
                    };
                    if is_torn {
                        file.set_len(at).and_then(|()| file.sync()).map_err(failed(&path))?;
                        self.torn(&path, at, size - at, defect.text());
                        return Ok(at);
                    }
                    let next = next.unwrap_or(size);
                    self.damage(&path, at, next - at, defect.text())?;
                    scanner.seek(next);
                }
                Step::End => break,
            }
        }
        if is_newest {
            // A process that was killed may have left it unsynced, and it will be the newest no more.
            file.sync().map_err(failed(&path))?;
        }
        Ok(size)
    }

    fn record(&mut self, path: &Path, segment: u64, found: Found) -> Result<(), Error> {
        let Found { at, head, runs } = found;
        match head.kind {
            Kind::Acknowledged => {
                for (first, last) in format::decode_runs(&runs) {
                    self.ledger.end(first..=last);
                }
            }
            Kind::Mark => {
                self.report.ceiling = self.report.ceiling.max(head.version);
                self.oldest = self.oldest.max(head.deadline);
            }
            Kind::Put | Kind::Delete => {
                let next = self.next.unwrap_or(head.sequence);
                let fits = if head.copy { head.sequence < next } else { head.sequence == next };
                if !fits {
                    self.damage(path, at, 0, Defect::Gap.text())?;
                    if !head.copy && head.sequence < next {
                        // It is there twice; the first counts.
                        return Ok(());
                    }
                }
                self.next = Some(next.max(head.sequence + 1));
                self.report.ceiling = self.report.ceiling.max(head.version);
                self.ledger.put(head.sequence, place(segment, at, &head), head.supersedes);
            }
        }
        Ok(())
    }

    fn torn(&mut self, path: &Path, at: u64, bytes: u64, why: &'static str) {
        tracing::warn!(
            "journal: {} bytes at the end of {} are cut off, from byte {at} on: {why}",
            bytes,
            path.display()
        );
        self.report.torn = Some(Damage { path: path.to_owned(), at, bytes, why });
    }

    /// An error, unless the journal was told to go on.
    fn damage(&mut self, path: &Path, at: u64, bytes: u64, why: &'static str) -> Result<(), Error> {
        if self.options.recover == Recover::Strict {
            let text = format!(
                "the journal is damaged at byte {at}: {why}; with recover = \"best-effort\" the \
                 start goes on behind it, and acknowledged writes may be lost"
            );
            return Err(Error::DataDir(path.to_owned(), text));
        }
        let file = path.display();
        tracing::error!(
            "journal: {file} is damaged at byte {at}, {bytes} bytes are passed over: {why}"
        );
        self.report.damaged += 1;
        if self.report.damage.len() < MAX_DAMAGE {
            self.report.damage.push(Damage { path: path.to_owned(), at, bytes, why });
        }
        Ok(())
    }
}

/// Where an effect's record stands.
pub(super) fn place(segment: u64, at: u64, head: &Head) -> Place {
    // Records that are longer than this are neither written nor taken for whole.
    let len = u32::try_from(head.record_len()).unwrap_or(u32::MAX);
    Place { segment, at, len, written: head.written }
}

/// Whether a mark from `next` on says that what stands at `at` was synced. Leaves the scanner anywhere.
fn was_synced(scanner: &mut Scanner, next: u64, at: u64) -> io::Result<bool> {
    scanner.seek(next);
    loop {
        match scanner.step()? {
            Step::Record(Found { head, .. }) => {
                if head.kind == Kind::Mark && head.supersedes > at {
                    return Ok(true);
                }
            }
            Step::Bad(_) => match scanner.find(scanner.at() + 1)? {
                Some(next) => scanner.seek(next),
                None => return Ok(false),
            },
            Step::End => return Ok(false),
        }
    }
}
