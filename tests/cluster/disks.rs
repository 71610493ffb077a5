//! A disk that loses a bit, or goes back to what it held, under a node of three.

use std::path::{Path, PathBuf};

use crate::CONVERGED_WITHIN;
use crate::nodes::{Nodes, values};

fn tables(nodes: &Nodes, at: usize) -> Vec<PathBuf> {
    let dir = nodes.data_dir(at).join("engine");
    let files = std::fs::read_dir(dir).expect("a directory");
    let mut files: Vec<PathBuf> = files.map(|file| file.expect("an entry").path()).collect();
    files.retain(|file| file.extension().is_some_and(|end| end == "sst"));
    files
}

/// Nobody is told and nobody has to do anything: what is read at QUORUM comes from the others, the
/// node has its rows back from them, and says so in its log and figures.
#[test]
fn a_flipped_byte_in_a_table_heals_from_the_other_nodes() {
    let mut nodes = Nodes::start(3);
    let written = nodes.write_keys("key", 40, 0);
    nodes.wait_until_equal(&written, 0, CONVERGED_WITHIN);
    assert_eq!(nodes.stop(2), 0);
    let tables = tables(&nodes, 2);
    assert!(!tables.is_empty());
    for table in &tables {
        let mut bytes = std::fs::read(table).expect("a table");
        bytes[40] ^= 4;
        std::fs::write(table, bytes).expect("written");
    }
    nodes.restart(2);
    nodes.wait_until_up(2, 3);
    for key in &written {
        assert_eq!(values(&nodes.json(2, &["get", key, "--output", "json"])), [key.as_str()]);
    }
    nodes.wait_until_equal(&written, 2, CONVERGED_WITHIN);
    for key in &written {
        let read = ["get", key.as_str(), "--consistency", "one", "--output", "json"];
        assert_eq!(values(&nodes.json(2, &read)), [key.as_str()]);
    }
    let (_, metrics) = nodes.page(2, "/metrics");
    let figure = |name: &str| {
        let mut lines = metrics.lines().filter_map(|line| line.strip_prefix(name));
        lines.next().and_then(|value| value.trim().parse::<f64>().ok())
    };
    assert_eq!(figure("pairdb_store_blocks_discarded_total "), Some(tables.len() as f64));
    assert_eq!(figure("pairdb_store_blocks_unreadable "), Some(0.0));
    assert_eq!(figure("pairdb_store_partitions_damaged "), Some(0.0));
    assert!(figure("pairdb_anti_entropy_mended_total ").is_some_and(|mended| mended > 0.0));
    nodes.wait_for(0, "the others are not told that it is whole", |status| {
        let nodes = status["nodes"].as_array().expect("an array");
        nodes.iter().all(|node| node["partitions_damaged"] == 0)
    });
    // It stays so.
    assert_eq!(nodes.stop(2), 0);
    nodes.restart(2);
    nodes.wait_until_equal(&written, 2, CONVERGED_WITHIN);
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).expect("it is not there yet");
    for entry in std::fs::read_dir(from).expect("a directory") {
        let entry = entry.expect("an entry");
        let to = to.join(entry.file_name());
        match entry.file_type().expect("known").is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(std::fs::copy(entry.path(), to).expect("copied")),
        }
    }
}

/// A volume's snapshot that is put back under a node has forgotten what the node acknowledged and
/// voted since, and would give the same times again. The others remember; from then on the
/// directory does, whoever else is there.
#[test]
fn a_directory_that_was_put_back_is_never_served() {
    let mut nodes = Nodes::start(3);
    let before = nodes.write_keys("before", 5, 2);
    assert_eq!(nodes.stop(2), 0);
    let dir = nodes.data_dir(2).to_owned();
    let (snapshot, latest) = (dir.with_extension("snapshot"), dir.with_extension("latest"));
    copy(&dir, &snapshot);
    nodes.restart(2);
    nodes.wait_until_up(0, 3);
    nodes.wait_until_up(1, 3);
    let since = nodes.write_keys("since", 20, 2);
    assert_eq!(nodes.stop(2), 0);

    std::fs::rename(&dir, &latest).expect("moved");
    copy(&snapshot, &dir);
    // A life in which nobody answers, and which ends: its bound must not pass for what was found.
    let others = [0, 1];
    others.iter().for_each(|at| nodes.pause(*at));
    nodes.restart(2);
    nodes.kill(2);
    others.iter().for_each(|at| nodes.resume(*at));
    let (code, why) = nodes.restart_refused(2);
    assert_eq!(code, 70, "{why}");
    assert!(why.contains("put back to an earlier state"), "{why}");
    nodes.kill(0);
    nodes.kill(1);
    let (code, why) = nodes.restart_refused(2);
    assert_eq!(code, 70, "nobody is there to tell: {why}");

    std::fs::remove_dir_all(&dir).expect("removed");
    std::fs::rename(&latest, &dir).expect("moved");
    for at in [0, 1, 2] {
        nodes.restart(at);
    }
    nodes.wait_until_up(0, 3);
    nodes.wait_until_equal(&[before, since].concat(), 2, CONVERGED_WITHIN);
}
