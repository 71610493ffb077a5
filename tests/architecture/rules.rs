//! The rules, each a function from one file to its findings.
//!
//! A finding is `path:line: what is wrong and what to do instead`.

use crate::source::{PathUse, SourceFile};

/// The top-level modules. One may use only those above it.
pub const ORDER: [&str; 14] = [
    "causality",
    "engine",
    "store",
    "proto",
    "cluster",
    "resilience",
    "replication",
    "rpc",
    "client",
    "backup",
    "ops",
    "bench",
    "verify",
    "cli",
];

/// Modules that know no other one at all, wherever they stand.
const ISOLATED: [&str; 3] = ["causality", "engine", "resilience"];

/// Modules that must run without a runtime, a network and a metrics library.
const SYNCHRONOUS: [&str; 3] = ["causality", "engine", "store"];

/// Crates that are out of place in [`SYNCHRONOUS`], with all crates whose names begin so.
const FOREIGN: [&str; 8] =
    ["tokio", "tonic", "chitchat", "prometheus", "axum", "hyper", "fastrand", "getrandom"];

/// Where one of [`FOREIGN`] is at home all the same: (file, name). The store has the one real
/// source of randomness, as it has the one real clock.
const FOREIGN_AT_HOME: [(&str, &str); 1] = [("src/store/environment.rs", "getrandom")];

/// Where `unsafe` may stand: (file, what for).
const UNSAFE_FILES: [(&str, &str); 5] = [
    ("src/engine/memtable/arena.rs", "record bytes behind stable addresses"),
    ("src/engine/memtable/list.rs", "entries of the base skiplist under an epoch guard"),
    ("src/engine/memtable/zeros.rs", "mapped bytes looked at as atomic words"),
    ("src/engine/priority.rs", "calls to the system that no crate has"),
    ("src/engine/vfs/os.rs", "maps of files"),
];

/// An effect on the world that code gets handed instead of taking it.
struct Effect {
    /// Parts of a path, side by side.
    path: &'static str,
    /// Files and directories (ending in `/`) where it is at home.
    allowed: &'static [&'static str],
    instead: &'static str,
}

const OUTER: &[&str] = &["src/main.rs", "src/ops/", "src/cli/", "src/engine/vfs/os.rs"];

/// The network-facing modules measure requests; the store has the one real wall clock.
const CLOCKED: &[&str] = &[
    "src/main.rs",
    "src/ops/",
    "src/cli/",
    "src/rpc/",
    "src/client/",
    "src/bench/",
    "src/verify/",
    "src/engine/vfs/os.rs",
    "src/engine/clock.rs",
    "src/store/environment.rs",
];

const EFFECTS: [Effect; 4] = [
    Effect { path: "std::fs", allowed: OUTER, instead: "go through engine::vfs" },
    Effect { path: "SystemTime::now", allowed: CLOCKED, instead: "take a Clock" },
    Effect { path: "Instant::now", allowed: CLOCKED, instead: "take a Clock, or use tokio::time" },
    Effect { path: "thread::sleep", allowed: &[], instead: "wait for the event itself" },
];

const FILE_LINES_MAX: usize = 600;
const COLUMNS_MAX: usize = 100;

fn rank(module: &str) -> Option<usize> {
    ORDER.iter().position(|name| *name == module)
}

/// The top-level module a path leads to, if it is one of this crate's.
fn target<'a>(file: &SourceFile, path: &'a PathUse) -> Option<&'a str> {
    let segments: Vec<&str> = path.segments.iter().map(String::as_str).collect();
    let first = match segments.first().copied()? {
        "crate" => 1,
        "super" | "self" => {
            let selves = segments.iter().take_while(|part| **part == "self").count();
            let ups = segments[selves..].iter().take_while(|part| **part == "super").count();
            let depth = file.module().len() + path.inline_modules;
            (ups > 0 && ups == depth).then_some(selves + ups)?
        }
        _ => return None,
    };
    segments.get(first).copied().filter(|name| rank(name).is_some())
}

/// A module uses only modules above it in [`ORDER`]; some use none at all.
pub fn module_order(file: &SourceFile) -> Vec<String> {
    let Some(module) = file.module().first().cloned() else {
        // lib.rs declares the modules, main.rs is the outermost.
        return Vec::new();
    };
    let Some(own) = rank(&module) else {
        return vec![format!(
            "{}:1: `{module}` has no place in the order: name it in tests/architecture/rules.rs",
            file.path
        )];
    };
    let mut findings = Vec::new();
    for path in &file.paths {
        let Some(target) = target(file, path) else { continue };
        let upward = rank(target).is_some_and(|rank| rank > own);
        let isolated = target != module && ISOLATED.contains(&module.as_str());
        if upward || isolated {
            findings.push(format!(
                "{}:{}: `{module}` may not use `{target}` (`{}`)",
                file.path,
                path.line,
                path.segments.join("::")
            ));
        }
    }
    findings
}

/// No runtime, network, metrics or ambient randomness in the synchronous layers.
pub fn foreign_names(file: &SourceFile) -> Vec<String> {
    let module = file.module();
    if !module.first().is_some_and(|name| SYNCHRONOUS.contains(&name.as_str())) {
        return Vec::new();
    }
    let is_foreign = |word: &str| {
        FOREIGN.iter().any(|name| {
            word.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
        })
    };
    file.tokens
        .iter()
        .filter(|token| is_foreign(&token.text))
        .filter(|token| !FOREIGN_AT_HOME.contains(&(file.path.as_str(), token.text.as_str())))
        .map(|token| {
            format!("{}:{}: `{}` is foreign to this layer", file.path, token.line, token.text)
        })
        .collect()
}

/// Time, files and sleep only where they are at home. Tests are free.
pub fn ambient_effects(file: &SourceFile) -> Vec<String> {
    if file.test_only {
        return Vec::new();
    }
    // Tokio's clock is the runtime's, which a simulation drives: not ambient.
    let uses = |needle| file.paths.iter().any(|path| path.contains(needle));
    let tokio_clock = uses("tokio::time::Instant") && !uses("std::time::Instant");
    let mut findings = Vec::new();
    for effect in &EFFECTS {
        let home = |place: &str| {
            file.path == place || (place.ends_with('/') && file.path.starts_with(place))
        };
        if effect.allowed.iter().any(|place| home(place)) {
            continue;
        }
        if effect.path == "Instant::now" && tokio_clock {
            continue;
        }
        for path in file.paths.iter().filter(|path| !path.in_test && path.contains(effect.path)) {
            findings.push(format!(
                "{}:{}: `{}` is ambient here: {}",
                file.path, path.line, effect.path, effect.instead
            ));
        }
    }
    findings
}

/// `unsafe` only in the files named for it.
pub fn unsafe_code(file: &SourceFile) -> Vec<String> {
    if UNSAFE_FILES.iter().any(|(path, _)| *path == file.path) {
        return Vec::new();
    }
    file.tokens
        .iter()
        .filter(|token| token.text == "unsafe")
        .map(|token| format!("{}:{}: `unsafe` outside the named files", file.path, token.line))
        .collect()
}

/// No markers of work left over, no placeholders.
pub fn unfinished(file: &SourceFile) -> Vec<String> {
    let mut findings = Vec::new();
    for (index, line) in file.text.lines().enumerate() {
        let marker = |word: &str| matches!(word, "TODO" | "FIXME" | "XXX" | "HACK");
        if line.split(|c: char| !c.is_alphanumeric()).any(marker) {
            findings.push(format!("{}:{}: a marker of unfinished work", file.path, index + 1));
        }
    }
    for pair in file.tokens.windows(2) {
        let placeholder = matches!(pair[0].text.as_str(), "todo" | "unimplemented" | "dbg");
        if placeholder && pair[1].text == "!" {
            findings.push(format!("{}:{}: `{}!`", file.path, pair[0].line, pair[0].text));
        }
    }
    findings
}

/// A file of more lines holds more than one concept. Files of tests are exempt.
pub fn file_length(file: &SourceFile) -> Vec<String> {
    let lines = file.text.lines().count();
    if file.test_only || lines <= FILE_LINES_MAX {
        return Vec::new();
    }
    vec![format!("{}:1: {lines} lines, at most {FILE_LINES_MAX}: split it", file.path)]
}

/// Plain ASCII: what a reviewer sees is what the compiler reads.
pub fn ascii(file: &SourceFile) -> Vec<String> {
    let lines = file.text.lines().enumerate();
    lines
        .filter(|(_, line)| !line.is_ascii())
        .map(|(index, _)| format!("{}:{}: not ASCII: use an escape", file.path, index + 1))
        .collect()
}

/// At most [`COLUMNS_MAX`] columns, comments and strings included. A row of a table in a comment
/// cannot be wrapped.
pub fn columns(file: &SourceFile) -> Vec<String> {
    let is_row = |line: &str| line.trim_start().trim_start_matches(['/', '!']).starts_with(" | ");
    let width = |line: &str| if is_row(line) { 0 } else { line.chars().count() };
    let widths = file.text.lines().map(width).enumerate();
    widths
        .filter(|(_, width)| *width > COLUMNS_MAX)
        .map(|(index, width)| {
            format!("{}:{}: {width} columns, at most {COLUMNS_MAX}", file.path, index + 1)
        })
        .collect()
}

/// How many findings `rule` has in `text` at `path`.
fn count(rule: fn(&SourceFile) -> Vec<String>, path: &str, text: &str) -> usize {
    rule(&SourceFile::new(path, text)).len()
}

#[test]
fn an_upward_use_is_found_in_every_spelling() {
    let engine = "src/engine/vfs/os.rs";
    for text in [
        "use crate::store::Store;",
        "use crate::{engine::Options, store};",
        "use crate::{\n    engine::{Options, vfs},\n    rpc::Server,\n};",
        "fn f() { let _ = crate::cli::run(); }",
        "fn f(_: &crate::ops::Config) {}",
        "use super::super::super::store::Store;",
        "mod inner { use super::super::super::super::store::Store; }",
        "macro_rules! m { () => { $crate::store::x() } }",
    ] {
        assert_eq!(count(module_order, engine, text), 1, "missed: {text}");
    }
    assert_eq!(count(module_order, "src/engine/mod.rs", "use super::store::Store;"), 1);
}

#[test]
fn a_downward_use_and_the_words_of_prose_pass() {
    for (path, text) in [
        ("src/store/mod.rs", "use crate::{causality::Row, engine::Engine};"),
        ("src/replication/mod.rs", "use crate::resilience::Breaker;"),
        ("src/cli/serve.rs", "use crate::{ops, rpc, store};"),
        ("src/engine/mod.rs", "//! See `crate::store`.\nconst A: &str = \"crate::store\";"),
        ("src/engine/mod.rs", "use crate::engine::vfs; use self::store::Local;"),
        ("src/rpc/mod.rs", "mod tests { use super::client::Local; }"),
        ("src/engine/vfs/os.rs", "use super::super::store::Local;"),
        ("src/lib.rs", "pub mod engine; pub use crate::cli::run;"),
    ] {
        assert_eq!(count(module_order, path, text), 0, "false alarm: {path}: {text}");
    }
}

#[test]
fn causality_and_engine_do_not_know_each_other() {
    assert_eq!(count(module_order, "src/engine/merge.rs", "use crate::causality::Row;"), 1);
    assert_eq!(count(module_order, "src/causality/row.rs", "use crate::engine::Record;"), 1);
    assert_eq!(count(module_order, "src/resilience/retry.rs", "use crate::store::Store;"), 1);
}

#[test]
fn a_module_without_a_place_is_found() {
    assert_eq!(count(module_order, "src/newcomer/mod.rs", ""), 1);
    assert_eq!(count(module_order, "src/newcomer.rs", ""), 1);
}

#[test]
fn a_foreign_crate_is_found_in_the_synchronous_layers_only() {
    for text in [
        "use tokio::sync::mpsc;",
        "fn f() { tokio_util::task::spawn() }",
        "use tonic::Status;",
        "use {chitchat, std::io};",
        "static C: prometheus::IntCounter = c();",
    ] {
        assert_eq!(count(foreign_names, "src/engine/flush.rs", text), 1, "missed: {text}");
        assert_eq!(count(foreign_names, "src/causality/hlc.rs", text), 1, "missed: {text}");
        assert_eq!(count(foreign_names, "src/rpc/server.rs", text), 0, "false alarm: {text}");
    }
    assert_eq!(count(foreign_names, "src/engine/mod.rs", "//! Knows no tokio.\n"), 0);
}

#[test]
fn an_ambient_effect_is_found_outside_its_home() {
    for text in [
        "use std::fs::File;",
        "use std::{fs, io};",
        "fn f() { std::fs::remove_file(p) }",
        "fn f() { std::time::SystemTime::now() }",
        "use std::time::Instant; fn f() { Instant::now() }",
        "fn f() { std::thread::sleep(d) }",
        "use std::thread::{self, sleep};",
        "fn f() { thread::sleep(d) }",
        "#[cfg(not(test))] fn f() { SystemTime::now() }",
    ] {
        assert_eq!(count(ambient_effects, "src/engine/flush.rs", text), 1, "missed: {text}");
    }
    let sleeps = "fn f() { thread::sleep(d) }";
    assert_eq!(count(ambient_effects, "src/cli/serve.rs", sleeps), 1);
}

#[test]
fn an_effect_at_home_or_in_a_test_passes() {
    for (path, text) in [
        ("src/engine/vfs/os.rs", "use std::fs::File;"),
        ("src/ops/config.rs", "fn f() { std::fs::read(p) }"),
        ("src/rpc/server.rs", "fn f() { Instant::now() }"),
        ("src/engine/flush.rs", "#[cfg(test)] mod tests { fn f() { std::fs::read(p) } }"),
        ("src/engine/flush/tests.rs", "fn f() { std::thread::sleep(d) }"),
        ("src/resilience/retry.rs", "use tokio::time::Instant; fn f() { Instant::now() }"),
        ("src/engine/flush.rs", "/// Not `std::fs`, nor `Instant::now`.\nfn f() {}"),
    ] {
        assert_eq!(count(ambient_effects, path, text), 0, "false alarm: {path}: {text}");
    }
}

#[test]
fn unsafe_code_outside_the_named_files_is_found() {
    let text = "fn f() { unsafe { g() } }";
    assert_eq!(count(unsafe_code, "src/store/mod.rs", text), 1);
    assert_eq!(count(unsafe_code, "src/engine/vfs/os.rs", text), 0);
    assert_eq!(count(unsafe_code, "src/store/mod.rs", "// unsafe\n#![deny(unsafe_code)]"), 0);
}

#[test]
fn unfinished_work_is_found() {
    assert_eq!(count(unfinished, "src/a.rs", "// TODO: later\n"), 1);
    assert_eq!(count(unfinished, "src/a.rs", "fn f() { todo!() }\nfn g() { dbg!(1) }"), 2);
    assert_eq!(count(unfinished, "src/a.rs", "fn todo() {} // todo list\n"), 0);
}

#[test]
fn form_is_checked_at_its_limits() {
    let lines = |count: usize| "//\n".repeat(count);
    assert_eq!(count(file_length, "src/a.rs", &lines(FILE_LINES_MAX)), 0);
    assert_eq!(count(file_length, "src/a.rs", &lines(FILE_LINES_MAX + 1)), 1);
    assert_eq!(count(file_length, "src/a/tests.rs", &lines(FILE_LINES_MAX + 1)), 0);
    assert_eq!(count(columns, "src/a.rs", &"/".repeat(COLUMNS_MAX)), 0);
    assert_eq!(count(columns, "src/a.rs", &"/".repeat(COLUMNS_MAX + 1)), 1);
    assert_eq!(count(columns, "src/a.rs", &format!("//! | {}", "x".repeat(COLUMNS_MAX))), 0);
    assert_eq!(count(ascii, "src/a.rs", "// e\n"), 0);
    assert_eq!(count(ascii, "src/a.rs", "// \u{e9}\n"), 1);
}
