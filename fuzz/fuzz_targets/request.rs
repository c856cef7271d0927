//! Fuzzes the request scanner: whatever comes, in whatever pieces, it doesn't panic, its spans lie
//! in the buffer, its memory follows the bytes received, and the pieces don't change what it finds.
//!
//! The first byte chooses the limits and the second the size of the pieces; the rest is the wire.

#![no_main]

use larder::{
    error::ProtocolError,
    protocol::{Batch, Limits, Scanner},
};
use libfuzzer_sys::fuzz_target;

type Outcome = (Vec<Vec<Vec<u8>>>, Option<ProtocolError>);

fuzz_target!(|data: &[u8]| {
    let [kind, size, wire @ ..] = data else { return };
    let limits = match kind % 3 {
        0 => Limits::anonymous(),
        1 => Limits::authenticated(512 << 20),
        _ => Limits { inline: 16, batch: 3, ..Limits::authenticated(100) },
    };
    let size = usize::from(*size).max(1);
    assert_eq!(scan(&limits, wire.chunks(size)), scan(&limits, [wire].into_iter()));
});

/// Feeds the pieces to a scanner as a connection does: the requests, and the error if there is one.
fn scan<'a>(limits: &Limits, pieces: impl Iterator<Item = &'a [u8]>) -> Outcome {
    let (mut scanner, mut batch) = (Scanner::default(), Batch::default());
    let (mut tail, mut requests) = (Vec::new(), Vec::new());
    for piece in pieces {
        tail.extend_from_slice(piece);
        let mut more = true;
        while more {
            batch.clear();
            let scanned = match scanner.scan(&mut tail, limits, &mut batch) {
                Ok(scanned) => scanned,
                Err(error) => return (requests, Some(error)),
            };
            for request in &batch.requests {
                let words = batch.args(request).iter().map(|span| {
                    assert!((span.start + span.len) as usize <= scanned.consumed);
                    span.of(&tail).to_vec()
                });
                requests.push(words.collect());
            }
            tail.drain(..scanned.consumed);
            assert!(scanner.heap_bytes() / 8 <= tail.len() / 4 + 4);
            more = scanned.more;
        }
    }
    (requests, None)
}
