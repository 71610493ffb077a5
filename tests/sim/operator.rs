//! The operator: asks for changes of the members, as the command line does, until they are there.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use pairdb::client::{Client, Error};
use pairdb::cluster::NodeId;
use pairdb::cluster::layout::{Document, MemberState};
use pairdb::proto::{
    AbortLayoutRequest, CommitLayoutRequest, DrainNodeRequest, LayoutChange, NewNode,
    VerifyCertificateRequest,
};
use pairdb::verify::dice::Dice;
use parking_lot::Mutex;

use crate::layouts::{Latest, is_settled, member_of};
use crate::scenario::{Goal, Task};
use crate::simulation::{Progress, connect};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(200);
/// How often an abort is tried: it need not happen.
const ATTEMPTS: usize = 4;
/// How long a node may take to begin a drain.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(3);

/// What the driver is to do for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Start a machine that does not run.
    Start(usize),
    /// It breaks, and stays so until it is started.
    Break(usize),
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
            self.prepare(&task.goal);
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

    fn prepare(&self, goal: &Goal) {
        match goal {
            Goal::Joins(machine) | Goal::Starts(machine) | Goal::Haunts(machine) => {
                self.desk.order(Order::Start(*machine));
            }
            Goal::IsRemoved(machine) | Goal::Sleeps(machine) => {
                self.desk.order(Order::Break(*machine));
            }
            _ => {}
        }
    }

    async fn reach(&self, task: &Task) {
        let node = loop {
            match self.desk.document() {
                Some(document) => break self.node_of(&task.goal, &document),
                None => tokio::time::sleep(PAUSE).await,
            }
        };
        let mut abort_after = task.abort_after;
        loop {
            let document = self.desk.document().expect("there was one");
            let is_reached = is_reached(&document, &task.goal, node);
            if is_reached && (!task.settles || is_settled(&document)) {
                break;
            }
            match abort_after.take_if(|_| document.is_joint()) {
                Some(time) => {
                    tokio::time::sleep(time).await;
                    self.abort(document.epoch).await;
                }
                None if !is_reached && !document.is_joint() => self.ask(&task.goal, node).await,
                None => {}
            }
            tokio::time::sleep(PAUSE).await;
        }
        if let (Goal::Leaves(machine), Some(node)) = (&task.goal, node) {
            self.verify(node).await;
            while !self.desk.ended.lock().contains(machine) {
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    /// Of the member that a goal is about, if it is one already.
    fn node_of(&self, goal: &Goal, document: &Document) -> Option<NodeId> {
        match goal {
            Goal::Leaves(machine) | Goal::IsRemoved(machine) => {
                member_of(document, *machine).map(|(node, _)| node)
            }
            _ => None,
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
            let call = async |admin: &mut pairdb::client::Admin, request| {
                admin.abort_layout(request).await
            };
            if self.any().admin_call(request, call).await.is_ok() {
                return;
            }
        }
    }

    /// Asks once. Whatever is answered, it is looked at what became of it.
    async fn ask(&self, goal: &Goal, node: Option<NodeId>) {
        let change = match goal {
            Goal::Leaves(_) => return self.drain(node).await,
            Goal::IsRemoved(_) => {
                let removes = node.iter().map(NodeId::to_string).collect();
                LayoutChange { removes, ..LayoutChange::default() }
            }
            Goal::Joins(machine) => match self.join_again(*machine) {
                Some(change) => change,
                // It asks for itself.
                None => return,
            },
            Goal::Replicas(count) => LayoutChange {
                replication_factors: [("default".to_owned(), u32::from(*count))].into(),
                ..LayoutChange::default()
            },
            Goal::Weight(machine, weight) => LayoutChange {
                weights: [(format!("n{machine}"), *weight)].into(),
                ..LayoutChange::default()
            },
            Goal::Zone(machine, zone) => LayoutChange {
                zones: [(format!("n{machine}"), zone.clone())].into(),
                ..LayoutChange::default()
            },
            Goal::Starts(_) | Goal::Haunts(_) | Goal::Sleeps(_) => return,
        };
        let request = CommitLayoutRequest { epoch: 0, change: Some(change) };
        let call =
            async |admin: &mut pairdb::client::Admin, request| admin.commit_layout(request).await;
        let answer = self.any().admin_call(request, call).await;
        self.say(answer.err());
    }

    fn say(&self, error: Option<Error>) {
        if let Some(error) = error {
            self.desk.order(Order::Note(format!("refused: {error}")));
        }
    }

    /// The change for one whose join was aborted.
    fn join_again(&self, machine: usize) -> Option<LayoutChange> {
        let document = self.desk.document()?;
        let (node, member) = member_of(&document, machine)?;
        let again = member.state == MemberState::Joining;
        let new = NewNode { node: node.to_string(), ..NewNode::default() };
        again.then(|| LayoutChange { joins: vec![new], ..LayoutChange::default() })
    }

    async fn drain(&self, node: Option<NodeId>) {
        let Some(node) = node else { return };
        let request = DrainNodeRequest { node: node.to_string(), ..DrainNodeRequest::default() };
        let client = self.any();
        let begun = tokio::time::timeout(DRAIN_TIMEOUT, client.admin().drain_node(request)).await;
        if let Ok(Err(status)) = begun {
            self.desk.order(Order::Note(format!("refused: {status}")));
        }
    }

    /// Until somebody has the certificate of a node that left, and says that it is good (I12).
    async fn verify(&self, node: NodeId) {
        loop {
            let request = VerifyCertificateRequest { node: node.to_string(), ..Default::default() };
            let call = async |admin: &mut pairdb::client::Admin, request| {
                admin.verify_certificate(request).await
            };
            match self.any().admin_call(request, call).await {
                Ok(verified) if verified.valid => return,
                Ok(verified) => panic!("I12: the certificate of {node}: {}", verified.problem),
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }
}

fn is_reached(document: &Document, goal: &Goal, node: Option<NodeId>) -> bool {
    let state = |node: Option<NodeId>| {
        node.and_then(|node| document.members.get(&node)).map(|member| member.state)
    };
    let owner = |machine: &usize| {
        let (node, _) = member_of(document, *machine)?;
        document.owners.get(&node)
    };
    let stable = !document.is_joint();
    match goal {
        Goal::Joins(machine) => {
            let state = member_of(document, *machine).map(|(_, member)| member.state);
            stable && state == Some(MemberState::Normal)
        }
        Goal::Leaves(_) => state(node) == Some(MemberState::Left),
        Goal::IsRemoved(_) => state(node) == Some(MemberState::Removed),
        Goal::Replicas(count) => document
            .tenants
            .values()
            .any(|tenant| tenant.name == "default" && tenant.replication_factor == *count),
        Goal::Weight(machine, weight) => {
            stable && owner(machine).is_some_and(|owner| owner.weight == *weight)
        }
        Goal::Zone(machine, zone) => {
            stable && owner(machine).is_some_and(|owner| owner.zone == *zone)
        }
        Goal::Starts(_) | Goal::Haunts(_) | Goal::Sleeps(_) => true,
    }
}
