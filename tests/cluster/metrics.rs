//! The page of metrics, as docs/metrics.md lists it.

use std::collections::BTreeMap;
use std::path::Path;

use crate::nodes::Nodes;

const BEGIN: &str = "| metric | type | what it says |\n|---|---|---|\n";

/// Name, type and help of all families of a page.
fn families(page: &str) -> BTreeMap<String, String> {
    let mut families: BTreeMap<String, (String, String)> = BTreeMap::new();
    for line in page.lines() {
        let mut words = line.splitn(4, ' ');
        let (Some("#"), Some(what), Some(name), Some(text)) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            continue;
        };
        let family = families.entry(name.to_owned()).or_default();
        match what {
            "HELP" => family.1 = text.to_owned(),
            _ => family.0 = text.to_owned(),
        }
    }
    let line = |(name, (kind, help)): (String, (String, String))| {
        let line = format!("| `{name}` | {kind} | {help} |\n");
        (name, line)
    };
    families.into_iter().map(line).collect()
}

/// All Rust text below a directory.
fn source(dir: &Path, text: &mut String) {
    for entry in std::fs::read_dir(dir).expect("listed") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            source(&path, text);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            text.push_str(&std::fs::read_to_string(&path).expect("read"));
        }
    }
}

/// `UPDATE=1` writes what is served into the page. Families that only show once something has
/// happened stay there as long as their names stand in the source.
#[test]
fn every_metric_is_in_the_documentation() {
    let nodes = Nodes::start(3);
    let written = nodes.write_keys("key", 5, 0);
    assert_eq!(nodes.ok(1, &["get", &written[0]]), written[0]);
    let (_, page) = nodes.page(0, "/metrics");
    let served = families(&page);
    assert!(served.len() > 50, "{page}");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = root.join("docs/metrics.md");
    let text = std::fs::read_to_string(&path).expect("the page");
    let (intro, table) = text.split_once(BEGIN).expect("it has a table");
    let name_of = |line: &str| line.split('`').nth(1).expect("a name").to_owned();
    let listed = table.lines().map(|line| (name_of(line), format!("{line}\n")));
    let mut listed: BTreeMap<String, String> = listed.collect();
    if std::env::var_os("UPDATE").is_some() {
        listed.extend(served.clone());
        let table: String = listed.values().map(String::as_str).collect();
        std::fs::write(&path, format!("{intro}{BEGIN}{table}")).expect("written");
    }
    for (name, line) in &served {
        assert_eq!(listed.get(name), Some(line), "run it again with UPDATE=1");
    }
    let mut sources = String::new();
    source(&root.join("src"), &mut sources);
    for name in listed.keys().filter(|name| !served.contains_key(*name)) {
        assert!(sources.contains(name.as_str()), "there is no {name}");
    }
    for word in intro.split('`').filter(|word| word.starts_with("pairdb_")) {
        assert!(listed.contains_key(word), "{word} is named in the text and is not in the table");
    }
}
