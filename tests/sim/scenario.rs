//! How the cluster's members change in a run: what an operator wants of it, one thing after the
//! other, and whom it strikes meanwhile. Drawn from the seed.

use std::time::Duration;

use pairdb::verify::dice::Dice;
use pairdb::verify::history::Mode;

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
    /// The first breaks for good, and the second comes in for it in the same change. If they are
    /// one: its disk was lost, and it comes in anew under its old name.
    IsReplaced(usize, usize),
    /// They break for good and are taken out, and what too few replicas are left of is given up.
    AreLost([usize; 2]),
    /// One that was taken out comes back, and is told.
    Haunts(usize),
    /// It is away from here on until all else is over.
    Sleeps(usize),
    /// Of the default tenant, by a change of the layout.
    Replicas(u8),
    /// Of a tenant, by its settings.
    Copies(&'static str, u8),
    Weight(usize, u32),
    Zone(usize, String),
}

/// A tenant of fewer replicas than others.
#[derive(Clone, Copy, Debug)]
pub struct Few {
    pub name: &'static str,
    pub mode: Mode,
    pub replicas: u8,
}

const FEW: [Few; 2] = [
    Few { name: "single", mode: Mode::Siblings, replicas: 1 },
    Few { name: "pair", mode: Mode::LastWriteWins, replicas: 2 },
];

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
    /// Each in the next transition of its kind in which somebody takes the step.
    pub strikes: Vec<Strike>,
    /// Besides those of every run.
    pub tenants: &'static [Few],
    /// Whether disks may rot.
    pub rots: bool,
    /// Whether disks are lost: what one of them alone has goes with it.
    pub loses: bool,
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
    // Whether those who own what it holds hold it too.
    Step::Ask(Topic::Page),
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
    for kind in Kind::ALL {
        let mut add = |role, steps: &[Step]| {
            all.extend(steps.iter().map(|step| strike(kind, role, *step)));
        };
        add(Role::Gainer, &GAINS);
        add(Role::Source, &STAYS);
        add(Role::Leader, &LEADS);
        if !matches!(kind, Kind::Remove | Kind::Replace) {
            add(Role::Loser, &LOSES);
            // Who has merged is asked whether it holds it.
            add(Role::Gainer, &[Step::Answer(Topic::Page)]);
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
            Kind::Remove | Kind::Replace | Kind::Shift => {}
        }
    }
    all
}

/// Those of [`all_strikes`] that are named, with commas between them.
///
/// # Panics
/// If there is no strike of a name.
pub fn strikes_named(names: &str) -> Vec<Strike> {
    let all = all_strikes();
    let named = |name| all.iter().find(|strike| strike.to_string() == name).copied();
    let known = |name| named(name).unwrap_or_else(|| panic!("there is no strike {name:?}"));
    names.split(',').map(known).collect()
}

/// So many runs of this sort want each strike so often: it depends on timing whether it is dealt.
const RUNS: u64 = 40;
const CHANCES: usize = 4;

impl Scenario {
    /// That of the `nth` run of this sort.
    pub fn draw(dice: &Dice, nth: u64) -> Self {
        let tasks = tasks(dice, nth);
        let mut strikes = Vec::new();
        for kind in Kind::ALL.into_iter().filter(|kind| has(nth, *kind)) {
            let all = all_strikes().into_iter();
            let all: Vec<_> = all.filter(|one| one.kind == kind && !one.is_early()).collect();
            let runs = |end| (0..end).filter(|other| has(*other, kind)).count();
            let count = (CHANCES * all.len()).div_ceil(runs(RUNS)).min(all.len());
            // Where the run before that had such transitions ended.
            let first = runs(nth) * count;
            strikes.extend((first..first + count).map(|at| all[at % all.len()]));
            if kind == Kind::Join && nth.is_multiple_of(3) {
                strikes.push(strike(kind, Role::Gainer, *dice.pick(&FIRST)));
            }
        }
        let tenants: &[Few] = if has_few(dice, nth) { &FEW } else { &[] };
        let rots = tenants.is_empty() && goals(nth, 0, 1).iter().all(Goal::lets_heal);
        let loses = goals(nth, 0, 1).iter().any(Goal::loses);
        Self { tasks, strikes, tenants, rots, loses, zones: dice.percent(50) }
    }
}

impl Strike {
    /// Whether it comes before there is a document that names the node.
    pub fn is_early(&self) -> bool {
        self.role == Role::Gainer && self.kind == Kind::Join && FIRST.contains(&self.step)
    }
}

impl Goal {
    /// Whether a node that has lost some of its rows can have them back meanwhile: all others that
    /// have had them are there, and there are some.
    fn lets_heal(&self) -> bool {
        match self {
            Self::Sleeps(_) => false,
            Self::Replicas(count) | Self::Copies(_, count) => *count > 1,
            goal => !goal.loses(),
        }
    }

    /// Whether a disk goes without its rows having been handed over.
    pub fn loses(&self) -> bool {
        matches!(self, Self::IsRemoved(_) | Self::IsReplaced(..) | Self::AreLost(_))
    }

    /// The transition it takes.
    fn kind(&self) -> Option<Kind> {
        match self {
            Self::Joins(_) | Self::Starts(_) => Some(Kind::Join),
            Self::Leaves(_) => Some(Kind::Drain),
            Self::IsRemoved(_) | Self::AreLost(_) => Some(Kind::Remove),
            Self::IsReplaced(..) => Some(Kind::Replace),
            Self::Replicas(_) | Self::Copies(..) | Self::Weight(..) | Self::Zone(..) => {
                Some(Kind::Shift)
            }
            Self::Haunts(_) | Self::Sleeps(_) => None,
        }
    }
}

/// Runs go through so many lists of goals.
const LISTS: u64 = 14;

/// The goals of the `nth` run; `old` and `other` are two of those that form the cluster.
fn goals(nth: u64, old: usize, other: usize) -> Vec<Goal> {
    use Goal::*;
    match nth % LISTS {
        // Scale up and down again, and up once more under an old name.
        0 => vec![Joins(3), Leaves(old), Joins(old)],
        1 => vec![Joins(3), Leaves(old), Replicas(2), Replicas(3)],
        // The dead: first removed, or first replaced.
        2 => vec![Joins(3), IsRemoved(old), Haunts(old), Joins(4)],
        3 => vec![Sleeps(old), Joins(3), IsRemoved(old), Haunts(old)],
        // All at once.
        4 => vec![Joins(3), Starts(4), Leaves(old), Joins(4)],
        5 => vec![Starts(3), Joins(4), Joins(3), Leaves(3)],
        // Numbers of replicas, weights, zones.
        6 => vec![Joins(3), Replicas(4), Replicas(1), Replicas(3)],
        7 => vec![Joins(3), Weight(3, 3), Zone(old, "elsewhere".to_owned()), Weight(old, 2)],
        // One that had to hand over wakes up when all is over.
        8 => vec![Joins(3), Sleeps(other), Weight(3, 4), Replicas(2)],
        9 => vec![Joins(3), Joins(4), Leaves(old), IsRemoved(other)],
        // Replaced in one change: by another machine, by itself without its disk.
        10 => vec![IsReplaced(old, 3), Haunts(old), IsReplaced(other, other)],
        11 => vec![Joins(3), IsReplaced(old, 4), Leaves(3), IsReplaced(other, 3)],
        // Tenants of other numbers of replicas.
        12 => vec![Joins(3), Copies("single", 2), Copies("pair", 3), Copies("single", 1)],
        // More are dead than promises allow for.
        _ => vec![Joins(3), Joins(4), AreLost([old, other]), Copies("pair", 3)],
    }
}

/// Whether the `nth` run has transitions of this kind.
fn has(nth: u64, kind: Kind) -> bool {
    goals(nth, 0, 1).iter().any(|goal| goal.kind() == Some(kind))
}

/// Whether the `nth` run has tenants of fewer replicas. The only replica is not to be away for
/// long, unless its loss is accepted.
fn has_few(dice: &Dice, nth: u64) -> bool {
    let goals = goals(nth, 0, 1);
    let wants = |goal: &Goal| matches!(goal, Goal::Copies(..));
    let loses =
        |goal: &Goal| matches!(goal, Goal::IsRemoved(_) | Goal::IsReplaced(..) | Goal::Sleeps(_));
    goals.iter().any(wants) || (!goals.iter().any(loses) && dice.percent(50))
}

fn tasks(dice: &Dice, nth: u64) -> Vec<Task> {
    let old = dice.below(FOUNDERS as u64) as usize;
    let other = (old + 1) % FOUNDERS;
    let mut tasks: Vec<Task> = Vec::new();
    for goal in goals(nth, old, other) {
        let abort_after =
            dice.percent(35).then(|| Duration::from_millis(dice.below(1 << dice.below(12))));
        // One that sleeps may have something to hand over.
        let sleeps = tasks.iter().any(|task| matches!(task.goal, Goal::Sleeps(_)));
        tasks.push(Task { goal, abort_after, settles: !sleeps && dice.percent(60) });
    }
    tasks
}
