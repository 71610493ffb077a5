//! Whole clusters in one thread, on a network, disks and clocks that a seed decides.
//!
//! mad-turmoil takes the process's randomness and time over, once for each process. So every seed
//! runs in a process of its own: this binary again, with `SEED` set and the one ignored test named.
//! `make sim SEEDS=200` runs many seeds, `make sim SEED=7` repeats one.

mod machine;
mod nemesis;
mod net;
mod simulation;

use std::process::Command;
use std::time::Duration;

use pairdb::verify::checker::{self, shrink};
use pairdb::verify::history;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use simulation::Simulation;

/// Of each failing seed.
const VIOLATIONS_SHOWN: usize = 3;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|value| value.parse().ok())
}

/// Runs `seed` in a process of its own; the line with its hash.
fn run(seed: u64) -> String {
    let this = std::env::current_exe().expect("a program has a path");
    let output = Command::new(this)
        .args(["--exact", "one_seed", "--ignored", "--nocapture", "--test-threads=1"])
        .env("SEED", seed.to_string())
        .output()
        .expect("it runs again");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{text}{}\nseed {seed} failed. To repeat it: make sim SEED={seed}",
        String::from_utf8_lossy(&output.stderr)
    );
    let line = text.lines().find_map(|line| line.split_once("trace of ")).map(|(_, line)| line);
    line.expect("it says its hash").to_owned()
}

#[test]
#[ignore = "SEED names the run; the other tests start it in processes of its own"]
fn one_seed() {
    let seed = number("SEED").expect("SEED is set to a number");
    mad_turmoil::rand::set_rng(StdRng::seed_from_u64(seed));
    let clocks = mad_turmoil::time::SimClocksGuard::init();
    // A thread of its own: what this one has hashed before was keyed by real chance.
    let simulation = Simulation { seed, nodes: 1, clients: 3, faults_for: Duration::from_secs(30) };
    let run = std::thread::spawn(move || simulation.run()).join();
    drop(clocks);
    let Ok(run) = run else { panic!("the simulation of seed {seed} panicked") };
    if let Some(path) = std::env::var_os("HISTORY") {
        let lines: String = run.history.iter().map(|event| history::line(event) + "\n").collect();
        std::fs::write(path, lines).expect("the history is written");
    }
    let violations = checker::check(&run.history);
    for violation in violations.iter().take(VIOLATIONS_SHOWN) {
        println!("{violation}");
        for event in shrink::smallest(&run.history, violation) {
            println!("    {}", history::line(&event));
        }
    }
    assert!(violations.is_empty(), "seed {seed}: {} promises were broken", violations.len());
    println!("trace of seed {seed}: {:016x}, {} events", run.hash, run.history.len());
}

#[test]
fn the_same_seed_gives_the_same_trace_twice_and_another_seed_another() {
    let first = run(1);
    assert_eq!(first, run(1));
    assert_ne!(first, run(2));
}
