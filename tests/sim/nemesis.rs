//! What goes wrong, and when: drawn from the seed before the run begins.

use std::fmt;
use std::time::Duration;

use pairdb::verify::dice::Dice;

/// One thing that is done to the world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// `kill -9` of a node.
    Kill(usize),
    /// Power loss of a node's machine.
    PowerLoss(usize, u64),
    /// The node is started again.
    Restart(usize),
    /// Nothing passes between two hosts.
    Cut(String, String),
    /// Nothing passes from the first to the second.
    CutOneWay(String, String),
    /// What passes between two hosts is held back: one of them does not run.
    Hold(String, String),
    /// Ends `Cut`, `CutOneWay` and `Hold`.
    Mend(String, String),
    /// Messages between two hosts take this long.
    Latency(String, String, Duration),
    /// A node's time of day is wrong by so many milliseconds.
    Clock(usize, i64),
    /// Each message breaks its link for a while, with a chance of so many per 10,000.
    Loss(u32),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill(node) => write!(f, "kill n{node}"),
            Self::PowerLoss(node, _) => write!(f, "power loss at n{node}"),
            Self::Restart(node) => write!(f, "restart n{node}"),
            Self::Cut(one, other) => write!(f, "cut {one} | {other}"),
            Self::CutOneWay(from, to) => write!(f, "cut {from} > {to}"),
            Self::Hold(one, other) => write!(f, "hold {one} | {other}"),
            Self::Mend(one, other) => write!(f, "mend {one} | {other}"),
            Self::Latency(one, other, time) => write!(f, "latency {one} | {other} {time:?}"),
            Self::Clock(node, ms) => write!(f, "clock of n{node} wrong by {ms} ms"),
            Self::Loss(of_10_000) => write!(f, "loss {of_10_000} of 10000"),
        }
    }
}

/// A fault and its moment.
pub type Planned = (Duration, Fault);

const LATENCY: Duration = Duration::from_millis(2);

/// Draws faults for `time`; all of them are over at its end. `hosts` are nodes first, then clients.
pub fn plan(dice: &Dice, nodes: usize, clients: usize, time: Duration) -> Vec<Planned> {
    let name = |host: usize| match host.checked_sub(nodes) {
        None => format!("n{host}"),
        Some(client) => format!("c{client}"),
    };
    let mut planned = Vec::new();
    // One fault a machine at a time; a node that is down cannot go down.
    let mut down_until = vec![Duration::ZERO; nodes];
    let mut at = Duration::from_millis(300);
    loop {
        at += Duration::from_millis(100 + dice.below(2_000));
        let end = at + Duration::from_millis(50 + dice.below(4_000));
        if end >= time {
            break;
        }
        let node = dice.below(nodes as u64) as usize;
        let other =
            (node + 1 + dice.below((nodes + clients - 1) as u64) as usize) % (nodes + clients);
        let (one, other) = (name(node), name(other));
        match dice.below(100) {
            0..40 if down_until[node] <= at => {
                down_until[node] = end;
                let fault = match dice.percent(50) {
                    true => Fault::Kill(node),
                    false => Fault::PowerLoss(node, dice.next()),
                };
                planned.extend([(at, fault), (end, Fault::Restart(node))]);
            }
            40..52 => planned.extend([
                (at, Fault::Cut(one.clone(), other.clone())),
                (end, Fault::Mend(one, other)),
            ]),
            52..60 => planned.extend([
                (at, Fault::CutOneWay(one.clone(), other.clone())),
                (end, Fault::Mend(one, other)),
            ]),
            60..68 => planned.extend([
                (at, Fault::CutOneWay(other.clone(), one.clone())),
                (end, Fault::Mend(other, one)),
            ]),
            68..78 => planned.extend([
                (at, Fault::Hold(one.clone(), other.clone())),
                (end, Fault::Mend(one, other)),
            ]),
            78..86 => {
                let slow = Duration::from_millis(20 + dice.below(500));
                planned.extend([
                    (at, Fault::Latency(one.clone(), other.clone(), slow)),
                    (end, Fault::Latency(one, other, LATENCY)),
                ]);
            }
            86..94 => {
                let wrong_ms = dice.below(7_200_000) as i64 - 3_600_000;
                let wrong_ms = if dice.percent(50) { wrong_ms / 2_000 } else { wrong_ms };
                planned.push((at, Fault::Clock(node, wrong_ms)));
                planned.push((end, Fault::Clock(node, 0)));
            }
            94.. => planned.extend([(at, Fault::Loss(20)), (end, Fault::Loss(0))]),
            _ => {}
        }
    }
    planned.sort_by_key(|(at, _)| *at);
    planned
}
