//! Holds the source tree to the house rules: module order, ambient effects, unsafe code, form.
//!
//! It reads the sources as text, not through the compiler: a rule must also hold for code behind
//! a feature or a target. `source` turns a file into tokens and paths, `rules` judges one file;
//! here the tree is walked. Each rule has a test of its own that plants a violation.
//!
//! A new top-level module gets its place in `rules::ORDER`. A new exception gets a line in the
//! table of its rule, with the reason.

#[path = "architecture/rules.rs"]
mod rules;
#[path = "architecture/source.rs"]
mod source;

use std::fs;
use std::path::Path;

use source::SourceFile;

/// Every `.rs` file under `dir`, its path relative to the crate's root with `/` between parts.
fn collect(root: &Path, dir: &str, into: &mut Vec<SourceFile>) {
    let Ok(entries) = fs::read_dir(root.join(dir)) else {
        return;
    };
    let mut names: Vec<_> = entries
        .map(|entry| entry.expect("the source tree is readable"))
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path()))
        .collect();
    names.sort();
    for (name, path) in names {
        let relative = format!("{dir}/{name}");
        if path.is_dir() {
            // A nested package (peers of the benchmark) has its own target directory.
            if name != "target" {
                collect(root, &relative, into);
            }
        } else if name.ends_with(".rs") {
            let text = fs::read_to_string(&path).expect("a source file is readable UTF-8");
            into.push(SourceFile::new(&relative, &text));
        }
    }
}

fn tree(dirs: &[&str]) -> Vec<SourceFile> {
    let mut files = Vec::new();
    for dir in dirs {
        collect(Path::new(env!("CARGO_MANIFEST_DIR")), dir, &mut files);
    }
    files
}

/// Judges `files` by `rule` and fails with every finding, not only the first.
fn hold(files: &[SourceFile], rule: impl Fn(&SourceFile) -> Vec<String>) {
    let findings: Vec<String> = files.iter().flat_map(rule).collect();
    assert!(findings.is_empty(), "{} findings:\n{}", findings.len(), findings.join("\n"));
}

/// The sources of the crate, with those marked that only tests compile.
fn src() -> Vec<SourceFile> {
    let mut files = tree(&["src"]);
    source::mark_test_files(&mut files);
    assert!(files.iter().any(|file| file.path == "src/lib.rs"), "the walk found no src/lib.rs");
    files
}

#[test]
fn modules_use_only_modules_above_them() {
    hold(&src(), rules::module_order);
}

#[test]
fn the_lower_layers_know_no_runtime_no_network_and_no_metrics() {
    hold(&src(), rules::foreign_names);
}

#[test]
fn time_files_and_sleep_are_injected() {
    hold(&src(), rules::ambient_effects);
}

#[test]
fn unsafe_code_lives_in_few_named_files() {
    hold(&src(), rules::unsafe_code);
}

#[test]
fn every_file_under_src_is_compiled() {
    let files = src();
    let findings = source::unreached(&files);
    assert!(findings.is_empty(), "no `mod` leads to:\n{}", findings.join("\n"));
}

#[test]
fn nothing_unfinished_is_committed() {
    hold(&src(), rules::unfinished);
}

#[test]
fn files_are_short_enough_to_read() {
    hold(&src(), rules::file_length);
}

#[test]
fn sources_are_ascii_and_at_most_100_columns_wide() {
    let files = tree(&["src", "tests", "benches", "examples", "fuzz"]);
    hold(&files, rules::ascii);
    hold(&files, rules::columns);
}
