//! What happens in a history, and how histories are drawn.

use super::dice::Dice;
use super::{WINDOW_MS, World};

#[derive(Clone, Debug)]
pub enum Step {
    Write { client: usize, at: usize, blind: bool, value: bool, token: bool },
    Retry { index: usize, at: usize },
    Deliver { index: usize, again: bool },
    DeliverAll,
    Late(usize),
    Read { client: usize, a: usize, b: usize },
    Compare { a: usize, b: usize, lost: u8 },
    StartCompare { a: usize, b: usize },
    Repair { index: usize, again: bool },
    Begin { margin_ms: u64 },
    Fence(usize),
    Pair { a: usize, b: usize, lost: u8 },
    Hold(usize),
    Install { which: usize, at: usize },
    Purge(usize),
    Crash(usize),
    Start(usize),
    Lower(usize),
    Quarantine { at: usize, whole: bool },
    Snapshot(usize),
    RollBack(usize),
    Exchange { at: usize, peer: usize, lost: u8 },
    Tick(u64),
}

impl World {
    pub(super) fn step(&mut self, step: &Step) -> Result<(), String> {
        match *step {
            Step::Write { client, at, blind, value, token } => {
                self.write(client, at, blind, value, token);
            }
            Step::Retry { index, at } => self.retry(index, at),
            Step::Deliver { index, again } => self.deliver(index, again),
            Step::DeliverAll => self.deliver_all(),
            Step::Late(index) => self.late(index),
            Step::Read { client, a, b } => return self.read(client, a, b),
            Step::Compare { a, b, lost } => drop(self.make_equal(a, b, lost)),
            Step::StartCompare { a, b } => {
                if a != b && self.replicas[a].is_up && self.replicas[b].is_up {
                    let repairs = self.compare(a, b);
                    self.repairs.extend(repairs);
                }
            }
            Step::Repair { index, again } => {
                if !self.repairs.is_empty() {
                    let index = index % self.repairs.len();
                    let repair = self.repairs[index].clone();
                    if !again {
                        self.repairs.remove(index);
                    }
                    self.repair(&repair);
                }
            }
            Step::Begin { margin_ms } => self.begin(margin_ms),
            Step::Fence(at) => self.fence(at),
            Step::Pair { a, b, lost } => self.pair(a, b, lost),
            Step::Hold(at) => self.hold(at),
            Step::Install { which, at } => self.install(which, at),
            Step::Purge(at) => self.purges += usize::from(self.replicas[at].purge(WINDOW_MS)),
            Step::Crash(at) => self.crash(at),
            Step::Start(at) => self.start(at),
            Step::Lower(at) => self.replicas[at].lower(),
            Step::Quarantine { at, whole } => {
                if !self.was_damaged && self.replicas[at].is_up {
                    self.replicas[at].quarantine(whole);
                    self.lose(at);
                }
            }
            Step::Snapshot(at) => self.replicas[at].snapshot(),
            Step::RollBack(at) => {
                if !self.was_damaged && self.replicas[at].roll_back() {
                    self.lose(at);
                }
            }
            Step::Exchange { at, peer, lost } => self.exchange(at, peer, lost),
            Step::Tick(ms) => self.now_ms += ms,
        }
        Ok(())
    }
}

fn node(dice: &Dice) -> usize {
    dice.below(3) as usize
}

fn two(dice: &Dice) -> (usize, usize) {
    let a = node(dice);
    (a, (a + 1 + dice.below(2) as usize) % 3)
}

/// Which of two repairs is lost: mostly none.
fn lost(dice: &Dice) -> u8 {
    if dice.percent(12) { 1 + dice.below(3) as u8 } else { 0 }
}

/// Draws a step of one kind.
type Draw = fn(&Dice) -> Step;

/// How often each kind of step is drawn.
const WEIGHTS: [(u64, Draw); 22] = [
    (100, |dice| Step::Write {
        client: node(dice),
        at: node(dice),
        blind: dice.percent(30),
        value: dice.percent(60),
        token: dice.percent(30),
    }),
    (25, |dice| Step::Retry { index: dice.below(4) as usize, at: node(dice) }),
    (130, |dice| Step::Deliver { index: dice.below(9) as usize, again: dice.percent(25) }),
    (35, |_| Step::DeliverAll),
    (35, |dice| Step::Late(dice.below(12) as usize)),
    (70, |dice| {
        let (a, b) = two(dice);
        Step::Read { client: node(dice), a, b }
    }),
    (25, |dice| {
        let (a, b) = two(dice);
        Step::Compare { a, b, lost: lost(dice) }
    }),
    (25, |dice| {
        let (a, b) = two(dice);
        Step::StartCompare { a, b }
    }),
    (40, |dice| Step::Repair { index: dice.below(9) as usize, again: dice.percent(30) }),
    (30, |dice| Step::Begin { margin_ms: *dice.pick(&[0, 3, 15]) }),
    (40, |dice| Step::Fence(node(dice))),
    (50, |dice| {
        let (a, b) = two(dice);
        Step::Pair { a, b, lost: lost(dice) }
    }),
    (40, |dice| Step::Hold(node(dice))),
    (50, |dice| Step::Install { which: dice.below(2) as usize, at: node(dice) }),
    (60, |dice| Step::Purge(node(dice))),
    (20, |dice| Step::Crash(node(dice))),
    (30, |dice| Step::Start(node(dice))),
    (20, |dice| Step::Lower(node(dice))),
    (10, |dice| Step::Quarantine { at: node(dice), whole: dice.percent(40) }),
    (15, |dice| Step::Snapshot(node(dice))),
    (15, |dice| match dice.percent(50) {
        true => Step::RollBack(node(dice)),
        false => {
            let (at, peer) = two(dice);
            Step::Exchange { at, peer, lost: lost(dice) }
        }
    }),
    (60, |dice| Step::Tick(*dice.pick(&[1, 5, 20, 70]))),
];

fn any(dice: &Dice) -> Step {
    let all: u64 = WEIGHTS.iter().map(|(weight, _)| weight).sum();
    let mut left = dice.below(all);
    for (weight, draw) in WEIGHTS {
        match left.checked_sub(weight) {
            Some(less) => left = less,
            None => return draw(dice),
        }
    }
    Step::DeliverAll
}

fn shuffled<const N: usize>(dice: &Dice, mut steps: [Step; N]) -> [Step; N] {
    for at in (1..N).rev() {
        steps.swap(at, dice.below(at as u64 + 1) as usize);
    }
    steps
}

/// A round that runs through for the most part, with other things in between.
fn round(dice: &Dice, steps: &mut Vec<Step>) {
    let pair = |a, b| Step::Pair { a, b, lost: 0 };
    let install = |at| Step::Install { which: 0, at };
    let mut all = vec![Step::Begin { margin_ms: *dice.pick(&[0, 0, 3, 15]) }];
    all.extend(shuffled(dice, [Step::Fence(0), Step::Fence(1), Step::Fence(2)]));
    for _ in 0..1 + dice.below(2) {
        all.extend(shuffled(dice, [pair(0, 1), pair(0, 2), pair(1, 2)]));
        all.extend(shuffled(dice, [Step::Hold(0), Step::Hold(1), Step::Hold(2)]));
    }
    all.extend(shuffled(dice, [install(0), install(1), install(2)]));
    for step in all {
        if dice.percent(97) {
            steps.push(step);
        }
        if dice.percent(15) {
            steps.push(any(dice));
        }
    }
}

/// A round while two are down, who then come back and write.
fn alone(dice: &Dice) -> Vec<Step> {
    let (a, b) = (node(dice), 1 + dice.below(2) as usize);
    let (b, c) = ((a + b) % 3, (a + 3 - b) % 3);
    vec![
        Step::Crash(b),
        Step::Crash(c),
        Step::Begin { margin_ms: 0 },
        Step::Fence(a),
        Step::Hold(a),
        Step::Install { which: 0, at: a },
        Step::Start(b),
        Step::Start(c),
        Step::Write { client: 1, at: b, blind: true, value: true, token: false },
        Step::DeliverAll,
    ]
}

/// A repair is on its way while what it brings is deleted and forgotten.
fn overtaken(dice: &Dice) -> Vec<Step> {
    let write = |value| Step::Write { client: 0, at: 0, blind: value, value, token: false };
    let mut steps = vec![
        write(true),
        Step::StartCompare { a: 0, b: 2 },
        Step::DeliverAll,
        Step::Read { client: 0, a: 0, b: 1 },
        write(false),
        Step::DeliverAll,
        Step::Tick(20),
    ];
    round(dice, &mut steps);
    steps.extend([Step::Purge(0), Step::Purge(1), Step::Purge(2)]);
    steps.push(Step::Repair { index: 0, again: true });
    steps
}

/// Histories that a model found wanting, to be varied.
fn template(dice: &Dice, which: u64) -> Vec<Step> {
    match which % 7 {
        5 => return overtaken(dice),
        6 => return alone(dice),
        _ => {}
    }
    let write = |client, at, blind, value| Step::Write { client, at, blind, value, token: false };
    let read = |client, a, b| Step::Read { client, a, b };
    let purges = [Step::Purge(0), Step::Purge(1), Step::Purge(2)];
    let token = dice.percent(40);
    let x = Step::Write { client: 0, at: 0, blind: true, value: true, token };
    let mut steps = vec![x, Step::DeliverAll];
    if which % 4 == 1 {
        steps.extend([Step::Lower(2), Step::Snapshot(2)]);
    }
    if which % 8 == 2 {
        steps.push(Step::Crash(2));
    }
    if dice.percent(70) {
        steps.extend([read(0, 0, 1), write(0, 0, false, false), Step::DeliverAll]);
    }
    steps.push(Step::Tick(if which % 5 == 3 { 140 } else { 20 }));
    round(dice, &mut steps);
    steps.extend(purges.clone().into_iter().take(1 + dice.below(3) as usize));
    match which % 6 {
        0 => steps.extend([write(1, 1, true, true), Step::DeliverAll, Step::Late(0)]),
        1 => steps.push(Step::Quarantine { at: 2, whole: dice.percent(30) }),
        2 => steps.extend([Step::RollBack(2), read(1, 0, 2)]),
        3 => steps.extend([Step::Retry { index: 0, at: 1 }, Step::DeliverAll]),
        4 => steps.extend([Step::Start(2), write(2, 2, true, true), Step::DeliverAll]),
        _ => steps.extend([Step::Late(0), Step::Late(1), read(1, 1, 2)]),
    }
    if dice.percent(50) {
        round(dice, &mut steps);
        steps.extend(purges);
    }
    steps
}

/// A history of this seed.
pub fn history(dice: &Dice, seed: u64) -> Vec<Step> {
    let mut steps = Vec::new();
    if seed.is_multiple_of(3) {
        steps = template(dice, seed / 3);
        for _ in 0..dice.below(5) {
            let at = dice.below(steps.len() as u64) as usize;
            match dice.percent(60) {
                true => steps.insert(at, any(dice)),
                false => drop(steps.remove(at)),
            }
        }
        return steps;
    }
    for _ in 0..*dice.pick(&[15, 25, 40, 60]) {
        match any(dice) {
            Step::Begin { .. } if dice.percent(75) => round(dice, &mut steps),
            step => steps.push(step),
        }
    }
    steps
}
