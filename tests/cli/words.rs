//! What commands say when they do not do what was meant: what it was, and what would do.

use super::node::{CliNode, pairdb};

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
    std::fs::write(&empty, "\n").expect("written");
    let done = node.run(&["drain", "verify", &empty]);
    assert_eq!(done.code, 1);
    assert!(done.stderr.contains(&format!("{empty} is empty")), "{}", done.stderr);
    let done = pairdb(&["verify", "check", &empty]);
    assert_eq!((done.code, &*done.stdout), (1, ""), "{}", done.stderr);
    assert!(done.stderr.contains(&empty), "{}", done.stderr);
}
