//! A node that takes no writes says so wherever somebody may ask.

use std::sync::Arc;
use std::time::Duration;

use pairdb::engine::vfs::fault::{Fault, FaultVfs, Operation};
use pairdb::engine::vfs::mem::MemVfs;
use pairdb::ops::node::Node;
use pairdb::ops::world::World;
use pairdb::proto::key_value_client::KeyValueClient;
use pairdb::store::environment::{Environment, ManualClock, SeededRandom};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::admin::get;
use crate::node::{config, connect, read, refusal, values, write};

/// Some time of the year 2023, in milliseconds.
const T0_MS: u64 = 1_700_000_000_000;
/// Longest wait for a node to notice: it looks once a second.
const NOTICED_WITHIN: Duration = Duration::from_secs(20);

/// A node in memory whose disk and clock are the test's.
struct Odd {
    disk: FaultVfs,
    clock: ManualClock,
    node: Node,
    client: KeyValueClient<Channel>,
    health: HealthClient<Channel>,
}

impl Odd {
    async fn start() -> Self {
        let disk = FaultVfs::new(Arc::new(MemVfs::new()));
        let clock = ManualClock::new(T0_MS);
        let environment = Environment {
            vfs: Arc::new(disk.clone()),
            clock: Arc::new(clock.clone()),
            monotonic: Arc::new(clock.clone()),
            random: Arc::new(SeededRandom::new(1)),
        };
        let world = World { environment, ..World::real() };
        let node = Node::start_in(config("/node".as_ref(), &[]), world).await.expect("starts");
        let channel = connect(&node.ready.listen).await;
        let client = KeyValueClient::new(channel.clone());
        Self { disk, clock, node, client, health: HealthClient::new(channel) }
    }

    /// Whether the node serves, by `grpc.health.v1`.
    async fn serves(&mut self) -> bool {
        let request = HealthCheckRequest { service: String::new() };
        let answer = self.health.check(request).await.expect("known").into_inner();
        answer.status() == ServingStatus::Serving
    }

    /// Waits until the page says this, on a clock that goes fast, and sees that the service says
    /// the same.
    async fn shows(&mut self, state: &str, is_ready: bool) {
        let code = if is_ready { 200 } else { 503 };
        let state = format!("\"state\":\"{state}\"");
        let noticed = async {
            loop {
                let page = get(&self.node.ready.admin_listen, "/health/ready").await;
                if page.0 == code && page.1.contains(&state) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
                self.clock.advance_ms(2_000);
            }
        };
        tokio::time::timeout(NOTICED_WITHIN, noticed).await.expect(&state);
        let said = async {
            while self.serves().await != is_ready {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(NOTICED_WITHIN, said).await.expect("one word of both");
    }
}

/// Its log is sound, and nothing that begins there can be written: it gives no more times. It would
/// be sent writes for ever, and refuse them the fastest of all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_lease_cannot_be_written_is_not_ready() {
    let mut odd = Odd::start().await;
    odd.client.write(write("before", "v")).await.expect("written");
    odd.shows("serving", true).await;
    let (operation, path_contains) = (Some(Operation::SyncData), "LEASE".to_owned());
    odd.disk.inject(Fault { operation, path_contains, ..Fault::default() });
    odd.clock.advance_ms(60_000);
    odd.client.write(write("late", "v")).await.expect_err("there is no time for it");
    let status = odd.client.write(write("later", "v")).await.expect_err("nothing is tried again");
    assert_eq!(refusal(&status).1, "READ_ONLY");
    odd.shows("read_only", false).await;
    let row = odd.client.read(read("before")).await.expect("read").into_inner();
    assert_eq!(values(&row), ["v"]);
    odd.node.stop(&CancellationToken::new()).await.expect("stops");
}

/// It refuses what others write now, as far ahead of its clock. A step ahead is believed when it
/// has stood for five minutes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_clock_was_set_far_back_is_not_ready_until_it_is_right() {
    let mut odd = Odd::start().await;
    odd.client.write(write("before", "v")).await.expect("written");
    odd.clock.set_ms(T0_MS - 2 * 3_600_000);
    odd.shows("clock_unsafe", false).await;
    odd.clock.set_ms(T0_MS + 3_600_000);
    odd.shows("serving", true).await;
    odd.client.write(write("after", "v")).await.expect("written");
    odd.node.stop(&CancellationToken::new()).await.expect("stops");
}
