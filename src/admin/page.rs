//! The page at `/`: one file, with its style and its script in it, that asks for `/state` once a second.
//!
//! What the browser lets it do is no more than that: the policy names its style and its script by their
//! hashes, so that nothing else runs even if something got into the document.

use std::sync::LazyLock;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyper::{StatusCode, header::HeaderValue};
use sha2::{Digest, Sha256};

use super::{Answer, HTML, respond};

const PAGE: &str = include_str!("page.html");

/// What the page may do: show itself, and ask where it comes from.
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let (style, script) = (hash(inside("style")), hash(inside("script")));
    let policy = format!(
        "default-src 'none'; style-src '{style}'; script-src '{script}'; connect-src 'self'; \
         img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    HeaderValue::try_from(policy).unwrap_or(HeaderValue::from_static("default-src 'none'"))
});

/// The content security policy of every answer.
pub(super) fn policy() -> HeaderValue {
    POLICY.clone()
}

pub(super) fn html() -> Answer {
    respond(StatusCode::OK, HTML, PAGE)
}

/// What stands in an element of the page of which there is one.
fn inside(element: &str) -> &'static str {
    let from = PAGE.split_once(&format!("<{element}>")).map_or("", |(_, behind)| behind);
    from.split_once(&format!("</{element}>")).map_or("", |(inside, _)| inside)
}

fn hash(text: &str) -> String {
    format!("sha256-{}", STANDARD.encode(Sha256::digest(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_asks_nobody_else_and_runs_only_what_is_in_it() {
        let policy = policy().to_str().expect("text").to_owned();
        assert!(policy.starts_with("default-src 'none'; style-src 'sha256-"), "{policy}");
        assert!(!policy.contains("unsafe"), "{policy}");
        for element in ["style", "script"] {
            assert_eq!(PAGE.matches(&format!("<{element}")).count(), 1, "{element}");
            assert!(inside(element).len() > 1_000, "{element}");
        }
        let namespace = "http://www.w3.org/2000/svg";
        for outside in ["src=", "url(", "@import", "import(", "https://", "http://"] {
            assert!(!PAGE.replace(namespace, "").contains(outside), "{outside}");
        }
    }

    #[test]
    fn what_clients_made_is_never_read_as_html() {
        for way in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
            assert!(!PAGE.contains(way), "{way}");
        }
    }
}
