//! A cluster, its clients and its misfortune in one thread.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use pairdb::client::{Client, Options};
use pairdb::cluster::net::Net;
use pairdb::engine::SyncMode;
use pairdb::proto;
use pairdb::verify::dice::Dice;
use pairdb::verify::history::{Event, Level, Mode};
use pairdb::verify::recorder::Recorder;
use pairdb::verify::workload::{Plan, Target, Worker};
use parking_lot::Mutex;
use tonic::Code;
use turmoil::{Builder, Sim};

use crate::character::Character;
use crate::driver::{Driver, Outcome, World};
use crate::machine::{Machine, Parts, SimTime, small};
use crate::nemesis::{Planned, Stage};
use crate::observer::Observer;
use crate::operator::{Desk, Operator};
use crate::scenario::{FOUNDERS, Few, MACHINES, Scenario, Strike};
use crate::strikes::Strikes;
use crate::wire::SimNet;

/// Messages arrive, and timers end, at multiples of this.
pub const TICK: Duration = Duration::from_millis(1);

/// Between two hosts of which nothing else is said.
pub const LATENCY: Duration = Duration::from_millis(2);

/// A cluster's members are few, and so are its partitions, where they change; else as many as ever.
const PARTITION_BITS: [u32; 2] = [10, 4];
/// Runs in which members change are long.
const CHANGING_PAUSE_MAX: Duration = Duration::from_millis(120);
/// Where chance of a run's parts comes from.
const SCENARIO_DICE: u64 = 1 << 32;
const OPERATOR_DICE: u64 = 2 << 32;
const STRIKE_DICE: u64 = 3 << 32;
const DRIVER_DICE: u64 = 4 << 32;

/// What a run is made of. All else comes from the seed.
#[derive(Clone, Debug)]
pub struct Simulation {
    pub seed: u64,
    /// Those that form the cluster.
    pub nodes: usize,
    /// Whether its members change: which run of this sort it is.
    pub changes: Option<u64>,
    /// Whom to strike instead of those that it draws.
    pub aim: Option<Vec<Strike>>,
    pub clients: usize,
    /// How long things go wrong.
    pub faults_for: Duration,
    pub sync_mode: SyncMode,
}

/// What came of it.
pub struct Run {
    pub history: Vec<Event>,
    /// Of the whole history, the faults among it, in order.
    pub hash: u64,
    /// Keys that were given up: they are not in the history.
    pub lost: usize,
    /// What no client sees.
    pub outcome: Outcome,
}

/// Where a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// The cluster forms, tenants are made.
    Forming,
    /// Clients work, and go on for a moment after the last fault.
    Work,
    /// Clients do nothing: the replicas become equal by themselves.
    Rest,
    /// One client asks every node for every key.
    LastReads,
    /// Clients work again, and nothing may fail.
    Encore,
    /// Clients end after the operation at hand.
    Over,
}

/// The phase, which driver and clients share, and whom clients ask.
#[derive(Clone)]
pub struct Progress(Arc<Mutex<(Phase, Vec<usize>)>>);

impl Progress {
    fn new() -> Self {
        Self(Arc::new(Mutex::new((Phase::Forming, Vec::new()))))
    }

    pub fn phase(&self) -> Phase {
        self.0.lock().0
    }

    pub fn enter(&self, phase: Phase) {
        self.0.lock().0 = phase;
    }

    /// Has clients ask these nodes.
    pub fn ask(&self, nodes: Vec<usize>) {
        self.0.lock().1 = nodes;
    }

    pub fn asked(&self) -> Vec<usize> {
        self.0.lock().1.clone()
    }
}

impl Simulation {
    pub fn run(&self) -> Run {
        let time = SimTime::default();
        let recorder = Arc::new(Recorder::new(None));
        let mut sim = Builder::new()
            .rng_seed(self.seed)
            .enable_random_order()
            .tick_duration(TICK)
            .simulation_duration(Duration::from_secs(400))
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(2 * LATENCY)
            .repair_rate(0.05)
            .build();
        let dice = Dice::new(self.seed, 0);
        let character = Character::draw(&dice);
        let scenario =
            self.changes.map(|nth| Scenario::draw(&Dice::new(self.seed, SCENARIO_DICE), nth));
        let observer = Observer::default();
        let count = if scenario.is_some() { MACHINES } else { self.nodes };
        let zones = scenario.as_ref().is_some_and(|scenario| scenario.zones);
        let machine = |number| {
            let mut config = small(number, self.nodes, self.sync_mode);
            if zones {
                config.node.zone = format!("z{}", number % FOUNDERS);
            }
            let partition_bits = PARTITION_BITS[usize::from(scenario.is_some())];
            let (observer, time) = (observer.clone(), time.clone());
            let parts = Parts { number, config, partition_bits, observer, time };
            Arc::new(Machine::new(parts, &character, &dice))
        };
        let machines: Vec<_> = (0..count).map(machine).collect();
        for machine in &machines {
            let machine = Arc::clone(machine);
            sim.host(machine.name.clone(), move || Arc::clone(&machine).run());
        }
        let progress = Progress::new();
        progress.ask((0..self.nodes).collect());
        let rots =
            character.rots && scenario.as_ref().map_or(self.nodes >= 3, |scenario| scenario.rots);
        let few = scenario.as_ref().map_or(&[][..], |scenario| scenario.tenants);
        let mut plan = character.plan();
        if rots || scenario.as_ref().is_some_and(|scenario| scenario.loses) {
            // What one disk alone has is not promised to outlive it.
            plan.levels.retain(|level| *level != Level::One);
        }
        self.add_clients(&mut sim, plan, few, &recorder, &progress);
        let desk =
            scenario.as_ref().map(|scenario| self.add_operator(&mut sim, scenario, &progress));
        let clock_jump_ms_max = character.clock_jump_ms_max;
        let (clients, operated) = (self.clients, desk.is_some());
        let stage = Stage { nodes: count, clients, operated, rots, clock_jump_ms_max };
        let faults: Vec<Planned> = stage.plan(&dice, self.faults_for);
        let drawn = || scenario.map(|scenario| scenario.strikes).unwrap_or_default();
        let strikes = self.aim.clone().unwrap_or_else(drawn);
        let world = World {
            sim,
            machines,
            hosts: stage.hosts(),
            time,
            observer,
            desk,
            strikes: Strikes::new(Dice::new(self.seed, STRIKE_DICE), strikes),
            dice: Dice::new(self.seed, DRIVER_DICE),
        };
        let idle: BTreeSet<usize> = (self.nodes..count).collect();
        let driver = Driver::new(world, idle, &character, Arc::clone(&recorder), progress);
        let outcome = driver.run(faults);
        let mut history = recorder.finish().expect("kept in memory");
        let lost = forgive(&mut history, &outcome);
        Run { history, hash: recorder.hash(), lost, outcome }
    }

    fn add_operator(&self, sim: &mut Sim<'_>, scenario: &Scenario, progress: &Progress) -> Desk {
        let desk = Desk::default();
        let (tasks, progress) = (scenario.tasks.clone(), progress.clone());
        let dice = Dice::new(self.seed, OPERATOR_DICE);
        add_operator(sim, Operator { desk: desk.clone(), tasks, progress, dice });
        desk
    }

    fn add_clients(
        &self,
        sim: &mut Sim<'_>,
        mut plan: Plan,
        few: &'static [Few],
        recorder: &Arc<Recorder>,
        progress: &Progress,
    ) {
        if self.changes.is_some() {
            // Of most partitions some row.
            plan.keys += 10;
            plan.pause_max = plan.pause_max.max(CHANGING_PAUSE_MAX);
        }
        let replicas = u32::try_from(self.nodes.min(3)).expect("at most 3");
        for (name, mode) in &plan.tenants {
            recorder.event(Event::Tenant { name: name.clone(), mode: *mode, replicas });
        }
        for Few { name, mode, .. } in few {
            plan.tenants.push(((*name).to_owned(), *mode));
            // Where owners change one replica is two for a while, and ONE is less than a quorum.
            recorder.event(Event::Tenant { name: (*name).to_owned(), mode: *mode, replicas: 2 });
        }
        let plan = Arc::new(plan);
        for number in 0..self.clients {
            let (this, plan, progress) = (self.clone(), Arc::clone(&plan), progress.clone());
            let recorder = Arc::clone(recorder);
            sim.client(format!("c{number}"), async move {
                if number == 0 {
                    create_tenants(&plan, few).await;
                    progress.enter(Phase::Work);
                }
                let id = u32::try_from(number).expect("few clients");
                let mut asked = progress.asked();
                let mut worker = Worker::new(id, plan, targets(&asked), recorder, this.seed);
                loop {
                    if asked != progress.asked() {
                        asked = progress.asked();
                        worker.ask(targets(&asked));
                    }
                    match progress.phase() {
                        Phase::Work | Phase::Encore => worker.step().await,
                        Phase::LastReads if number == 0 => {
                            worker.read_all().await;
                            progress.enter(Phase::Encore);
                        }
                        Phase::Forming | Phase::Rest | Phase::LastReads => {
                            tokio::time::sleep(10 * TICK).await;
                        }
                        Phase::Over => return Ok(()),
                    }
                }
            });
        }
    }
}

/// Holds nothing against the cluster of the keys that were given up; how many they are.
fn forgive(history: &mut Vec<Event>, outcome: &Outcome) -> usize {
    let places: BTreeSet<_> = history.iter().filter_map(place_of).collect();
    let lost: BTreeSet<_> = places.into_iter().filter(|place| outcome.is_lost(place)).collect();
    history.retain(|event| place_of(event).is_none_or(|place| !lost.contains(&place)));
    lost.len()
}

/// The tenant and the key that an event is about.
fn place_of(event: &Event) -> Option<(String, String)> {
    match event {
        Event::Op(op) => Some((op.tenant.clone(), op.key.clone())),
        Event::Row { tenant, key, .. } => Some((tenant.clone(), key.clone())),
        Event::Tenant { .. } | Event::Fault { .. } | Event::Agreed { .. } => None,
    }
}

/// A host that gets the members to where they are wanted, and then waits for the others.
fn add_operator(sim: &mut Sim<'_>, operator: Operator) {
    let progress = operator.progress.clone();
    sim.client("op", async move {
        let over = async {
            while progress.phase() != Phase::Over {
                tokio::time::sleep(10 * TICK).await;
            }
        };
        let work = async {
            while progress.phase() == Phase::Forming {
                tokio::time::sleep(10 * TICK).await;
            }
            operator.work().await;
            std::future::pending().await
        };
        tokio::select! {
            () = over => {}
            () = work => {}
        }
        Ok(())
    });
}

fn targets(nodes: &[usize]) -> Vec<Target> {
    let target = |number| {
        let name = format!("n{number}");
        let endpoint = format!("http://{name}:8080");
        Target::new(name, Box::new(move || connect(endpoint.clone())))
    };
    nodes.iter().map(target).collect()
}

pub fn connect(endpoint: String) -> Client {
    let options = Options {
        endpoints: vec![endpoint],
        timeout: Duration::from_secs(2),
        connect_timeout: Duration::from_secs(1),
        retries_max: 0,
        ..Options::default()
    };
    let net: Arc<dyn Net> = Arc::new(SimNet::default());
    Client::over(&net, options).expect("the endpoint is an address")
}

/// Makes the tenants that are not there from the beginning, as soon as there is a cluster.
async fn create_tenants(plan: &Plan, few: &[Few]) {
    for (name, mode) in plan.tenants.iter().filter(|(name, _)| name != "default") {
        let mode = match mode {
            Mode::Siblings => proto::TenantMode::Siblings,
            Mode::LastWriteWins => proto::TenantMode::LastWriteWins,
        };
        let replicas = few.iter().find(|few| few.name == *name).map_or(0, |few| few.replicas);
        let tenant = proto::Tenant {
            name: name.clone(),
            mode: mode as i32,
            replication_factor: replicas.into(),
            ..proto::Tenant::default()
        };
        loop {
            let client = connect("http://n0:8080".to_owned());
            let message = proto::CreateTenantRequest { tenant: Some(tenant.clone()) };
            let created = client
                .admin_call(message, async |admin, request| admin.create_tenant(request).await);
            match created.await {
                Ok(_) => break,
                Err(error) if error.reason() == "TENANT_EXISTS" => break,
                // The cluster forms, or the node was killed meanwhile.
                Err(error)
                    if error.may_retry()
                        || matches!(error.code(), Code::Unavailable | Code::DeadlineExceeded) =>
                {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                Err(error) => panic!("no tenant {name}: {error}"),
            }
        }
    }
}
