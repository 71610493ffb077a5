//! Changes of the layout as operators make them: by commands and their exit codes, and by SIGTERM
//! in a pod.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use pairdb::proto;
use pairdb::proto::admin_client::AdminClient;
use pairdb::proto::key_value_client::KeyValueClient;

use crate::CONVERGED_WITHIN;
use crate::nodes::{Nodes, values};

/// Begun, and not ended yet.
pub const UNDER_WAY: i32 = 7;
/// Longest wait for what nothing is in the way of.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// One of the first three nodes, not the first and not the one that leads the layout's group: a
/// change can be decided without it.
pub fn follower(nodes: &Nodes) -> usize {
    follower_among(nodes, [1, 2])
}

/// One of these that does not lead.
pub fn follower_among<const N: usize>(nodes: &Nodes, places: [usize; N]) -> usize {
    let status = json(nodes, 0, &["status"]);
    let all = status["nodes"].as_array().expect("nodes");
    let leads = |at: &usize| {
        let name = format!("n{at}");
        let node = all.iter().find(|node| node["name"] == name.as_str());
        node.expect("it is a member")["node_id"] == status["layout"]["leader"]
    };
    places.into_iter().find(|at| !leads(at)).expect("one leads")
}

pub fn json(nodes: &Nodes, at: usize, arguments: &[&str]) -> serde_json::Value {
    nodes.json(at, &[arguments, &["--output", "json"]].concat())
}

/// Waits until a command's answer is as it should be, and gives it.
pub fn wait_for(
    nodes: &Nodes,
    command: &[&str],
    is_so: impl Fn(&serde_json::Value) -> bool,
) -> serde_json::Value {
    let end = Instant::now() + PATIENCE;
    loop {
        let told = json(nodes, 0, command);
        if is_so(&told) {
            return told;
        }
        assert!(Instant::now() < end, "{command:?}: {told:#}");
        std::thread::park_timeout(Duration::from_millis(100));
    }
}

/// Plan, drain, certificate, and what is left of the node: the whole of a departure.
#[test]
fn a_node_is_planned_out_drained_and_its_certificate_checked_by_commands() {
    let mut nodes = Nodes::start(3);
    let refused = nodes.run(0, &["drain", "n1", "--wait"]);
    assert_eq!(refused.code, 5, "{}", refused.stderr);
    assert!(refused.stderr.contains("TOO_FEW_OWNERS"), "{}", refused.stderr);
    let plan = nodes.run(0, &["layout", "plan", "--leave", "n1"]);
    assert_eq!(plan.code, 5, "{}", plan.stderr);
    assert!(plan.stderr.contains("refused: 2 owners would be left"), "{}", plan.stderr);

    let fourth = nodes.join();
    nodes.wait_until_stable(0, 4);
    let written = nodes.write_keys("key", 30, 0);
    // A node that has just come may get its share as hints.
    nodes.wait_until_equal(&written, 0, CONVERGED_WITHIN);
    let plan = json(&nodes, 0, &["layout", "plan", "--leave", "n3"]);
    assert_eq!(plan["refusals"], serde_json::json!([]), "{plan}");
    assert!(plan["movements"].as_array().is_some_and(|all| !all.is_empty()), "{plan}");
    let before = json(&nodes, 0, &["layout", "show"]);
    assert_eq!(before["phase"], "stable", "{before}");

    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("n3.json").display().to_string();
    let drain = ["drain", "n3", "--wait", "--certificate", &file];
    let left = json(&nodes, 0, &drain);
    assert_eq!(left["phase"], "left", "{left}");
    // Its process may still close its files.
    nodes.delete(fourth);
    assert_eq!(nodes.wait(fourth), 0, "who has left ends by itself, and well");
    let verified = json(&nodes, 1, &["drain", "verify", &file]);
    assert_eq!(verified["valid"], true, "{verified}");
    assert_eq!(verified["digest"], left["certificate_digest"]);
    let by_name = json(&nodes, 0, &["drain", "verify", "--node", "n3"]);
    assert_eq!(by_name["digest"], verified["digest"]);
    let text = std::fs::read_to_string(&file).expect("the certificate");
    std::fs::write(&file, text.replacen("\"keys\":", "\"keys\":9", 1)).expect("written");
    let forged = nodes.run(0, &["drain", "verify", &file]);
    assert_eq!(forged.code, 1, "{}", forged.stdout);
    assert!(forged.stdout.starts_with("not valid: "), "{}", forged.stdout);
    for key in &written {
        assert_eq!(values(&json(&nodes, 1, &["get", key])), [key.as_str()]);
    }
    let (_, figures) = nodes.page(0, "/metrics");
    assert!(figures.contains("\npairdb_layout_members 3\n"), "who has left is none: {figures}");
    // Again: it has left, which is what was asked for.
    assert_eq!(json(&nodes, 0, &["drain", "n3", "--status"])["phase"], "left");
}

/// A dead node's place is taken by a new one, in one change of the layout; what that may cost must
/// be accepted.
#[test]
fn a_dead_node_is_replaced_by_one_change_and_its_loss_must_be_accepted() {
    let mut nodes = Nodes::start(3);
    let written = nodes.write_keys("key", 20, 0);
    let dead = follower(&nodes);
    let dead_name = format!("n{dead}");
    nodes.kill(dead);
    nodes.wait_until_down(0, 1);
    let replace = ["replace", &dead_name, "n3"];
    let careful = nodes.run(0, &replace);
    assert_eq!(careful.code, 5, "{}", careful.stderr);
    assert!(careful.stderr.contains("--accept-loss"), "{}", careful.stderr);
    let before = json(&nodes, 0, &["layout", "show"])["epoch"].as_u64().expect("an epoch");
    nodes.ok(0, &[&replace[..], &["--accept-loss"]].concat());
    let shown = nodes.ok(0, &["layout", "show"]);
    assert!(shown.contains(&format!("{dead_name} is taken out when n3 joins")), "{shown}");

    let fourth = nodes.join();
    nodes.wait_until_stable(0, 3);
    let after = json(&nodes, 0, &["layout", "show"]);
    assert_eq!(after["epoch"].as_u64(), Some(before + 2), "one change: {after}");
    assert_eq!(state_of(&after, &dead_name), "removed");
    for key in &written {
        assert_eq!(values(&json(&nodes, fourth, &["get", key])), [key.as_str()]);
    }
    assert_eq!(nodes.run(0, &["remove", "n9", "--accept-loss"]).code, 5);
    assert_eq!(nodes.run(0, &["replace", "n9", "n5", "--accept-loss"]).code, 5);
    let (code, said) = nodes.restart_refused(dead);
    assert_eq!(code, 77, "{said}");
}

/// Who votes on the layout, as a status says, by name.
pub fn voters(status: &serde_json::Value) -> Vec<String> {
    let all = status["nodes"].as_array().expect("nodes").iter();
    let votes = all.filter(|node| node["voter"] == true);
    votes.map(|node| node["name"].as_str().expect("text").to_owned()).collect()
}

/// A command that waits returns when those vote on the layout who should: of those that are left
/// the next one may be lost at once.
#[test]
fn who_waits_until_a_dead_node_is_taken_out_has_others_vote_and_may_lose_the_next() {
    let mut nodes = Nodes::start(3);
    nodes.join();
    nodes.wait_until_stable(0, 4);
    let mut left: Vec<String> = (0..4).map(|at| format!("n{at}")).collect();
    let mut take_out = |nodes: &mut Nodes, dead: usize, command: &[&str]| {
        left.retain(|name| *name != format!("n{dead}"));
        nodes.kill(dead);
        nodes.wait_until_down(0, 4 - left.len());
        nodes.ok(0, &[command, &["--accept-loss", "--wait"]].concat());
        assert_eq!(voters(&json(nodes, 0, &["status"])), left);
        let shown = json(nodes, 0, &["layout", "show"]);
        assert!(shown["phase"] == "stable" && shown["waits_for"] == serde_json::json!([]));
    };
    let first = follower(&nodes);
    take_out(&mut nodes, first, &["replace", &format!("n{first}"), "n3"]);
    let second = follower_among(&nodes, [3 - first, 3]);
    take_out(&mut nodes, second, &["remove", &format!("n{second}")]);
}

pub fn state_of<'s>(shown: &'s serde_json::Value, name: &str) -> &'s str {
    let nodes = shown["nodes"].as_array().expect("nodes");
    let node = nodes.iter().find(|node| node["name"] == name).expect("a member");
    node["state"].as_str().expect("a state")
}

/// A disk is lost: the node that comes up with an empty directory is another one. It is refused
/// under the old one's name until an operator says that it comes in for it.
#[test]
fn a_wiped_node_under_its_old_name_is_a_new_node() {
    let mut nodes = Nodes::start(3);
    let written = nodes.write_keys("key", 20, 0);
    let wiped = follower(&nodes);
    let name = format!("n{wiped}");
    let old_id = id_of(&nodes, &name, "normal");
    nodes.kill(wiped);
    nodes.delete(wiped);
    nodes.wait_until_down(0, 1);
    let (code, said) = nodes.restart_refused(wiped);
    assert!(code != 0 && said.contains("NAME_TAKEN"), "{code}: {said}");
    nodes.ok(0, &["replace", &name, &name, "--accept-loss"]);
    nodes.restart(wiped);
    nodes.wait_until_stable(0, 3);
    let new_id = id_of(&nodes, &name, "normal");
    assert_ne!(new_id, old_id);
    assert_eq!(id_of(&nodes, &name, "removed"), old_id);
    nodes.wait_until_up(0, 3);
    nodes.wait_until_equal(&written, 0, CONVERGED_WITHIN);
}

/// The id of the node of this name that is in this state.
fn id_of(nodes: &Nodes, name: &str, state: &str) -> String {
    let shown = json(nodes, 0, &["layout", "show"]);
    let all = shown["nodes"].as_array().expect("nodes");
    let node = all.iter().find(|node| node["name"] == name && node["state"] == state);
    let node = node.unwrap_or_else(|| panic!("no {name} is {state}: {shown:#}"));
    node["node_id"].as_str().expect("an id").to_owned()
}

/// With one copy of each row a dead node takes some along. The operator accepts that for exactly
/// the partitions that the plan names; all else is as before, and these can be used again.
#[test]
fn the_loss_of_partitions_is_planned_accepted_and_over() {
    let mut nodes = Nodes::start(3);
    nodes.ok(0, &["tenant", "set", "default", "--replication-factor", "1"]);
    nodes.wait_until_stable(0, 3);
    let written = nodes.write_keys("key", 30, 0);
    let dead = follower(&nodes);
    let name = format!("n{dead}");
    let owned = |key: &String| {
        let told = json(&nodes, 0, &["explain", "default", key]);
        told["replicas"][0]["node"] == name.as_str()
    };
    let (gone, kept): (Vec<_>, Vec<_>) = written.into_iter().partition(owned);
    assert!(!gone.is_empty() && !kept.is_empty());
    nodes.kill(dead);
    nodes.wait_until_down(0, 1);
    let plan = nodes.run(0, &["layout", "plan", "--remove", &name]);
    assert!(plan.stderr.contains("TOO_FEW_SOURCES"), "{}", plan.stderr);
    let last = plan.stdout.lines().find(|line| line.ends_with("keep too few replicas"));
    let count = last.and_then(|line| line.split(' ').next()).expect("a count").to_owned();
    let remove = ["remove", &name, "--accept-loss"];
    let refused = nodes.run(0, &remove);
    assert!(refused.stderr.contains("TOO_FEW_SOURCES"), "{}", refused.stderr);
    let other = nodes.run(0, &[&remove[..], &["--accept-lost-partitions", "1"]].concat());
    assert!(other.code == 5 && other.stderr.contains(&count), "{}", other.stderr);
    let accept = ["--accept-lost-partitions", &count, "--wait"];
    nodes.ok(0, &[&remove[..], &accept].concat());
    for key in &kept {
        assert_eq!(values(&json(&nodes, 0, &["get", key])), [key.as_str()]);
    }
    for key in &gone {
        assert_eq!(
            nodes.run(0, &["get", key]).code,
            3,
            "it is lost, and says that it is not there"
        );
        nodes.ok(0, &["put", key, "again"]);
        assert_eq!(nodes.ok(0, &["get", key]), "again");
    }
}

/// A drain that is not waited for to its end has not failed and has not ended: the exit code says
/// so, the node keeps its data, and the same command goes on with it.
#[test]
fn an_interrupted_drain_says_so_keeps_its_data_and_is_taken_up_again() {
    let mut nodes = Nodes::start(3);
    let fourth = nodes.join();
    nodes.wait_until_stable(0, 4);
    let written = nodes.write_keys("key", 20, 0);
    let paused = follower(&nodes);
    nodes.pause(paused);
    let drain = ["drain", "n3", "--wait"];
    let given_up = nodes.run(0, &[&drain[..], &["--timeout", "4s"]].concat());
    assert_eq!(given_up.code, UNDER_WAY, "{}", given_up.stderr);
    assert_eq!(json(&nodes, 0, &["drain", "n3", "--status"])["phase"], "merging");
    nodes.resume(paused);
    for key in &written {
        assert_eq!(nodes.ok(fourth, &["get", key]), *key, "it serves on while it leaves");
    }
    assert_eq!(json(&nodes, 0, &drain)["phase"], "left");
    assert_eq!(nodes.wait(fourth), 0);
    nodes.delete(fourth);
    for key in &written {
        assert_eq!(nodes.ok(0, &["get", key, "--consistency", "all"]), *key);
    }
}

/// The node that is asked to call a drain off may not have heard of it: it learns of it first.
#[test]
fn a_drain_is_called_off_through_a_node_that_has_not_heard_of_it() {
    let mut nodes = Nodes::start(3);
    nodes.join();
    nodes.wait_until_stable(0, 4);
    let late = follower(&nodes);
    nodes.pause(late);
    nodes.ok(0, &["drain", "n3"]);
    nodes.resume(late);
    let called_off = json(&nodes, late, &["drain", "n3", "--cancel"]);
    assert_eq!(called_off["phase"], "staying", "{called_off}");
    nodes.wait_until_stable(0, 4);
}

/// The limit holds for what is under way, and is told.
#[test]
fn the_rate_of_transfers_is_told_and_changed_while_the_node_runs() {
    let nodes = Nodes::start(1);
    assert_eq!(json(&nodes, 0, &["layout", "rate"])["bytes_per_second"], 8 << 20);
    assert_eq!(nodes.ok(0, &["layout", "rate", "64MiB"]), "64.0 MiB/s\n");
    assert_eq!(nodes.ok(0, &["layout", "rate", "0"]), "no limit\n");
    assert!(nodes.page(0, "/metrics").1.contains("pairdb_transfer_limit_bytes 0\n"));
}

/// A newcomer fetches from all and a node that leaves gives to all, so one tells all; who is down
/// is named, and does not keep the others from being told.
#[test]
fn the_rate_of_transfers_is_set_on_all_nodes_by_one_call() {
    let mut nodes = Nodes::start(3);
    let all = nodes.ok(0, &["layout", "rate", "64MiB", "--all"]);
    assert_eq!(all, "n0 64.0 MiB/s\nn1 64.0 MiB/s\nn2 64.0 MiB/s\n");
    nodes.kill(1);
    let done = nodes.run(0, &["layout", "rate", "2MiB", "--all"]);
    assert_eq!((done.code, &done.stdout[..]), (5, "n0 2.0 MiB/s\nn2 2.0 MiB/s\n"));
    assert!(done.stderr.starts_with("pairdb: n1: "), "{}", done.stderr);
    for at in [0, 2] {
        assert_eq!(json(&nodes, at, &["layout", "rate"])["bytes_per_second"], 2 << 20);
    }
}

/// Copies are made fewer and more again; each is a change of the layout like any other.
#[test]
fn the_number_of_copies_changes_by_a_change_of_the_layout() {
    let nodes = Nodes::start(3);
    let written = nodes.write_keys("key", 10, 0);
    for count in ["2", "3"] {
        let factor = format!("default={count}");
        nodes.ok(0, &["layout", "commit", "--replication-factor", &factor, "--wait"]);
        let explained = json(&nodes, 0, &["explain", "default", &written[0]]);
        assert_eq!(explained["replicas"].as_array().map(Vec::len).unwrap_or(0).to_string(), count);
        for key in &written {
            assert_eq!(values(&json(&nodes, 1, &["get", key])), [key.as_str()]);
        }
    }
}

/// With a receiver that does not answer a drain waits; it says so, is looked on at, and called off.
#[test]
fn a_drain_that_waits_says_so_and_is_called_off() {
    let mut nodes = Nodes::start(3);
    nodes.join();
    nodes.wait_until_stable(0, 4);
    nodes.write_keys("key", 10, 0);
    let paused = follower(&nodes);
    nodes.pause(paused);
    let begun = nodes.run(0, &["drain", "n3"]);
    assert_eq!(begun.code, 0, "{}", begun.stderr);
    let status = json(&nodes, 0, &["drain", "n3", "--status"]);
    assert_eq!(status["phase"], "merging", "{status}");
    let shown = nodes.ok(0, &["layout", "show"]);
    assert!(shown.contains("joint") && shown.contains("waits for"), "{shown}");
    let late = nodes.run(0, &["layout", "commit", "--weight", "n0=2"]);
    assert!(late.stderr.contains("TRANSITION_IN_PROGRESS"), "{}", late.stderr);
    assert_eq!(json(&nodes, 0, &["drain", "n3", "--cancel"])["phase"], "staying");
    nodes.resume(paused);
    nodes.wait_until_stable(0, 4);
    let late = nodes.run(0, &["layout", "commit", "--weight", "n0=2", "--wait", "--timeout", "1s"]);
    assert!([0, UNDER_WAY].contains(&late.code), "{}: {}", late.code, late.stderr);
}

/// A fake API server whose set has as many replicas as is said.
pub fn api_server(replicas: &Arc<AtomicU32>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let replicas = Arc::clone(replicas);
    // It ends with the test's process.
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read_exact(&mut byte).is_ok() {
                head.push(byte[0]);
            }
            let count = replicas.load(Ordering::SeqCst);
            let body = format!("{{\"metadata\":{{}},\"spec\":{{\"replicas\":{count}}}}}");
            // A node that has gone does not listen.
            let _ =
                write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        }
    });
    url
}

pub fn pod_settings(api: &str, dir: &tempfile::TempDir) -> Vec<(String, String)> {
    for (file, text) in [("token", "secret"), ("namespace", "data")] {
        std::fs::write(dir.path().join(file), text).expect("written");
    }
    let dir = dir.path().display().to_string();
    [("ENABLED", "true"), ("API", api), ("POD_NAME", "n-3"), ("SERVICE_ACCOUNT_DIR", &dir)]
        .map(|(name, value)| (format!("PAIRDB__KUBERNETES__{name}"), value.to_owned()))
        .to_vec()
}

/// The set becomes smaller: the pod that goes drains at SIGTERM, and its volume is of no use after.
#[test]
fn a_pod_beyond_its_set_has_left_when_its_process_ends() {
    let replicas = Arc::new(AtomicU32::new(4));
    let dir = tempfile::tempdir().expect("a directory");
    let mut nodes = Nodes::start(3);
    let settings = pod_settings(&api_server(&replicas), &dir);
    let fourth = nodes.join_with(&settings);
    nodes.wait_until_stable(0, 4);
    let written = nodes.write_keys("key", 30, fourth);
    replicas.store(3, Ordering::SeqCst);
    nodes.signal(fourth);
    assert_eq!(nodes.wait(fourth), 0);
    nodes.delete(fourth);
    nodes.wait_until_stable(0, 3);
    for key in &written {
        assert_eq!(values(&json(&nodes, 1, &["get", key])), [key.as_str()]);
    }
    assert_eq!(json(&nodes, 0, &["drain", "verify", "--node", "n3"])["valid"], true);
}

/// Scaled down and up again in mid-drain: the pod stays, and is a whole member when it is back.
#[test]
fn a_pod_that_is_wanted_again_in_mid_drain_stays() {
    let replicas = Arc::new(AtomicU32::new(4));
    let dir = tempfile::tempdir().expect("a directory");
    let mut nodes = Nodes::start(3);
    let settings = pod_settings(&api_server(&replicas), &dir);
    let fourth = nodes.join_with(&settings);
    nodes.wait_until_stable(0, 4);
    let written = nodes.write_keys("key", 10, fourth);
    // One of those who would merge its rows does not: the drain cannot end.
    replicas.store(3, Ordering::SeqCst);
    let paused = follower(&nodes);
    nodes.pause(paused);
    nodes.signal(fourth);
    let end = Instant::now() + Duration::from_secs(30);
    while json(&nodes, 0, &["drain", "n3", "--status"])["phase"] != "merging" {
        assert!(Instant::now() < end, "the drain does not begin");
        std::thread::park_timeout(Duration::from_millis(100));
    }
    replicas.store(4, Ordering::SeqCst);
    assert_eq!(nodes.wait(fourth), 0, "it is a restart after all");
    nodes.resume(paused);
    nodes.restart_with(fourth, &settings);
    nodes.wait_until_stable(0, 4);
    nodes.wait_until_equal(&written, fourth, Duration::from_secs(60));
}

/// A copy ends when its caller goes; the cursor of the last answer goes on behind it, and nothing
/// is counted twice or left out.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_is_interrupted_goes_on_behind_the_page_it_reached() {
    let nodes = Nodes::start(2);
    let channel = nodes.channel(0).await;
    let mut clients = KeyValueClient::new(channel.clone());
    for n in 0..40 {
        let request = proto::WriteRequest {
            tenant: "default".to_owned(),
            key: format!("key-{n}").into(),
            value: vec![b'v'; 100_000].into(),
            ..Default::default()
        };
        clients.write(request).await.expect("written");
    }
    let mut admin = AdminClient::new(channel);
    let mut request = proto::ReplicateDataRequest { to: "n1".to_owned(), ..Default::default() };
    let (mut keys, mut calls) = (0, 0);
    loop {
        calls += 1;
        let mut pages = admin.replicate_data(request.clone()).await.expect("begins").into_inner();
        let page = pages.message().await.expect("answered").expect("a page");
        assert_eq!((page.refused, page.elsewhere), (0, 0), "{}", page.refusal);
        assert_eq!(page.digest, page.digest_there);
        keys += page.keys;
        if page.cursor.is_empty() {
            break;
        }
        request.cursor = page.cursor;
    }
    assert!(calls > 2, "{calls} pages");
    assert_eq!(keys, 40);
    request.to = "n0".to_owned();
    let refused = admin.replicate_data(request).await.expect_err("the cursor is of another copy");
    assert!(refused.message().contains("the receiver is the node"), "{refused}");
}

/// A change of a tenant that is refused begins no transition for the part of it that could be.
#[test]
fn a_change_of_a_tenant_is_refused_as_a_whole() {
    let nodes = Nodes::start(3);
    let before = json(&nodes, 0, &["layout", "show"]);
    let limits = ["--default-ttl", "10s", "--max-ttl", "5s"];
    let change = [&["tenant", "set", "default", "--replication-factor", "1"][..], &limits].concat();
    let refused = nodes.run(0, &change);
    assert!(refused.stderr.contains("INVALID_TTL"), "{}", refused.stderr);
    assert!(refused.stderr.contains("nothing was changed"), "{}", refused.stderr);
    assert_eq!(json(&nodes, 0, &["layout", "show"])["epoch"], before["epoch"]);
}
