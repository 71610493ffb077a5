//! A disk that loses a bit, under a node of three.

use std::path::PathBuf;

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
