//! Following a change of the layout to its end.
//!
//! That a change has ended does not say how: one that was aborted ends too. What was asked for is
//! looked at, therefore, and only if it is so is the change said to be done.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::show::phase_name;
use super::{ask_plan, find, status, transition};
use crate::cli::args::{Connect, signals};
use crate::cli::failure::{Failure, say};
use crate::cli::progress::share_bar;
use crate::client::Client;
use crate::proto::{self, ClusterStatusResponse, TransitionPhase};

/// The exit code where a change goes on without being waited for any longer.
pub(crate) const UNDER_WAY: u8 = 7;
/// The exit code where a change was begun, and did not come about: it was aborted.
pub(crate) const ABORTED: u8 = 8;
/// How often it is looked.
const LOOK: Duration = Duration::from_millis(500);

/// What is to be when a change has ended well.
#[derive(Debug, Default)]
pub(crate) struct Goal {
    /// Nodes by id, with their names and the states they are to have.
    nodes: BTreeMap<String, (String, &'static str)>,
    /// What is not seen by a node's state.
    rest: proto::LayoutChange,
}

/// How a change stands whose goal is looked at.
#[derive(Debug, PartialEq, Eq)]
enum Standing {
    /// It has not ended, or this is still to come of it.
    UnderWay(Vec<String>),
    /// All is as was asked for, as far as nodes' states tell.
    Reached,
    /// This is not so, and will not be.
    Missed(String),
}

impl Goal {
    /// What a change is to bring about, of nodes that are known now.
    pub fn of(change: &proto::LayoutChange, told: &ClusterStatusResponse) -> Self {
        let joins: Vec<String> = change.joins.iter().map(|new| new.node.clone()).collect();
        let wanted = [(&change.leaves, "left"), (&change.removes, "removed"), (&joins, "normal")];
        let nodes = wanted.into_iter().flat_map(|(names, state)| {
            let found = names.iter().filter_map(|name| find(told, name));
            found.map(move |node| (node.node_id.clone(), (node.name.clone(), state)))
        });
        let rest = proto::LayoutChange {
            weights: change.weights.clone(),
            zones: change.zones.clone(),
            replication_factors: change.replication_factors.clone(),
            ..Default::default()
        };
        Self { nodes: nodes.collect(), rest }
    }

    /// How the change of `epoch` stands.
    fn standing(&self, told: &ClusterStatusResponse, epoch: u64) -> Standing {
        let state = transition(told);
        let is_joint = state.phase() == TransitionPhase::Joint;
        if state.epoch < epoch || (state.epoch == epoch && is_joint) {
            return Standing::UnderWay(state.waits_for);
        }
        let mut waits = state.waits_for;
        for (id, (name, wanted)) in &self.nodes {
            let node = told.nodes.iter().find(|node| node.node_id == *id);
            match (*wanted, node.map(|node| node.state.as_str())) {
                (wanted, Some(state)) if wanted == state => {}
                ("left", Some("leaving")) => {
                    let text = format!("{name} to leave");
                    if !waits.iter().any(|one| one.starts_with(&text)) {
                        waits.push(text);
                    }
                }
                ("removed", Some("removing")) => waits.push(format!("{name} to be removed")),
                (_, state) => {
                    let state = state.unwrap_or("no member any more");
                    return Standing::Missed(format!("{name} is {state}, not {wanted}"));
                }
            }
        }
        let is_over = state.phase == i32::from(TransitionPhase::Stable) && waits.is_empty();
        if is_over { Standing::Reached } else { Standing::UnderWay(waits) }
    }
}

/// Waits until the change that began in `epoch` has ended: all is as was asked for, nobody holds
/// rows of others any more, and those vote on the layout who should. A node that does not answer is
/// asked again.
pub(crate) async fn wait_until_done(
    client: &Client,
    connect: &Connect,
    epoch: u64,
    goal: &Goal,
) -> Result<(), Failure> {
    unless_interrupted(follow(client, connect, epoch, goal)).await
}

/// Looks on at a change that has begun, until its end or Ctrl-C, which ends the looking only.
pub(crate) async fn unless_interrupted(
    looking: impl Future<Output = Result<(), Failure>>,
) -> Result<(), Failure> {
    let signals = signals()?;
    tokio::select! {
        looked = looking => looked,
        () = signals.graceful.cancelled() => {
            let message = "the change goes on by itself: pairdb layout show tells how far it is";
            Err(Failure::with_code(UNDER_WAY, message))
        }
    }
}

async fn follow(
    client: &Client,
    connect: &Connect,
    epoch: u64,
    goal: &Goal,
) -> Result<(), Failure> {
    let bar = share_bar();
    let end = Instant::now() + connect.patience();
    let mut said = String::new();
    loop {
        let looked = look(client, epoch, goal).await;
        let message = match looked {
            Ok(None) => {
                bar.finish_and_clear();
                return Ok(());
            }
            Ok(Some((share, message))) => {
                bar.set_position((share * 1000.0) as u64);
                message
            }
            Err(failure) if failure.may_pass() => format!("asks again: {failure}"),
            Err(failure) => {
                bar.finish_and_clear();
                return Err(failure);
            }
        };
        if message != said {
            // Said once to who has no terminal to show the bar on.
            if bar.is_hidden() {
                say(&message);
            }
            bar.set_message(message.clone());
            said = message;
        }
        if Instant::now() + LOOK > end {
            bar.finish_and_clear();
            let message = format!("the change goes on without being waited for ({said})");
            return Err(Failure::with_code(UNDER_WAY, message));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// How far it is, and what it waits for; `None`: it is done.
async fn look(client: &Client, epoch: u64, goal: &Goal) -> Result<Option<(f64, String)>, Failure> {
    let told = status(client).await?;
    let missed = |what: &str| {
        let message =
            format!("the change of epoch {epoch} was aborted, or another undid it: {what}");
        Failure::with_code(ABORTED, message)
    };
    let state = transition(&told);
    let waits = match goal.standing(&told, epoch) {
        Standing::Missed(what) => return Err(missed(&what)),
        Standing::UnderWay(waits) => waits,
        Standing::Reached if goal.rest == proto::LayoutChange::default() => return Ok(None),
        Standing::Reached => {
            // What is so already is nothing to do.
            let plan = ask_plan(client, goal.rest.clone()).await?;
            match plan.refusals.iter().find(|one| one.reason != "NOTHING_TO_DO") {
                None if plan.refusals.is_empty() => {
                    return Err(missed("it would change something"));
                }
                None => return Ok(None),
                Some(one) if one.reason == "TRANSITION_IN_PROGRESS" => Vec::new(),
                Some(one) => return Err(missed(&one.message)),
            }
        }
    };
    let mut message = phase_name(state.phase()).to_owned();
    for one in waits {
        message += &format!("; waits for {one}");
    }
    Ok(Some((share(&state), message)))
}

/// How much is done of what is told, 0 to 1.
fn share(state: &proto::TransitionState) -> f64 {
    let all: u64 = state.progress.iter().map(|one| one.partitions).sum();
    let done: u64 = state.progress.iter().map(|one| one.partitions_done).sum();
    if all == 0 { 0.0 } else { (done as f64 / all as f64).min(1.0) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{LayoutState, NodeEntry, TransitionState};

    fn told(epoch: u64, phase: TransitionPhase, nodes: &[(&str, &str)]) -> ClusterStatusResponse {
        let node = |(name, state): &(&str, &str)| NodeEntry {
            name: (*name).to_owned(),
            node_id: format!("id-{name}-{state}"),
            state: (*state).to_owned(),
            ..Default::default()
        };
        let state = TransitionState { phase: phase.into(), epoch, ..Default::default() };
        ClusterStatusResponse {
            nodes: nodes.iter().map(node).collect(),
            layout: Some(LayoutState { state: Some(state), ..Default::default() }),
            ..Default::default()
        }
    }

    fn goal(name: &str, wanted: &'static str) -> Goal {
        let nodes = BTreeMap::from([("id".to_owned(), (name.to_owned(), wanted))]);
        Goal { nodes, ..Goal::default() }
    }

    /// The states of one node under the goal, after the change of epoch 5.
    fn standing(wanted: &'static str, phase: TransitionPhase, state: &str) -> Standing {
        let mut told = told(6, phase, &[("n", state)]);
        "id".clone_into(&mut told.nodes[0].node_id);
        goal("n", wanted).standing(&told, 5)
    }

    #[test]
    fn a_change_that_ended_is_done_only_if_what_was_asked_for_is_so() {
        use TransitionPhase::{Clearing, Stable};
        for (wanted, before) in [("left", "normal"), ("removed", "normal"), ("normal", "joining")] {
            assert_eq!(standing(wanted, Stable, wanted), Standing::Reached);
            assert!(matches!(standing(wanted, Clearing, wanted), Standing::UnderWay(_)));
            let missed = format!("n is {before}, not {wanted}");
            assert_eq!(standing(wanted, Clearing, before), Standing::Missed(missed));
        }
        let leaves = Standing::UnderWay(vec!["n to leave".to_owned()]);
        assert_eq!(standing("left", Stable, "leaving"), leaves, "cleared is not left");
        let given_up = Standing::Missed("n is removed, not left".to_owned());
        assert_eq!(standing("left", Stable, "removed"), given_up);
    }

    /// The owners may be what they should be before those are who vote on the layout.
    #[test]
    fn what_a_settled_layout_waits_for_is_waited_for() {
        let mut told = told(6, TransitionPhase::Stable, &[]);
        let waits = vec!["n to vote on the layout".to_owned()];
        let state = told.layout.as_mut().and_then(|layout| layout.state.as_mut());
        state.expect("told").waits_for.clone_from(&waits);
        assert_eq!(Goal::default().standing(&told, 5), Standing::UnderWay(waits));
    }

    #[test]
    fn before_its_end_nothing_is_judged() {
        let goal = goal("n", "left");
        for (epoch, phase) in [(4, TransitionPhase::Stable), (5, TransitionPhase::Joint)] {
            let told = told(epoch, phase, &[]);
            assert_eq!(goal.standing(&told, 5), Standing::UnderWay(Vec::new()));
        }
    }

    /// One that comes in for another may have its name: the one that is gone is meant last.
    #[test]
    fn a_name_means_who_stays() {
        let all = [("a", "removed"), ("a", "removing"), ("a", "normal"), ("a", "candidate")];
        for (of, meant) in [(0..4, "normal"), (0..2, "removing"), (0..1, "removed")] {
            let told = told(1, TransitionPhase::Stable, &all[of]);
            assert_eq!(find(&told, "a").map(|node| node.state.as_str()), Some(meant));
        }
        assert!(find(&told(1, TransitionPhase::Stable, &all[3..]), "a").is_none());
    }
}
