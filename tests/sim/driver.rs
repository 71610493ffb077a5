//! Steps the world, does to it what the plan says, and looks after each step how far it is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use pairdb::cluster::layout::MemberState;
use pairdb::verify::dice::Dice;
use pairdb::verify::history::Event;
use pairdb::verify::recorder::Recorder;
use turmoil::Sim;

use crate::autopsy::{Found, Rows};
use crate::character::Character;
use crate::layouts::{self, Kind, Layouts, Role, member_of};
use crate::machine::{Ended, Machine, SimTime};
use crate::nemesis::{Fault, Links, Planned};
use crate::observer::Observer;
use crate::operator::{Desk, Order};
use crate::simulation::{LATENCY, Phase, Progress};
use crate::strikes::Strikes;
use crate::switch::{Aim, Hand};

/// How long clients go on after the last fault.
const AFTERMATH: Duration = Duration::from_secs(2);
/// How long the replicas may take to become equal once everybody rests.
const AGREEMENT: Duration = Duration::from_secs(120);
/// How long a change of the members may take when nothing goes wrong any more.
const CHANGE: Duration = Duration::from_secs(120);
/// How often it is looked whether they are.
const LOOK: Duration = Duration::from_secs(1);
/// How long clients work in the end.
const ENCORE: Duration = Duration::from_secs(1);
/// After which whoever looks after a process that ended starts it again.
const SUPERVISION: Duration = Duration::from_secs(1);

/// What is driven.
pub struct World<'s> {
    pub sim: Sim<'s>,
    pub machines: Vec<Arc<Machine>>,
    /// All of them, by name.
    pub hosts: Vec<String>,
    pub time: SimTime,
    pub observer: Observer,
    /// Where an operator's orders are; without one nobody comes or goes.
    pub desk: Option<Desk>,
    pub strikes: Strikes,
    /// Of the driver's own.
    pub dice: Dice,
}

/// What came of it, besides the history.
pub struct Outcome {
    /// Promises that no client sees, and that were broken.
    pub broken: Vec<String>,
    /// The strikes that were dealt.
    pub dealt: Vec<String>,
    /// How many machines have healed.
    pub healed: usize,
    layouts: Layouts,
}

impl Outcome {
    /// Whether what was held under a tenant's key was given up: nothing is promised of it.
    pub fn is_lost(&self, (tenant, key): &(String, String)) -> bool {
        self.layouts.is_lost(tenant, key)
    }
}

/// See the module.
pub struct Driver<'s> {
    world: World<'s>,
    recorder: Arc<Recorder>,
    progress: Progress,
    rough_birth: bool,
    quiet: Duration,
    layouts: Layouts,
    /// Nodes no process of which runs.
    down: BTreeSet<usize>,
    /// Those of them that nobody but the operator starts.
    idle: BTreeSet<usize>,
    /// Those that are to be started at some time, besides what was planned.
    restarts: BTreeMap<usize, Duration>,
    /// The last time something went wrong.
    mended: Duration,
    /// When the phase began that the driver saw last.
    phase: (Phase, Duration),
    /// When the next look at the replicas is due.
    look_at: Duration,
    /// Who leads the layout group.
    leader: Option<usize>,
    /// Whose disk has rotten and has not healed, and when it is looked at.
    rotten: Option<(usize, Duration)>,
    /// How many have healed.
    healed: usize,
    /// Whether others may have to be struck than before.
    re_aim: bool,
    broken: Vec<String>,
}

impl<'s> Driver<'s> {
    /// Those of `idle` run only when the operator starts them.
    pub fn new(
        world: World<'s>,
        idle: BTreeSet<usize>,
        character: &Character,
        recorder: Arc<Recorder>,
        progress: Progress,
    ) -> Self {
        let latest = world.desk.as_ref().map(|desk| Arc::clone(&desk.latest)).unwrap_or_default();
        Self {
            world,
            recorder,
            progress,
            rough_birth: character.rough_birth,
            quiet: character.quiet,
            layouts: Layouts::new(latest),
            down: idle.clone(),
            idle,
            restarts: BTreeMap::new(),
            mended: Duration::ZERO,
            phase: (Phase::Forming, Duration::ZERO),
            look_at: Duration::ZERO,
            leader: None,
            rotten: None,
            healed: 0,
            re_aim: false,
            broken: Vec::new(),
        }
    }

    /// Runs the world to its end.
    pub fn run(mut self, faults: Vec<Planned>) -> Outcome {
        let mut faults = faults.into_iter().peekable();
        let mut began = None;
        for node in self.down.clone() {
            self.world.sim.crash(self.world.machines[node].name.as_str());
        }
        self.tell_clients();
        loop {
            let now = self.world.sim.elapsed();
            self.world.time.set(now);
            self.bury_the_stopped();
            self.look_at_documents();
            self.look_at_the_rotten(now);
            self.obey();
            self.start_again(now);
            if self.progress.phase() != self.phase.0 {
                self.phase = (self.progress.phase(), now);
            }
            if self.rough_birth || self.phase.0 == Phase::Work {
                let began = *began.get_or_insert(now);
                while let Some((_, fault)) = faults.next_if(|(at, _)| began + *at <= now) {
                    self.note(fault.to_string());
                    self.apply(&fault);
                }
            }
            if faults.peek().is_none() && self.is_done(now) {
                self.move_on(now);
            }
            match self.world.sim.step() {
                Ok(true) => return self.outcome(),
                Ok(false) => {}
                Err(error) => {
                    let what = format!("a node ended by itself, or nothing moves on: {error}");
                    self.broken.push(what);
                    return self.outcome();
                }
            }
        }
    }

    fn outcome(self) -> Outcome {
        let mut broken = self.broken;
        broken.extend(self.layouts.broken.iter().cloned());
        broken.extend(self.world.observer.broken());
        Outcome {
            broken,
            healed: self.healed,
            layouts: self.layouts,
            dealt: self.world.strikes.dealt.iter().map(ToString::to_string).collect(),
        }
    }

    fn now_us(&self) -> u64 {
        self.world.sim.elapsed().as_micros() as u64
    }

    fn note(&mut self, what: String) {
        self.mended = self.world.sim.elapsed();
        tracing::info!(now = ?self.mended, what);
        self.recorder.event(Event::Fault { at_us: self.now_us(), what });
    }

    fn running(&self) -> Vec<usize> {
        (0..self.world.machines.len()).filter(|node| !self.down.contains(node)).collect()
    }

    /// What a machine does in the transition under way.
    fn roles(&self, node: usize) -> Vec<(Kind, Role)> {
        let found = self.layouts.roles(node, self.world.observer.leader());
        let (kind, roles) = found.unzip();
        roles.into_iter().flatten().zip(kind.into_iter().cycle()).map(|(r, k)| (k, r)).collect()
    }

    /// Ends the processes whose switches fell, or that ended by themselves, and writes down what
    /// the next ones will find.
    fn bury_the_stopped(&mut self) {
        for node in self.running() {
            let machine = Arc::clone(&self.world.machines[node]);
            if let Some(stopped) = machine.stopped() {
                self.down.insert(node);
                self.world.sim.crash(machine.name.as_str());
                let roles = self.roles(node);
                self.world.strikes.note(node, Some(stopped), &roles);
                self.re_aim = true;
                let (stopped, hand) = stopped;
                self.note(format!("n{node} is dead: {stopped:?}, {roles:?}"));
                for (place, found) in machine.rows().into_iter().flatten() {
                    self.record(&machine.name, place, found, None);
                }
                if hand == Hand::Striker {
                    let time = Duration::from_millis(100 + self.world.dice.below(1_500));
                    self.restarts.insert(node, self.world.sim.elapsed() + time);
                }
            } else if let Some(ended) = machine.ended() {
                self.down.insert(node);
                self.world.sim.crash(machine.name.as_str());
                self.world.strikes.note(node, None, &[]);
                self.re_aim = true;
                self.note(format!("n{node} has ended: {ended:?}"));
                self.bid_farewell(node, &ended);
            }
        }
    }

    /// One that ended by itself: the disk of one that has left is wiped (I12).
    fn bid_farewell(&mut self, node: usize, ended: &Ended) {
        let now = self.world.sim.elapsed();
        match ended {
            Ended::NoCluster => {
                self.restarts.insert(node, now + SUPERVISION);
                return;
            }
            // It is planned when it is started again.
            Ended::Broken => return,
            Ended::Left | Ended::Fenced => {}
        }
        self.idle.insert(node);
        if let Some(desk) = &self.world.desk {
            desk.ended.lock().insert(node);
        }
        let latest = self.layouts.latest();
        let member = latest.as_ref().and_then(|latest| member_of(latest.document(), node));
        match member.map(|(_, member)| member.state) {
            Some(MemberState::Left) => {
                self.wipe(node);
                self.note(format!("the disk of n{node} is wiped"));
            }
            Some(MemberState::Removed) if *ended == Ended::Fenced => {}
            state => self.broken.push(format!("I12: n{node} ended as {ended:?}, it is {state:?}")),
        }
        self.tell_clients();
    }

    fn wipe(&mut self, node: usize) {
        self.world.machines[node].wipe();
        self.rotten.take_if(|(rotten, _)| *rotten == node);
    }

    /// Looks at the documents that nodes have adopted.
    fn look_at_documents(&mut self) {
        for node in self.running() {
            if let Some(document) = self.world.machines[node].changed_document() {
                self.re_aim |= self.layouts.see(node, document);
            }
        }
        let leader = self.world.observer.leader();
        self.re_aim |= std::mem::replace(&mut self.leader, leader) != leader;
        if self.world.desk.is_some() && std::mem::take(&mut self.re_aim) {
            let running = self.running();
            let machines = running.into_iter().map(|node| (node, &*self.world.machines[node]));
            let running: Vec<_> = machines.filter(|(_, machine)| !machine.disk_fails()).collect();
            self.world.strikes.aim(&running, &self.layouts, leader);
        }
    }

    /// Does what the operator orders.
    fn obey(&mut self) {
        let Some(desk) = self.world.desk.clone() else { return };
        let orders = std::mem::take(&mut *desk.orders.lock());
        for order in orders {
            match order {
                Order::Note(what) => self.note(what),
                Order::Start(node) => {
                    self.note(format!("start n{node}"));
                    self.idle.remove(&node);
                    desk.ended.lock().remove(&node);
                    self.restart(node);
                    let machine = Arc::clone(&self.world.machines[node]);
                    self.world.strikes.aim_at_newcomer(node, &machine);
                    self.tell_clients();
                }
                Order::Wipe(node) => {
                    self.note(format!("the disk of n{node} is lost"));
                    self.wipe(node);
                }
                Order::Break(node) => {
                    self.note(format!("n{node} breaks"));
                    self.idle.insert(node);
                    self.restarts.remove(&node);
                    self.world.strikes.forget(node);
                    if !self.down.contains(&node) {
                        let aim = Aim { steps: None, skip: 0, after: false };
                        self.world.machines[node].stop_at(aim, None);
                        self.world.machines[node].stop_now();
                        self.bury_the_stopped();
                        self.restarts.remove(&node);
                    }
                    self.tell_clients();
                }
            }
        }
    }

    fn start_again(&mut self, now: Duration) {
        let due: Vec<usize> =
            self.restarts.iter().filter(|(_, at)| **at <= now).map(|(node, _)| *node).collect();
        for node in due {
            self.restarts.remove(&node);
            self.note(format!("start n{node} again"));
            self.restart(node);
        }
    }

    /// Starts the next process of a machine that runs none.
    fn restart(&mut self, node: usize) {
        if self.idle.contains(&node) || !self.down.remove(&node) {
            return;
        }
        self.restarts.remove(&node);
        let machine = &self.world.machines[node];
        machine.restart();
        self.world.sim.bounce(machine.name.as_str());
        self.re_aim = true;
    }

    /// Tells clients whom to ask: all that run, or will again.
    fn tell_clients(&self) {
        let all = 0..self.world.machines.len();
        self.progress.ask(all.filter(|node| !self.idle.contains(node)).collect());
    }

    /// Whether nothing is left to be done to the world.
    fn is_done(&mut self, now: Duration) -> bool {
        let Some(desk) = &self.world.desk else { return true };
        if *desk.done.lock() && self.restarts.is_empty() {
            return true;
        }
        if now > self.mended + CHANGE && self.phase.0 == Phase::Work {
            let latest = self.layouts.latest();
            let document = latest.map(|latest| Arc::clone(latest.document()));
            self.broken.push(format!("I16: a change of members does not end: {document:#?}"));
            *desk.done.lock() = true;
        }
        false
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
    fn move_on(&mut self, now: Duration) {
        let mended = self.mended;
        match self.phase.0 {
            Phase::Work if now >= mended.max(self.phase.1) + AFTERMATH => {
                self.progress.enter(Phase::Rest);
            }
            Phase::Rest if now >= self.look_at.max(self.phase.1.max(mended) + self.quiet) => {
                self.look_at = now + LOOK;
                let rows = self.rows();
                let agreed = rows.as_ref().map_err(String::clone).and_then(|rows| self.agree(rows));
                if agreed.is_ok() {
                    self.recorder.event(Event::Agreed { at_us: self.now_us() });
                }
                if agreed.is_ok() || now >= self.phase.1 + AGREEMENT {
                    self.broken.extend(agreed.err());
                    rows.iter().for_each(|rows| self.record_all(rows));
                    self.progress.enter(Phase::LastReads);
                }
            }
            Phase::Encore if now >= self.phase.1 + ENCORE => self.progress.enter(Phase::Over),
            _ => {}
        }
    }

    /// What the machines hold that run. If that cannot be read, why.
    fn rows(&self) -> Result<BTreeMap<usize, Rows>, String> {
        if let Some((node, _)) = self.rotten {
            return Err(format!("I2: n{node} has not got back what it lost"));
        }
        let rows = |node: usize| match self.world.machines[node].rows() {
            Some(rows) => Ok((node, rows)),
            None => Err(format!("I2: the disk of n{node} cannot be read")),
        };
        self.running().into_iter().map(rows).collect()
    }

    /// Whether nothing is left to happen by itself. If something is, what.
    fn agree(&self, rows: &BTreeMap<usize, Rows>) -> Result<(), String> {
        let layout = self.layouts.latest().ok_or("I13: nobody has a document")?;
        let document = layout.document();
        if !layouts::is_settled(document) {
            return Err(format!("I16: a transition does not end: {document:#?}"));
        }
        let gone = [MemberState::Left, MemberState::Removed];
        for node in rows.keys() {
            let member = member_of(document, *node).map(|(_, member)| member.state);
            if member.is_none_or(|state| gone.contains(&state)) {
                return Err(format!("I16: n{node} is {member:?}, and runs"));
            }
        }
        layouts::agree(&layout, rows)
    }

    /// Writes down what the owners of every key hold.
    fn record_all(&self, rows: &BTreeMap<usize, Rows>) {
        let Some(layout) = self.layouts.latest() else { return };
        let places: BTreeMap<_, _> = rows.values().flatten().collect();
        for (place, found) in places {
            for node in layouts::owners_of(&layout, place, found) {
                let Some(rows) = rows.get(&node) else { continue };
                let found = rows.get(place).cloned().unwrap_or_default();
                let digest = format!("{:016x}", found.digest);
                self.record(&self.world.machines[node].name, place.clone(), found, Some(digest));
            }
        }
    }

    fn apply(&mut self, fault: &Fault) {
        match fault {
            Fault::Stop { node, steps, power_loss } => {
                if !self.down.contains(node) {
                    let aim = Aim { steps: None, skip: *steps, after: false };
                    self.world.machines[*node].stop_at(aim, *power_loss);
                }
            }
            Fault::FailDisk { node, skip, power_loss } => {
                if !self.down.contains(node) {
                    self.world.machines[*node].fail_disk(*skip, *power_loss);
                }
            }
            Fault::Rot { node, seed } => self.rot(*node, *seed),
            Fault::Restart(node) => {
                self.world.machines[*node].stop_now();
                self.bury_the_stopped();
                self.restart(*node);
            }
            Fault::Tamper(node, of_10_000) => {
                self.world.machines[*node].set_tampering(*of_10_000);
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

    /// Who is down comes back to a damaged disk. One at a time: others have what it lost.
    fn rot(&mut self, node: usize, seed: u64) {
        self.world.machines[node].stop_now();
        self.bury_the_stopped();
        if self.rotten.is_some() || !self.down.contains(&node) || self.idle.contains(&node) {
            return;
        }
        if let Some(place) = self.world.machines[node].rot(&Dice::new(seed, 0)) {
            self.note(format!("n{node} rots: {place}"));
            self.rotten = Some((node, self.world.sim.elapsed()));
        }
    }

    fn look_at_the_rotten(&mut self, now: Duration) {
        let Some((node, at)) = self.rotten else { return };
        if now < at + LOOK / 2 {
            return;
        }
        self.rotten = Some((node, now));
        if self.world.machines[node].is_whole() {
            self.rotten = None;
            self.healed += 1;
            self.note(format!("n{node} is whole again"));
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
        for machine in &self.world.machines {
            machine.set_clock_wrong(0);
            machine.set_tampering(0);
        }
    }
}

fn mend(sim: &Sim<'_>, one: &str, other: &str) {
    sim.release(one, other);
    sim.repair(one, other);
    sim.set_link_latency(one, other, LATENCY);
}
