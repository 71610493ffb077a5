//! A disk that is full, or that cannot be written: what the node says, and what goes on.
//!
//! Thresholds are set so that the machine's disk counts as full; a small file system of its own is
//! mounted where the machine lets a process have its own mounts, and else left out.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::node::{CliNode, refused};

/// A command that runs `script` with mounts of its own; `None` where the machine does not allow it.
fn with_own_mounts(script: &str) -> Option<Command> {
    let shell = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "--mount", "sh", "-ec", script]);
        command
    };
    let allowed = shell("mount -t tmpfs tmpfs /mnt").output();
    if !allowed.is_ok_and(|done| done.status.success()) {
        eprintln!("left out: this machine allows no mounts");
        return None;
    }
    Some(shell(script))
}

/// Values are refused by name, with the figures; what is there is read, deleted, and there after a
/// restart. With no space at all deletes are refused too, and reads go on.
#[test]
fn a_full_disk_refuses_values_by_name_and_takes_deletes() {
    let mut node = CliNode::start();
    for key in ["kept", "first", "second"] {
        node.ok(&["put", key, "v"]);
    }
    assert_eq!(node.terminate(), 0);
    let space = rustix::fs::statvfs(node.data_dir.as_str()).expect("it is there");
    let available = space.f_bavail * space.f_frsize;
    let with_reserve = |node: &mut CliNode, bytes: u64| {
        node.restart_with(&[("PAIRDB__ENGINE__DISK_RESERVE_BYTES", &format!("{bytes}B"))]);
    };
    let refuses = |node: &CliNode, arguments: &[&str]| {
        let done = node.run(&[arguments, &["--timeout", "1s"]].concat());
        assert_eq!(done.code, 5, "{arguments:?}: {}", done.stderr);
        let texts =
            [&node.data_dir, "bytes free, below the reserve of", "(DISK_FULL); the write was not"];
        for text in texts {
            assert!(done.stderr.contains(text), "{arguments:?}: {}", done.stderr);
        }
    };

    with_reserve(&mut node, 2 * available);
    let keys = node.ok(&["keys"]);
    refuses(&node, &["put", "more", "v"]);
    assert_eq!(node.ok(&["keys"]), keys, "nothing is changed");
    node.ok(&["delete", "first"]);
    assert_eq!(node.run(&["get", "first"]).code, 3);
    assert_eq!(node.page("/health/live").0, 200, "a full disk is no reason to restart a node");
    assert_eq!(node.terminate(), 0);

    with_reserve(&mut node, 100 * available);
    refuses(&node, &["put", "more", "v"]);
    refuses(&node, &["delete", "second"]);
    assert_eq!(node.ok(&["get", "second"]), "v");
    // A run in which no write was acknowledged has checked nothing.
    let verify = ["verify", "run", "--duration", "100ms", "--settle", "0s", "--clients", "1"];
    let checked = node.run(&verify);
    assert_eq!(checked.code, 1, "{}", checked.stdout);
    assert!(checked.stderr.contains("no write was acknowledged"), "{}", checked.stderr);
    assert_eq!(node.terminate(), 0);

    node.restart();
    assert_eq!(node.ok(&["get", "kept"]), "v");
    assert_eq!(node.run(&["get", "first"]).code, 3);
    node.ok(&["put", "more", "v"]);
}

/// A start on a file system without room, and one on a file system that is mounted for reading
/// only: exit code 73, the path is named, and what was there is as it was.
#[test]
fn a_file_system_without_room_or_for_reading_only_is_refused() {
    let node = {
        let mut node = CliNode::start();
        node.ok(&["put", "k", "v"]);
        assert_eq!(node.terminate(), 0);
        node
    };
    let binary = env!("CARGO_BIN_EXE_pairdb");
    let dir = &node.data_dir;
    let serve = format!(
        "exec timeout 60 {binary} serve --data-dir {dir} \
         --listen 127.0.0.1:0 --peer-listen 127.0.0.1:0 \
         --admin-listen 127.0.0.1:0"
    );
    let no_room = format!("mount -t tmpfs -o size=8k tmpfs {dir}; {serve}");
    let read_only = format!("mount --bind {dir} {dir}; mount -o remount,bind,ro {dir}; {serve}");
    for (script, text) in [(no_room, "No space left on device"), (read_only, "Read-only")] {
        let Some(mut command) = with_own_mounts(&script) else { return };
        let done = command.output().expect("it ends");
        let told = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.code(), Some(73), "{told}");
        assert!(told.contains(text) && told.contains(dir.as_str()), "{told}");
        assert!(!told.contains("panicked"), "{told}");
    }
    let mut node = node;
    node.restart();
    assert_eq!(node.ok(&["get", "k"]), "v");
}

/// Where permissions hold (not for the superuser), a directory that may not be written.
#[test]
fn a_directory_without_permission_to_write_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    if rustix::process::geteuid().is_root() {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o555)).expect("mine");
    let path = dir.path().to_str().expect("UTF-8");
    let done = refused(path, &[]);
    assert_eq!(done.code, 73, "{}", done.stderr);
    assert!(done.stderr.contains(path), "{}", done.stderr);
    assert!(fs::read_dir(Path::new(path)).expect("readable").next().is_none(), "nothing is made");
}
