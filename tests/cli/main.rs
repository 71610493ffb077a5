//! The binary as a user runs it: a node on free ports, commands against it, exit codes.

mod bad_data;
mod descriptors;
mod export;
mod fake;
mod import;
mod kubernetes;
mod migrate;
mod no_room;
#[path = "../node/mod.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod node;
mod stopping;
mod unread;
mod words;

use std::fs;

use node::{CliNode, pairdb, pairdb_with};

#[test]
fn a_value_is_put_got_and_deleted() {
    let node = CliNode::start();
    node.ok(&["put", "greeting", "hello"]);
    // The bare value: no end of line, so that binary values survive a pipe.
    assert_eq!(node.ok(&["get", "greeting"]), "hello");
    node.ok(&["delete", "greeting"]);
    let gone = node.run(&["get", "greeting"]);
    assert_eq!((gone.code, gone.stdout.as_str()), (3, ""));
    // Deleting what is not there is no error.
    node.ok(&["delete", "greeting"]);
}

/// Whoever refuses a change of the layout, this program or the node, by whatever command: the exit
/// code is that of what was not done, and the message says so.
#[test]
fn a_refused_change_of_the_layout_has_one_exit_code_whoever_refuses_it() {
    let node = CliNode::start();
    let id = node.json(&["layout", "show", "--output", "json"])["nodes"][0]["node_id"].clone();
    let id = id.as_str().expect("an id");
    let lost =
        ["layout", "commit", "--remove", id, "--accept-loss", "--accept-lost-partitions", "1"];
    let itself = format!("{id}=2");
    for (refused, reason) in [
        (&["layout", "plan", "--leave", id][..], "TOO_FEW_OWNERS"),
        (&["layout", "commit", "--leave", id], "TOO_FEW_OWNERS"),
        (&["drain"], "TOO_FEW_OWNERS"),
        (&["remove", id, "--accept-loss"], "TOO_FEW_OWNERS"),
        (&lost, "partitions would keep too few replicas, not 1"),
        (&["replace", id, "other"], "TOO_FEW_SOURCES"),
        (&["layout", "commit", "--leave", "nobody"], "UNKNOWN_NODE"),
        (&["replace", "nobody", "other"], "no member"),
        (&["migrate", "--from", "nobody", "--to", id], "no member"),
        (&["layout", "commit", "--weight", &itself, "--epoch", "99"], "STALE_EPOCH"),
        (&["layout", "abort"], "NO_TRANSITION"),
        (&["drain", "--cancel"], "NO_TRANSITION"),
    ] {
        let done = node.run(refused);
        assert_eq!(done.code, 5, "{refused:?}: {}", done.stderr);
        assert!(done.stderr.contains(reason), "{refused:?}: {}", done.stderr);
        assert!(done.stderr.ends_with("; nothing was changed\n"), "{refused:?}: {}", done.stderr);
    }
}

/// One that cannot be reached is passed over, by those who change a cluster too.
#[test]
fn of_several_endpoints_one_that_can_be_reached_is_asked() {
    let node = CliNode::start();
    let layout = node.json(&["layout", "show", "--output", "json"]);
    let id = layout["nodes"][0]["node_id"].as_str().expect("an id");
    let endpoints = format!("http://127.0.0.1:1,{}", node.endpoint());
    assert_eq!(pairdb(&["health", "--endpoint", &endpoints]).code, 0);
    let drain = pairdb(&["drain", id, "--cancel", "--endpoint", &endpoints]);
    assert!(drain.stderr.contains("NO_TRANSITION"), "{}", drain.stderr);
    assert_eq!(drain.code, 5);
}

#[test]
fn siblings_are_shown_on_request_and_resolved() {
    let node = CliNode::start();
    node.ok(&["put", "colour", "red"]);
    node.ok(&["put", "colour", "blue"]);
    let bare = node.run(&["get", "colour"]);
    assert_eq!((bare.code, bare.stdout.as_str()), (1, ""));
    assert!(bare.stderr.contains("2 siblings"), "{}", bare.stderr);
    let mut lines: Vec<String> =
        node.ok(&["get", "colour", "--all"]).lines().map(ToOwned::to_owned).collect();
    lines.sort_unstable();
    assert_eq!(lines, ["blue", "red"]);

    let json = node.json(&["get", "colour", "--output", "json"]);
    assert_eq!(json["siblings"].as_array().map(Vec::len), Some(2));
    let context = json["context"].as_str().expect("a context").to_owned();
    node.ok(&["put", "colour", "violet", "--context", &context]);
    assert_eq!(node.ok(&["get", "colour"]), "violet");

    node.ok(&["put", "colour", "green", "--resolve"]);
    assert_eq!(node.ok(&["get", "colour"]), "green");
}

#[test]
fn exit_codes_tell_usage_refusal_and_absence_apart() {
    let node = CliNode::start();
    assert_eq!(pairdb(&["nonsense"]).code, 2);
    assert_eq!(node.run(&["put", "k"]).code, 2);
    assert_eq!(node.run(&["put", "k", "v", "--ttl", "soon"]).code, 2);
    assert_eq!(node.run(&["put", "k", "v", "--ttl", "-1s"]).code, 2);
    assert_eq!(node.run(&["put", "k", "v", "--context", "*"]).code, 2);
    assert_eq!(node.run(&["put", "k", "v", "--context", "Zm9yZ2Vk"]).code, 5);
    assert_eq!(node.run(&["put", "", "v"]).code, 5);
    assert_eq!(node.run(&["put", "k", "v", "--tenant", "nobody"]).code, 5);
    assert_eq!(node.run(&["get", "k"]).code, 3);
    assert_eq!(node.run(&["get", "k", "--tenant", "nobody"]).code, 1);
    // Nobody listens there: the write was certainly not applied.
    let nobody = pairdb(&["put", "k", "v", "--endpoint", "http://127.0.0.1:1", "--timeout", "1s"]);
    assert_eq!(nobody.code, 5, "{}", nobody.stderr);
    assert!(nobody.stderr.contains("not applied"), "{}", nobody.stderr);
    assert_eq!(pairdb(&["get", "k", "--endpoint", "nonsense"]).code, 2);
    assert_eq!(pairdb(&["--version"]).code, 0);
    for shell in ["bash", "zsh", "fish"] {
        assert!(pairdb(&["completions", shell]).stdout.contains("pairdb"));
    }
}

#[test]
fn what_is_imported_is_exported_again() {
    let node = CliNode::start();
    let file = node.path("in.jsonl");
    let lines: Vec<String> =
        (0..3000).map(|i| format!("{{\"key\":\"k{i:04}\",\"value\":\"v \\\"{i}\\\"\"}}")).collect();
    fs::write(&file, lines.join("\n")).expect("written");
    let report = node.json(&["import", &file, "--output", "json"]);
    assert_eq!(report["imported"], 3000);
    assert_eq!(report["complete"], true);
    assert_eq!(node.ok(&["get", "k0007"]), "v \"7\"");

    let out = node.path("out.jsonl");
    node.ok(&["export", &out]);
    let mut exported: Vec<String> =
        fs::read_to_string(&out).expect("there").lines().map(ToOwned::to_owned).collect();
    exported.sort_unstable();
    assert_eq!(exported, lines);

    // CSV there and back, through the other direction of each.
    let csv = node.path("out.csv");
    node.ok(&["export", &csv]);
    node.ok(&["tenant", "create", "copy"]);
    node.ok(&["import", &csv, "--value-column", "value", "--tenant", "copy"]);
    assert_eq!(node.ok(&["get", "k2999", "--tenant", "copy"]), "v \"2999\"");
    assert_eq!(node.ok(&["keys", "--tenant", "copy"]).lines().count(), 3000);
    assert_eq!(node.ok(&["scan", "--prefix", "k000"]).lines().count(), 10);
}

#[test]
fn a_bad_line_is_named_and_stops_or_is_skipped_as_asked() {
    let node = CliNode::start();
    let file = node.path("bad.jsonl");
    let text = "{\"key\":\"a\",\"value\":\"1\"}\nnot json\n{\"key\":\"b\",\"value\":\"2\"}\n";
    fs::write(&file, text).expect("written");
    let stopped = node.run(&["import", &file]);
    assert_eq!(stopped.code, 1);
    assert!(stopped.stderr.contains("line 2"), "{}", stopped.stderr);
    assert_eq!(node.ok(&["get", "a"]), "1");
    assert_eq!(node.run(&["get", "b"]).code, 3);

    // Started again with --on-error skip it goes on, and what was sent before is the same write.
    let report = node.json(&["import", &file, "--on-error", "skip", "--output", "json"]);
    assert_eq!(report["complete"], true);
    // The bad line is one failure, though both runs met it.
    assert_eq!((&report["imported"], &report["failed"]), (&2.into(), &1.into()));
    assert_eq!((node.ok(&["get", "a"]), node.ok(&["get", "b"])), ("1".into(), "2".into()));
    assert!(!std::path::Path::new(&format!("{file}.pairdb-progress")).exists());

    let csv = node.path("bad.csv");
    fs::write(&csv, "key,value\nx,1\ny\nz,3\n").expect("written");
    let stopped = node.run(&["import", &csv, "--value-column", "value"]);
    assert_eq!(stopped.code, 1);
    assert!(stopped.stderr.contains("line 3"), "{}", stopped.stderr);
    let missing =
        node.run(&["import", &csv, "--key-column", "id", "--progress-file", &node.path("p")]);
    assert!(missing.stderr.contains("no column \"id\""), "{}", missing.stderr);
}

#[test]
fn rows_of_csv_become_json_and_standard_input_is_a_file() {
    let node = CliNode::start();
    let csv = "id,name\n7,\"a \"\"b\"\"\"\n8,c\n";
    let done = node.run_with(&["import", "-", "--format", "csv", "--key-column", "id"], csv);
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert_eq!(node.ok(&["get", "7"]), "{\"id\":\"7\",\"name\":\"a \\\"b\\\"\"}");
    let done = node.run_with(&["put", "big", "--file", "-"], "from a pipe\n");
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert_eq!(node.ok(&["get", "big"]), "from a pipe\n");
    let objects = "{\"id\":\"o1\",\"n\":1}\n";
    let done = node.run_with(&["import", "--key-field", "id"], objects);
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert_eq!(node.ok(&["get", "o1"]), "{\"id\":\"o1\",\"n\":1}");
}

#[test]
fn an_import_over_what_is_there_replaces_it_on_request() {
    let node = CliNode::start();
    node.ok(&["put", "k", "old"]);
    let line = "{\"key\":\"k\",\"value\":\"new\"}\n";
    assert_eq!(node.run_with(&["import", "--overwrite"], line).code, 0);
    assert_eq!(node.ok(&["get", "k"]), "new");
}

#[test]
fn an_import_lists_what_was_acknowledged_and_nothing_else() {
    let node = CliNode::start();
    let acked = node.path("acked");
    let import = ["import", "--batch", "2", "--on-error", "skip", "--acked-file", &acked];
    // The empty key is refused; the bytes of the last key are no line of text.
    let input = "{\"key\":\"a\",\"value\":\"1\"}\n{\"key\":\"\",\"value\":\"2\"}\n\
                 {\"key\":\"b\",\"value\":\"3\"}\n{\"key\":\"new\\nline\",\"value\":\"4\"}\n";
    assert_eq!(node.run_with(&import, input).code, 0);
    let listed = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(ToOwned::to_owned).collect();
        lines.sort_unstable();
        lines
    };
    let keys = fs::read_to_string(&acked).expect("written");
    assert_eq!(keys.lines().count(), 3, "{keys}");
    assert_eq!(listed(&keys), listed(&node.ok(&["keys"])));
    // Another import appends.
    assert_eq!(node.run_with(&import, "{\"key\":\"c\",\"value\":\"\"}\n").code, 0);
    assert_eq!(listed(&fs::read_to_string(&acked).expect("there")), listed(&node.ok(&["keys"])));
}

/// The clients of `verify run` meet on few keys; what they saw is checked, and checked again from
/// the file. A version that nobody wrote, planted into the file, is found.
#[test]
fn a_real_node_keeps_its_promises_and_a_forged_history_is_convicted() {
    let node = CliNode::start();
    node.ok(&["tenant", "create", "latest", "--mode", "last-write-wins"]);
    let file = node.path("history.jsonl");
    let run = ["verify", "run", "--duration", "1s", "--settle", "0s", "--keys", "4"];
    let json = ["--tenants", "default,latest", "--history", &file, "--output", "json"];
    let report = node.json(&[&run[..], &json[..]].concat());
    assert_eq!(report["violations"], 0, "{report}");
    assert!(report["outcomes"]["ok"].as_u64() > Some(20), "{report}");
    assert_eq!(node.ok(&["keys"]), "", "the run takes its keys away");

    assert!(node.ok(&["verify", "check", &file]).contains(" 0 violations"));
    let forged = fs::read_to_string(&file).expect("written").replacen(
        "\"seen\":[{\"value\":\"",
        "\"seen\":[{\"value\":\"forged ",
        1,
    );
    fs::write(&file, forged).expect("written");
    let convicted = node.run(&["verify", "check", &file]);
    assert_eq!(convicted.code, 6, "{}", convicted.stdout);
    assert!(convicted.stdout.contains("I15 tenant"), "{}", convicted.stdout);
    assert!(convicted.stderr.contains("broken"), "{}", convicted.stderr);
    let unread = node::unread(&["verify", "check", &file], &node.endpoint());
    assert_eq!(unread.code, convicted.code, "{}", unread.stderr);
    assert_eq!(node.run(&["verify", "check", "nowhere"]).code, 1);
}

#[test]
fn upkeep_and_status_answer() {
    let node = CliNode::start();
    node.ok(&["put", "k", "v"]);
    for command in ["flush", "compact", "scrub"] {
        node.ok(&[command]);
    }
    let path = node.ok(&["checkpoint", "one"]);
    assert!(std::path::Path::new(path.trim()).is_dir(), "{path}");
    assert_eq!(node.ok(&["health"]).trim(), "serving");
    let status = node.json(&["status", "--node", "--output", "json"]);
    assert_eq!(status["node_id"].as_str(), Some(node.ready["node_id"].as_str().expect("an id")));
    assert_eq!(node.ok(&["tenant", "list"]).trim(), "default");
    node.ok(&["tenant", "create", "t", "--mode", "last-write-wins", "--default-ttl", "1h"]);
    assert!(node.ok(&["tenant", "show", "t"]).contains("last_write_wins"));
    assert!(node.ok(&["tenant", "set", "t", "--default-ttl", "0"]).contains("none"));
    assert_eq!(node.run(&["tenant", "show", "nobody"]).code, 1);
}

/// A node of its own goes back to a checkpoint: it serves what was there then, takes writes, and
/// its layout can be changed.
#[test]
fn a_checkpoint_is_served_again() {
    let mut node = CliNode::start();
    node.ok(&["put", "k", "then"]);
    node.ok(&["tenant", "create", "t"]);
    let made = node.ok(&["checkpoint", "one"]);
    node.ok(&["put", "k", "later"]);
    node.kill();
    let aside = node.path("aside");
    fs::rename(made.trim(), &aside).expect("moved");
    fs::remove_dir_all(&node.data_dir).expect("removed");
    fs::rename(&aside, &node.data_dir).expect("moved");
    for _ in 0..2 {
        node.restart();
        assert_eq!(node.ok(&["get", "k"]).trim(), "then");
        assert_eq!(node.terminate(), 0);
    }
    node.restart();
    node.ok(&["put", "k", "--context", &context_of(&node, "k"), "now"]);
    assert_eq!(node.ok(&["get", "k"]).trim(), "now");
    node.ok(&["tenant", "create", "u"]);
    let listed = node.ok(&["tenant", "list"]);
    assert_eq!(listed.split_whitespace().collect::<Vec<_>>(), ["default", "t", "u"]);
}

fn context_of(node: &CliNode, key: &str) -> String {
    let read = node.json(&["get", key, "--output", "json"]);
    read["context"].as_str().expect("a context").to_owned()
}

#[test]
fn settings_are_checked_and_shown_with_their_origins() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("p.toml");
    let file = file.to_str().expect("a UTF-8 path");
    fs::write(file, "[engine]\nsync_mode = \"interval\"\n").expect("written");
    assert_eq!(pairdb(&["config", "check", "--config", file]).code, 0);
    let shown =
        pairdb_with(&["config", "show", "--config", file], &[("PAIRDB__LOG__LEVEL", "debug")]);
    assert!(shown.stdout.contains("sync_mode = \"interval\""), "{}", shown.stdout);
    assert!(shown.stdout.contains("# environment PAIRDB__LOG__LEVEL"), "{}", shown.stdout);

    fs::write(file, "[engine]\nsink_mode = \"interval\"\n").expect("written");
    let bad = pairdb(&["config", "check", "--config", file]);
    assert_eq!(bad.code, 78);
    assert!(bad.stderr.contains("engine.sink_mode"), "{}", bad.stderr);
    assert_eq!(pairdb(&["serve", "--config", file]).code, 78);
}

#[test]
fn a_port_or_a_directory_in_use_has_an_exit_code_of_its_own() {
    let node = CliNode::start();
    let other = tempfile::tempdir().expect("a directory");
    let other = other.path().to_str().expect("a UTF-8 path");
    let listen = node.ready["listen"].as_str().expect("an address");
    let free = ["--peer-listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"];
    let mut arguments = vec!["serve", "--data-dir", other, "--listen", listen];
    arguments.extend(free);
    let taken = pairdb(&arguments);
    assert_eq!(taken.code, 71, "{}", taken.stderr);
    assert!(taken.stderr.contains(listen), "{}", taken.stderr);

    let mut arguments = vec!["serve", "--data-dir", &node.data_dir, "--listen", "127.0.0.1:0"];
    arguments.extend(free);
    let locked = pairdb(&arguments);
    assert_eq!(locked.code, 72, "{}", locked.stderr);
}

#[test]
fn what_was_acknowledged_survives_kill_9_and_the_node_is_the_same() {
    let mut node = CliNode::start();
    let id = node.ready["node_id"].clone();
    for i in 0..20 {
        node.ok(&["put", &format!("k{i}"), &format!("v{i}")]);
    }
    node.ok(&["delete", "k3"]);
    node.kill();
    node.restart();
    for i in (0..20).filter(|i| *i != 3) {
        assert_eq!(node.ok(&["get", &format!("k{i}")]), format!("v{i}"));
    }
    assert_eq!(node.run(&["get", "k3"]).code, 3);
    assert_eq!(node.ready["node_id"], id);
}

#[test]
fn sigterm_stops_with_code_0_and_takes_the_ready_file_away() {
    let mut node = CliNode::start();
    node.ok(&["put", "k", "v"]);
    assert_eq!(node.terminate(), 0);
    assert!(!std::path::Path::new(&node.ready_file).exists());
    node.restart();
    assert_eq!(node.ok(&["get", "k"]), "v");
}
