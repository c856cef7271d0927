//! What a start has to bring back before it serves.

use std::{collections::HashMap, io, path::PathBuf, sync::Arc, vec};

use bytes::Bytes;

use super::{
    Position, Report,
    ledger::{Ledger, Place, Segment},
    scan,
};
use crate::{error::Error, store::Change, tier::disk::File};

/// An effect that the store may not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replayed {
    /// What it is acknowledged by.
    pub position: Position,
    /// The database of its key.
    pub db: u16,
    /// Its key.
    pub key: Bytes,
    /// What it does to it.
    pub change: Change,
    /// When it was appended, unix milliseconds.
    pub written: u64,
}

/// The effects that the store may not have, in their order, each read when it is asked for.
///
/// Of a key there may be several; the last counts. Room for them is taken in the journal until they are
/// acknowledged or superseded, over its limit if need be. The journal may be used meanwhile.
pub struct Replay {
    report: Report,
    places: vec::IntoIter<(u64, Place)>,
    sources: HashMap<u64, Source>,
}

/// A segment to read from; its file stays readable if the journal removes it.
struct Source {
    path: PathBuf,
    file: Arc<dyn File>,
    salt: u64,
}

impl Replay {
    pub(super) fn new(ledger: &Ledger, report: Report) -> Self {
        let source = |segment: &Segment| Source {
            path: segment.path.clone(),
            file: segment.file.clone(),
            salt: segment.salt,
        };
        let sources = ledger.segments().map(|segment| (segment.id, source(segment))).collect();
        let report = Report { records: ledger.live(), bytes: ledger.live_bytes(), ..report };
        Self { report, places: ledger.all().into_iter(), sources }
    }

    /// What the start found.
    pub fn report(&self) -> &Report {
        &self.report
    }

    fn read(&self, sequence: u64, place: Place) -> Result<Replayed, Error> {
        let Some(source) = self.sources.get(&place.segment) else {
            return Err(Error::Io(io::ErrorKind::NotFound.into()));
        };
        let read = scan::read(&*source.file, source.salt, place.at, place.len);
        let (head, body) = read.map_err(|why| {
            let text = format!("the journal can't be read at byte {}: {why}", place.at);
            Error::DataDir(source.path.clone(), text)
        })?;
        let body = Bytes::from(body);
        let key = body.slice(..head.key_len as usize);
        let change = head.change(body.slice(head.key_len as usize..));
        let written = head.written;
        Ok(Replayed { position: Position(sequence), db: head.db, key, change, written })
    }
}

impl Iterator for Replay {
    type Item = Result<Replayed, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let (sequence, place) = self.places.next()?;
        Some(self.read(sequence, place))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.places.size_hint()
    }
}
