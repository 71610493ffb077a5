//! A plan, for people and as JSON.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use crate::cli::progress::{span, volume};
use crate::proto;

/// What moves, the balance, and what should be known; of what is refused nothing is to be known.
pub(super) fn text(plan: &proto::PlanLayoutResponse) -> String {
    let names: HashMap<&str, &str> =
        plan.balance.iter().map(|node| (&node.node_id[..], &node.name[..])).collect();
    let name = |id: &str| match names.get(id) {
        Some(name) if !name.is_empty() => (*name).to_owned(),
        _ => id.to_owned(),
    };
    if plan.balance.is_empty() && plan.lost.is_empty() {
        return format!("on epoch {}", plan.epoch);
    }
    let width = plan.balance.iter().map(|node| name(&node.node_id).len()).max().unwrap_or(0).max(4);
    // Writing to a string does not fail.
    let mut text = format!("on epoch {}\n\n", plan.epoch);
    let _ = writeln!(
        text,
        "{:<width$}  {:>10}  {:>10}  {:>10}  {:>10}",
        "node", "partitions", "then", "bytes", "then"
    );
    for node in &plan.balance {
        let _ = writeln!(
            text,
            "{:<width$}  {:>10}  {:>10}  {:>10}  {:>10}",
            name(&node.node_id),
            node.partitions,
            node.partitions_next,
            volume(node.bytes),
            volume(node.bytes_next)
        );
    }
    text.push('\n');
    for one in &plan.movements {
        let (from, to) = (name(&one.from), name(&one.to));
        let (partitions, bytes) = (one.partitions, volume(one.bytes));
        let _ = writeln!(text, "{from} to {to}: {partitions} partitions, about {bytes}");
    }
    let duration = span(Duration::from_millis(plan.duration_ms));
    let _ = write!(text, "{} move, in about {duration} at the rate limit", volume(plan.bytes));
    for one in &plan.lost {
        let left: Vec<String> = one.replicas_left.iter().map(|id| name(id)).collect();
        let tenants = one.tenants.join(", ");
        let _ = write!(
            text,
            "\npartition {} ({tenants}): writes may be lost, only [{}] would be left",
            one.partition,
            left.join(", ")
        );
    }
    if !plan.lost.is_empty() {
        let _ = write!(text, "\n{} partitions keep too few replicas", plan.lost.len());
    }
    for warning in &plan.warnings {
        let _ = write!(text, "\nnote: {warning}");
    }
    text
}

/// All of it.
pub(super) fn to_json(plan: &proto::PlanLayoutResponse) -> Value {
    let refusals = plan.refusals.iter();
    let refusals = refusals.map(|one| json!({ "reason": one.reason, "message": one.message }));
    let movements = plan.movements.iter().map(|one| {
        json!({
            "from": one.from,
            "to": one.to,
            "partitions": one.partitions,
            "bytes": one.bytes,
        })
    });
    let balance = plan.balance.iter().map(|node| {
        json!({
            "node_id": node.node_id,
            "name": node.name,
            "partitions": node.partitions,
            "partitions_next": node.partitions_next,
            "bytes": node.bytes,
            "bytes_next": node.bytes_next,
        })
    });
    let lost = plan.lost.iter().map(|one| {
        json!({
            "partition": one.partition,
            "replication_factor": one.replication_factor,
            "tenants": one.tenants,
            "replicas_left": one.replicas_left,
        })
    });
    json!({
        "epoch": plan.epoch,
        "refusals": refusals.collect::<Vec<_>>(),
        "movements": movements.collect::<Vec<_>>(),
        "bytes": plan.bytes,
        "duration_ms": plan.duration_ms,
        "balance": balance.collect::<Vec<_>>(),
        "lost": lost.collect::<Vec<_>>(),
        "warnings": plan.warnings,
    })
}
