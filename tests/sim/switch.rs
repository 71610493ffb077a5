//! The switch that stops a machine between two of its steps.
//!
//! A step is a call that may change the machine's disk, or a piece of bytes handed to its network;
//! `step` names them. Within one tick of the simulation a process takes many, and between two of
//! them nothing of it is seen outside. So to stop it before the n-th step of a kind, or right after
//! it, with the disk as it is then and nothing sent from then on, is to kill it at any of its
//! awaits, though the simulator only kills between ticks: what the process believes to do until the
//! tick ends reaches nobody.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::step::Step;

/// Takes the picture of the disk that the next process finds.
type Stop = Box<dyn FnOnce() + Send>;

/// At which step a machine is to stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Aim {
    /// Only these count; `None`: all.
    pub steps: Option<Vec<Step>>,
    /// So many are taken before.
    pub skip: u64,
    /// Not before the step, but right after.
    pub after: bool,
}

/// Who wants it stopped. Each has one aim; the first to hit stops it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hand {
    /// What goes wrong by chance, or the operator's.
    Fate,
    /// Who strikes at chosen steps.
    Striker,
}

/// Of one process. Clones are the same switch.
#[derive(Clone, Default)]
pub struct Switch(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    armed: [Option<Armed>; 2],
    stopped: Option<(Stopped, Hand)>,
}

struct Armed {
    aim: Aim,
    stop: Stop,
    /// It was to stop after this one, which was taken.
    after: Option<Step>,
}

/// Where a machine stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// Between two of its ticks.
    Idle,
    /// Before this step.
    Before(Step),
    /// After it.
    After(Step),
}

impl Armed {
    /// Where it is to stop, if it is now, before one of these steps.
    fn meets(&mut self, steps: &[Step]) -> Option<Stopped> {
        let counts =
            |step: &&Step| self.aim.steps.as_ref().is_none_or(|wanted| wanted.contains(step));
        let hit = steps.iter().find(counts).copied()?;
        if self.aim.skip > 0 {
            self.aim.skip -= 1;
            return None;
        }
        if std::mem::take(&mut self.aim.after) {
            // The next one, whatever it is.
            self.aim.steps = None;
            self.after = Some(hit);
            return None;
        }
        Some(self.after.map_or(Stopped::Before(hit), Stopped::After))
    }
}

impl Switch {
    /// Stops the machine as `aim` says, by calling `stop` at that moment.
    pub fn arm(&self, hand: Hand, aim: Aim, stop: Stop) {
        self.0.lock().armed[hand as usize] = Some(Armed { aim, stop, after: None });
    }

    /// Does not stop it for this one any more.
    pub fn disarm(&self, hand: Hand) {
        self.0.lock().armed[hand as usize] = None;
    }

    /// Before each step: `false` if it is not taken any more.
    pub fn step(&self, step: Step) -> bool {
        self.steps(&[step])
    }

    /// The same for several that nobody can tell apart.
    pub fn steps(&self, steps: &[Step]) -> bool {
        let mut state = self.0.lock();
        if state.stopped.is_some() {
            return false;
        }
        let hit = [Hand::Fate, Hand::Striker].into_iter().find_map(|hand| {
            let armed = state.armed[hand as usize].as_mut()?;
            Some((armed.meets(steps)?, hand))
        });
        drop(state);
        match hit {
            Some((at, hand)) => self.stop(at, hand),
            None => return true,
        }
        false
    }

    /// Stops the machine now, if fate has armed it.
    pub fn fire(&self) {
        let is_armed = self.0.lock().armed[Hand::Fate as usize].is_some();
        if is_armed {
            self.stop(Stopped::Idle, Hand::Fate);
        }
    }

    fn stop(&self, at: Stopped, hand: Hand) {
        let armed = {
            let mut state = self.0.lock();
            state.stopped = Some((at, hand));
            std::mem::take(&mut state.armed)[hand as usize].take()
        };
        if let Some(armed) = armed {
            (armed.stop)();
        }
    }

    /// Where it has stopped, if it has, and for whom.
    pub fn stopped(&self) -> Option<(Stopped, Hand)> {
        self.0.lock().stopped
    }
}

#[test]
fn the_hand_that_hits_first_stops_it_with_its_own_picture_of_the_disk() {
    use crate::step::File;
    let (rows, tables) = (Step::Write(File::Rows), Step::Write(File::Tables));
    let taken = Arc::new(Mutex::new(Vec::new()));
    let armed = |fate: Aim, striker: Aim| {
        let switch = Switch::default();
        for (hand, aim) in [(Hand::Fate, fate), (Hand::Striker, striker)] {
            let taken = Arc::clone(&taken);
            switch.arm(hand, aim, Box::new(move || taken.lock().push(hand)));
        }
        switch
    };
    let any = |skip| Aim { steps: None, skip, after: false };
    let at = |steps: &[Step], after| Aim { steps: Some(steps.to_vec()), skip: 0, after };
    // Before a step of several that are wanted; other steps are taken.
    let switch = armed(any(9), at(&[Step::Bytes, tables], false));
    assert!(switch.step(rows) && !switch.step(tables) && !switch.step(rows));
    assert_eq!(switch.stopped(), Some((Stopped::Before(tables), Hand::Striker)));
    // Right after one: before the next, whatever that is.
    let switch = armed(any(9), at(&[tables], true));
    assert!(switch.step(tables) && !switch.step(rows));
    assert_eq!(switch.stopped(), Some((Stopped::After(tables), Hand::Striker)));
    // Fate is sooner, and what is not armed by it does not fire.
    let switch = armed(any(1), at(&[tables], false));
    assert!(switch.step(rows) && !switch.step(rows));
    switch.fire();
    assert_eq!(switch.stopped(), Some((Stopped::Before(rows), Hand::Fate)));
    let switch = armed(any(9), at(&[tables], false));
    switch.disarm(Hand::Fate);
    switch.fire();
    assert_eq!(switch.stopped(), None);
    assert_eq!(*taken.lock(), [Hand::Striker, Hand::Striker, Hand::Fate]);
}
