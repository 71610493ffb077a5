//! `pairdb drain verify`, and certificates in files.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::cli::args::Connect;
use crate::cli::failure::Failure;
use crate::client::Admin;
use crate::proto;

/// Largest file taken for a certificate, in bytes.
const BYTES_MAX: u64 = 16 << 20;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The file with the certificate; - for standard input
    #[arg(required_unless_present = "node")]
    file: Option<PathBuf>,
    /// Instead of a file: the certificate that the cluster holds of this node, by name or id
    #[arg(long, conflicts_with = "file")]
    node: Option<String>,
    #[command(flatten)]
    connect: Connect,
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let certificate = match &args.file {
        Some(path) => read(path)?,
        None => String::new(),
    };
    let node = args.node.clone().unwrap_or_default();
    let request = proto::VerifyCertificateRequest { certificate, node };
    let call = async |admin: &mut Admin, request| admin.verify_certificate(request).await;
    let told = args.connect.admin_client()?.admin_call(request, call).await?;
    let name = if told.node_name.is_empty() { &told.node_id } else { &told.node_name };
    let text = match told.valid {
        true => format!(
            "valid: {name} left in epoch {} with nothing that is not held by others\n\
             {} partitions, {} keys, {} bytes, digest {}",
            told.epoch, told.partitions, told.keys, told.bytes, told.digest
        ),
        false => format!("not valid: {}", told.problem),
    };
    let json = json!({
        "valid": told.valid,
        "problem": told.problem,
        "node_id": told.node_id,
        "node_name": told.node_name,
        "epoch": told.epoch,
        "made_ms": told.made_ms,
        "partitions": told.partitions,
        "keys": told.keys,
        "bytes": told.bytes,
        "digest": told.digest,
    });
    let outcome = match told.valid {
        true => Ok(()),
        false => Err(Failure::error("the certificate is not valid")),
    };
    args.connect.conclude(&text, &json, outcome)
}

fn read(path: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    let read = match path.to_str() {
        Some("-") => std::io::stdin().take(BYTES_MAX).read_to_string(&mut text),
        _ => fs::File::open(path).and_then(|file| file.take(BYTES_MAX).read_to_string(&mut text)),
    };
    match read {
        Ok(_) if text.trim().is_empty() => Err(Failure::error(format!(
            "{} is empty: it must hold a certificate, as drain --wait --certificate writes it",
            path.display()
        ))),
        Ok(_) => Ok(text),
        Err(error) => Err(Failure::error(format!("cannot read {}: {error}", path.display()))),
    }
}

/// Writes a certificate, byte for byte.
pub(super) fn write(path: &Path, certificate: &str) -> Result<(), Failure> {
    if certificate.is_empty() {
        let message = "the node that was asked does not hold the certificate: ask another one \
                       with drain verify --node";
        return Err(Failure::error(message));
    }
    fs::write(path, certificate)
        .map_err(|error| Failure::error(format!("cannot write {}: {error}", path.display())))
}
