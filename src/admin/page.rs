//! The page at `/`.

use hyper::StatusCode;

use super::{Answer, HTML, respond};
use crate::command::shared::Shared;

/// What the page may do: show itself, and ask where it comes from.
pub(super) const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
                                 connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
                                 frame-ancestors 'none'";

#[derive(Default)]
pub(super) struct Page;

impl Page {
    pub(super) fn state(&self, _shared: &Shared) -> String {
        "{}".into()
    }
}

pub(super) fn html() -> Answer {
    respond(StatusCode::OK, HTML, "")
}
