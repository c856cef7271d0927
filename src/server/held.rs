//! Replies that wait until what they tell of is durable.

use std::ops::Range;

use crate::{cache::release::Release, command, error::ClientError, protocol::Output};

/// Replies for which there is room at first.
const PIPELINE: usize = 16;

/// The replies of one connection in one turn, of which some wait for the journal: one wait for a whole
/// pipeline (SEMANTICS 20).
#[derive(Default)]
pub(super) struct Held {
    release: Release,
    /// The replies that wait, as places in the output.
    waiting: Vec<Range<usize>>,
    /// All replies, those that wait and the others, in their order.
    pub(super) out: Output,
}

impl Held {
    /// Notes that a reply waits.
    pub(super) fn add(&mut self, release: &Release, reply: Range<usize>) {
        self.release.take_over(release);
        if self.waiting.is_empty() {
            self.waiting.reserve(PIPELINE);
        }
        self.waiting.push(reply);
    }

    /// What its replies wait for.
    pub(super) fn release(&self) -> &Release {
        &self.release
    }

    /// The replies, when they have waited. Those that can't be vouched for are errors instead.
    pub(super) fn replies(self, released: &Result<(), ClientError>) -> Output {
        let Err(error) = released else { return self.out };
        let mut out = Output::default();
        let mut from = 0;
        for reply in self.waiting {
            self.out.copy(from..reply.start, &mut out);
            // A client that wants no replies gets none.
            if !reply.is_empty() {
                command::write_error(error, &mut out);
            }
            from = reply.end;
        }
        self.out.copy(from..self.out.len(), &mut out);
        out
    }
}
