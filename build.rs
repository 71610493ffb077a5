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

/// The commit this is built from, or "unknown" outside a repository.
fn commit() -> String {
    // A path that does not exist would rebuild everything every time.
    if Path::new(".git/HEAD").exists() {
        println!("cargo::rerun-if-changed=.git/HEAD");
    }
    Command::new("git")
        .args(["rev-parse", "--short=12", "HEAD"])
        .output()
        .ok()
        .filter(|output| output.status.success())
        .and_then(|output| String::from_utf8(output.stdout).ok())
        .map_or_else(|| "unknown".to_owned(), |text| text.trim().to_owned())
}
