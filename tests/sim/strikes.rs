//! Whom to strike at which step of a transition, and who was.
//!
//! All who take part in a transition are armed with all the steps that are still wanted of them;
//! the first who takes one is struck, and nobody else before it is back: a strike is not to be
//! missed because another one was waited for.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use pairdb::verify::dice::Dice;

use crate::layouts::{Kind, Layouts, Role};
use crate::machine::Machine;
use crate::scenario::Strike;
use crate::step::Step;
use crate::switch::{Aim, Hand, Stopped};

impl fmt::Display for Strike {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.kind, self.role, self.step)
    }
}

/// See the module.
pub struct Strikes {
    dice: Dice,
    todo: BTreeSet<Strike>,
    /// The steps each machine is to be struck at.
    armed: BTreeMap<usize, Vec<Step>>,
    /// Started to join: there is no document yet that says so.
    early: BTreeSet<usize>,
    /// Struck, and not back yet.
    down: BTreeSet<usize>,
    /// All that were dealt, on purpose or not.
    pub dealt: BTreeSet<Strike>,
}

impl Strikes {
    pub fn new(dice: Dice, todo: Vec<Strike>) -> Self {
        Self {
            dice,
            todo: todo.into_iter().collect(),
            armed: BTreeMap::new(),
            early: BTreeSet::new(),
            down: BTreeSet::new(),
            dealt: BTreeSet::new(),
        }
    }

    /// A machine has stopped: what it was in the middle of.
    pub fn note(
        &mut self,
        machine: usize,
        stopped: Option<(Stopped, Hand)>,
        roles: &[(Kind, Role)],
    ) {
        self.armed.remove(&machine);
        let early = self.early.remove(&machine);
        let (step, hand) = match stopped {
            Some((Stopped::Before(step) | Stopped::After(step), hand)) => (step, hand),
            Some((Stopped::Idle, _)) | None => return,
        };
        let mut dealt: Vec<Strike> =
            roles.iter().map(|(kind, role)| Strike { kind: *kind, role: *role, step }).collect();
        if early {
            dealt.extend(self.todo.iter().filter(|one| one.is_early() && one.step == step));
        }
        for strike in dealt {
            self.todo.remove(&strike);
            self.dealt.insert(strike);
        }
        if hand == Hand::Striker {
            self.down.insert(machine);
        }
    }

    /// Nobody waits for this machine any more.
    pub fn forget(&mut self, machine: usize) {
        self.down.remove(&machine);
    }

    /// Arms these machines, which run, by what each does in a transition.
    pub fn aim(&mut self, running: &[(usize, &Machine)], layouts: &Layouts, leader: Option<usize>) {
        self.down.retain(|machine| !running.iter().any(|(one, _)| one == machine));
        for (machine, one) in running {
            let wanted = match self.down.is_empty() {
                true => self.wanted(*machine, layouts, leader),
                false => Vec::new(),
            };
            if wanted.is_empty() && self.early.contains(machine) {
                continue;
            }
            if self.armed.get(machine).map_or(&[][..], Vec::as_slice) != wanted {
                self.early.remove(machine);
                self.arm(*machine, one, wanted);
            }
        }
    }

    fn wanted(&self, machine: usize, layouts: &Layouts, leader: Option<usize>) -> Vec<Step> {
        let Some((kind, roles)) = layouts.roles(machine, leader) else { return Vec::new() };
        let is = |strike: &&Strike| {
            strike.kind == kind && roles.contains(&strike.role) && !strike.is_early()
        };
        self.todo.iter().filter(is).map(|strike| strike.step).collect()
    }

    /// Arms a machine that is started to join.
    pub fn aim_at_newcomer(&mut self, number: usize, machine: &Machine) {
        let early: Vec<Step> =
            self.todo.iter().filter(|one| one.is_early()).map(|one| one.step).collect();
        if !early.is_empty() {
            self.arm(number, machine, early);
            self.early.insert(number);
        }
    }

    fn arm(&mut self, number: usize, machine: &Machine, steps: Vec<Step>) {
        if steps.is_empty() {
            machine.spare();
            self.armed.remove(&number);
            return;
        }
        let skip = if self.dice.percent(85) { 0 } else { 1 + self.dice.below(6) };
        let aim = Aim { steps: Some(steps.clone()), skip, after: self.dice.percent(50) };
        machine.strike_at(aim, self.dice.percent(50).then(|| self.dice.next()));
        self.armed.insert(number, steps);
    }
}
