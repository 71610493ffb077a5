//! A load that goes on until it is told to stop: so many operations a second, whatever they take.
//!
//! Latencies count from when a call was due (open loop). Those of calls that were due while the
//! host left the machine alone ([`crate::host`]) are told apart: they are what this system makes of
//! it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;
use pairdb::proto;
use pairdb::proto::key_value_client::KeyValueClient;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tonic::transport::Channel;

use crate::host::Host;
use crate::keys::Random;
use crate::load::{self, latencies};
use crate::nodes::Nodes;
use crate::us;

/// Keys of the load.
pub const KEYS: u64 = 10_000;
/// Operations a second; half of them write.
const OFFERED: u64 = 400;
/// Callers.
const CALLERS: u64 = 16;
/// A call is slow that takes longer.
const SLOW: Duration = Duration::from_millis(10);
/// Slow calls that ended no further apart than this are one moment.
const MOMENT: Duration = Duration::from_millis(100);
/// Calls are due in windows of this length, which are quiet or not.
const WINDOW: Duration = Duration::from_millis(250);

/// The load while it runs.
pub struct Steady {
    stop: Arc<AtomicBool>,
    began: Instant,
    callers: Vec<JoinHandle<Vec<Call>>>,
}

/// A call that has ended.
#[derive(Clone, Copy)]
struct Call {
    due: Instant,
    took: Duration,
    is_read: bool,
    is_answered: bool,
}

impl Steady {
    /// Begins it by way of the first three nodes, which stay.
    pub fn start(runtime: &Runtime, nodes: &Nodes, value_bytes: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let value = Bytes::from(vec![b'v'; value_bytes]);
        let first = tokio::time::Instant::now();
        let callers = (0..CALLERS).map(|caller| {
            let client = KeyValueClient::new(runtime.block_on(nodes.channel(caller as usize % 3)));
            // Calls are due one after the other, not all callers' at once.
            let first = first + Duration::from_secs(1) * caller as u32 / OFFERED as u32;
            runtime.spawn(call(client, caller, first, value.clone(), Arc::clone(&stop)))
        });
        let callers = callers.collect();
        Self { stop, began: first.into_std(), callers }
    }

    /// Ends it: what there is to tell of it.
    pub fn end(self, runtime: &Runtime, host: &Host) -> String {
        self.stop.store(true, Ordering::Relaxed);
        let callers = self.callers.into_iter();
        let all = callers.flat_map(|caller| runtime.block_on(caller).expect("no caller panics"));
        let (answered, failed): (Vec<_>, Vec<_>) = all.partition(|call| call.is_answered);
        // What came before a window may still be waited for in it.
        let is_quiet = |call: &&Call| {
            let window = (call.due - self.began).as_millis() / WINDOW.as_millis();
            let from = self.began + WINDOW * window as u32;
            host.was_quiet(from.checked_sub(WINDOW).unwrap_or(from), from + WINDOW)
        };
        let took = |which: &dyn Fn(&&Call) -> bool| took(answered.iter().filter(which));
        let (all, quiet) = (took(&|_| true), took(&is_quiet));
        let (writes, reads) = (took(&|call| !call.is_read), took(&|call| call.is_read));
        format!(
            "\"calls\":{},\"p50_us\":{:.0},\"p99_us\":{:.0},\"write_p99_us\":{:.0},\
             \"read_p99_us\":{:.0},\"max_us\":{:.0},\"failed\":{},\
             \"quiet\":{{\"calls\":{},\"p50_us\":{:.0},\"p99_us\":{:.0}}},\"slow\":[{}]",
            all.len(),
            us(&all, 0.5),
            us(&all, 0.99),
            us(&writes, 0.99),
            us(&reads, 0.99),
            us(&all, 1.0),
            failed.len(),
            quiet.len(),
            us(&quiet, 0.5),
            us(&quiet, 0.99),
            moments(&answered, self.began)
        )
    }
}

fn took<'c>(calls: impl Iterator<Item = &'c Call>) -> Histogram<u64> {
    let mut latency_ns = latencies();
    for call in calls {
        latency_ns.saturating_record(call.took.as_nanos() as u64);
    }
    latency_ns
}

/// Moments with slow calls: the second in which one began, calls, the longest of them in ms.
fn moments(calls: &[Call], began: Instant) -> String {
    let mut slow: Vec<_> = calls.iter().filter(|call| call.took > SLOW).collect();
    let ended = |call: &Call| call.due + call.took;
    slow.sort_unstable_by_key(|call| ended(call));
    let moments = slow.chunk_by(|one, next| ended(next) - ended(one) <= MOMENT).map(|moment| {
        let longest = moment.iter().map(|call| call.took).max().unwrap_or_default();
        let at = moment[0].due.saturating_duration_since(began);
        format!("[{:.1},{},{}]", at.as_secs_f64(), moment.len(), longest.as_millis())
    });
    moments.collect::<Vec<_>>().join(",")
}

/// Reads and writes in turn.
async fn call(
    mut client: KeyValueClient<Channel>,
    caller: u64,
    first: tokio::time::Instant,
    value: Bytes,
    stop: Arc<AtomicBool>,
) -> Vec<Call> {
    let mut calls = Vec::new();
    let period = Duration::from_secs(1) * CALLERS as u32 / OFFERED as u32;
    let mut due = tokio::time::interval_at(first, period);
    due.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut random = Random(caller);
    for n in 0_u64.. {
        let due = due.tick().await.into_std();
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let key = format!("load-{}", random.below(KEYS));
        let (tenant, key) = (load::LWW.to_owned(), Bytes::from(key));
        let is_read = n % 2 == 1;
        let done = if is_read {
            let read = proto::ReadRequest { tenant, key, ..Default::default() };
            client.read(read).await.map(drop)
        } else {
            let value = value.clone();
            let write = proto::WriteRequest { tenant, key, value, ..Default::default() };
            client.write(write).await.map(drop)
        };
        calls.push(Call { due, took: due.elapsed(), is_read, is_answered: done.is_ok() });
    }
    calls
}
