//! What the nodes have used so far.

use std::ops::Range;

use crate::nodes::Nodes;

/// `sysconf(_SC_CLK_TCK)` of Linux, wherever this project runs.
const TICKS_PER_S: f64 = 100.0;

/// Summed over the nodes.
pub struct Figures {
    pub cpu_s: f64,
    /// Sent to other nodes.
    pub requests: f64,
    pub syncs: f64,
    pub log_bytes: f64,
    /// Of the machine.
    pub loopback_bytes: f64,
}

impl Figures {
    /// Since the nodes started.
    pub fn of(nodes: &Nodes) -> Self {
        let all = 0..nodes.len();
        let sum = |name: &str| all.clone().map(|at| metric(nodes, at, name)).sum();
        Self {
            cpu_s: cpu_s(nodes, all.clone()),
            requests: sum("pairdb_peer_requests_sent_total"),
            syncs: sum("pairdb_commit_log_syncs_total"),
            log_bytes: sum("pairdb_commit_log_written_bytes_total"),
            loopback_bytes: loopback_bytes(),
        }
    }

    /// Between two readings.
    pub fn since(&self, before: &Self) -> Self {
        Self {
            cpu_s: self.cpu_s - before.cpu_s,
            requests: self.requests - before.requests,
            syncs: self.syncs - before.syncs,
            log_bytes: self.log_bytes - before.log_bytes,
            loopback_bytes: self.loopback_bytes - before.loopback_bytes,
        }
    }
}

/// Rows that a node keeps for others.
pub fn hints(nodes: &Nodes, at: usize) -> f64 {
    metric(nodes, at, "pairdb_hints_pending")
}

/// Bytes of rows that some nodes fetched or gave away because owners changed.
pub fn transferred(nodes: &Nodes, which: Range<usize>) -> f64 {
    which.map(|at| metric(nodes, at, "pairdb_transfer_bytes_total")).sum()
}

/// Bytes of tables that some nodes have written.
pub fn tables_written(nodes: &Nodes, which: Range<usize>) -> f64 {
    let names = ["pairdb_flush_written_bytes_total", "pairdb_compaction_written_bytes_total"];
    which.flat_map(|at| names.map(|name| metric(nodes, at, name))).sum()
}

fn metric(nodes: &Nodes, at: usize, name: &str) -> f64 {
    let (_, page) = nodes.page(at, "/metrics");
    let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let value = line.and_then(|value| value.trim().parse().ok());
    value.unwrap_or_else(|| panic!("{name} is not shown"))
}

/// Of some nodes, since they started.
pub fn cpu_s(nodes: &Nodes, which: Range<usize>) -> f64 {
    which.map(|at| cpu_s_of(nodes.id(at))).sum()
}

fn cpu_s_of(process: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).expect("it runs");
    // The name may hold spaces; the fields after it do not. utime and stime are the 14th and 15th.
    let after_name = stat.rsplit(')').next().expect("a name in brackets");
    let ticks = after_name.split_whitespace().skip(11).take(2);
    ticks.map(|ticks| ticks.parse::<f64>().expect("a figure")).sum::<f64>() / TICKS_PER_S
}

fn loopback_bytes() -> f64 {
    let all = std::fs::read_to_string("/proc/net/dev").expect("Linux has it");
    let line = all.lines().find_map(|line| line.trim().strip_prefix("lo:"));
    let received = line.and_then(|line| line.split_whitespace().next());
    received.and_then(|bytes| bytes.parse().ok()).expect("a loopback device")
}
