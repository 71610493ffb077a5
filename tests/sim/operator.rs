//! The operator: asks for changes of the members, as the command line does, until they are there.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use pairdb::client::{Admin, Client, Error};
use pairdb::cluster::NodeId;
use pairdb::cluster::layout::{Document, Member, MemberState};
use pairdb::proto::{
    AbortLayoutRequest, ClusterStatusRequest, CommitLayoutRequest, DrainNodeRequest, LayoutChange,
    NewNode, NodeEntry, PlanLayoutRequest, SetTenantRequest, VerifyCertificateRequest,
};
use pairdb::verify::dice::Dice;
use parking_lot::Mutex;

use crate::layouts::{Latest, is_settled, machine_of, member_of};
use crate::scenario::{Goal, Task};
use crate::simulation::{Progress, connect};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(200);
/// How often an abort is tried: it need not happen.
const ATTEMPTS: usize = 4;
/// How often the voters must be seen to be all, so that it is no rumour.
const SEEN: usize = 3;
/// How long a node may take to begin a drain.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(3);

/// What the driver is to do for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Start a machine that does not run.
    Start(usize),
    /// It breaks, and stays so until it is started.
    Break(usize),
    /// Its disk is lost.
    Wipe(usize),
    /// Only said.
    Note(String),
}

/// Shared with the driver.
#[derive(Clone, Default)]
pub struct Desk {
    pub latest: Latest,
    pub orders: Arc<Mutex<Vec<Order>>>,
    /// Machines whose processes ended because their nodes are no members any more.
    pub ended: Arc<Mutex<BTreeSet<usize>>>,
    /// Whether all tasks are done.
    pub done: Arc<Mutex<bool>>,
}

impl Desk {
    fn order(&self, order: Order) {
        self.orders.lock().push(order);
    }

    fn document(&self) -> Option<Arc<Document>> {
        self.latest.lock().as_ref().map(|layout| Arc::clone(layout.document()))
    }
}

/// See the module.
pub struct Operator {
    pub desk: Desk,
    pub tasks: Vec<Task>,
    /// Knows whom to ask.
    pub progress: Progress,
    pub dice: Dice,
}

impl Operator {
    /// Gets to every goal.
    pub async fn work(self) {
        for task in &self.tasks {
            self.desk.order(Order::Note(format!("wanted: {:?}", task.goal)));
            self.prepare(&task.goal).await;
            self.reach(task).await;
        }
        for task in &self.tasks {
            if let Goal::Sleeps(machine) = task.goal
                && !self.tasks.iter().any(|task| task.goal == Goal::IsRemoved(machine))
            {
                self.desk.order(Order::Start(machine));
            }
        }
        *self.desk.done.lock() = true;
    }

    async fn prepare(&self, goal: &Goal) {
        if goal.loses() {
            self.wait_for_voters().await;
        }
        match goal {
            Goal::Joins(machine) | Goal::Starts(machine) | Goal::Haunts(machine) => {
                self.desk.order(Order::Start(*machine));
            }
            Goal::IsRemoved(machine) | Goal::Sleeps(machine) => {
                self.desk.order(Order::Break(*machine));
            }
            Goal::IsReplaced(old, new) => {
                self.desk.order(Order::Break(*old));
                if old == new {
                    self.desk.order(Order::Wipe(*old));
                }
            }
            Goal::AreLost(machines) => {
                machines.iter().for_each(|one| self.desk.order(Order::Break(*one)));
            }
            _ => {}
        }
    }

    /// Until all vote who should: a group whose voters follow the owners a moment later can lose
    /// its majority meanwhile, by one machine, and changes nothing any more.
    async fn wait_for_voters(&self) {
        let mut seen = 0;
        while seen < SEEN {
            let call = async |admin: &mut Admin, request| admin.cluster_status(request).await;
            let told = self.any().admin_call(ClusterStatusRequest {}, call).await;
            let nodes = told.map(|told| told.nodes).unwrap_or_default();
            let is_normal = |node: &&NodeEntry| node.state == "normal";
            let normal = nodes.iter().filter(is_normal).count();
            // An odd number.
            let wanted = normal - usize::from(normal > 2) * ((normal + 1) % 2);
            let (good, bad): (Vec<_>, _) =
                nodes.iter().filter(|node| node.voter).partition(is_normal);
            let all = wanted > 0 && good.len() == wanted && bad.is_empty();
            seen = if all { seen + 1 } else { 0 };
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn reach(&self, task: &Task) {
        let nodes = loop {
            match self.desk.document() {
                Some(document) => break nodes_of(&task.goal, &document),
                None => tokio::time::sleep(PAUSE).await,
            }
        };
        let (mut abort_after, mut started) = (task.abort_after, false);
        loop {
            let document = self.desk.document().expect("there was one");
            let is_reached = is_reached(&document, &task.goal, &nodes);
            if is_reached && (!task.settles || is_settled(&document)) {
                break;
            }
            match abort_after.take_if(|_| document.is_joint()) {
                Some(time) => {
                    tokio::time::sleep(time).await;
                    self.abort(document.epoch).await;
                }
                None if is_reached || document.is_joint() => {}
                None => match (&task.goal, nodes.first()) {
                    (Goal::Leaves(_), Some(node)) => self.drain(*node).await,
                    (Goal::AreLost(_), _) => self.give_up(&nodes).await,
                    (Goal::IsReplaced(_, new), Some(node))
                        if document.replacements.contains_key(node) && !started =>
                    {
                        self.desk.order(Order::Start(*new));
                        started = true;
                    }
                    (goal, _) => self.ask(goal, &nodes).await,
                },
            }
            tokio::time::sleep(PAUSE).await;
        }
        if let (Goal::Leaves(machine), Some(node)) = (&task.goal, nodes.first()) {
            self.verify(*node).await;
            while !self.desk.ended.lock().contains(machine) {
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    fn any(&self) -> Client {
        let asked = self.progress.asked();
        let machine = self.dice.pick(&asked);
        connect(format!("http://n{machine}:8080"))
    }

    async fn abort(&self, epoch: u64) {
        self.desk.order(Order::Note(format!("abort epoch {epoch}")));
        for _ in 0..ATTEMPTS {
            let request = AbortLayoutRequest { epoch };
            let call = async |admin: &mut Admin, request| admin.abort_layout(request).await;
            if self.any().admin_call(request, call).await.is_ok() {
                return;
            }
        }
    }

    /// Asks once. Whatever is answered, it is looked at what became of it.
    async fn ask(&self, goal: &Goal, nodes: &[NodeId]) {
        let change = match goal {
            Goal::IsRemoved(_) => LayoutChange { removes: names(nodes), ..Default::default() },
            // It asks for itself.
            Goal::Joins(machine) => match self.join_again(*machine) {
                Some(change) => change,
                None => return,
            },
            Goal::IsReplaced(_, new) => match (self.join_again(*new), nodes) {
                (Some(change), _) => change,
                (None, [old, ..]) => LayoutChange {
                    replaces: [(old.to_string(), format!("n{new}"))].into(),
                    ..LayoutChange::default()
                },
                (None, []) => return,
            },
            Goal::Replicas(count) => LayoutChange {
                replication_factors: [("default".to_owned(), u32::from(*count))].into(),
                // One of them may be meant to sleep through it.
                accepts_down: true,
                ..LayoutChange::default()
            },
            Goal::Copies(tenant, count) => return self.set_copies(tenant, *count).await,
            Goal::Weight(machine, weight) => LayoutChange {
                weights: [(format!("n{machine}"), *weight)].into(),
                ..LayoutChange::default()
            },
            Goal::Zone(machine, zone) => LayoutChange {
                zones: [(format!("n{machine}"), zone.clone())].into(),
                ..LayoutChange::default()
            },
            Goal::Leaves(_) | Goal::AreLost(_) => return,
            Goal::Starts(_) | Goal::Haunts(_) | Goal::Sleeps(_) => return,
        };
        self.commit(0, change).await;
    }

    async fn commit(&self, epoch: u64, change: LayoutChange) {
        let request = CommitLayoutRequest { epoch, change: Some(change) };
        let call = async |admin: &mut Admin, request| admin.commit_layout(request).await;
        let answer = self.any().admin_call(request, call).await;
        self.say(answer.err());
    }

    async fn set_copies(&self, tenant: &str, count: u8) {
        let replication_factor = Some(count.into());
        let request =
            SetTenantRequest { name: tenant.to_owned(), replication_factor, ..Default::default() };
        let call = async |admin: &mut Admin, request| admin.set_tenant(request).await;
        let answer = self.any().admin_call(request, call).await;
        if answer.as_ref().is_err_and(|error| error.reason() == "QUORUM_DOWN") {
            let replication_factors = [(tenant.to_owned(), u32::from(count))].into();
            let accepts_down = true;
            let change = LayoutChange { replication_factors, accepts_down, ..Default::default() };
            self.commit(0, change).await;
        }
        self.say(answer.err());
    }

    /// Takes nodes out, and accepts that to be lost which the plan says would be.
    async fn give_up(&self, nodes: &[NodeId]) {
        let mut change = LayoutChange { removes: names(nodes), ..Default::default() };
        let request = PlanLayoutRequest { change: Some(change.clone()) };
        let call = async |admin: &mut Admin, request| admin.plan_layout(request).await;
        match self.any().admin_call(request, call).await {
            Ok(plan) => {
                change.accepts_loss = plan.lost;
                self.commit(plan.epoch, change).await;
            }
            Err(error) => self.say(Some(error)),
        }
    }

    fn say(&self, error: Option<Error>) {
        if let Some(error) = error {
            self.desk.order(Order::Note(format!("refused: {error}")));
        }
    }

    /// The change for one whose join was aborted.
    fn join_again(&self, machine: usize) -> Option<LayoutChange> {
        let document = self.desk.document()?;
        let joins =
            |member: &Member| machine_of(member) == machine && member.state == MemberState::Joining;
        let (node, _) = document.members.iter().find(|(_, member)| joins(member))?;
        let new = NewNode { node: node.to_string(), ..NewNode::default() };
        Some(LayoutChange { joins: vec![new], ..LayoutChange::default() })
    }

    async fn drain(&self, node: NodeId) {
        let request = DrainNodeRequest { node: node.to_string(), ..DrainNodeRequest::default() };
        let client = self.any();
        let call = async |admin: &mut Admin, request| admin.drain_node(request).await;
        let begun = tokio::time::timeout(DRAIN_TIMEOUT, client.admin_stream(request, call)).await;
        if let Ok(Err(error)) = begun {
            self.desk.order(Order::Note(format!("refused: {error}")));
        }
    }

    /// Until somebody has the certificate of a node that left, and says that it is good (I12).
    async fn verify(&self, node: NodeId) {
        loop {
            let request = VerifyCertificateRequest { node: node.to_string(), ..Default::default() };
            let call = async |admin: &mut Admin, request| admin.verify_certificate(request).await;
            match self.any().admin_call(request, call).await {
                Ok(verified) if verified.valid => return,
                Ok(verified) => panic!("I12: the certificate of {node}: {}", verified.problem),
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }
}

fn names(nodes: &[NodeId]) -> Vec<String> {
    nodes.iter().map(NodeId::to_string).collect()
}

/// The members that a goal is about, if it is about some that are there already.
fn nodes_of(goal: &Goal, document: &Document) -> Vec<NodeId> {
    let machines = match goal {
        Goal::Leaves(machine) | Goal::IsRemoved(machine) | Goal::IsReplaced(machine, _) => {
            std::slice::from_ref(machine)
        }
        Goal::AreLost(machines) => machines,
        _ => &[],
    };
    machines.iter().filter_map(|one| Some(member_of(document, *one)?.0)).collect()
}

/// `nodes` are those that the goal is about, as they were at first.
fn is_reached(document: &Document, goal: &Goal, nodes: &[NodeId]) -> bool {
    let are = |wanted: MemberState| {
        let states = nodes.iter().map(|node| document.members.get(node).map(|one| one.state));
        !nodes.is_empty() && states.into_iter().all(|state| state == Some(wanted))
    };
    let owner = |machine: &usize| {
        let (node, _) = member_of(document, *machine)?;
        document.owners.get(&node)
    };
    let has_copies = |name: &str, count: u8| {
        let mut tenants = document.tenants.values();
        tenants.any(|tenant| tenant.name == name && tenant.replication_factor == count)
    };
    let owns = |machine: usize| {
        let mut members = document.members.values();
        members.any(|one| machine_of(one) == machine && one.state == MemberState::Normal)
    };
    let stable = !document.is_joint();
    match goal {
        Goal::Joins(machine) => stable && owns(*machine),
        Goal::Leaves(_) => are(MemberState::Left),
        Goal::IsRemoved(_) | Goal::AreLost(_) => are(MemberState::Removed),
        Goal::IsReplaced(_, new) => are(MemberState::Removed) && owns(*new),
        Goal::Replicas(count) => has_copies("default", *count),
        Goal::Copies(tenant, count) => has_copies(tenant, *count),
        Goal::Weight(machine, weight) => {
            stable && owner(machine).is_some_and(|owner| owner.weight == *weight)
        }
        Goal::Zone(machine, zone) => {
            stable && owner(machine).is_some_and(|owner| owner.zone == *zone)
        }
        Goal::Starts(_) | Goal::Haunts(_) | Goal::Sleeps(_) => true,
    }
}
