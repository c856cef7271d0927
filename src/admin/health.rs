//! Whether the server lives, and whether it can serve: `/livez` and `/readyz`.
//!
//! It *lives* while nothing in the background has died and the journal works; a restart mends what makes
//! that false, so an orchestrator may restart it. It is *ready* when it lives, isn't ending, and every store
//! that reads or writes have to ask answers. What is written behind, or loaded with stale copies to fall back
//! on, doesn't make a store required. The journal is replayed before the server listens.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use hyper::StatusCode;
use serde::{Deserialize, Serialize};
use std::sync::atomic::Ordering::Relaxed;

use super::{Answer, JSON, respond};
use crate::{
    command::shared::Shared,
    policy::{Namespace, Read, Write},
    store::Store,
};

/// How long a store may take to say that it is there.
const PING: Duration = Duration::from_secs(1);

/// The verdict, as JSON.
#[derive(Debug, Serialize, Deserialize)]
pub struct Health {
    /// Of all checks together.
    pub status: Status,
    /// What was looked at.
    pub checks: Vec<Check>,
}

/// Whether all is well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It is.
    Ok,
    /// A check has found something.
    Failing,
}

/// One thing that was looked at.
#[derive(Debug, Serialize, Deserialize)]
pub struct Check {
    /// What it is.
    pub name: String,
    /// Whether it is well.
    pub ok: bool,
    /// What is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Check {
    fn good(name: impl Into<String>) -> Self {
        Self { name: name.into(), ok: true, reason: None }
    }

    fn bad(name: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { name: name.into(), ok: false, reason: Some(reason.into()) }
    }
}

impl Health {
    fn of(checks: Vec<Check>) -> Self {
        let is_good = checks.iter().all(|check| check.ok);
        Self { status: if is_good { Status::Ok } else { Status::Failing }, checks }
    }

    /// As an answer: 200, or 503.
    pub(super) fn answer(&self) -> Answer {
        let status = match self.status {
            Status::Ok => StatusCode::OK,
            Status::Failing => StatusCode::SERVICE_UNAVAILABLE,
        };
        let text = serde_json::to_string(self).unwrap_or_default();
        respond(status, JSON, text + "\n")
    }
}

/// Whether it lives.
pub(super) fn live(shared: &Shared) -> Health {
    Health::of(vital_checks(shared))
}

fn vital_checks(shared: &Shared) -> Vec<Check> {
    let dead = shared.cache.vitals().dead();
    let tasks = match &dead[..] {
        [] => Check::good("background-tasks"),
        dead => Check::bad("background-tasks", format!("died: {}", dead.join(", "))),
    };
    let mut checks = vec![tasks];
    if let Some(behind) = shared.cache.policies().behind() {
        checks.push(match behind.journal().failed() {
            None => Check::good("journal"),
            Some(why) => Check::bad("journal", why.to_string()),
        });
    }
    checks
}

/// Whether it can serve.
pub(super) async fn ready(shared: &Shared) -> Health {
    let mut checks = vital_checks(shared);
    if shared.draining.load(Relaxed) {
        checks.push(Check::bad("serving", "the server is ending"));
    }
    let stores = shared.stores.iter().filter_map(|(name, store)| {
        let mut users = shared.cache.policies().iter();
        let uses =
            |namespace: &Namespace| namespace.store.as_ref().is_some_and(|used| used.0 == *name);
        let is_required = users.any(|namespace| uses(namespace) && requires_store(namespace));
        is_required.then(|| check_store(name, store))
    });
    checks.extend(join_all(stores).await);
    Health::of(checks)
}

/// Whether a namespace can't do its work while its store is away.
fn requires_store(namespace: &Namespace) -> bool {
    let writes = matches!(namespace.write, Write::Through | Write::Around);
    writes || namespace.read == Read::Through && namespace.stale_if_error.is_none()
}

async fn check_store(name: &str, store: &Arc<dyn Store>) -> Check {
    let name = format!("store {name}");
    match tokio::time::timeout(PING, store.ping()).await {
        Ok(Ok(())) => Check::good(name),
        Ok(Err(why)) => Check::bad(name, why.to_string()),
        Err(_) => Check::bad(name, format!("no answer within {PING:?}")),
    }
}
