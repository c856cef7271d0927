//! Opens the stores that the configuration declares, those first that others are made of, and makes the
//! namespaces over them.

use std::{collections::HashMap, sync::Arc};

use crate::{
    clock::Clock,
    config::{self, Config, NamespaceConfig, Settings, StoreConfig, StoreKind},
    error::Error,
    journal,
    policy::{
        Loads, Namespace, Policies, Write,
        behind::{Behind, dead::DIRECTORY},
    },
    store::{
        self, Store,
        breaker::{Breaker, guarded},
        faulty::faulty,
        replicated::replicated,
        sharded::sharded,
    },
    tier::disk::real::Real,
};

/// A store that another one is made of, and its name.
type Named<'a> = (&'a str, Arc<dyn Store>);

/// What was opened.
pub(super) struct Opened {
    /// The namespaces, over their stores.
    pub(super) policies: Policies,
    /// The stores and their names, in the order of the file.
    pub(super) stores: Vec<(Box<str>, Arc<dyn Store>)>,
    /// The stores' breakers.
    pub(super) breakers: Vec<Breaker>,
}

/// Opens all stores.
pub(super) fn open(config: &Config) -> Result<Opened, Error> {
    let mut opening = Opening { config, stores: HashMap::new(), breakers: Vec::new() };
    let mut stores: Vec<(Box<str>, Arc<dyn Store>)> = Vec::new();
    for StoreConfig { name, .. } in &config.stores {
        stores.push((name.as_str().into(), opening.store(name)?));
    }
    let namespaces = config.namespaces.iter().map(|namespace| opening.namespace(namespace));
    let mut policies = Policies::new(namespaces.collect::<Result<_, _>>()?);
    open_journal(&config.settings, &mut policies)?;
    Ok(Opened { policies, stores, breakers: opening.breakers })
}

/// Opens the journal of the namespaces that write behind, and takes up what is left in it. Where none does it
/// is looked into all the same: what is left in one would come back later, over newer values.
fn open_journal(settings: &Settings, policies: &mut Policies) -> Result<(), Error> {
    let path = settings.journal_path.clone().unwrap_or_else(|| settings.dir.join("journal"));
    let is_needed = policies.iter().any(|namespace| namespace.write == Write::Behind);
    if !is_needed && !path.exists() {
        return Ok(());
    }
    let options = journal::Options {
        fsync: match settings.journal_fsync {
            config::JournalFsync::Always => journal::Fsync::Always,
            config::JournalFsync::Interval => journal::Fsync::Interval(settings.journal_interval),
            config::JournalFsync::Never => journal::Fsync::Never,
        },
        limit: settings.journal_limit(),
        recover: match settings.journal_recover {
            config::JournalRecover::Strict => journal::Recover::Strict,
            config::JournalRecover::BestEffort => journal::Recover::BestEffort,
        },
        ..journal::Options::new(path)
    };
    let (dead, disk, clock) = (settings.dir.join(DIRECTORY), Arc::new(Real), Clock::default());
    Behind::open(policies, options, dead, disk, clock)
}

/// What is open so far.
struct Opening<'a> {
    config: &'a Config,
    /// None: it is being opened.
    stores: HashMap<&'a str, Option<Arc<dyn Store>>>,
    breakers: Vec<Breaker>,
}

impl<'a> Opening<'a> {
    /// The store of this name, opened if it isn't.
    fn store(&mut self, name: &str) -> Result<Arc<dyn Store>, Error> {
        let wrong = |what: &str| Error::Config(format!("store {name}: {what}"));
        let found = self.config.stores.iter().find(|store| store.name == name);
        let StoreConfig { name, kind, breaker, .. } =
            found.ok_or_else(|| wrong("there is none"))?;
        match self.stores.get(&**name) {
            Some(Some(store)) => return Ok(store.clone()),
            Some(None) => return Err(wrong("it is made of itself")),
            None => _ = self.stores.insert(name, None),
        }
        let store = self.open(kind)?;
        let store = match breaker {
            Some(settings) => {
                let (store, breaker) = guarded(store, name, settings.clone(), Clock::default());
                self.breakers.push(breaker);
                store
            }
            None => store,
        };
        self.stores.insert(name, Some(store.clone()));
        Ok(store)
    }

    fn open(&mut self, kind: &'a StoreKind) -> Result<Arc<dyn Store>, Error> {
        Ok(match kind {
            StoreKind::Memory => store::memory(),
            #[cfg(feature = "redb")]
            StoreKind::Redb { path } => store::redb(path)?,
            #[cfg(feature = "postgres")]
            StoreKind::Postgres(options) => store::postgres(options)?,
            #[cfg(feature = "redis-store")]
            StoreKind::Redis(options) => store::redis(options),
            #[cfg(feature = "http")]
            StoreKind::Http(options) => store::http(options),
            StoreKind::Sharded { router, stores } => {
                sharded(router.clone(), self.named(stores.iter())?)
            }
            StoreKind::Replicated { primary, replicas, options } => {
                let primary = (primary.as_str(), self.store(primary)?);
                let replicas = self.named(replicas.iter())?;
                replicated(options.clone(), primary, replicas, Clock::default())
            }
            StoreKind::Faulty { over, faults } => {
                let (store, handle) = faulty(self.store(over)?);
                handle.regularly(faults.clone());
                store
            }
            #[cfg(not(feature = "redb"))]
            StoreKind::Redb { .. } => {
                let text = "this larder was built without redb";
                return Err(Error::Config(text.into()));
            }
        })
    }

    fn named(&mut self, names: impl Iterator<Item = &'a String>) -> Result<Vec<Named<'a>>, Error> {
        names.map(|name| Ok((name.as_str(), self.store(name)?))).collect()
    }

    fn namespace(&mut self, config: &NamespaceConfig) -> Result<Namespace, Error> {
        let declared = |store: &&StoreConfig| Some(&store.name) == config.store.as_ref();
        let declared = self.config.stores.iter().find(declared);
        let loads = declared.map_or_else(Loads::default, |store| Loads {
            batch: store.load_batch,
            at_once: store.loads_at_once,
        });
        let store = match &config.store {
            Some(name) => {
                let store = self.store(name)?;
                let view = if config.write == Write::None { None } else { store.for_writers() };
                Some((name.as_str().into(), view.unwrap_or(store)))
            }
            None => None,
        };
        Ok(Namespace { loads, store, ..config.namespace() })
    }
}
