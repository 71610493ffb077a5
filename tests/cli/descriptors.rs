//! How many file descriptors a node takes.

use std::process::Command;

use rustix::process::{Resource, getrlimit};

/// The usual limit of 1,024 is reached by as many idle clients, and then no table can be written.
#[test]
fn a_node_takes_as_many_descriptors_as_it_may_have() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("file");
    std::fs::write(&file, "no directory").expect("written");
    let done = Command::new("sh")
        .args(["-c", "ulimit -S -n 200; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_pairdb")])
        .args(["serve", "--listen", "127.0.0.1:0", "--peer-listen", "127.0.0.1:0"])
        .args(["--admin-listen", "127.0.0.1:0", "--data-dir"])
        .arg(file.join("data"))
        .output()
        .expect("it runs");
    let log = String::from_utf8_lossy(&done.stderr) + String::from_utf8_lossy(&done.stdout);
    assert_eq!(done.status.code(), Some(73), "it does not start there: {log}");
    let most = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    assert!(log.contains(&format!("\"descriptors\":{most},")), "{most}: {log}");
}
