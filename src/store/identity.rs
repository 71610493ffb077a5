//! Who a node is: cluster, node, generation, actor, and the lease of its clock.
//!
//! `IDENTITY` is a document (`document.rs`): ids as UUIDs, the actor as 16 hex digits, the
//! generation, and, after a clean stop, the bound of the lease at that moment. `LEASE` is a file of
//! its own because it is extended every few seconds.
//!
//! 1. An actor is durable before it is used.
//! 2. A start keeps the actor only after a clean stop. In every other case, and whenever somebody
//!    asks ([`IdentityFile::rotate`]), a new one is minted: a node that may have lost the end of
//!    its history must not go on under its old name, or peers take its new writes for old ones.
//! 3. If an actor is kept, the bound of the lease is at or above everything it may have minted.
//! 4. Starting takes the clean mark away before it returns; the mark comes back last of all.
//! 5. The generation grows with every start, whatever the clock says.
//! 6. A damaged or missing file beside others is corruption, never a first start. So is an engine
//!    without files, once the node has run ([`Starting::has_run`]): its volume may not be mounted.
//! 7. A node has one cluster in its life. A directory may begin without ([`IdentityOptions`]); it
//!    is given one once, durably, by [`IdentityFile::assign_cluster`].
//! 8. A start is judged ([`Starting::read`]) before anything is written ([`Starting::begin`]).
//! 9. What a start believes to have found ([`IdentityFile::lease_found`]) is no less than any bound
//!    of the lease that others were told before it, if they are told none before
//!    [`IdentityFile::confirm_lease`] has returned: only a directory that was put back finds less.
//!
//! The caller holds the lock of the directory. In a new one it writes the catalog, begins, and then
//! makes the engine's directory: only so is a directory without `IDENTITY` a new one. In any other
//! it opens the engine before it begins, so that a start the engine refuses has changed nothing.

mod lease;
pub mod uuid;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::engine;
use crate::engine::vfs::Vfs;

use super::document::Document;
use super::environment::{Environment, Random};
use super::error::{Error, Result};

pub use self::lease::Lease;

const NAME: &str = "IDENTITY";
const FORMAT: u32 = 1;

/// What a first start that was cut short may have left behind.
const FIRST_START_FILES: [&str; 6] =
    ["IDENTITY.tmp", "LEASE", "LEASE.tmp", "LOCK", "TENANTS", "TENANTS.tmp"];

/// Who a node is, in this life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster, a UUID; `None` until the node has formed or joined one.
    pub cluster_id: Option<u128>,
    /// The node, for as long as its directory lives; a UUID.
    pub node_id: u128,
    /// Grows with every start: at least the milliseconds since 1970.
    pub generation: u64,
    /// Signs what the node writes; never 0.
    pub actor: u64,
}

/// Why the actor is what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// The directory was empty: everything is new.
    First,
    /// The last stop was clean: the actor was kept.
    Clean,
    /// The last stop was not, or the lease has lost what it held then: the actor is new.
    Unclean,
    /// The caller asked for a new actor.
    Requested,
}

/// How to start.
#[derive(Clone, Copy, Debug, Default)]
pub struct IdentityOptions {
    /// The cluster the node must belong to: a new directory is given to it, one of another cluster
    /// is refused. `None`: a directory without one founds a cluster, others keep their own.
    pub cluster_id: Option<u128>,
    /// Founds none: the node will form or join a cluster with others, and has none until
    /// [`IdentityFile::assign_cluster`].
    pub cluster_later: bool,
    /// Mints a new actor in any case: after a restore or replacement. Ask until a start succeeds.
    pub rotate: bool,
}

/// What stands in the document.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    cluster_id: Option<String>,
    node_id: String,
    generation: u64,
    actor: String,
    /// The bound of the lease at a clean stop; nothing while the node runs.
    clean: Option<u64>,
    /// The bound of the lease that the first start found since others last confirmed that they know
    /// of no later one; `u64::MAX`: it found half of it damaged, and cannot tell.
    #[serde(default)]
    unconfirmed: Option<u64>,
}

/// The open identity of a running node.
#[derive(Debug)]
pub struct IdentityFile {
    // Constant after open.
    environment: Environment,
    document: Document,
    lease: Arc<Lease>,
    lease_found: u64,
    start: Start,
    // Held while the document is written.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    identity: Identity,
    /// See `Contents`.
    unconfirmed: Option<u64>,
    /// Why nothing is written any more.
    refused: Option<Error>,
}

/// A start that may be made: nothing is written yet.
#[derive(Debug)]
pub struct Starting {
    environment: Environment,
    dir: PathBuf,
    document: Document,
    identity: Identity,
    /// `None`: one must be made.
    lease: Option<Lease>,
    /// What the lease's bound must be at least, by the mark of a clean stop.
    clean: Option<u64>,
    unconfirmed: Option<u64>,
    start: Start,
}

impl Starting {
    /// Looks at `dir`, which exists, and decides what a life of its node starts with.
    ///
    /// # Errors
    /// Damage, a newer format, another cluster, or I/O.
    pub fn read(environment: &Environment, dir: &Path, options: IdentityOptions) -> Result<Self> {
        let document = Document::new(dir, NAME, FORMAT);
        match document.read::<Contents>(&*environment.vfs)? {
            None => first_start(environment, dir, document, options),
            Some(contents) => restart(environment, dir, document, contents, options),
        }
    }

    /// Whether no node was started here before.
    pub fn is_first(&self) -> bool {
        self.start == Start::First
    }

    /// Whether a node has opened its store here: only then is a clock begun, and its lease
    /// extended.
    pub fn has_run(&self) -> bool {
        self.clean.is_some() || self.lease.as_ref().is_some_and(Lease::was_used)
    }

    /// Who the node would be in that life.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Starts that life; durable on return.
    ///
    /// # Errors
    /// I/O, after which the next start may be unclean.
    pub fn begin(self) -> Result<IdentityFile> {
        let Self { environment, dir, document, identity, lease, clean, unconfirmed, start } = self;
        let lease = match lease {
            Some(lease) => lease,
            None => Lease::create(&*environment.vfs, &dir)?,
        };
        let is_known = clean.is_some() || lease.was_whole();
        // A slot of the lease that rotted away took its bound with it; the mark still knows it.
        lease.extend(clean.unwrap_or(0))?;
        // A slot that is not whole may have held a later bound; the mark would know it.
        let found = if is_known { lease.bound() } else { u64::MAX };
        // Noted before the clock extends it: the next start would find its own.
        let found = unconfirmed.unwrap_or(found);
        let state = State { identity, unconfirmed: Some(found), refused: None };
        let (lease, state) = (Arc::new(lease), Mutex::new(state));
        let file = IdentityFile { environment, document, lease, lease_found: found, start, state };
        file.write(&file.state.lock(), None)?;
        Ok(file)
    }
}

impl IdentityFile {
    /// Whether a node was started in `dir` before.
    pub fn exists(vfs: &dyn Vfs, dir: &Path) -> Result<bool> {
        let path = dir.join(NAME);
        Ok(vfs.exists(&path).map_err(engine::Error::io("look for", &path))?)
    }

    /// Who the node is. The actor changes with [`IdentityFile::rotate`].
    pub fn identity(&self) -> Identity {
        self.state.lock().identity
    }

    /// Why the actor was kept or not.
    pub fn start(&self) -> Start {
        self.start
    }

    /// The lease of the node's clock. Its bound is where the clock must begin: nothing at or below
    /// it may be minted.
    pub fn lease(&self) -> &Arc<Lease> {
        &self.lease
    }

    /// The bound of the lease that was found since others last confirmed that they know of no later
    /// one: by this start, or by the first of those before it that met nobody. `u64::MAX`: half of
    /// the lease was damaged, and nobody knows what it had held.
    pub fn lease_found(&self) -> u64 {
        self.lease_found
    }

    /// Notes that others know of no later bound than was found, durable when it returns; before
    /// that no bound of this life may be told. After an error that may have written, nothing is
    /// written until the next start.
    pub fn confirm_lease(&self) -> Result<()> {
        let mut state = self.state.lock();
        if state.unconfirmed.is_none() {
            return Ok(());
        }
        if let Some(refused) = &state.refused {
            return Err(refused.clone());
        }
        let after = State { unconfirmed: None, refused: None, ..*state };
        let written = self.write(&after, None);
        match &written {
            Ok(()) => state.unconfirmed = None,
            Err(error @ Error::Unknown { .. }) => {
                state.refused = Some(Error::ReadOnly { cause: error.to_string() });
            }
            // The document is the one before.
            Err(_) => {}
        }
        written
    }

    /// Mints a new actor, durable when it returns. The caller mints nothing under the old one from
    /// before the call on. After an error the node must take no more writes: it can have neither
    /// actor, and its next start will not be clean.
    pub fn rotate(&self) -> Result<u64> {
        let mut state = self.state.lock();
        if let Some(refused) = &state.refused {
            return Err(refused.clone());
        }
        let rotated =
            mint_actor(&*self.environment.random, state.identity.actor).and_then(|actor| {
                let identity = Identity { actor, ..state.identity };
                let after = State { identity, refused: None, ..*state };
                self.write(&after, None).map(|()| identity)
            });
        match rotated {
            Ok(identity) => state.identity = identity,
            Err(ref error) => state.refused = Some(Error::ReadOnly { cause: error.to_string() }),
        }
        rotated.map(|identity| identity.actor)
    }

    /// Gives the node the cluster it is of from now on, durable when it returns. The same one again
    /// is fine. After an error that may have written, nothing is written until the next start.
    ///
    /// # Errors
    /// [`Error::WrongCluster`] if it has another one; I/O.
    pub fn assign_cluster(&self, cluster_id: u128) -> Result<()> {
        let mut state = self.state.lock();
        if let Some(found) = state.identity.cluster_id {
            return check_cluster(&self.document, cluster_id, found);
        }
        if let Some(refused) = &state.refused {
            return Err(refused.clone());
        }
        let identity = Identity { cluster_id: Some(cluster_id), ..state.identity };
        let after = State { identity, refused: None, ..*state };
        match self.write(&after, None) {
            Ok(()) => state.identity = identity,
            Err(ref error) => {
                state.refused = Some(Error::ReadOnly { cause: error.to_string() });
                return Err(error.clone());
            }
        }
        Ok(())
    }

    /// Marks the stop as clean. Only when everything written is durable and nothing will be minted
    /// any more; the lease is closed by it. After an error the next start may be unclean.
    pub fn close(&self) -> Result<()> {
        let mut state = self.state.lock();
        if let Some(refused) = &state.refused {
            return Err(refused.clone());
        }
        state.refused = Some(Error::Closed);
        let bound = self.lease.close();
        self.write(&state, Some(bound))
    }

    fn write(&self, state: &State, clean: Option<u64>) -> Result<()> {
        let identity = &state.identity;
        let contents = Contents {
            cluster_id: identity.cluster_id.map(uuid::to_text),
            node_id: uuid::to_text(identity.node_id),
            generation: identity.generation,
            actor: format!("{:016x}", identity.actor),
            clean,
            unconfirmed: state.unconfirmed,
        };
        self.document.replace(&*self.environment.vfs, &contents)
    }
}

fn first_start(
    environment: &Environment,
    dir: &Path,
    document: Document,
    options: IdentityOptions,
) -> Result<Starting> {
    let vfs = &*environment.vfs;
    let random = &*environment.random;
    if let Some(found) = foreign_file(vfs, dir)? {
        let what = format!("it is missing beside {}", found.display());
        return Err(engine::Error::corrupt(&dir.join(NAME), 0, what).into());
    }
    // One that is there is of a first start that was cut short, and whole: it was renamed in.
    let lease = Lease::open(vfs, dir)?;
    if lease.as_ref().is_some_and(Lease::was_used) {
        let what = "it is missing beside a LEASE that was in use";
        return Err(engine::Error::corrupt(&dir.join(NAME), 0, what).into());
    }
    let identity = Identity {
        cluster_id: first_cluster(random, options)?,
        node_id: uuid::mint(random)?,
        generation: environment.clock.now_ms().max(1),
        actor: mint_actor(random, 0)?,
    };
    Ok(Starting {
        environment: environment.clone(),
        dir: dir.to_path_buf(),
        document,
        identity,
        lease,
        clean: None,
        unconfirmed: None,
        start: Start::First,
    })
}

/// The cluster of a directory that has none.
fn first_cluster(random: &dyn Random, options: IdentityOptions) -> Result<Option<u128>> {
    match options.cluster_id {
        _ if options.cluster_later => Ok(None),
        None => uuid::mint(random).map(Some),
        given => Ok(given),
    }
}

fn check_cluster(document: &Document, expected: u128, found: u128) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::WrongCluster {
        file: document.path().to_path_buf(),
        expected: uuid::to_text(expected),
        found: uuid::to_text(found),
    })
}

fn restart(
    environment: &Environment,
    dir: &Path,
    document: Document,
    contents: Contents,
    options: IdentityOptions,
) -> Result<Starting> {
    let (clean, unconfirmed) = (contents.clean, contents.unconfirmed);
    let mut identity = contents.parse().map_err(|why| document.invalid(0, why))?;
    match (identity.cluster_id, options.cluster_id) {
        (Some(found), Some(expected)) => check_cluster(&document, expected, found)?,
        (Some(_), None) => {}
        (None, _) => identity.cluster_id = first_cluster(&*environment.random, options)?,
    }
    let lease = Lease::open(&*environment.vfs, dir)?.ok_or_else(|| lease::missing(dir))?;
    let start = match clean {
        _ if options.rotate => Start::Requested,
        Some(bound) if lease.bound() >= bound => Start::Clean,
        _ => Start::Unclean,
    };
    if start != Start::Clean {
        identity.actor = mint_actor(&*environment.random, identity.actor)?;
    }
    let next = identity.generation.checked_add(1);
    let next = next.ok_or_else(|| document.invalid(0, "no generation is left"))?;
    identity.generation = next.max(environment.clock.now_ms());
    Ok(Starting {
        environment: environment.clone(),
        dir: dir.to_path_buf(),
        document,
        identity,
        lease: Some(lease),
        clean,
        unconfirmed,
        start,
    })
}

impl Contents {
    fn cluster(&self) -> Result<Option<u128>, &'static str> {
        let parse = |text| uuid::from_text(text).ok_or("the cluster id is no UUID");
        self.cluster_id.as_deref().map(parse).transpose()
    }

    /// What the text says, or which part of it says nothing.
    fn parse(&self) -> Result<Identity, &'static str> {
        let actor = Some(&self.actor)
            .filter(|text| text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit()))
            .and_then(|text| u64::from_str_radix(text, 16).ok())
            .filter(|actor| *actor != 0);
        Ok(Identity {
            cluster_id: self.cluster()?,
            node_id: uuid::from_text(&self.node_id).ok_or("the node id is no UUID")?,
            generation: self.generation,
            actor: actor.ok_or("the actor is not 16 hex digits other than 0")?,
        })
    }
}

/// A new actor: not 0, and not `former`.
fn mint_actor(random: &dyn Random, former: u64) -> Result<u64> {
    let drawn = random.next_u64()?;
    if drawn != 0 && drawn != former {
        return Ok(drawn);
    }
    // One case in 2^63. Any other number does; drawing again might loop on a broken source.
    Ok(if former == 1 { 2 } else { 1 })
}

/// A file in `dir` that no first start leaves behind.
fn foreign_file(vfs: &dyn Vfs, dir: &Path) -> Result<Option<PathBuf>> {
    let files = vfs.list(dir).map_err(engine::Error::io("list", dir))?;
    let known = |file: &PathBuf| FIRST_START_FILES.iter().any(|name| file.as_os_str() == *name);
    Ok(files.into_iter().find(|file| !known(file)))
}

#[cfg(test)]
mod tests;
