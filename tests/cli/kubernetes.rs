//! A node as a pod of a StatefulSet, beside a fake API server on loopback.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::mpsc::{Receiver, channel};

use super::node::CliNode;

/// Answers every request with a StatefulSet of so many replicas, or an error; tells the requests.
fn api_server(status: &'static str, replicas: u32) -> (String, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let (told, requests) = channel();
    // It ends with the test's process.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read_exact(&mut byte).is_ok() {
                head.push(byte[0]);
            }
            let body = format!("{{\"metadata\":{{}},\"spec\":{{\"replicas\":{replicas}}}}}");
            let length = body.len();
            // A node that has gone does not listen.
            let _ = write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{body}");
            let _ = told.send(String::from_utf8_lossy(&head).into_owned());
        }
    });
    (url, requests)
}

/// What a pod is told, with the files of its service account.
fn settings<'s>(
    api: &'s str,
    name: &'s str,
    dir: &'s tempfile::TempDir,
) -> [(&'static str, &'s str); 5] {
    for (file, text) in [("token", "secret"), ("namespace", "data")] {
        fs::write(dir.path().join(file), text).expect("written");
    }
    [
        ("PAIRDB__KUBERNETES__ENABLED", "true"),
        ("PAIRDB__KUBERNETES__API", api),
        ("PAIRDB__KUBERNETES__POD_NAME", name),
        ("PAIRDB__KUBERNETES__SERVICE_ACCOUNT_DIR", dir.path().to_str().expect("UTF-8")),
        ("PAIRDB__KUBERNETES__TIMEOUT", "2s"),
    ]
}

fn pod(api: &str, name: &str, dir: &tempfile::TempDir) -> CliNode {
    CliNode::with(&settings(api, name, dir))
}

#[test]
fn a_pod_that_comes_back_just_stops() {
    let dir = tempfile::tempdir().expect("a directory");
    let (api, requests) = api_server("200 OK", 3);
    let mut node = pod(&api, "pairdb-2", &dir);
    node.ok(&["put", "k", "v"]);
    assert_eq!(node.terminate(), 0);
    let asked = requests.recv().expect("it asked");
    assert!(asked.starts_with("GET /apis/apps/v1/namespaces/data/statefulsets/pairdb HTTP/1.1"));
    assert!(asked.to_lowercase().contains("authorization: bearer secret"), "{asked}");
    node.restart();
    assert_eq!(node.ok(&["get", "k"]), "v");
}

/// The only node of a cluster cannot hand its rows to anybody: the pod ends, says so, keeps all.
#[test]
fn a_pod_that_goes_for_good_and_cannot_drain_says_so_and_keeps_its_data() {
    let dir = tempfile::tempdir().expect("a directory");
    let (api, _requests) = api_server("200 OK", 0);
    let mut node = pod(&api, "pairdb-0", &dir);
    node.ok(&["put", "k", "v"]);
    assert_eq!(node.terminate(), 79);
    node.restart();
    assert_eq!(node.ok(&["get", "k"]), "v");
}

/// What is not known is a restart: nothing is moved, nothing is lost.
#[test]
fn a_pod_that_cannot_learn_its_fate_just_stops() {
    let dir = tempfile::tempdir().expect("a directory");
    let (api, requests) = api_server("403 Forbidden", 0);
    let mut node = pod(&api, "pairdb-7", &dir);
    assert_eq!(node.terminate(), 0);
    assert!(requests.try_iter().count() > 1, "it asked more than once");
}

/// An operator's stop is a restart; nobody is asked, who would say that the pod goes for good.
#[test]
fn a_pod_that_an_operator_stops_asks_nobody() {
    let dir = tempfile::tempdir().expect("a directory");
    let (api, requests) = api_server("200 OK", 0);
    let mut node = pod(&api, "pairdb-0", &dir);
    node.ok(&["stop"]);
    assert_eq!(node.wait(), 0);
    assert_eq!(requests.try_iter().count(), 0);
    node.restart_with(&settings(&api, "pairdb-0", &dir));
    assert_eq!(node.terminate(), 79);
    assert!(requests.try_iter().count() > 0, "nobody was asked");
}

/// A pod that does not serve yet can hand over nothing; it owns its share all the same, and says
/// so if it will not come back.
#[test]
fn a_pod_that_goes_for_good_before_it_serves_says_that_it_is_still_needed() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut node = CliNode::start();
    let address = |node: &CliNode| node.ready["peer_listen"].as_str().map(ToOwned::to_owned);
    let seeds = address(&node).expect("an address");
    let mut other = CliNode::with(&[("PAIRDB__CLUSTER__SEEDS", &seeds)]);
    node.kill();
    other.kill();
    // The other takes connections and says nothing, so that the node waits for it.
    let _silent = TcpListener::bind(address(&other).expect("an address")).expect("free again");
    for (replicas, code) in [(1, 0), (0, 79)] {
        let (api, requests) = api_server("200 OK", replicas);
        node.begin_again_with(&settings(&api, "pairdb-0", &dir));
        let (status, page) = node.page("/health/ready");
        assert!(status == 503 && page.contains("\"state\":\"starting\""), "{page}");
        assert_eq!(node.terminate(), code, "of {replicas} replicas");
        assert!(requests.try_iter().count() > 0, "nobody was asked");
    }
    // One that never was a member has nothing that is needed.
    let (api, _requests) = api_server("200 OK", 0);
    let mut settings = settings(&api, "pairdb-7", &dir).to_vec();
    settings.push(("PAIRDB__CLUSTER__SEEDS", &seeds));
    fs::remove_dir_all(&node.data_dir).expect("removed");
    node.begin_again_with(&settings);
    assert_eq!(node.terminate(), 0);
}

#[test]
fn a_node_that_is_no_pod_of_a_set_refuses_to_look_for_one() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data").to_str().expect("UTF-8").to_owned();
    let settings =
        [("PAIRDB__KUBERNETES__ENABLED", "true"), ("PAIRDB__KUBERNETES__POD_NAME", "no pod")];
    let refused = super::node::refused(&data, &settings);
    assert_eq!(refused.code, 78, "{}", refused.stderr);
    assert!(refused.stderr.contains("kubernetes.pod_name"), "{}", refused.stderr);
}
