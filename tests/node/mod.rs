//! A node in a process of its own, on a directory of the test's.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a node may take to serve or to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running `pairdb serve`. Killed when dropped.
pub struct Node {
    process: Child,
    /// The addresses it bound, as its ready file names them.
    pub ready: serde_json::Value,
}

impl Node {
    /// Starts a node on `data_dir` and waits until it serves.
    ///
    /// # Panics
    /// If it ends or does not serve in time; its log goes to the test's standard error.
    pub fn start(data_dir: &Path, flags: &[&str]) -> Self {
        let ready_file = ready_file(data_dir);
        // A ready file of the run before would be taken for this one's.
        let _ = std::fs::remove_file(&ready_file);
        let mut process = Command::new(env!("CARGO_BIN_EXE_pairdb"))
            .args(["serve", "--data-dir"])
            .arg(data_dir)
            .args(["--listen=127.0.0.1:0", "--peer-listen=127.0.0.1:0"])
            .arg("--admin-listen=127.0.0.1:0")
            .arg("--ready-file")
            .arg(&ready_file)
            .args(flags)
            .env_remove("PAIRDB_CONFIG")
            .stdout(Stdio::null())
            .spawn()
            .expect("the binary is built");
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Ok(bytes) = std::fs::read(&ready_file)
                && let Ok(ready) = serde_json::from_slice(&bytes)
            {
                return Self { process, ready };
            }
            if let Some(status) = process.try_wait().expect("a child can be asked") {
                panic!("the node ended with {status} before it served");
            }
            assert!(Instant::now() < deadline, "the node does not serve in {PATIENCE:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Where clients connect.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.ready["listen"].as_str().expect("the ready file names it"))
    }

    /// Ends the process as a crash does.
    pub fn kill(mut self) {
        self.process.kill().expect("it runs");
        self.process.wait().expect("it ends");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Fails only if it has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn ready_file(data_dir: &Path) -> PathBuf {
    data_dir.with_extension("ready.json")
}
