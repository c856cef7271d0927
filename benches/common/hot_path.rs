//! What a connection does with a buffer, without its socket, so that its instructions can be counted.

use larder::{
    command::{self, Args, Session},
    protocol::{Batch, Limits, Output, Scanner},
};

/// What a connection does with a buffer, without its socket.
#[derive(Default)]
pub struct HotPath {
    scanner: Scanner,
    batch: Batch,
    found: Vec<command::Found>,
    out: Output,
}

impl HotPath {
    /// Scans a buffer of whole requests and carries them out, if told so. Callgrind finds it by its name.
    #[inline(never)]
    pub fn step(&mut self, session: &mut Session, requests: &mut [u8], runs: bool) {
        let limits = Limits::authenticated(512 << 20);
        let Self { scanner, batch, found, out } = self;
        batch.clear();
        found.clear();
        let scanned = scanner.scan(requests, &limits, batch).expect("well-formed");
        assert_eq!(scanned.consumed, requests.len());
        if !runs {
            return;
        }
        let all = 0..batch.len();
        command::prepare(session, requests, batch, all.clone(), found);
        command::load_first(session, found);
        for at in all {
            command::load_ahead(session, found, at);
            let args = Args::new(requests, batch.args(&batch.requests[at]));
            command::dispatch(session, found[at].entry, args, out);
        }
        assert!(!out.is_empty());
        out.clear();
    }
}
