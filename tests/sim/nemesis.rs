//! What goes wrong, and when: drawn from the seed before the run begins.

use std::fmt;
use std::time::Duration;

use pairdb::verify::dice::Dice;

/// Of the nodes that are stopped, where disks rot.
const ROT_PERCENT: u64 = 70;

/// One host's links to some others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Links {
    pub one: String,
    pub others: Vec<String>,
}

impl fmt::Display for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} | {}", self.one, self.others.join(" "))
    }
}

/// One thing that is done to the world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A node is killed (`kill -9`), or its machine loses power, after so many steps.
    Stop { node: usize, steps: u64, power_loss: Option<u64> },
    /// A node's disk fails all writes and syncs after so many, until it is started again.
    FailDisk { node: usize, skip: u64, power_loss: u64 },
    /// A bit of a node that is down flips on its disk, if no other node still has to heal.
    Rot { node: usize, seed: u64 },
    /// The node is started again.
    Restart(usize),
    /// Nothing passes.
    Cut(Links),
    /// Nothing passes from the one to the others.
    CutFrom(Links),
    /// Nothing passes from the others to the one.
    CutTo(Links),
    /// What passes is held back and comes later: on all links it is a node that is paused.
    Hold(Links),
    /// Messages take this long: on all links it is a slow node.
    Slow(Links, Duration),
    /// Ends all that befell these links.
    Mend(Links),
    /// A node's time of day is wrong by so many milliseconds.
    Clock(usize, i64),
    /// Messages that a node sends to others come twice, late or not at all, with a chance of so
    /// many per 10,000.
    Tamper(usize, u64),
    /// Each message breaks its link for a while, with a chance of so many per 10,000.
    Loss(u32),
    /// From here on nothing is wrong any more.
    MendAll,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stop { node, steps, power_loss: None } => {
                write!(f, "kill n{node} after {steps} steps")
            }
            Self::Stop { node, steps, power_loss: Some(_) } => {
                write!(f, "power loss at n{node} after {steps} steps")
            }
            Self::FailDisk { node, skip, .. } => {
                write!(f, "the disk of n{node} fails after {skip} writes")
            }
            Self::Rot { node, .. } => write!(f, "the disk of n{node} rots"),
            Self::Restart(node) => write!(f, "restart n{node}"),
            Self::Cut(links) => write!(f, "cut {links}"),
            Self::CutFrom(links) => write!(f, "cut from {links}"),
            Self::CutTo(links) => write!(f, "cut to {links}"),
            Self::Hold(links) => write!(f, "hold {links}"),
            Self::Slow(links, time) => write!(f, "slow {links}: {time:?}"),
            Self::Mend(links) => write!(f, "mend {links}"),
            Self::Clock(node, ms) => write!(f, "clock of n{node} wrong by {ms} ms"),
            Self::Tamper(node, of_10_000) => {
                write!(f, "messages of n{node} come twice, late or never: {of_10_000} in 10000")
            }
            Self::Loss(of_10_000) => write!(f, "loss of {of_10_000} in 10000"),
            Self::MendAll => write!(f, "mend all"),
        }
    }
}

/// A fault and its moment.
pub type Planned = (Duration, Fault);

/// Who there is, and what may befall them.
#[derive(Clone, Debug)]
pub struct Stage {
    pub nodes: usize,
    pub clients: usize,
    /// Whether there is an operator.
    pub operated: bool,
    /// Whether bits flip on disks.
    pub rots: bool,
    /// How wrong a clock may be.
    pub clock_jump_ms_max: u64,
}

impl Stage {
    /// All hosts, nodes first.
    pub fn hosts(&self) -> Vec<String> {
        let nodes = (0..self.nodes).map(|number| format!("n{number}"));
        let clients = (0..self.clients).map(|number| format!("c{number}"));
        nodes.chain(clients).chain(self.operated.then(|| "op".to_owned())).collect()
    }

    /// Draws faults for `time`; all of them are over at its end.
    pub fn plan(&self, dice: &Dice, time: Duration) -> Vec<Planned> {
        let mut planned = Vec::new();
        // A node that is down cannot go down.
        let mut down_until = vec![Duration::ZERO; self.nodes];
        let mut at = Duration::ZERO;
        loop {
            at += Duration::from_millis(50 + dice.below(1_200));
            let end = at + Duration::from_millis(50 + dice.below(4_000));
            if end >= time {
                break;
            }
            let node = dice.below(self.nodes as u64) as usize;
            let stopped = match dice.below(100) {
                0..36 => node..node + 1,
                36..40 => 0..self.nodes,
                _ => {
                    self.plan_milder(dice, node, (at, end), &mut planned);
                    continue;
                }
            };
            for node in stopped {
                if down_until[node] > at {
                    continue;
                }
                down_until[node] = end;
                // A loaded node takes some thousand steps a second.
                let steps = dice.below(1 << dice.below(10));
                let power_loss = dice.percent(50).then(|| dice.next());
                let fault = match power_loss {
                    Some(power_loss) if dice.percent(20) => {
                        Fault::FailDisk { node, skip: steps / 8, power_loss }
                    }
                    _ => Fault::Stop { node, steps, power_loss },
                };
                planned.push((at, fault));
                if self.rots && dice.percent(ROT_PERCENT) {
                    planned.push((end, Fault::Rot { node, seed: dice.next() }));
                }
                planned.push((end, Fault::Restart(node)));
            }
        }
        planned.push((time, Fault::MendAll));
        planned.sort_by_key(|(at, _)| *at);
        planned
    }

    /// Something that does not kill.
    fn plan_milder(
        &self,
        dice: &Dice,
        node: usize,
        (at, end): (Duration, Duration),
        planned: &mut Vec<Planned>,
    ) {
        let links = self.links(dice, node);
        let fault = match dice.below(68) {
            0..10 => Fault::Cut(links.clone()),
            10..18 => Fault::CutFrom(links.clone()),
            18..26 => Fault::CutTo(links.clone()),
            26..38 => Fault::Hold(links.clone()),
            38..46 => Fault::Slow(links.clone(), Duration::from_millis(20 + dice.below(500))),
            46..54 => {
                let range_ms = 2 * self.clock_jump_ms_max;
                let wrong_ms = dice.below(range_ms) as i64 - self.clock_jump_ms_max as i64;
                planned.push((at, Fault::Clock(node, wrong_ms)));
                return planned.push((end, Fault::Clock(node, 0)));
            }
            54..62 => {
                planned.push((at, Fault::Tamper(node, 50 << dice.below(6))));
                return planned.push((end, Fault::Tamper(node, 0)));
            }
            _ => {
                planned.push((at, Fault::Loss(20)));
                return planned.push((end, Fault::Loss(0)));
            }
        };
        planned.push((at, fault));
        planned.push((end, Fault::Mend(links)));
    }

    /// Of a node to another host, or to all others.
    fn links(&self, dice: &Dice, node: usize) -> Links {
        let mut others = self.hosts();
        let one = others.remove(node);
        if dice.percent(60) {
            let other = dice.pick(&others).clone();
            others = vec![other];
        }
        Links { one, others }
    }
}
