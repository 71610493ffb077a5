//! How the cluster's members change in a run: what an operator wants of it, one thing after the
//! other, and whom it strikes meanwhile. Drawn from the seed.

use std::time::Duration;

use pairdb::verify::dice::Dice;

use crate::layouts::{Kind, Role};
use crate::step::{File, Step, Topic};

/// Machines of a run whose members change: three form the cluster, the others come later.
pub const MACHINES: usize = 5;
/// Those that form it.
pub const FOUNDERS: usize = 3;

/// What is to become true.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Goal {
    /// A machine is started, and owns.
    Joins(usize),
    /// Only begun: what comes next happens at the same time.
    Starts(usize),
    /// It leaves of its own will, and its disk is wiped.
    Leaves(usize),
    /// It breaks for good and is taken out.
    IsRemoved(usize),
    /// One that was taken out comes back, and is told.
    Haunts(usize),
    /// It is away from here on until all else is over.
    Sleeps(usize),
    Replicas(u8),
    Weight(usize, u32),
    Zone(usize, String),
}

/// A goal, and how it is got to.
#[derive(Clone, Debug)]
pub struct Task {
    pub goal: Goal,
    /// The transition is aborted so long after it was seen, and then tried again.
    pub abort_after: Option<Duration>,
    /// Whether the next one waits until nobody has anything left to hand over.
    pub settles: bool,
}

/// Whom to strike, and when: the first time in a transition that it takes the step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Strike {
    pub kind: Kind,
    pub role: Role,
    pub step: Step,
}

/// What happens in a run.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub tasks: Vec<Task>,
    /// In this order, each in the next transition of its kind.
    pub strikes: Vec<Strike>,
    /// Whether machines stand in zones.
    pub zones: bool,
}

const fn strike(kind: Kind, role: Role, step: Step) -> Strike {
    Strike { kind, role, step }
}

/// What a node that merges does; of every kind of transition.
const GAINS: [Step; 7] = [
    Step::Write(File::Document),
    Step::Ask(Topic::Page),
    Step::Write(File::Rows),
    Step::Ask(Topic::Fenced),
    Step::Ask(Topic::Synced),
    Step::Answer(Topic::Rows),
    Step::Answer(Topic::Write),
];
/// One that joins, before there is a document that names it.
const FIRST: [Step; 2] = [Step::Ask(Topic::Join), Step::Write(File::Identity)];
/// One that hands over.
const LOSES: [Step; 6] = [
    Step::Write(File::Document),
    Step::Answer(Topic::Page),
    Step::Ask(Topic::Fenced),
    Step::Ask(Topic::Rows),
    Step::Write(File::Tables),
    Step::Ask(Topic::Cleared),
];
/// One that stays.
const STAYS: [Step; 4] = [
    Step::Write(File::Document),
    Step::Ask(Topic::Fenced),
    Step::Answer(Topic::Page),
    Step::Answer(Topic::Rows),
];
/// The leader of the layout group.
const LEADS: [Step; 4] = [
    Step::Write(File::Entries),
    Step::Ask(Topic::Append),
    Step::Answer(Topic::Synced),
    Step::Write(File::Document),
];

/// All strikes that a set of seeds must have dealt.
pub fn all_strikes() -> Vec<Strike> {
    let mut all = Vec::new();
    for kind in [Kind::Join, Kind::Drain, Kind::Remove, Kind::Shift] {
        let mut add = |role, steps: &[Step]| {
            all.extend(steps.iter().map(|step| strike(kind, role, *step)));
        };
        add(Role::Gainer, &GAINS);
        add(Role::Source, &STAYS);
        add(Role::Leader, &LEADS);
        if kind != Kind::Remove {
            add(Role::Loser, &LOSES);
        }
        match kind {
            Kind::Join => add(Role::Gainer, &FIRST),
            Kind::Drain => {
                let last = [
                    Step::Write(File::Certificate),
                    Step::Ask(Topic::Certificate),
                    Step::Ask(Topic::Left),
                ];
                add(Role::Loser, &last);
                add(Role::Source, &[Step::Answer(Topic::Certificate)]);
            }
            Kind::Remove | Kind::Shift => {}
        }
    }
    all
}

/// So many strikes are dealt in the transitions of one kind of a run.
const STRIKES_PER_KIND: usize = 4;
/// Between the first strikes of neighbouring runs: prime to how many there are of each kind.
const STRIDE: usize = 11;

impl Scenario {
    /// That of the `nth` run of this sort.
    pub fn draw(dice: &Dice, nth: u64) -> Self {
        let tasks = tasks(dice, nth);
        let mut strikes = Vec::new();
        for kind in [Kind::Join, Kind::Drain, Kind::Remove, Kind::Shift] {
            if tasks.iter().any(|task| task.goal.kind() == Some(kind)) {
                let all = all_strikes().into_iter();
                let all: Vec<_> = all.filter(|one| one.kind == kind && !one.is_early()).collect();
                let first = nth as usize * STRIDE;
                let chosen = (first..first + STRIKES_PER_KIND).map(|at| all[at % all.len()]);
                strikes.extend(chosen);
                if kind == Kind::Join && nth.is_multiple_of(3) {
                    strikes.push(strike(kind, Role::Gainer, *dice.pick(&FIRST)));
                }
            }
        }
        Self { tasks, strikes, zones: dice.percent(50) }
    }
}

impl Strike {
    /// Whether it comes before there is a document that names the node.
    pub fn is_early(&self) -> bool {
        self.role == Role::Gainer && self.kind == Kind::Join && FIRST.contains(&self.step)
    }
}

impl Goal {
    /// The transition it takes.
    fn kind(&self) -> Option<Kind> {
        match self {
            Self::Joins(_) | Self::Starts(_) => Some(Kind::Join),
            Self::Leaves(_) => Some(Kind::Drain),
            Self::IsRemoved(_) => Some(Kind::Remove),
            Self::Replicas(_) | Self::Weight(..) | Self::Zone(..) => Some(Kind::Shift),
            Self::Haunts(_) | Self::Sleeps(_) => None,
        }
    }
}

fn tasks(dice: &Dice, nth: u64) -> Vec<Task> {
    let old = dice.below(FOUNDERS as u64) as usize;
    let other = (old + 1) % FOUNDERS;
    let goals = match nth % 10 {
        // Scale up and down again, and up once more under an old name.
        0 => vec![Goal::Joins(3), Goal::Leaves(old), Goal::Joins(old)],
        1 => vec![Goal::Joins(3), Goal::Leaves(old), Goal::Replicas(2), Goal::Replicas(3)],
        // The dead: first removed, or first replaced.
        2 => vec![Goal::Joins(3), Goal::IsRemoved(old), Goal::Haunts(old), Goal::Joins(4)],
        3 => vec![Goal::Sleeps(old), Goal::Joins(3), Goal::IsRemoved(old), Goal::Haunts(old)],
        // All at once.
        4 => vec![Goal::Joins(3), Goal::Starts(4), Goal::Leaves(old), Goal::Joins(4)],
        5 => vec![Goal::Starts(3), Goal::Joins(4), Goal::Joins(3), Goal::Leaves(3)],
        // Numbers of replicas, weights, zones.
        6 => vec![Goal::Joins(3), Goal::Replicas(4), Goal::Replicas(1), Goal::Replicas(3)],
        7 => vec![
            Goal::Joins(3),
            Goal::Weight(3, 3),
            Goal::Zone(old, "elsewhere".to_owned()),
            Goal::Weight(old, 2),
        ],
        // One that had to hand over wakes up when all is over.
        8 => vec![Goal::Joins(3), Goal::Sleeps(other), Goal::Weight(3, 4), Goal::Replicas(2)],
        _ => vec![Goal::Joins(3), Goal::Joins(4), Goal::Leaves(old), Goal::IsRemoved(other)],
    };
    let mut tasks: Vec<Task> = Vec::new();
    for goal in goals {
        let abort_after =
            dice.percent(35).then(|| Duration::from_millis(dice.below(1 << dice.below(12))));
        // One that sleeps may have something to hand over.
        let sleeps = tasks.iter().any(|task| matches!(task.goal, Goal::Sleeps(_)));
        tasks.push(Task { goal, abort_after, settles: !sleeps && dice.percent(60) });
    }
    tasks
}
