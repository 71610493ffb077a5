//! A node as a process of its own, on free ports and a temporary directory.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Longest wait for a node to serve or to stop: far more than either takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a command did.
pub struct Done {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// The binary without what the environment of the test may say.
fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pairdb"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PAIRDB") {
            command.env_remove(name);
        }
    }
    command
}

fn finish(mut command: Command, input: &str) -> Done {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary runs");
    // A command that does not read its input may be gone already.
    let _ = child.stdin.take().expect("piped").write_all(input.as_bytes());
    ended(child)
}

/// What a command did that was begun.
pub fn ended(child: Child) -> Done {
    let output = child.wait_with_output().expect("it ends");
    Done {
        code: output.status.code().expect("it exits"),
        stdout: String::from_utf8(output.stdout).expect("UTF-8"),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Runs the binary.
pub fn pairdb(arguments: &[&str]) -> Done {
    pairdb_with(arguments, &[])
}

/// Runs the binary with variables.
pub fn pairdb_with(arguments: &[&str], environment: &[(&str, &str)]) -> Done {
    let mut command = command();
    command.args(arguments).envs(environment.iter().copied());
    finish(command, "")
}

/// A pipe that nobody reads.
fn closed() -> std::io::PipeWriter {
    std::io::pipe().expect("a pipe").1
}

/// Runs the binary against a node, with nobody to read what it says at all; the exit code.
pub fn unheard(arguments: &[&str], endpoint: &str) -> i32 {
    let mut command = command();
    command.args(arguments).env("PAIRDB_ENDPOINT", endpoint);
    command.stdin(Stdio::null()).stdout(closed()).stderr(closed());
    command.status().expect("it ends").code().expect("it exits")
}

/// Runs the binary against a node, with nobody to read what it says on standard output.
pub fn unread(arguments: &[&str], endpoint: &str) -> Done {
    let mut command = command();
    command.args(arguments).env("PAIRDB_ENDPOINT", endpoint);
    command.stdin(Stdio::null()).stdout(closed()).stderr(Stdio::piped());
    let output = command.output().expect("it ends");
    Done {
        code: output.status.code().expect("it exits"),
        stdout: String::new(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Begins a command that goes on by itself, with nobody to read what it says on standard output.
pub fn begin_unread(arguments: &[&str]) -> Child {
    let mut command = command();
    command.args(arguments).stdin(Stdio::null()).stdout(closed()).stderr(Stdio::piped());
    command.spawn().expect("the binary runs")
}

/// Sends a signal to a process of the test's own.
pub fn signal(child: &Child, signal: rustix::process::Signal) {
    let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
    rustix::process::kill_process(pid.expect("a process id"), signal).expect("it runs");
}

/// Runs a node that must refuse to start: on `data_dir`, free ports.
pub fn refused(data_dir: &str, settings: &[(&str, &str)]) -> Done {
    let listen = ["--listen", "--peer-listen", "--admin-listen"];
    let mut arguments = vec!["serve", "--data-dir", data_dir];
    listen.iter().for_each(|flag| arguments.extend([flag, "127.0.0.1:0"]));
    let done = pairdb_with(&arguments, settings);
    assert!(!done.stderr.contains("panicked"), "{}", done.stderr);
    done
}

/// A running node.
pub struct CliNode {
    pub data_dir: String,
    pub ready_file: String,
    pub ready: Value,
    dir: tempfile::TempDir,
    child: Child,
}

impl CliNode {
    pub fn start() -> Self {
        Self::with(&[])
    }

    /// A node with settings, as variables.
    pub fn with(settings: &[(&str, &str)]) -> Self {
        Self::below(&std::env::temp_dir(), settings)
    }

    /// One whose directory is made in `parent`.
    pub fn below(parent: &Path, settings: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir_in(parent).expect("a directory");
        let path = |name: &str| dir.path().join(name).to_str().expect("UTF-8").to_owned();
        let (data_dir, ready_file) = (path("data"), path("ready.json"));
        let (child, ready) = serve(&data_dir, &ready_file, settings);
        Self { data_dir, ready_file, ready, dir, child }
    }

    /// Where clients connect.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.ready["listen"].as_str().expect("an address"))
    }

    /// The process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// A path beside the data.
    pub fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().expect("UTF-8").to_owned()
    }

    pub fn run(&self, arguments: &[&str]) -> Done {
        self.run_with(arguments, "")
    }

    pub fn run_with(&self, arguments: &[&str], input: &str) -> Done {
        let mut command = command();
        command.args(arguments).env("PAIRDB_ENDPOINT", self.endpoint());
        finish(command, input)
    }

    /// Begins a command; the caller writes its input, and ends it by closing that.
    pub fn begin(&self, arguments: &[&str]) -> Child {
        let mut command = command();
        command.args(arguments).env("PAIRDB_ENDPOINT", self.endpoint());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("the binary runs")
    }

    /// The output of a command that must succeed.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let done = self.run(arguments);
        assert_eq!(done.code, 0, "{arguments:?}: {}", done.stderr);
        done.stdout
    }

    /// The JSON of a command that must succeed.
    pub fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.ok(arguments)).expect("one JSON document")
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it is dead");
        // A node that is killed cannot take it away.
        let _ = std::fs::remove_file(&self.ready_file);
    }

    /// SIGTERM; the exit code.
    pub fn terminate(&mut self) -> i32 {
        self.signal();
        self.wait()
    }

    /// SIGTERM.
    pub fn signal(&self) {
        self.send(rustix::process::Signal::TERM);
    }

    /// Any signal.
    pub fn send(&self, which: rustix::process::Signal) {
        signal(&self.child, which);
    }

    /// The exit code of a node that was told to stop.
    pub fn wait(&mut self) -> i32 {
        self.child.wait().expect("it ends").code().expect("it exits")
    }

    pub fn restart(&mut self) {
        self.restart_with(&[]);
    }

    /// Starts again with settings, as variables.
    pub fn restart_with(&mut self, settings: &[(&str, &str)]) {
        (self.child, self.ready) = serve(&self.data_dir, &self.ready_file, settings);
    }

    /// Starts again with settings, as variables, where operators reached it before; it is not
    /// waited for. The node must be dead.
    pub fn begin_again_with(&mut self, settings: &[(&str, &str)]) {
        let admin = self.ready["admin_listen"].as_str().expect("an address").to_owned();
        let mut settings = settings.to_vec();
        settings.push(("PAIRDB__LISTEN__ADMIN", &admin));
        self.child = spawn(&self.data_dir, &self.ready_file, &settings);
        let patience = Instant::now() + PATIENCE;
        while TcpStream::connect(&admin).is_err() {
            assert!(Instant::now() < patience, "the node does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Code and body of a page for operators.
    pub fn page(&self, path: &str) -> (u16, String) {
        let address = self.ready["admin_listen"].as_str().expect("an address");
        let mut stream = TcpStream::connect(address).expect("the node listens");
        let request = format!("GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("answered");
        let code = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
        (code.expect("a status line"), answer)
    }
}

impl Drop for CliNode {
    fn drop(&mut self) {
        // It may be dead already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(data_dir: &str, ready_file: &str, settings: &[(&str, &str)]) -> Child {
    command()
        .args(["serve", "--data-dir", data_dir, "--ready-file", ready_file])
        .env("PAIRDB__LISTEN__CLIENT", "127.0.0.1:0")
        .env("PAIRDB__LISTEN__PEER", "127.0.0.1:0")
        .env("PAIRDB__LISTEN__ADMIN", "127.0.0.1:0")
        .env("PAIRDB__ENGINE__LOG_SEGMENT_BYTES", "4MiB")
        .env("PAIRDB__LOG__LEVEL", "warn")
        .envs(settings.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("the binary runs")
}

/// Starts a node and waits for its ready file.
fn serve(data_dir: &str, ready_file: &str, settings: &[(&str, &str)]) -> (Child, Value) {
    let mut child = spawn(data_dir, ready_file, settings);
    let patience = Instant::now() + PATIENCE;
    while !Path::new(ready_file).exists() {
        if let Some(status) = child.try_wait().expect("it can be asked") {
            panic!("the node ended before it served: {status}");
        }
        if Instant::now() >= patience {
            child.kill().expect("it runs");
            panic!("the node does not serve");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    // Renamed into place: it is whole.
    let text = std::fs::read_to_string(ready_file).expect("the ready file");
    (child, serde_json::from_str(&text).expect("JSON"))
}
