//! CPU time of this process: of the client's threads, and of all others.

use std::collections::BTreeMap;
use std::time::Duration;

/// The name of the client's threads.
pub const CLIENT: &str = "client";

/// CPU time of every thread by its id, and whether it is the client's.
pub struct Times(BTreeMap<String, (bool, Duration)>);

/// CPU time used between two readings.
#[derive(Debug, Default)]
pub struct Used {
    pub client: Duration,
    pub server: Duration,
}

/// CPU time so far. Linux only, like the rest of the project.
pub fn read() -> Times {
    let mut times = BTreeMap::new();
    for thread in std::fs::read_dir("/proc/self/task").expect("Linux has it") {
        let path = thread.expect("a thread").path();
        // A thread may end while it is looked at.
        let (Ok(name), Ok(times_of_it)) = (
            std::fs::read_to_string(path.join("comm")),
            std::fs::read_to_string(path.join("schedstat")),
        ) else {
            continue;
        };
        let on_cpu_ns = times_of_it.split(' ').next().and_then(|first| first.parse().ok());
        let on_cpu = Duration::from_nanos(on_cpu_ns.expect("its first figure"));
        let is_client = name.trim_end() == CLIENT;
        times.insert(path.to_string_lossy().into_owned(), (is_client, on_cpu));
    }
    Times(times)
}

impl Times {
    /// What was used since `before` by the threads that still live.
    pub fn since(&self, before: &Self) -> Used {
        let mut used = Used::default();
        for (thread, (is_client, on_cpu)) in &self.0 {
            let earlier = before.0.get(thread).map_or(Duration::ZERO, |(_, earlier)| *earlier);
            let share = if *is_client { &mut used.client } else { &mut used.server };
            *share += on_cpu.saturating_sub(earlier);
        }
        used
    }
}
