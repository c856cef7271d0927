//! The journal of write-behind: what was acknowledged to a client and isn't in the store yet.
//!
//! An *effect* (a value for a key, or its end) gets its *position* in the one order of effects while the
//! stripes of its keys are held ([`Journal::append`]: no system call, no waiting), and stands in a log buffer that
//! outlives the process. From there effects are written to segments in
//! that order, many at a time, and one sync serves all who wait for its effects
//! ([`Journal::synced`]: group commit). When the store has an effect, or a newer one of its key is here,
//! it is over ([`Journal::acknowledge`], [`Effect::supersedes`]); a segment of which all are over goes. A
//! start gives back those that aren't ([`Replay`]). Room is reserved before an effect is made
//! ([`Journal::reserve`]), and that is where a writer waits while the store is slow.
//!
//! A write or sync that fails *poisons* the journal: nothing is taken in or acknowledged any more, and no
//! sync is tried again, since the system may have forgotten what it couldn't write.
//!
//! # On disk
//!
//! A directory of segments, named by their numbers (`0000000000000001.journal`), written one after the
//! other, and the file of the log buffer, of which `log_buffer.rs` has a picture. All numbers in segments are
//! little-endian, all checksums CRC-32 (IEEE).
//!
//! ```text
//! segment | head | record | record | ...
//!
//! head
//!  0          8        10      12       16       24      32      40            48        56      64
//!  +----------+--------+-------+--------+--------+-------+-------+-------------+---------+-------+
//!  | LARDERJN | format | 0     | CRC of | number | salt  | next  | length of   | version | boot  |
//!  | magic    | u16: 2 | u16   | the    | u64    | u64   | seq   | the segment | ceiling | u64   |
//!  |          |        |       | rest   |        |       | u64   | before, u64 | u64     |       |
//!  +----------+--------+-------+--------+--------+-------+-------+-------------+---------+-------+
//!
//! record
//!  0      4       8       12  13    14   16     24      32       40      48         56    60      64
//!  +------+-------+-------+---+-----+----+------+-------+--------+-------+----------+-----+-------+
//!  | LJRE | CRC   | CRC   |kind|flags| db | seq | ver-  | dead-  | writ- | super-   | key | value |
//!  |      | head  | body  | u8 | u8  |u16 | u64 | sion  | line   | ten   | sedes    | len | len   |
//!  |      |       |       |    |     |    |     | u64   | ms u64 | ms u64| seq u64  | u32 | u32   |
//!  +------+-------+-------+----+-----+----+-----+-------+--------+-------+----------+-----+-------+
//!  | key | value |
//!
//! kind 1  put           a key holds this value
//!      2  delete        a key is gone
//!      3  acknowledged  the store has these: the value is runs of sequence numbers, first u64, last u64
//!      4  mark          version: the ceiling; supersedes: so many bytes of the segment are synced;
//!                       deadline: the number of the oldest segment, those before it are removed
//! flag 1  the record is a copy, out of its order; it keeps its sequence number
//! ```
//!
//! The checksums of records begin with the segment's salt, which each start draws anew, so that neither older
//! bytes of the same place nor a value that looks like a record pass. `boot` tells whether the machine was started
//! since. Format 1 is that of segments that have no log buffer beside them.
//!
//! **Checkpoints** are records of their own (kinds 3 and 4), in the order in which things happened.
//! Segments go from the oldest on only, so that what ended an effect is on disk as long as the effect is.
//! Where that would keep too much (more than twice the unacknowledged bytes and two segments), the oldest
//! segment's live effects are *copied* to the end and it goes. A copy keeps its sequence number, by which
//! a start sorts, so it never overtakes a newer one.

mod figures;
mod format;
mod ledger;
mod log_buffer;
mod recover;
mod replay;
mod room;
mod scan;
mod shared;
mod tail;
#[cfg(test)]
mod tests;
mod watermark;
mod writer;

use std::{fmt, io, path::PathBuf, sync::Arc, thread, time::Duration};

use parking_lot::Mutex;

pub use figures::Figures;
pub use recover::{Damage, Report};
pub use replay::{Replay, Replayed};
pub use room::Reservation;

use crate::{
    clock::Clock,
    error::{ClientError, Error},
    tier::disk::Disk,
};
use recover::Recovered;
use room::Room;
use shared::Shared;
use writer::Writer;

/// What an effect takes in memory until it is over, beside key, value and the head of its record, about: its
/// place here, and what those who bring it to a store keep of it. It counts as room.
const MEMORY: u64 = 136;
/// The lengths that a segment may have.
const SEGMENTS: std::ops::RangeInclusive<u64> = 1024..=1 << 30;

/// When what is written is brought onto the device. Under every policy a segment is synced when it is
/// begun, when it is full, and before an older one is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fsync {
    /// Before an effect is acknowledged: nothing acknowledged is lost.
    Always,
    /// At this interval: a power loss loses what was acknowledged since.
    Interval(Duration),
    /// When the system likes: a power loss may lose anything. A crash of the process loses nothing.
    Never,
}

/// What a start does about damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recover {
    /// It refuses, and says where it is.
    Strict,
    /// It goes on behind it, and says what it passed over. Effects may be lost, and others come back that
    /// the store has, or that are older than what it has. What is damaged goes with its segment, so
    /// whoever wants to look into it copies the directory first.
    BestEffort,
}

/// How the journal is kept.
#[derive(Clone, Debug)]
pub struct Options {
    /// A directory of its own, made if it isn't there. Nobody else uses it: the caller holds the lock.
    pub path: PathBuf,
    /// When what is written is synced.
    pub fsync: Fsync,
    /// How many bytes the store may be behind, as [`Journal::cost`] counts them.
    pub limit: u64,
    /// Bytes of a segment; a longer record gets a segment of its own.
    pub segment: u64,
    /// What a start does about damage.
    pub recover: Recover,
    /// Bytes of effects that may wait in memory that outlives the process: a power of two.
    pub buffer: usize,
    /// How far the version ceiling is kept ahead, in units of versions: as many as may be issued between
    /// two writes of it.
    pub ceiling_ahead: u64,
}

impl Options {
    /// The defaults, in this directory.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            fsync: Fsync::Interval(Duration::from_millis(100)),
            limit: 1 << 30,
            segment: 64 << 20,
            // As many as come while the device syncs.
            buffer: 4 << 20,
            recover: Recover::Strict,
            // Ten seconds of a clock in microseconds.
            ceiling_ahead: 10_000_000,
        }
    }
}

/// Why the journal doesn't take a write, or doesn't vouch for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JournalError {
    /// The store is so far behind that there was no room in time.
    Full,
    /// There will never be room for so much.
    TooLarge {
        /// The bytes that were asked for.
        bytes: u64,
        /// The most that can be.
        limit: u64,
    },
    /// A write or a sync failed: whether the effect survives nobody knows. Nothing is taken in until the
    /// journal is opened again.
    Poisoned(Arc<str>),
    /// The journal is closed.
    Closed,
}

impl JournalError {
    /// The error as a client sees it.
    pub fn client_error(&self) -> ClientError {
        ClientError::from(match self {
            Self::Full | Self::TooLarge { .. } => format!("JOURNALFULL {self}"),
            Self::Poisoned(_) | Self::Closed => format!("JOURNALERR {self}"),
        })
    }
}

impl fmt::Display for JournalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("the store is too far behind, the journal has no room"),
            Self::TooLarge { bytes, limit } => {
                write!(f, "a write of {bytes} bytes, the journal takes {limit} at once")
            }
            Self::Poisoned(why) => write!(f, "the journal failed: {why}"),
            Self::Closed => f.write_str("the journal is closed"),
        }
    }
}

impl std::error::Error for JournalError {}

/// The place of an effect in the order of all: its sequence number. Later effects have higher ones, across
/// restarts too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(u64);

impl Position {
    /// That of the effect with this sequence number.
    pub(crate) fn at(sequence: u64) -> Self {
        Self(sequence)
    }

    /// The sequence number; the first is 1.
    pub fn sequence(self) -> u64 {
        self.0
    }
}

/// What happens to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effect<'a> {
    /// The database of the key.
    pub db: u16,
    /// The key, at most [`crate::store::MAX_KEY`] bytes.
    pub key: &'a [u8],
    /// What it holds from now on; `None`: it is gone.
    pub value: Option<&'a [u8]>,
    /// When that ends, unix milliseconds; 0: never.
    pub deadline: u64,
    /// The version of the change.
    pub version: u64,
    /// Now, unix milliseconds.
    pub written: u64,
    /// The unacknowledged effect of the same key that this one takes the place of: it is over as soon as
    /// this one is in the journal, its room is free again when this one is in a segment, and acknowledging it does
    /// nothing. It needs no
    /// acknowledgement, but one that is under way does no harm.
    pub supersedes: Option<Position>,
}

/// The journal of write-behind. See the [module](self).
///
/// Contract of its users:
///
/// - An effect is appended while the stripes of its key are held, so that the order of positions is the
///   order in which readers see effects (SEMANTICS 11).
/// - Of two unacknowledged effects of a key, the newer names the older one in [`Effect::supersedes`]; or
///   else the older is acknowledged not after the newer. Otherwise a start may bring the older back where
///   the newer is gone.
/// - A reply that shows an effect waits for [`Journal::synced`], and so does what goes to the store
///   under [`Fsync::Always`]: else the store may have what a power loss takes from the journal.
/// - Every version that is issued is covered: those of effects by appending them, others by
///   [`Journal::cover`] when they are issued and [`Journal::covered`] before anybody sees them.
///
/// Dropping the journal closes it.
pub struct Journal {
    shared: Arc<Shared>,
    writer: Arc<Mutex<Writer>>,
    thread: Mutex<Option<thread::JoinHandle<()>>>,
}

impl Journal {
    /// Opens the journal, and reads what was left in it. Nothing may be served before all of [`Replay`] is
    /// seen. Blocks for as long as that takes: a pass over all segments, memory for each effect that
    /// isn't over (about 80 bytes), and for one record at a time.
    ///
    /// # Errors
    /// [`Error::DataDir`], naming file and byte, if a segment is damaged and [`Options::recover`] is strict;
    /// if one is of an unknown format, whatever it is; if the disk fails. A torn end of the newest segment is
    /// no damage: it is cut off, and said in [`Replay::report`].
    pub fn open(
        options: Options,
        disk: Arc<dyn Disk>,
        clock: Clock,
    ) -> Result<(Self, Replay), Error> {
        let segment = options.segment.clamp(*SEGMENTS.start(), *SEGMENTS.end());
        let options = Options { segment, ..options };
        let recovered = recover::recover(&options, &*disk)?;
        let Recovered { ledger, start, buffer, left, report } = recovered;
        let taken = ledger.room() + left.bytes + left.count * MEMORY;
        let room = Room::new(options.limit, taken);
        let ends = (start.next.max(left.next), start.ceiling);
        let shared = Arc::new(Shared::new(options, clock, room, buffer, ends));
        let data_dir = |(path, why): (PathBuf, io::Error)| Error::DataDir(path, why.to_string());
        let writer = Writer::new(shared.clone(), disk, ledger, start).map_err(data_dir)?;
        let replay = Replay::new(writer.ledger(), report);
        let writer = Arc::new(Mutex::new(writer));
        let (its, all) = (writer.clone(), shared.clone());
        let run = move || writer::run(&its, &all);
        let thread = thread::Builder::new().name("larder-journal".into()).spawn(run)?;
        Ok((Self { shared, writer, thread: Mutex::new(Some(thread)) }, replay))
    }

    /// The bytes that an effect takes of a reservation: those of its record, and what it takes in memory beside
    /// that.
    pub const fn cost(key_len: usize, value_len: usize) -> u64 {
        MEMORY + format::HEAD as u64 + key_len as u64 + value_len as u64
    }

    /// Admits effects to come, if there is room for them now and nobody waits for it. The room is taken when they
    /// are appended; so those who are admitted at once may go over the limit by what all but one of them take.
    ///
    /// # Errors
    /// [`JournalError::Full`] if not; otherwise as [`Journal::reserve`].
    pub fn admit(&self, bytes: u64) -> Result<Reservation, JournalError> {
        let bytes = room::checked(bytes, self.shared.options.limit)?;
        let admitted = self.shared.room.admit(bytes).map_err(|_| self.failure())?;
        admitted.ok_or(JournalError::Full)
    }

    /// Takes room for effects to come (see [`Journal::cost`]), at once or in order of arrival. Where it has
    /// to wait it needs a tokio runtime with time. Hold no lock meanwhile, and only one reservation.
    ///
    /// # Errors
    /// [`JournalError::Full`] when the time has passed, or somebody has waited as long in vain and no room was
    /// given back since; [`JournalError::TooLarge`] if there will never be so
    /// much; [`JournalError::Poisoned`] and [`JournalError::Closed`].
    pub async fn reserve(
        &self,
        bytes: u64,
        timeout: Duration,
    ) -> Result<Reservation, JournalError> {
        let bytes = room::checked(bytes, self.shared.options.limit)?;
        if self.shared.buffer.len() > 0 {
            // What was superseded there gives its room back when it is written.
            self.shared.rouse();
        }
        let taken = self.shared.room.take(bytes, timeout).await.map_err(|_| self.failure())?;
        taken.ok_or(JournalError::Full)
    }

    /// Takes an effect in, and decides its place in the order. Doesn't block: it may be called while
    /// stripes are held. It goes to a segment with others, or when somebody waits for it
    /// ([`Journal::synced`]). A
    /// reservation serves several effects; one that costs more than is left of it takes the rest over the
    /// limit.
    ///
    /// # Errors
    /// [`JournalError::Poisoned`], [`JournalError::Closed`], [`JournalError::TooLarge`]: nothing was taken in.
    ///
    /// # Panics
    /// In debug builds, if the reservation is another journal's.
    pub fn append(
        &self,
        reservation: &mut Reservation,
        effect: &Effect<'_>,
    ) -> Result<Position, JournalError> {
        debug_assert!(reservation.is_of(&self.shared.room), "the reservation is of this journal");
        let value_len = effect.value.map_or(0, <[u8]>::len);
        let cost = Self::cost(effect.key.len(), value_len);
        if format::size(effect.key.len(), value_len).is_none() {
            return Err(JournalError::TooLarge { bytes: cost, limit: u64::from(u32::MAX) });
        }
        let position = self.shared.append(effect)?;
        reservation.spend(&self.shared.room, cost);
        Ok(position)
    }

    /// Waits until an effect, and all before it, are durable by the policy: synced under
    /// [`Fsync::Always`], else such that they outlive the process. Waiting for the last of several is
    /// waiting for all (SEMANTICS 20). May be dropped at any time.
    ///
    /// # Errors
    /// [`JournalError::Poisoned`] if it isn't durable and never will be known to be; an effect that was
    /// durable before the journal failed stays so. [`JournalError::Closed`] if its writer is gone.
    pub async fn synced(&self, position: Position) -> Result<(), JournalError> {
        // Appending wakes nobody for this, so that a pipeline's effects are written together.
        if !self.write_here(position) {
            self.shared.rouse();
        }
        self.shared.durable.wait(position.0).await
    }

    /// Writes what was taken in, if that alone makes an effect durable and takes no longer than writing:
    /// nobody is at it, and the segment has room. Whether the effect is durable. It spares those who wait
    /// for it two wakes of a thread.
    pub fn write_here(&self, position: Position) -> bool {
        if !self.is_synced(position)
            && let Some(mut writer) = self.writer.try_lock()
        {
            writer.write_here();
        }
        self.is_synced(position)
    }

    /// Whether an effect is durable by the policy.
    pub fn is_synced(&self, position: Position) -> bool {
        self.shared.durable.reached() >= position.0
    }

    /// The store has these effects, in any order; those that are over already count for nothing. A start
    /// doesn't bring them back, unless the machine dies before that is written, which is
    /// soon and harmless: stores compare versions. Their room is free again as soon as it is written.
    /// Doesn't block. Does nothing once the journal is poisoned.
    pub fn acknowledge(&self, positions: impl IntoIterator<Item = Position>) {
        let sequences: Vec<u64> = positions.into_iter().map(Position::sequence).collect();
        if !sequences.is_empty() {
            self.shared.acknowledge(sequences);
        }
    }

    /// Versions up to this one are covered: a start gives back at least this as [`Report::ceiling`].
    pub fn ceiling(&self) -> u64 {
        self.shared.ceiling.reached()
    }

    /// A version is issued: keeps the ceiling ahead of it. Doesn't block, and mostly reads one number.
    pub fn cover(&self, version: u64) {
        self.shared.cover(version);
    }

    /// Waits until a version is covered, which it mostly is. Whoever waits without having called
    /// [`Journal::cover`] waits for somebody else who did.
    ///
    /// # Errors
    /// As [`Journal::synced`].
    pub async fn covered(&self, version: u64) -> Result<(), JournalError> {
        self.shared.ceiling.wait(version).await
    }

    /// Why nothing is taken in any more; `None`: all is well.
    pub fn failed(&self) -> Option<JournalError> {
        self.shared.failure()
    }

    fn failure(&self) -> JournalError {
        self.failed().unwrap_or(JournalError::Closed)
    }

    /// Whether half of the room for unacknowledged effects is taken.
    pub fn is_half_full(&self) -> bool {
        (self.shared.room.free() as u64) < self.shared.options.limit / 2
    }

    /// What it tells of itself.
    pub fn figures(&self) -> Figures {
        let shared = &self.shared;
        if shared.buffer.len() > 0
            && let Some(mut writer) = self.writer.try_lock()
        {
            // They are of what is written.
            writer.write_here();
        }
        Figures {
            waiting: (shared.durable.waiting() + shared.ceiling.waiting()) as u64,
            poisoned: matches!(self.failed(), Some(JournalError::Poisoned(_))),
            ..shared.counters.figures(shared.clock.now())
        }
    }

    /// Writes and syncs what was taken in, and ends the writer. Blocks until that is done; nothing is taken
    /// in from now on.
    ///
    /// # Errors
    /// [`JournalError::Poisoned`] if the journal has failed.
    pub fn close(&self) -> Result<(), JournalError> {
        self.shared.close();
        if let Some(thread) = self.thread.lock().take() {
            // A panic of it has poisoned the journal.
            let _ = thread.join();
        }
        match self.failure() {
            JournalError::Closed => Ok(()),
            why => Err(why),
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        let _ = self.close();
    }
}
