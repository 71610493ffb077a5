//! SIGTERM, once and twice, and what the health pages say meanwhile.

use std::time::{Duration, Instant};

use tonic::Code;

use pairdb::proto;

use super::fake::{Answer, Fake};
use super::node::{CliNode, pairdb};

/// The first SIGTERM takes readiness away, while everything is still served, so that balancers can
/// notice; liveness stays. The second one ends the waiting. What was acknowledged is there after.
#[test]
fn a_node_that_stops_is_alive_and_not_ready_and_the_second_sigterm_is_fast() {
    let mut node = CliNode::with(&[("PAIRDB__NODE__SHUTDOWN_GRACE", "10m")]);
    node.ok(&["put", "k", "v"]);
    for path in ["/health", "/health/live", "/health/ready", "/ready"] {
        let (code, body) = node.page(path);
        assert_eq!(code, 200, "{path}: {body}");
        assert!(body.contains("\"state\":\"serving\""), "{path}: {body}");
    }
    assert!(node.page("/health").1.contains("\"disk\":\""));

    node.signal();
    let patience = Instant::now() + Duration::from_secs(30);
    while node.page("/health/ready").0 == 200 {
        assert!(Instant::now() < patience, "readiness stays after SIGTERM");
        std::thread::sleep(Duration::from_millis(5));
    }
    for (path, expected) in
        [("/health", 200), ("/health/live", 200), ("/health/ready", 503), ("/ready", 503)]
    {
        let (code, body) = node.page(path);
        assert_eq!(code, expected, "{path}: {body}");
        assert!(body.contains("\"state\":\"stopping\""), "{path}: {body}");
    }
    assert_eq!(node.ok(&["get", "k"]), "v", "served in the time of grace");
    node.ok(&["put", "late", "v"]);

    let second = Instant::now();
    assert_eq!(node.terminate(), 0);
    assert!(second.elapsed() < Duration::from_secs(30), "the second SIGTERM is fast");
    node.restart();
    assert_eq!((node.ok(&["get", "k"]), node.ok(&["get", "late"])), ("v".into(), "v".into()));
}

/// What SIGTERM does, an operator can ask for from anywhere; the data is there after.
#[test]
fn a_node_that_is_asked_to_stop_stops_and_keeps_what_it_has() {
    let mut node = CliNode::start();
    node.ok(&["put", "k", "v"]);
    assert_eq!(node.ok(&["stop"]), "the node takes no more calls\n");
    assert_eq!(node.wait(), 0);
    assert!(!std::path::Path::new(&node.ready_file).exists());
    assert_eq!(node.run(&["stop", "--timeout", "1s"]).code, 5, "it is not there any more");
    node.restart();
    assert_eq!(node.ok(&["get", "k"]), "v");
}

/// Only that a node cannot be reached, or lives again, shows that it has ended.
#[test]
fn a_node_that_is_silent_or_refuses_has_not_stopped() {
    let stopping = |status: fn() -> Answer| {
        Fake::start(move |method, _| match method {
            "StopNode" => Answer::one(&proto::StopNodeResponse { within_ms: 300 }),
            _ => status(),
        })
    };
    let silent = stopping(|| Answer::Silence);
    let refuses = stopping(|| Answer::refusal(Code::Internal, "ENGINE"));
    for (fake, why) in [(silent, "TIMEOUT"), (refuses, "ENGINE")] {
        let done = pairdb(&["stop", "--timeout", "100ms", "--endpoint", &fake.endpoint]);
        assert_eq!((done.code, &*done.stdout), (5, ""), "{}", done.stderr);
        assert!(done.stderr.contains(why), "{}", done.stderr);
    }
}
