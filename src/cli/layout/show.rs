//! The layout and its change, for people and as JSON.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use crate::cli::progress::{span, volume};
use crate::proto;

/// As it is written.
pub(super) fn phase_name(phase: proto::TransitionPhase) -> &'static str {
    match phase {
        proto::TransitionPhase::Unspecified => "none",
        proto::TransitionPhase::Stable => "stable",
        proto::TransitionPhase::Joint => "joint",
        proto::TransitionPhase::Clearing => "clearing",
    }
}

fn phase_meaning(state: &proto::TransitionState) -> &'static str {
    match state.phase() {
        proto::TransitionPhase::Unspecified => "no cluster was formed",
        proto::TransitionPhase::Stable if state.waits_for.is_empty() => "nothing is under way",
        proto::TransitionPhase::Stable => "no rows are under way",
        proto::TransitionPhase::Joint => "the next owners merge what they will own",
        proto::TransitionPhase::Clearing => {
            "who owns what is settled; nodes hand over rows that they do not own"
        }
    }
}

/// Members, phase, and what each node does for it.
pub(super) fn text(status: &proto::ClusterStatusResponse) -> String {
    let layout = status.layout.clone().unwrap_or_default();
    let state = layout.state.clone().unwrap_or_default();
    let names: HashMap<&str, &str> =
        status.nodes.iter().map(|node| (&node.node_id[..], &node.name[..])).collect();
    let name = |id: &str| names.get(id).map_or(id, |name| *name).to_owned();
    let list = |ids: &[String]| ids.iter().map(|id| name(id)).collect::<Vec<_>>().join(", ");
    let phase = state.phase();
    let mut text = format!(
        "layout {}, epoch {}: {}: {}",
        layout.version,
        state.epoch,
        phase_name(phase),
        phase_meaning(&state)
    );
    // Writing to a string does not fail.
    for node in &status.nodes {
        let (name, state, zone) = (&node.name, &node.state, &node.zone);
        let _ = write!(text, "\n  {name}: {state}, zone {zone:?}, {} partitions", node.partitions);
    }
    if !state.syncers.is_empty() {
        let (done, all) = (state.synced.len(), state.syncers.len());
        let _ = write!(text, "\nmerged: {done} of {all} ({})", list(&state.syncers));
    }
    if !state.departed.is_empty() {
        let _ = write!(text, "\nmay hold rows of others: {}", list(&state.departed));
    }
    // Of what is over the nodes' last words may still be heard.
    let busy = state.progress.iter().filter(|_| phase != proto::TransitionPhase::Stable);
    for one in busy {
        let _ = write!(text, "\n{}: {}", name(&one.node_id), progress_text(one));
    }
    for one in &state.waits_for {
        let _ = write!(text, "\nwaits for {one}");
    }
    for (old, new) in &state.replacements {
        let _ = write!(text, "\n{} is taken out when {new} joins", name(old));
    }
    text
}

/// What a node does, and how fast.
pub(super) fn progress_text(one: &proto::TransferProgress) -> String {
    let mut text = format!(
        "{}, {} of {} partitions, {} keys, {}, {}/s",
        if one.task.is_empty() { "idle" } else { &one.task },
        one.partitions_done,
        one.partitions,
        one.keys,
        volume(one.bytes),
        volume(one.bytes_per_second)
    );
    if let Some(eta_ms) = one.eta_ms {
        text += &format!(", {} left", span(Duration::from_millis(eta_ms)));
    }
    if !one.waits_for.is_empty() {
        text += &format!(", waits for {}", one.waits_for);
    }
    text
}

/// All of it.
pub(super) fn to_json(status: &proto::ClusterStatusResponse) -> Value {
    let layout = status.layout.clone().unwrap_or_default();
    let state = layout.state.unwrap_or_default();
    let progress = state.progress.iter().map(|one| {
        json!({
            "node_id": one.node_id,
            "task": one.task,
            "partitions": one.partitions,
            "partitions_done": one.partitions_done,
            "keys": one.keys,
            "bytes": one.bytes,
            "bytes_per_second": one.bytes_per_second,
            "eta_ms": one.eta_ms,
            "waits_for": one.waits_for,
        })
    });
    let nodes = status.nodes.iter().map(|node| {
        json!({
            "name": node.name,
            "node_id": node.node_id,
            "state": node.state,
            "zone": node.zone,
            "partitions": node.partitions,
        })
    });
    json!({
        "version": layout.version,
        "epoch": state.epoch,
        "phase": phase_name(state.phase()),
        "fenced": state.fenced,
        "syncers": state.syncers,
        "synced": state.synced,
        "departed": state.departed,
        "waits_for": state.waits_for,
        "progress": progress.collect::<Vec<_>>(),
        "replacements": state.replacements,
        "nodes": nodes.collect::<Vec<_>>(),
    })
}
