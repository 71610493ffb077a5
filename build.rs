//! Generates the gRPC code from `proto/` with a pure-Rust compiler: no `protoc` is needed.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use prost::Message;

const PROTOS: [&str; 4] = [
    "pairdb/v1/kv.proto",
    "pairdb/v1/replica.proto",
    "pairdb/v1/peer.proto",
    "pairdb/v1/admin.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let descriptors = protox::compile(PROTOS, ["proto"])?;
    fs::write(out.join("pairdb.bin"), descriptors.encode_to_vec())?;
    // `bytes(".")` makes every bytes field a `Bytes`: decoding does not copy.
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;

    println!("cargo::rustc-env=PAIRDB_COMMIT={}", commit());
    Ok(())
}

/// The commit this is built from, or "unknown" where this is not the root of a repository.
fn commit() -> String {
    let is_root = git(&["rev-parse", "--show-prefix"]).is_some_and(|prefix| prefix.is_empty());
    let commit = is_root.then(|| git(&["rev-parse", "--short=12", "HEAD"])).flatten();
    commit.inspect(|_| watch_commit()).unwrap_or_else(|| "unknown".to_owned())
}

/// Has this run again when `HEAD` means another commit. It names a branch and stays the same while
/// the branch moves: the branch's own file is watched too, and the list of the packed ones. Git is
/// asked where they are, for in a second work tree `.git` is a file.
fn watch_commit() {
    let file = |name: &str| git(&["rev-parse", "--git-path", name]).map(PathBuf::from);
    // A path that does not exist would rebuild everything every time. A packed branch has no file
    // before its next commit; then its directory tells.
    let branch = git(&["symbolic-ref", "--quiet", "HEAD"]).and_then(|branch| file(&branch));
    let branch = branch.as_deref().and_then(|path| path.ancestors().find(|path| path.exists()));
    let others = ["HEAD", "packed-refs"].map(file).into_iter().flatten();
    for path in others.filter(|path| path.exists()).chain(branch.map(Path::to_path_buf)) {
        println!("cargo::rerun-if-changed={}", path.display());
    }
}

/// What git answers, if it does.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
