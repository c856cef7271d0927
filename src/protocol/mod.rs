//! The Redis protocol, apart from any socket: bytes to requests, replies to bytes.
//!
//! [`request`] finds the complete requests of a buffer, [`reply`] writes what answers them, and
//! [`output`] holds the answers until they are sent. The wire formats are described at
//! <https://redis.io/docs/latest/develop/reference/protocol-spec/>.

pub mod double;
mod inline;
pub mod limits;
pub mod output;
pub mod reply;
pub mod request;

pub use double::{DOUBLE_MAX, double_text};
pub use limits::Limits;
pub use output::{Mark, Output};
pub use reply::{Deferred, Reply, Resp};
pub use request::{Batch, Request, Scanned, Scanner, Span};
