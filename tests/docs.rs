//! The documentation is true: its commands print what it shows, its tables are those of the code,
//! its links lead somewhere.
//!
//! A fenced block marked `console` is a session. A line that begins with `$ ` is typed into bash;
//! the lines below it are what it prints, on both outputs. `...` stands for anything: within a line
//! for any text, alone on a line for any lines. All sessions of one file are one shell, on a node
//! of their own, so a variable set in one is there in the next. A page may start a cluster in the
//! background: its ports, from 18080, 17946 and 19091 on, are replaced by free ones.

#[expect(dead_code, reason = "another test uses the rest")]
mod node;

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use node::{CliNode, pairdb};
use pairdb::ops::config::Config;

/// Printed before each command, to tell what is whose output.
const MARK: &str = "@@ the next command @@";

/// A command of a session and what it is said to print.
struct Step {
    line: usize,
    command: String,
    expected: Vec<String>,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// README.md and the pages of docs/.
fn pages() -> Vec<PathBuf> {
    let docs = fs::read_dir(root().join("docs")).expect("docs/");
    let pages = docs.map(|entry| entry.expect("an entry").path());
    let mut pages: Vec<_> =
        pages.filter(|path| path.extension().is_some_and(|e| e == "md")).collect();
    pages.push(root().join("README.md"));
    pages.sort();
    pages
}

fn read(page: &Path) -> String {
    fs::read_to_string(page).expect("a page")
}

/// The sessions of a page.
fn steps(text: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut inside = false;
    for (number, line) in text.lines().enumerate() {
        if line.starts_with("```") {
            inside = line == "```console";
        } else if let Some(command) = line.strip_prefix("$ ").filter(|_| inside) {
            let command = command.to_owned();
            steps.push(Step { line: number + 1, command, expected: Vec::new() });
        } else if inside {
            let step = steps.last_mut().expect("a session begins with a command");
            step.expected.push(line.to_owned());
        }
    }
    steps
}

/// Whether `line` is `pattern` with any text in place of each `...`.
fn line_is(pattern: &str, line: &str) -> bool {
    match pattern.split_once("...") {
        None => pattern == line,
        Some((head, tail)) => line.strip_prefix(head).is_some_and(|rest| {
            let ends = rest.char_indices().map(|(at, _)| at).chain([rest.len()]);
            ends.into_iter().any(|at| line_is(tail, &rest[at..]))
        }),
    }
}

fn lines_are(expected: &[String], printed: &[&str]) -> bool {
    match expected.split_first() {
        None => printed.is_empty(),
        Some((any, rest)) if any == "..." => {
            (0..=printed.len()).any(|skipped| lines_are(rest, &printed[skipped..]))
        }
        Some((line, rest)) => printed
            .split_first()
            .is_some_and(|(first, more)| line_is(line, first) && lines_are(rest, more)),
    }
}

fn has_curl() -> bool {
    let asked = Command::new("curl").arg("--version").stdout(Stdio::null()).status();
    asked.is_ok_and(|status| status.success())
}

/// The first ports of clients, peers and operators of a cluster on a page.
const CLUSTER_PORTS: [u16; 3] = [18080, 17946, 19091];
/// Nodes that such a cluster may have.
const CLUSTER_NODES: u16 = 9;

/// Ports of a page's cluster, each with a free one to take its place.
fn cluster_ports() -> Vec<(String, String)> {
    let is_free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    // By the process, so that tests of several clones do not meet.
    let mut at = 20_000 + u16::try_from(std::process::id() % 30_000).expect("below 30,000");
    let mut free_row = || {
        loop {
            at = if at > 60_000 { 20_000 } else { at + CLUSTER_NODES };
            if (at..at + CLUSTER_NODES).all(|port| is_free(&port)) {
                return at;
            }
        }
    };
    let rows = CLUSTER_PORTS.map(|first| (first, free_row()));
    let pairs = rows.into_iter().flat_map(|(first, free)| {
        (0..CLUSTER_NODES).map(move |n| ((first + n).to_string(), (free + n).to_string()))
    });
    pairs.collect()
}

/// Runs a page's sessions in one shell; what each command printed.
fn play(steps: &[Step]) -> Vec<String> {
    let node = CliNode::start();
    let address = |name: &str| node.ready[name].as_str().expect("an address").to_owned();
    let (listen, admin) = (address("listen"), address("admin_listen"));
    let ports = cluster_ports();
    // What is left in the background ends with the shell.
    let mut script = "exec 2>&1\ntrap 'kill $(jobs -p) 2>/dev/null; wait' EXIT\n".to_owned();
    for step in steps {
        let command = step.command.replace("127.0.0.1:8080", &listen);
        let command = command.replace("127.0.0.1:9091", &admin);
        let command = ports.iter().fold(command, |text, (page, free)| text.replace(page, free));
        // The mark must not change what `echo $?` says.
        script.push_str(&format!("status=$?; echo; echo '{MARK}'; (exit $status)\n{command}\n"));
    }
    let work = PathBuf::from(node.path("work"));
    fs::create_dir(&work).expect("a directory");
    std::os::unix::fs::symlink(root().join("data"), work.join("data")).expect("a link");
    let binary = Path::new(env!("CARGO_BIN_EXE_pairdb")).parent().expect("its directory");
    let path = format!("{}:{}", binary.display(), std::env::var("PATH").unwrap_or_default());
    let output = Command::new("bash")
        .args(["-c", &script])
        .current_dir(&work)
        .env("PATH", path)
        .env("PAIRDB_ENDPOINT", format!("http://{listen}"))
        .stdin(Stdio::null())
        .output()
        .expect("bash");
    let printed = String::from_utf8(output.stdout).expect("UTF-8");
    let printed = printed.replace(&listen, "127.0.0.1:8080").replace(&admin, "127.0.0.1:9091");
    let printed = ports.iter().fold(printed, |text, (page, free)| text.replace(free, page));
    let mark = format!("{MARK}\n");
    printed.split(&mark).skip(1).map(|part| part.trim_end().to_owned()).collect()
}

/// Every command of README and docs, typed as it stands there, prints what stands below it.
#[test]
fn every_session_prints_what_the_page_shows() {
    let has_curl = has_curl();
    let mut played = 0;
    for page in pages() {
        let mut steps = steps(&read(&page));
        steps.retain(|step| has_curl || !step.command.starts_with("curl "));
        if steps.is_empty() {
            continue;
        }
        let printed = play(&steps);
        assert_eq!(printed.len(), steps.len(), "{}: a command ended the shell", page.display());
        for (step, printed) in steps.iter().zip(&printed) {
            let lines: Vec<&str> = printed.lines().map(str::trim_end).collect();
            assert!(
                lines_are(&step.expected, &lines),
                "{}:{}: $ {}\n--- the page shows\n{}\n--- it prints\n{printed}",
                page.display(),
                step.line,
                step.command,
                step.expected.join("\n")
            );
            played += 1;
        }
    }
    assert!(played >= 10, "only {played} commands found: are the sessions still marked?");
}

/// Without this the comparison above could say yes to anything.
#[test]
fn the_comparison_says_no_where_it_should() {
    let page = |text: &str| steps(&format!("```console\n$ x\n{text}\n```\n")).remove(0).expected;
    assert!(lines_are(&page("a ... c\n...\nz"), &["a b c", "d", "e", "z"]));
    for (expected, printed) in [
        ("a ... c", &["a b d"][..]),
        ("a", &["a", "b"]),
        ("a\n...\nz", &["a", "b"]),
        ("a\nb", &["a"]),
    ] {
        assert!(!lines_are(&page(expected), printed), "{expected:?} is not {printed:?}");
    }
    assert!(steps("```sh\n$ not a session\n```\n").is_empty());
}

/// Every setting stands on its page with its default and meaning, and nothing else does.
#[test]
fn the_settings_page_is_the_table_of_the_code() {
    let page = read(&root().join("docs/configuration.md"));
    let listed: Vec<&str> = page.lines().filter(|line| line.starts_with("| `")).collect();
    let default = |value: &str| match value {
        "" => "empty".to_owned(),
        value => format!("`{value}`"),
    };
    let settings = Config::default().settings();
    let wanted: Vec<String> = settings
        .iter()
        .map(|it| format!("| `{}` | {} | {} |", it.name, default(&it.value), it.doc))
        .collect();
    assert_eq!(listed, wanted, "docs/configuration.md should have:\n{}", wanted.join("\n"));
}

/// Every command of `pairdb help` and every exit code it names stand on the page of the commands.
#[test]
fn the_commands_page_names_every_command_and_exit_code() {
    let page = read(&root().join("docs/cli.md"));
    let help = pairdb(&["help"]).stdout;
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let commands: Vec<&str> = commands
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next())
        .filter(|name| !name.is_empty())
        .collect();
    assert!(commands.len() > 10, "{help}");
    for command in commands {
        assert!(page.contains(&format!("| `{command}")), "{command} is missing");
    }
    let codes = help.split("Exit codes:").nth(1).expect("the help names them");
    let codes = codes.split(|c: char| !c.is_ascii_digit()).filter(|code| !code.is_empty());
    for code in codes {
        assert!(page.contains(&format!("\n| {code} | ")), "exit code {code} is missing");
    }
}

#[test]
fn every_link_leads_to_a_file() {
    let mut found = 0;
    for page in pages() {
        let text = read(&page);
        let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for target in targets.filter(|target| !target.starts_with("http")) {
            let file = target.split('#').next().unwrap_or_default();
            let from = page.parent().expect("a page is in a directory");
            assert!(from.join(file).exists(), "{}: {target}", page.display());
            found += 1;
        }
    }
    assert!(found > 0, "no link found");
}
