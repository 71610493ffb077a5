//! What the state machine promises, by command; then by any sequence of commands.

mod commands;
mod histories;
mod lookups;
mod losses;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::store::{TenantChange, TenantId, TenantSpec};

use super::*;

/// Every name a command is refused by in these tests.
pub(super) fn refused(answer: &Answer) -> &str {
    match answer {
        Answer::Refused { reason, .. } => reason,
        other => panic!("it was not refused: {other:?}"),
    }
}

pub(super) fn node(n: u128) -> NodeId {
    NodeId(n)
}

pub(super) fn member(zone: &str) -> Member {
    Member {
        name: "node".to_owned(),
        zone: zone.to_owned(),
        weight: 1,
        state: MemberState::Joining,
        address: "127.0.0.1:7946".to_owned(),
    }
}

pub(super) fn members(nodes: &[u128]) -> BTreeMap<NodeId, Member> {
    nodes.iter().map(|n| (node(*n), member(""))).collect()
}

pub(super) fn nodes(nodes: &[u128]) -> BTreeSet<NodeId> {
    nodes.iter().map(|n| node(*n)).collect()
}

pub(super) fn form(ids: &[u128]) -> Command {
    let cluster_id = node(99);
    let formation = NodeId(98);
    Command::Form { cluster_id, formation, partition_bits: 4, members: members(ids), now_ms: 7 }
}

/// A cluster of these nodes with 16 partitions; its tenants have three replicas.
pub(super) fn formed(ids: &[u128]) -> Document {
    let mut document = Document::empty();
    assert_eq!(document.apply(&form(ids)), Answer::Done { epoch: 1 });
    document
}

pub(super) fn join(document: &Document, ids: &[u128]) -> Command {
    Command::Join { epoch: document.epoch, members: members(ids) }
}

pub(super) fn fenced(document: &Document, n: u128) -> Command {
    Command::Fenced { node: node(n), epoch: document.epoch }
}

pub(super) fn synced(document: &Document, n: u128) -> Command {
    Command::Synced { node: node(n), epoch: document.epoch }
}

pub(super) fn change(document: &Document, edit: impl FnOnce(&mut Change)) -> Command {
    let mut change = Change::default();
    edit(&mut change);
    Command::Change { epoch: document.epoch, change }
}

/// Applies a command that must take effect.
pub(super) fn does(document: &mut Document, command: &Command) {
    let answer = document.apply(command);
    assert!(!matches!(answer, Answer::Refused { .. }), "{command:?}: {answer:?}");
    document.check().unwrap();
}

/// As [`does`], for a command about the document as it is.
pub(super) fn now(document: &mut Document, command: impl FnOnce(&Document) -> Command) {
    let command = command(document);
    does(document, &command);
}

/// Everybody does what the transition waits for.
pub(super) fn finish(document: &mut Document) {
    for node in document.members.clone().into_keys() {
        document.apply(&fenced(document, node.0));
    }
    for node in document.syncers.clone() {
        now(document, |document| synced(document, node.0));
    }
    assert!(!document.is_joint(), "all facts are there");
}

pub(super) fn layout(document: &Document) -> Layout {
    Layout::new(Arc::new(document.clone()))
}

pub(super) fn create(name: &str) -> Command {
    Command::CreateTenant { spec: TenantSpec::new(name), now_ms: 8 }
}

pub(super) fn alter(name: &str, change: TenantChange) -> Command {
    Command::AlterTenant { name: name.to_owned(), change }
}
