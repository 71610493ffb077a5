//! What commands say when they do not do what was meant: what it was, and what would do.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::TcpListener;

use pairdb::proto::{self, DrainPhase, TransitionPhase};
use rustix::process::Signal;
use tonic::Code;

use super::fake::{Answer, Fake};
use super::node::{CliNode, begin_unread, pairdb, signal};

/// With several endpoints the one that is wrong must be told from those that are right. The ports
/// of peers and of metrics answer, and are no node to a client.
#[test]
fn where_no_node_answers_the_endpoint_is_named() {
    let node = CliNode::start();
    let at = |name: &str| format!("http://{}", node.ready[name].as_str().expect("an address"));
    let (peer, admin) = (at("peer_listen"), at("admin_listen"));
    let gone = ["http://127.0.0.1:1", "http://127.0.0.1:2"];
    let both = gone.join(",");
    for command in [&["health"][..], &["get", "k"], &["put", "k", "v"], &["scan"]] {
        let run = |endpoint: &str| {
            let done = pairdb(&[command, &["--endpoint", endpoint, "--timeout", "1s"]].concat());
            assert_eq!(done.code, 5, "{command:?}: {}", done.stderr);
            done.stderr
        };
        let told = run(gone[0]);
        assert!(told.contains("http://127.0.0.1:1: tcp connect error"), "{command:?}: {told}");
        if command[0] != "scan" {
            assert!(run(&both).contains(gone[0]) && run(&both).contains(gone[1]), "{command:?}");
        }
        for other in [&peer, &admin] {
            let told = run(other);
            let expected = format!("{other}: this is no client port of a PairDB node");
            assert!(told.contains(&expected), "{command:?}: {told}");
        }
    }
}

/// What is no write has no word of one.
#[test]
fn what_is_no_write_is_not_said_to_be_one() {
    let node = CliNode::start();
    let verify = node.run(&["drain", "verify", "--node", "nobody"]);
    assert!(verify.stderr.contains("UNKNOWN_NODE"), "{}", verify.stderr);
    node.ok(&["checkpoint", "one"]);
    let twice = node.run(&["checkpoint", "one"]);
    assert!(twice.stderr.contains("the checkpoint \"one\" exists already"), "{}", twice.stderr);
    for done in [verify, twice] {
        assert_ne!(done.code, 0);
        assert!(!done.stderr.contains("write"), "{}", done.stderr);
    }
    let name = node.run(&["tenant", "create", "Foo"]);
    assert_eq!(name.code, 5, "{}", name.stderr);
    assert_eq!(name.stderr.matches("Foo").count(), 1, "{}", name.stderr);
    let empty = node.path("empty");
    fs::write(&empty, "\n").expect("written");
    let done = node.run(&["drain", "verify", &empty]);
    assert_eq!(done.code, 1);
    assert!(done.stderr.contains(&format!("{empty} is empty")), "{}", done.stderr);
    let done = pairdb(&["verify", "check", &empty]);
    assert_eq!((done.code, &*done.stdout), (1, ""), "{}", done.stderr);
    assert!(done.stderr.contains(&empty), "{}", done.stderr);
}

/// What a variable leaves that is not set, or a command that has failed.
#[test]
fn what_is_empty_is_not_taken_for_what_is_not_given() {
    let node = CliNode::start();
    node.ok(&["put", "k", "v"]);
    for write in [&["put", "k", "other"][..], &["delete", "k"]] {
        let done = node.run(&[write, &["--context", ""]].concat());
        assert_eq!(done.code, 2, "{write:?}: {}", done.stderr);
        assert!(done.stderr.contains("--context is empty"), "{write:?}: {}", done.stderr);
    }
    assert_eq!(node.ok(&["get", "k"]), "v", "no sibling was made");
    for of_key in [&["ring", "--key", ""][..], &["explain", "default", ""]] {
        let done = node.run(of_key);
        assert_eq!(done.code, 1, "{of_key:?}: {}", done.stdout);
        assert!(done.stderr.contains("EMPTY_KEY"), "{of_key:?}: {}", done.stderr);
    }
}

#[test]
fn a_tenant_has_no_more_than_its_limits_allow() {
    let node = CliNode::start();
    for verb in ["create", "set"] {
        for count in ["0", "16", "1000"] {
            let done = node.run(&["tenant", verb, "x", "--replication-factor", count]);
            assert_eq!(done.code, 2, "{verb} {count}: {}", done.stderr);
            assert!(done.stderr.contains("1..=15"), "{verb} {count}: {}", done.stderr);
        }
        let name = if verb == "set" { "default" } else { "x" };
        for setting in ["--default-ttl", "--max-ttl"] {
            let done = node.run(&["tenant", verb, name, setting, "5000d"]);
            assert_eq!(done.code, 5, "{verb} {setting}: {}", done.stderr);
            assert!(done.stderr.contains("INVALID_TTL"), "{verb} {setting}: {}", done.stderr);
        }
    }
    assert_eq!(node.ok(&["tenant", "list"]).trim(), "default");
    assert_eq!(node.run(&["layout", "plan", "--join", "z=0"]).code, 2);
}

/// A request that is too large is refused before the node sees what is in it.
#[test]
fn a_value_that_is_too_long_is_told_with_the_limits() {
    let node = CliNode::start();
    let file = node.path("large");
    fs::write(&file, vec![b'x'; 5 << 20]).expect("written");
    let done = node.run(&["put", "k", "--file", &file]);
    assert_eq!(done.code, 5, "{}", done.stderr);
    for part in ["the value has 5242880 bytes", "limits.value_bytes_max", "limit is 4194304"] {
        assert!(done.stderr.contains(part), "{}", done.stderr);
    }
    fs::write(&file, vec![b'x'; 11 << 20]).expect("written");
    let done = node.run(&["put", "k", "--file", &file]);
    assert_eq!(done.code, 5, "{}", done.stderr);
    assert!(done.stderr.contains("more than 10485760 bytes"), "{}", done.stderr);
    assert_eq!(node.run(&["get", "k"]).code, 3);
}

/// Begins a command, tells it to end when it looks on, and gives its code and what it said.
fn interrupted(arguments: &[&str], looks_on: &str) -> (i32, String) {
    let mut child = begin_unread(arguments);
    let mut lines = BufReader::new(child.stderr.take().expect("piped"));
    let mut said = String::new();
    while !said.contains(looks_on) {
        assert_ne!(lines.read_line(&mut said).expect("a line"), 0, "it ended: {said}");
    }
    signal(&child, Signal::TERM);
    lines.read_to_string(&mut said).expect("text");
    (child.wait().expect("it ends").code().expect("it exits"), said)
}

/// What was begun goes on, and a script must not take it for undone.
#[test]
fn who_looks_on_and_is_interrupted_says_that_it_goes_on() {
    let fake = Fake::start(|method, _| match method {
        "DrainNode" => Answer::one(&proto::DrainProgress {
            node_name: "n4".to_owned(),
            phase: DrainPhase::Merging.into(),
            ..Default::default()
        }),
        "PlanLayout" => Answer::one(&proto::PlanLayoutResponse::default()),
        "CommitLayout" => Answer::one(&proto::CommitLayoutResponse { epoch: 2 }),
        "ClusterStatus" => {
            let phase = TransitionPhase::Joint.into();
            let state = proto::TransitionState { phase, epoch: 2, ..Default::default() };
            let layout = proto::LayoutState { state: Some(state), ..Default::default() };
            Answer::one(&proto::ClusterStatusResponse {
                layout: Some(layout),
                ..Default::default()
            })
        }
        _ => Answer::refusal(Code::Unimplemented, "UNIMPLEMENTED"),
    });
    let at = ["--wait", "--endpoint", &fake.endpoint];
    let (code, said) = interrupted(&[&["drain", "n4"][..], &at].concat(), "n4: others merge");
    assert_eq!(code, 7, "{said}");
    assert!(said.contains("pairdb drain n4 --status"), "{said}");
    let commit = ["layout", "commit", "--weight", "n4=2"];
    let (code, said) = interrupted(&[&commit[..], &at].concat(), "joint");
    assert_eq!(code, 7, "{said}");
    assert!(said.contains("pairdb layout show"), "{said}");
}

/// The others would wait for it: whichever it is, that it has ended is told, and why.
#[test]
fn a_cluster_of_which_any_node_cannot_start_is_not_waited_for() {
    let free = || TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = |listener: &TcpListener| listener.local_addr().expect("bound").port();
    // A port that is taken, behind one that is free.
    let (taken, first) = loop {
        let taken = free();
        let first = port(&taken) - 1;
        if TcpListener::bind(("127.0.0.1", first)).is_ok() {
            break (taken, first);
        }
    };
    let (peer, admin) = (port(&free()), port(&free()));
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("dev");
    let [first, peer, admin] = [first, peer, admin].map(|port| port.to_string());
    let ports = ["--client-port", &first, "--peer-port", &peer, "--admin-port", &admin];
    let nodes = ["dev", "--nodes", "2", "--data-dir", data.to_str().expect("UTF-8")];
    let done = pairdb(&[&nodes[..], &ports].concat());
    assert_eq!(done.code, 1, "{}", done.stderr);
    let log = data.join("node-2.log");
    for part in ["node-2 ended: exit status: 71", &log.display().to_string(), "in use"] {
        assert!(done.stderr.contains(part), "{}", done.stderr);
    }
    drop(taken);
}
