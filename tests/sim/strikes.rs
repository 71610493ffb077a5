//! Whom to strike at which step of a transition, and who was.

use std::collections::BTreeSet;
use std::fmt;

use pairdb::verify::dice::Dice;

use crate::layouts::{Kind, Layouts, Role};
use crate::machine::Machine;
use crate::scenario::Strike;
use crate::switch::{Aim, Stopped};

impl fmt::Display for Strike {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.kind, self.role, self.step)
    }
}

/// See the module.
pub struct Strikes {
    dice: Dice,
    todo: Vec<Strike>,
    /// The machine that is to be struck.
    armed: Option<(usize, Strike)>,
    /// All that were dealt, on purpose or not.
    pub dealt: BTreeSet<Strike>,
}

impl Strikes {
    pub fn new(dice: Dice, todo: Vec<Strike>) -> Self {
        Self { dice, todo, armed: None, dealt: BTreeSet::new() }
    }

    /// A machine has stopped: what it was in the middle of.
    pub fn note(&mut self, machine: usize, stopped: Option<Stopped>, roles: &[(Kind, Role)]) {
        let step = match stopped {
            Some(Stopped::Before(step) | Stopped::After(step)) => Some(step),
            Some(Stopped::Idle) | None => None,
        };
        if let Some(step) = step {
            self.dealt.extend(roles.iter().map(|(kind, role)| Strike {
                kind: *kind,
                role: *role,
                step,
            }));
        }
        if let Some((_, strike)) = self.armed.take_if(|(armed, _)| *armed == machine)
            && step == Some(strike.step)
        {
            // Of one that joins there is no document yet that says so.
            self.dealt.insert(strike);
        }
    }

    /// Aims at one of these machines, which run, with what each does in a transition.
    pub fn aim(&mut self, running: &[(usize, &Machine)], layouts: &Layouts, leader: Option<usize>) {
        let is = |machine: usize, strike: &Strike| {
            let found = layouts.roles(machine, leader);
            found.is_some_and(|(kind, roles)| kind == strike.kind && roles.contains(&strike.role))
        };
        if let Some((machine, strike)) = self.armed
            && !strike.is_early()
            && !is(machine, &strike)
        {
            // It did not take the step, or is not what it was any more.
            running.iter().filter(|(one, _)| *one == machine).for_each(|(_, one)| one.spare());
            self.armed = None;
            self.todo.push(strike);
        }
        if self.armed.is_some() {
            return;
        }
        let found = self.todo.iter().enumerate().find_map(|(at, strike)| {
            let any: Vec<_> = running.iter().filter(|(machine, _)| is(*machine, strike)).collect();
            (!any.is_empty() && !strike.is_early()).then_some((at, any))
        });
        if let Some((at, any)) = found {
            let (machine, one) = **self.dice.pick(&any);
            let strike = self.todo.remove(at);
            self.arm(machine, one, strike);
        }
    }

    /// Aims at a machine that is started to join.
    pub fn aim_at_newcomer(&mut self, number: usize, machine: &Machine) {
        let early = self.todo.iter().position(Strike::is_early);
        if let (None, Some(at)) = (self.armed, early) {
            let strike = self.todo.remove(at);
            self.arm(number, machine, strike);
        }
    }

    fn arm(&mut self, number: usize, machine: &Machine, strike: Strike) {
        let skip = if self.dice.percent(75) { 0 } else { 1 + self.dice.below(6) };
        let aim = Aim { step: Some(strike.step), skip, after: self.dice.percent(50) };
        machine.stop_at(aim, self.dice.percent(50).then(|| self.dice.next()));
        self.armed = Some((number, strike));
    }

    /// The machine that is to be struck, if it is still to happen.
    pub fn armed(&self) -> Option<usize> {
        self.armed.map(|(machine, _)| machine)
    }
}
