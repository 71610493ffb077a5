//! Facts as the keys and values of chitchat.
//!
//! | key | value |
//! |---|---|
//! | `cl` | the cluster; empty for none |
//! | `form` | what it was formed as |
//! | `pv` | `oldest-newest` version of the peer protocol |
//! | `name`, `zone` | text |
//! | `peer`, `client`, `admin` | `host:port` |
//! | `lay` | the layout epoch |
//! | `load`, `disk` | thousandths |
//! | `bytes`, `hints`, `lease` | a number |
//! | `free` | a number; empty: the disk has not been looked at |
//! | `moving`, `ver` | text |
//! | `st` | the run state |
//!
//! 1. A node counts as heard of when `cl`, `pv` and `st` are there: what arrives in pieces must not
//!    pass for a node without a cluster.
//! 2. Values from others are cut off at [`VALUE_BYTES_MAX`] before they are looked at; what cannot
//!    be read counts as not said.

use chitchat::{ChitchatId, NodeState};

use super::{Entry, generation_of, node_of};
use crate::cluster::view::{Addresses, Facts, RunState};

/// Of any value.
const VALUE_BYTES_MAX: usize = 300;

/// The facts a node says of itself.
pub(super) fn of(facts: &Facts) -> Vec<(String, String)> {
    let cluster = facts.cluster.map(|cluster| cluster.to_string()).unwrap_or_default();
    let thousandths = |share: f64| (share.clamp(0.0, 1.0) * 1000.0).round().to_string();
    let (oldest, newest) = facts.protocols;
    let pairs = [
        ("cl", cluster),
        ("form", facts.formation.to_string()),
        ("pv", format!("{oldest}-{newest}")),
        ("name", facts.name.clone()),
        ("zone", facts.zone.clone()),
        ("peer", facts.addresses.peer.clone()),
        ("client", facts.addresses.client.clone()),
        ("admin", facts.addresses.admin.clone()),
        ("lay", facts.epoch.to_string()),
        ("load", thousandths(facts.load)),
        ("disk", thousandths(facts.disk)),
        ("bytes", facts.load_bytes.to_string()),
        ("hints", facts.hints.to_string()),
        ("damaged", facts.damaged.to_string()),
        ("unreadable", facts.unreadable.to_string()),
        ("free", facts.disk_room.map(|room| room.to_string()).unwrap_or_default()),
        ("moving", facts.moving.clone()),
        ("ver", facts.version.clone()),
        ("lease", facts.lease.to_string()),
        ("st", facts.run_state.to_string()),
    ];
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// What chitchat knows of an incarnation; none if that is not enough yet.
pub(super) fn read(id: &ChitchatId, state: &NodeState, is_live: bool) -> Option<Entry> {
    let value = |key: &str| state.get(key).filter(|value| value.len() <= VALUE_BYTES_MAX);
    let text = |key: &str| value(key).unwrap_or_default().to_owned();
    let number = |key: &str| value(key).and_then(|value| value.parse().ok()).unwrap_or(0_u64);
    let share = |key: &str| number(key).min(1000) as f64 / 1000.0;
    let cluster = match value("cl")? {
        "" => None,
        cluster => Some(cluster.parse().ok()?),
    };
    let (oldest, newest) = value("pv")?.split_once('-')?;
    let peer = match text("peer") {
        peer if peer.is_empty() => id.gossip_advertise_addr.to_string(),
        peer => peer,
    };
    // One that a later version has may be sent requests.
    let run_state = value("st")?.parse().unwrap_or(RunState::Serving);
    let facts = Facts {
        node: node_of(id)?,
        generation: generation_of(id.generation_id),
        is_up: is_live,
        cluster,
        formation: value("form").and_then(|id| id.parse().ok()).unwrap_or_default(),
        name: text("name"),
        zone: text("zone"),
        addresses: Addresses { peer, client: text("client"), admin: text("admin") },
        run_state,
        version: text("ver"),
        protocols: (oldest.parse().ok()?, newest.parse().ok()?),
        epoch: number("lay"),
        load: share("load"),
        load_bytes: number("bytes"),
        disk: share("disk"),
        disk_room: value("free").and_then(|value| value.parse().ok()),
        moving: text("moving"),
        hints: number("hints"),
        damaged: number("damaged"),
        unreadable: number("unreadable"),
        lease: number("lease"),
    };
    Some(Entry { incarnation: id.generation_id, facts })
}
