//! A cluster, its clients and its misfortune in one thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pairdb::client::{Client, Options};
use pairdb::cluster::net::Net;
use pairdb::engine::SyncMode;
use pairdb::proto;
use pairdb::verify::dice::Dice;
use pairdb::verify::history::{Event, Level, Mode};
use pairdb::verify::recorder::Recorder;
use pairdb::verify::workload::{Plan, Target, Worker};
use turmoil::{Builder, Sim};

use crate::machine::{Machine, SimTime, small};
use crate::nemesis::{self, Fault, Planned};
use crate::net::SimNet;

const TICK: Duration = Duration::from_millis(1);

/// After the last fault clients go on for a while, rest, and work again for a moment once a healthy
/// cluster must have recovered.
const AFTERMATH: Duration = Duration::from_secs(5);
const RECOVERY: Duration = Duration::from_secs(60);
const ENCORE: Duration = Duration::from_secs(2);

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

/// Where the clients are in their work.
#[derive(Default)]
struct Phase {
    /// The tenants are there: clients may begin.
    ready: AtomicBool,
    /// Clients do nothing.
    rest: AtomicBool,
    /// Clients end their work after the operation at hand.
    enough: AtomicBool,
}

impl Simulation {
    pub fn run(&self) -> Run {
        let time = SimTime::default();
        let recorder = Arc::new(Recorder::new(None));
        let mut sim = Builder::new()
            .rng_seed(self.seed)
            .enable_random_order()
            .tick_duration(TICK)
            .simulation_duration(Duration::from_secs(3600))
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(Duration::from_millis(4))
            .repair_rate(0.05)
            .build();
        let dice = Dice::new(self.seed, 0);
        let machines: Vec<_> = (0..self.nodes)
            .map(|number| {
                let config = small(number, self.nodes, self.sync_mode);
                Arc::new(Machine::new(config.node.name.clone(), config, dice.next(), time.clone()))
            })
            .collect();
        for machine in &machines {
            let machine = Arc::clone(machine);
            sim.host(machine.name.clone(), move || Arc::clone(&machine).run());
        }
        let phase = Arc::new(Phase::default());
        self.add_clients(&mut sim, &recorder, &phase);
        let faults = nemesis::plan(&dice, self.nodes, self.clients, self.faults_for);
        self.drive(&mut sim, faults, &machines, &recorder, &phase, &time);
        Run { history: recorder.finish().expect("kept in memory"), hash: recorder.hash() }
    }

    fn plan(&self) -> Plan {
        Plan {
            tenants: vec![
                ("default".to_owned(), Mode::Siblings),
                ("latest".to_owned(), Mode::LastWriteWins),
            ],
            prefix: String::new(),
            keys: 8,
            levels: vec![Level::One, Level::Quorum, Level::Quorum, Level::All],
            pause_max: Duration::from_millis(60),
        }
    }

    fn targets(&self) -> Vec<Target> {
        let target = |number| {
            let name = format!("n{number}");
            let endpoint = format!("http://{name}:8080");
            Target::new(name, Box::new(move || connect(endpoint.clone())))
        };
        (0..self.nodes).map(target).collect()
    }

    fn add_clients(&self, sim: &mut Sim<'_>, recorder: &Arc<Recorder>, phase: &Arc<Phase>) {
        let plan = Arc::new(self.plan());
        let replicas = u32::try_from(self.nodes.min(3)).expect("at most 3");
        for (name, mode) in &plan.tenants {
            recorder.event(Event::Tenant { name: name.clone(), mode: *mode, replicas });
        }
        for number in 0..self.clients {
            let (this, plan) = (self.clone(), Arc::clone(&plan));
            let (recorder, phase) = (Arc::clone(recorder), Arc::clone(phase));
            sim.client(format!("c{number}"), async move {
                if number == 0 {
                    create_tenants(&plan).await;
                    phase.ready.store(true, Ordering::Relaxed);
                }
                while !phase.ready.load(Ordering::Relaxed) {
                    tokio::time::sleep(10 * TICK).await;
                }
                let targets = this.targets();
                let id = u32::try_from(number).expect("few clients");
                let mut worker = Worker::new(id, plan, targets, recorder, this.seed);
                while !phase.enough.load(Ordering::Relaxed) {
                    match phase.rest.load(Ordering::Relaxed) {
                        true => tokio::time::sleep(10 * TICK).await,
                        false => worker.step().await,
                    }
                }
                if number == 0 {
                    tokio::time::sleep(Duration::from_secs(5)).await;
                    worker.read_all().await;
                }
                Ok(())
            });
        }
    }

    fn drive(
        &self,
        sim: &mut Sim<'_>,
        faults: Vec<Planned>,
        machines: &[Arc<Machine>],
        recorder: &Recorder,
        phase: &Phase,
        time: &SimTime,
    ) {
        let mut faults = faults.into_iter().peekable();
        let mut began = None;
        loop {
            time.set(sim.elapsed());
            if began.is_none() && phase.ready.load(Ordering::Relaxed) {
                began = Some(sim.elapsed());
            }
            let since = began.map_or(Duration::ZERO, |began| sim.elapsed() - began);
            while let Some((_, fault)) = faults.next_if(|(at, _)| *at <= since) {
                let at_us = sim.elapsed().as_micros() as u64;
                recorder.event(Event::Fault { at_us, what: fault.to_string() });
                apply(sim, machines, &fault);
                if let Fault::Kill(node) | Fault::PowerLoss(node, _) = fault {
                    machines[node].autopsy(recorder, at_us);
                }
            }
            let over = since.saturating_sub(self.faults_for);
            phase.rest.store((AFTERMATH..RECOVERY).contains(&over), Ordering::Relaxed);
            phase.enough.store(over > RECOVERY + ENCORE, Ordering::Relaxed);
            match sim.step() {
                Ok(true) => break,
                Ok(false) => {}
                Err(error) => panic!("a node ended by itself: {error}"),
            }
        }
        for machine in machines {
            machine.autopsy(recorder, sim.elapsed().as_micros() as u64);
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
    let net: Arc<dyn Net> = Arc::new(SimNet);
    Client::over(&net, options).expect("the endpoint is an address")
}

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
                // The cluster forms.
                Err(error) if error.outcome().is_none() || error.may_retry() => {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                Err(error) => panic!("no tenant {name}: {error}"),
            }
        }
    }
}

fn apply(sim: &mut Sim<'_>, machines: &[Arc<Machine>], fault: &Fault) {
    match fault {
        Fault::Kill(node) => {
            machines[*node].keep_written();
            sim.crash(machines[*node].name.as_str());
        }
        Fault::PowerLoss(node, seed) => {
            machines[*node].lose_power(*seed);
            sim.crash(machines[*node].name.as_str());
        }
        Fault::Restart(node) => sim.bounce(machines[*node].name.as_str()),
        Fault::Cut(one, other) => sim.partition(one.as_str(), other.as_str()),
        Fault::CutOneWay(from, to) => sim.partition_oneway(from.as_str(), to.as_str()),
        Fault::Hold(one, other) => sim.hold(one.as_str(), other.as_str()),
        Fault::Mend(one, other) => {
            sim.release(one.as_str(), other.as_str());
            sim.repair(one.as_str(), other.as_str());
        }
        Fault::Latency(one, other, time) => {
            sim.set_link_latency(one.as_str(), other.as_str(), *time);
        }
        Fault::Clock(node, ms) => machines[*node].set_clock_wrong(*ms),
        Fault::Loss(of_10_000) => sim.set_fail_rate(f64::from(*of_10_000) / 10_000.0),
    }
}
