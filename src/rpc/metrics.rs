//! What the services count. Handles of hot series are resolved once.

use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
};
use tonic::Code;

use super::method::Method;
use crate::store::Outcome;

/// Bounds of latency buckets, in seconds: 50 us to 10 s.
const LATENCY_BUCKETS: [f64; 16] = [
    0.000_05, 0.000_1, 0.000_2, 0.000_4, 0.000_8, 0.001_6, 0.003, 0.006, 0.012, 0.025, 0.05, 0.1,
    0.25, 1.0, 2.5, 10.0,
];

/// The counters of one call, resolved.
#[derive(Debug)]
struct Handles {
    ok: IntCounter,
    latency: Histogram,
}

/// The counters of the services.
#[derive(Debug)]
pub struct Metrics {
    requests: IntCounterVec,
    handles: Vec<Handles>,
    /// Calls being served.
    pub in_flight: IntGauge,
    /// Pipelines open.
    pub pipelines: IntGauge,
    /// Operations that came through pipelines.
    pub pipeline_operations: IntCounter,
    /// Bytes of keys and values received.
    pub bytes_received: IntCounter,
    /// Bytes of keys and values sent.
    pub bytes_sent: IntCounter,
    /// Rows joined by Replicate.
    pub rows_replicated: IntCounter,
    /// Rows joined by Repair.
    pub rows_repaired: IntCounter,
    writes_ok: IntCounter,
    writes_not_applied: IntCounter,
    writes_unknown: IntCounter,
}

impl Metrics {
    /// Creates the series and registers them.
    ///
    /// # Errors
    /// A name is registered already.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let requests = IntCounterVec::new(
            Opts::new("pairdb_rpc_requests_total", "Calls answered, by code."),
            &["grpc_service", "grpc_method", "grpc_code"],
        )?;
        let latency = HistogramVec::new(
            HistogramOpts::new(
                "pairdb_rpc_request_duration_seconds",
                "Time to the answer, or to the head of it for streams.",
            )
            .buckets(LATENCY_BUCKETS.to_vec()),
            &["grpc_service", "grpc_method"],
        )?;
        let handles = Method::ALL
            .iter()
            .map(|method| {
                let (service, name) = method.names();
                Handles {
                    ok: requests.with_label_values(&[service, name, code_name(Code::Ok)]),
                    latency: latency.with_label_values(&[service, name]),
                }
            })
            .collect();
        let writes = IntCounterVec::new(
            Opts::new("pairdb_rpc_writes_total", "Single writes and deletes, by outcome."),
            &["outcome"],
        )?;
        let metrics = Self {
            handles,
            in_flight: gauge("in_flight_requests", "Calls being served.")?,
            pipelines: gauge("pipelines_open", "Pipelines open.")?,
            pipeline_operations: counter("pipeline_operations_total", "Operations of pipelines.")?,
            bytes_received: counter("received_bytes_total", "Keys and values received.")?,
            bytes_sent: counter("sent_bytes_total", "Keys and values sent.")?,
            rows_replicated: counter("rows_replicated_total", "Rows joined by Replicate.")?,
            rows_repaired: counter("rows_repaired_total", "Rows joined by Repair.")?,
            writes_ok: writes.with_label_values(&["ok"]),
            writes_not_applied: writes.with_label_values(&["not_applied"]),
            writes_unknown: writes.with_label_values(&["unknown"]),
            requests,
        };
        let all: [Box<dyn Collector>; 10] = [
            Box::new(metrics.requests.clone()),
            Box::new(latency),
            Box::new(writes),
            Box::new(metrics.in_flight.clone()),
            Box::new(metrics.pipelines.clone()),
            Box::new(metrics.pipeline_operations.clone()),
            Box::new(metrics.bytes_received.clone()),
            Box::new(metrics.bytes_sent.clone()),
            Box::new(metrics.rows_replicated.clone()),
            Box::new(metrics.rows_repaired.clone()),
        ];
        for collector in all {
            registry.register(collector)?;
        }
        Ok(metrics)
    }

    /// Counts an answered call.
    pub(super) fn answered(&self, method: Method, code: Code, took: Duration) {
        let handles = &self.handles[method as usize];
        handles.latency.observe(took.as_secs_f64());
        if code == Code::Ok {
            handles.ok.inc();
        } else {
            let (service, name) = method.names();
            self.requests.with_label_values(&[service, name, code_name(code)]).inc();
        }
    }

    /// Counts writes that were not submitted.
    pub(super) fn refused(&self, writes: u64) {
        self.writes_not_applied.inc_by(writes);
    }

    /// Counts a write by what became of it; `None` is durable.
    pub(super) fn written(&self, outcome: Option<Outcome>) {
        match outcome {
            None => self.writes_ok.inc(),
            Some(Outcome::NotApplied) => self.writes_not_applied.inc(),
            Some(Outcome::Unknown) => self.writes_unknown.inc(),
        }
    }
}

fn counter(name: &str, help: &str) -> prometheus::Result<IntCounter> {
    IntCounter::with_opts(Opts::new(format!("pairdb_rpc_{name}"), help))
}

fn gauge(name: &str, help: &str) -> prometheus::Result<IntGauge> {
    IntGauge::with_opts(Opts::new(format!("pairdb_rpc_{name}"), help))
}

/// The code's name, as dashboards write it.
pub(super) fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
