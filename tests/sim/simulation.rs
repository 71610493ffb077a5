//! A cluster, its clients and its misfortune in one thread.

use std::sync::Arc;
use std::time::Duration;

use pairdb::client::{Client, Options};
use pairdb::cluster::net::Net;
use pairdb::engine::SyncMode;
use pairdb::proto;
use pairdb::verify::dice::Dice;
use pairdb::verify::history::{Event, Mode};
use pairdb::verify::recorder::Recorder;
use pairdb::verify::workload::{Plan, Target, Worker};
use parking_lot::Mutex;
use tonic::Code;
use turmoil::{Builder, Sim};

use crate::character::Character;
use crate::driver::{Driver, World};
use crate::machine::{Machine, SimTime, small};
use crate::nemesis::{Planned, Stage};
use crate::wire::SimNet;

/// Messages arrive, and timers end, at multiples of this.
pub const TICK: Duration = Duration::from_millis(1);

/// Between two hosts of which nothing else is said.
pub const LATENCY: Duration = Duration::from_millis(2);

/// What a run is made of. All else comes from the seed.
#[derive(Clone, Debug)]
pub struct Simulation {
    pub seed: u64,
    pub nodes: usize,
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

/// The phase, which driver and clients share.
#[derive(Clone)]
pub struct Progress(Arc<Mutex<Phase>>);

impl Progress {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(Phase::Forming)))
    }

    pub fn phase(&self) -> Phase {
        *self.0.lock()
    }

    pub fn enter(&self, phase: Phase) {
        *self.0.lock() = phase;
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
        let machine = |number| {
            let config = small(number, self.nodes, self.sync_mode);
            Arc::new(Machine::new(config, &character, &dice, time.clone()))
        };
        let machines: Vec<_> = (0..self.nodes).map(machine).collect();
        for machine in &machines {
            let machine = Arc::clone(machine);
            sim.host(machine.name.clone(), move || Arc::clone(&machine).run());
        }
        let progress = Progress::new();
        self.add_clients(&mut sim, &character, &recorder, &progress);
        let (nodes, clients) = (self.nodes, self.clients);
        let stage = Stage { nodes, clients, clock_jump_ms_max: character.clock_jump_ms_max };
        let faults: Vec<Planned> = stage.plan(&dice, self.faults_for);
        let world = World { sim, machines, hosts: stage.hosts(), time };
        Driver::new(world, &character, Arc::clone(&recorder), progress).run(faults);
        Run { history: recorder.finish().expect("kept in memory"), hash: recorder.hash() }
    }

    fn targets(&self) -> Vec<Target> {
        let target = |number| {
            let name = format!("n{number}");
            let endpoint = format!("http://{name}:8080");
            Target::new(name, Box::new(move || connect(endpoint.clone())))
        };
        (0..self.nodes).map(target).collect()
    }

    fn add_clients(
        &self,
        sim: &mut Sim<'_>,
        character: &Character,
        recorder: &Arc<Recorder>,
        progress: &Progress,
    ) {
        let plan = Arc::new(character.plan());
        let replicas = u32::try_from(self.nodes.min(3)).expect("at most 3");
        for (name, mode) in &plan.tenants {
            recorder.event(Event::Tenant { name: name.clone(), mode: *mode, replicas });
        }
        for number in 0..self.clients {
            let (this, plan, progress) = (self.clone(), Arc::clone(&plan), progress.clone());
            let recorder = Arc::clone(recorder);
            sim.client(format!("c{number}"), async move {
                if number == 0 {
                    create_tenants(&plan).await;
                    progress.enter(Phase::Work);
                }
                let id = u32::try_from(number).expect("few clients");
                let mut worker = Worker::new(id, plan, this.targets(), recorder, this.seed);
                loop {
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

fn connect(endpoint: String) -> Client {
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
async fn create_tenants(plan: &Plan) {
    for (name, mode) in plan.tenants.iter().filter(|(name, _)| name != "default") {
        let mode = match mode {
            Mode::Siblings => proto::TenantMode::Siblings,
            Mode::LastWriteWins => proto::TenantMode::LastWriteWins,
        };
        let tenant =
            proto::Tenant { name: name.clone(), mode: mode as i32, ..proto::Tenant::default() };
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
