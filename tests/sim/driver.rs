//! Steps the world, does to it what the plan says, and looks after each step how far it is.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use pairdb::verify::history::Event;
use pairdb::verify::recorder::Recorder;
use turmoil::Sim;

use crate::autopsy::{Found, Rows};
use crate::character::Character;
use crate::machine::{Machine, SimTime};
use crate::nemesis::{Fault, Links, Planned};
use crate::simulation::{LATENCY, Phase, Progress};

/// How long clients go on after the last fault.
const AFTERMATH: Duration = Duration::from_secs(2);
/// How long the replicas may take to become equal once everybody rests.
const AGREEMENT: Duration = Duration::from_secs(120);
/// How often it is looked whether they are.
const LOOK: Duration = Duration::from_secs(1);
/// How long clients work in the end.
const ENCORE: Duration = Duration::from_secs(1);

/// What is driven.
pub struct World<'s> {
    pub sim: Sim<'s>,
    pub machines: Vec<Arc<Machine>>,
    /// All of them, by name.
    pub hosts: Vec<String>,
    pub time: SimTime,
}

/// See the module.
pub struct Driver<'s> {
    world: World<'s>,
    recorder: Arc<Recorder>,
    progress: Progress,
    rough_birth: bool,
    quiet: Duration,
    /// Nodes no process of which runs.
    down: BTreeSet<usize>,
    /// When the phase began that the driver saw last.
    phase: (Phase, Duration),
    /// When the next look at the replicas is due.
    look_at: Duration,
}

impl<'s> Driver<'s> {
    pub fn new(
        world: World<'s>,
        character: &Character,
        recorder: Arc<Recorder>,
        progress: Progress,
    ) -> Self {
        Self {
            world,
            recorder,
            progress,
            rough_birth: character.rough_birth,
            quiet: character.quiet,
            down: BTreeSet::new(),
            phase: (Phase::Forming, Duration::ZERO),
            look_at: Duration::ZERO,
        }
    }

    /// Runs the world to its end.
    pub fn run(mut self, faults: Vec<Planned>) {
        let mut faults = faults.into_iter().peekable();
        let (mut began, mut mended) = (None, Duration::ZERO);
        loop {
            let now = self.world.sim.elapsed();
            self.world.time.set(now);
            self.bury_the_stopped();
            if self.progress.phase() != self.phase.0 {
                self.phase = (self.progress.phase(), now);
            }
            if self.rough_birth || self.phase.0 == Phase::Work {
                let began = *began.get_or_insert(now);
                while let Some((_, fault)) = faults.next_if(|(at, _)| began + *at <= now) {
                    self.note(fault.to_string());
                    self.apply(&fault);
                    mended = now;
                }
            }
            if faults.peek().is_none() {
                self.move_on(now, mended);
            }
            match self.world.sim.step() {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => panic!("a node ended by itself, or nothing moves on: {error}"),
            }
        }
    }

    fn now_us(&self) -> u64 {
        self.world.sim.elapsed().as_micros() as u64
    }

    fn note(&self, what: String) {
        self.recorder.event(Event::Fault { at_us: self.now_us(), what });
    }

    /// Ends the processes whose switches fell, and writes down what the next ones will find.
    fn bury_the_stopped(&mut self) {
        for node in 0..self.world.machines.len() {
            let machine = Arc::clone(&self.world.machines[node]);
            if machine.has_stopped() && self.down.insert(node) {
                self.world.sim.crash(machine.name.as_str());
                self.note(format!("n{node} is dead"));
                for (place, found) in machine.rows() {
                    self.record(&machine.name, place, found, None);
                }
            }
        }
    }

    fn record(
        &self,
        node: &str,
        (tenant, key): (String, String),
        found: Found,
        digest: Option<String>,
    ) {
        self.recorder.event(Event::Row {
            id: self.recorder.next_op(),
            at_us: self.now_us(),
            node: node.to_owned(),
            tenant,
            key,
            versions: found.versions,
            digest,
        });
    }

    /// Enters the next phase when it is time.
    fn move_on(&mut self, now: Duration, mended: Duration) {
        match self.phase.0 {
            Phase::Work if now >= mended.max(self.phase.1) + AFTERMATH => {
                self.progress.enter(Phase::Rest);
            }
            Phase::Rest if now >= self.look_at.max(self.phase.1.max(mended) + self.quiet) => {
                self.look_at = now + LOOK;
                let rows: Vec<Rows> =
                    self.world.machines.iter().map(|machine| machine.rows()).collect();
                let agree = agree(&rows);
                if agree {
                    self.recorder.event(Event::Agreed { at_us: self.now_us() });
                }
                if agree || now >= self.phase.1 + AGREEMENT {
                    self.record_all(rows);
                    self.progress.enter(Phase::LastReads);
                }
            }
            Phase::Encore if now >= self.phase.1 + ENCORE => self.progress.enter(Phase::Over),
            _ => {}
        }
    }

    /// Writes down what every node holds under every key.
    fn record_all(&self, mut rows: Vec<Rows>) {
        let places: BTreeSet<_> = rows.iter().flat_map(Rows::keys).cloned().collect();
        for place in places {
            for (machine, rows) in self.world.machines.iter().zip(&mut rows) {
                let found = rows.remove(&place).unwrap_or_default();
                let digest = format!("{:016x}", found.digest);
                self.record(&machine.name, place.clone(), found, Some(digest));
            }
        }
    }

    fn apply(&mut self, fault: &Fault) {
        match fault {
            Fault::Stop { node, steps, power_loss } => {
                self.world.machines[*node].stop_after(*steps, *power_loss);
            }
            Fault::Restart(node) => {
                let machine = Arc::clone(&self.world.machines[*node]);
                machine.stop_now();
                self.bury_the_stopped();
                self.down.remove(node);
                machine.restart();
                self.world.sim.bounce(machine.name.as_str());
            }
            Fault::Cut(links) => self.each(links, |sim, one, other| sim.partition(one, other)),
            Fault::CutFrom(links) => {
                self.each(links, |sim, one, other| sim.partition_oneway(one, other));
            }
            Fault::CutTo(links) => {
                self.each(links, |sim, one, other| sim.partition_oneway(other, one));
            }
            Fault::Hold(links) => self.each(links, |sim, one, other| sim.hold(one, other)),
            Fault::Slow(links, time) => {
                self.each(links, |sim, one, other| sim.set_link_latency(one, other, *time));
            }
            Fault::Mend(links) => self.each(links, mend),
            Fault::Clock(node, ms) => self.world.machines[*node].set_clock_wrong(*ms),
            Fault::Loss(of_10_000) => {
                self.world.sim.set_fail_rate(f64::from(*of_10_000) / 10_000.0);
            }
            Fault::MendAll => self.mend_all(),
        }
    }

    fn each(&self, links: &Links, change: impl Fn(&Sim<'s>, &str, &str)) {
        for other in &links.others {
            change(&self.world.sim, &links.one, other);
        }
    }

    /// Links that were lost to chance stay so until something is sent over them: they too.
    fn mend_all(&mut self) {
        self.world.sim.set_fail_rate(0.0);
        for (at, one) in self.world.hosts.iter().enumerate() {
            for other in &self.world.hosts[at + 1..] {
                mend(&self.world.sim, one, other);
            }
        }
        self.world.machines.iter().for_each(|machine| machine.set_clock_wrong(0));
    }
}

fn mend(sim: &Sim<'_>, one: &str, other: &str) {
    sim.release(one, other);
    sim.repair(one, other);
    sim.set_link_latency(one, other, LATENCY);
}

/// Whether all hold the same, down to what no client sees.
fn agree(rows: &[Rows]) -> bool {
    let digests = |rows: &Rows| -> Vec<_> {
        let held = rows.iter().filter(|(_, found)| found.digest != 0);
        held.map(|(place, found)| (place.clone(), found.digest)).collect()
    };
    rows.windows(2).all(|two| digests(&two[0]) == digests(&two[1]))
}
