//! `pairdb drain`

mod certificate;

use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;
use indicatif::ProgressBar;
use serde_json::{Value, json};
use tokio::time::timeout;
use tonic::Streaming;

use super::args::{Connect, signals};
use super::failure::{Failure, say};
use super::layout::{ABORTED, UNDER_WAY};
use super::progress::{share_bar, span, volume};
use crate::client::{Admin, Client, Error};
use crate::proto;
use crate::proto::DrainPhase;

/// Times in a row that a node is asked again when a stream breaks.
const ATTEMPTS: u32 = 10;
/// How long a node has to answer at first.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// Between two of them.
const PAUSE: Duration = Duration::from_millis(500);

/// Have a node hand over all it holds, and leave for good
///
/// Refused at once where it could not be safe: too few nodes would be left, say. What was begun
/// goes on by itself, also when the node is started anew; without --wait this returns when it has
/// begun. With --wait it returns when the node has left, with a certificate of what it handed over:
/// when the node's process has ended too, a moment later, its directory may be deleted, not before.
/// Exit code 7: it has begun, and has not ended, as also after Ctrl-C; run it again to look on.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    drain: DrainArgs,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Check the certificate of a node that left against what the cluster remembers of it
    Verify(certificate::Args),
}

#[derive(Debug, clap::Args)]
struct DrainArgs {
    /// The node, by name or id [default: the one that is asked]
    node: Option<String>,
    /// Return when it has left
    #[arg(long)]
    wait: bool,
    /// Only tell how far it is
    #[arg(long, conflicts_with_all = ["wait", "cancel"])]
    status: bool,
    /// Let it stay after all; possible until the owners have changed
    #[arg(long, conflicts_with = "wait")]
    cancel: bool,
    /// Where to write its certificate
    #[arg(long, value_name = "PATH", requires = "wait", conflicts_with_all = ["status", "cancel"])]
    certificate: Option<PathBuf>,
    #[command(flatten)]
    connect: Connect,
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    match args.verb {
        Some(Verb::Verify(args)) => certificate::run(args).await,
        None => drain(args.drain).await,
    }
}

async fn drain(args: DrainArgs) -> Result<(), Failure> {
    let client = match args.node {
        Some(_) => args.connect.admin_client()?,
        None => args.connect.one_node_client()?,
    };
    let request = proto::DrainNodeRequest {
        node: args.node.clone().unwrap_or_default(),
        cancel: args.cancel,
        status_only: args.status,
        epoch: 0,
    };
    let patience = args.connect.patience().min(ANSWER_WITHIN);
    let begun = timeout(patience, begin(&client, &request)).await;
    let mut told = begun.map_err(|_| unanswered(&args))?.map_err(Failure::of_change)?;
    let mut last = match timeout(patience, told.message()).await {
        Ok(Ok(Some(first))) => first,
        Ok(Ok(None)) => return Err(unheard(&args, &ended())),
        Ok(Err(status)) => return Err(unheard(&args, &Error::of(&status, false))),
        Err(_) => return Err(unheard(&args, &late())),
    };
    if args.status || !(args.wait || args.cancel) {
        return report(&args, &last);
    }
    let patience = args.connect.patience();
    let signals = signals()?;
    let looked = tokio::select! {
        looked = timeout(patience, look_on(&client, request, told, &mut last)) => Some(looked),
        () = signals.graceful.cancelled() => None,
    };
    match looked {
        Some(Ok(looked)) => looked?,
        Some(Err(_)) => return Err(under_way(&last, &late())),
        None => return Err(interrupted(&last)),
    }
    if let (Some(path), DrainPhase::Left) = (&args.certificate, last.phase()) {
        certificate::write(path, &last.certificate)?;
    }
    report(&args, &last)
}

/// Follows a drain to its end, through whoever tells of it.
async fn look_on(
    client: &Client,
    mut request: proto::DrainNodeRequest,
    mut told: Streaming<proto::DrainProgress>,
    last: &mut proto::DrainProgress,
) -> Result<(), Failure> {
    // The node may end, or another one answer: it is named from here on. It is only looked on at
    // from here on: what somebody else has decided since is not undone.
    request.node.clone_from(&last.node_id);
    let bar = share_bar();
    let mut attempt = 0;
    loop {
        let broken = follow(&mut told, last, &bar).await;
        if is_over(last.phase()) {
            bar.finish_and_clear();
            return Ok(());
        }
        let error = broken.err().unwrap_or_else(ended);
        request.epoch = last.epoch;
        told = loop {
            attempt += 1;
            if attempt > ATTEMPTS || !error.may_retry() {
                bar.finish_and_clear();
                return Err(under_way(last, &error));
            }
            tokio::time::sleep(PAUSE).await;
            match begin(client, &request).await {
                Ok(again) => break again,
                Err(error) if !error.may_retry() => {
                    bar.finish_and_clear();
                    return Err(under_way(last, &error));
                }
                Err(_) => {}
            }
        };
    }
}

async fn begin(
    client: &Client,
    request: &proto::DrainNodeRequest,
) -> Result<Streaming<proto::DrainProgress>, Error> {
    let call = async |admin: &mut Admin, request| admin.drain_node(request).await;
    client.admin_stream(request.clone(), call).await
}

/// Takes what is told until the end of the stream.
async fn follow(
    told: &mut Streaming<proto::DrainProgress>,
    last: &mut proto::DrainProgress,
    bar: &ProgressBar,
) -> Result<(), Error> {
    let mut said = None;
    loop {
        bar.set_position(last.partitions_done.saturating_mul(1000) / last.partitions.max(1));
        bar.set_message(line(last));
        if said != Some(last.phase()) && bar.is_hidden() {
            say(line(last));
        }
        said = Some(last.phase());
        match told.message().await {
            Ok(Some(next)) => *last = next,
            Ok(None) => return Ok(()),
            Err(status) => return Err(Error::of(&status, false)),
        }
    }
}

fn is_over(phase: DrainPhase) -> bool {
    matches!(phase, DrainPhase::Left | DrainPhase::Cancelled | DrainPhase::Removed)
}

/// It was decided, and nothing was told of it.
fn unheard(args: &DrainArgs, error: &Error) -> Failure {
    let what = match (args.status, args.cancel) {
        (true, _) => return Failure::with_code(5, format!("nobody tells how far it is: {error}")),
        (false, true) => "the drain was cancelled",
        (false, false) => "the drain has begun",
    };
    Failure::with_code(UNDER_WAY, format!("{what}, and nobody tells more: {error}"))
}

/// A stream that ended before the drain did is as good as a broken one.
fn ended() -> Error {
    Error::of(&tonic::Status::unavailable("the stream ended before the drain"), false)
}

/// Longer than it was to be waited for.
fn late() -> Error {
    Error::of(&tonic::Status::deadline_exceeded("it is not waited for any longer"), false)
}

/// The node took the call, and did not answer it.
fn unanswered(args: &DrainArgs) -> Failure {
    let what = match (args.status, args.cancel) {
        (true, _) => return Failure::with_code(5, "the node does not answer"),
        (false, true) => "cancelled",
        (false, false) => "begun",
    };
    let message = format!("the node does not answer; it is not known whether the drain was {what}");
    Failure::with_code(4, message)
}

fn under_way(last: &proto::DrainProgress, error: &Error) -> Failure {
    let message = format!("{}; it has not ended, and nobody tells more: {error}", line(last));
    Failure::with_code(UNDER_WAY, message)
}

/// Whoever looks on was told to end, and the drain was not.
fn interrupted(last: &proto::DrainProgress) -> Failure {
    let name = if last.node_name.is_empty() { &last.node_id } else { &last.node_name };
    let look = format!("pairdb drain {name} --status tells how far it is");
    Failure::with_code(UNDER_WAY, format!("{}; this goes on by itself: {look}", line(last)))
}

/// As it is written.
fn phase_name(phase: DrainPhase) -> &'static str {
    match phase {
        DrainPhase::Merging => "merging",
        DrainPhase::HandingOver => "handing_over",
        DrainPhase::Hints => "hints",
        DrainPhase::Certifying => "certifying",
        DrainPhase::Left => "left",
        DrainPhase::Removed => "removed",
        DrainPhase::Cancelled => "staying",
        DrainPhase::Unspecified => "not_heard_of",
    }
}

/// How far it is, on one line.
fn line(last: &proto::DrainProgress) -> String {
    let name = if last.node_name.is_empty() { &last.node_id } else { &last.node_name };
    let what = match last.phase() {
        DrainPhase::Merging => "others merge what it holds",
        DrainPhase::HandingOver => "hands over what others still lack",
        DrainPhase::Hints => "delivers the hints it kept",
        DrainPhase::Certifying => "has its certificate stored",
        DrainPhase::Left => "has left; when its process has ended its directory may be deleted",
        DrainPhase::Removed => "is taken out without its help; what only it held is lost",
        DrainPhase::Cancelled => "stays",
        DrainPhase::Unspecified => "the node that is asked has not heard of the change yet",
    };
    let mut text = format!("{name}: {what}");
    let phase = last.phase();
    if matches!(phase, DrainPhase::Merging | DrainPhase::HandingOver | DrainPhase::Hints) {
        text += &format!(
            ", {} of {} partitions, {} keys, {}, {}/s",
            last.partitions_done,
            last.partitions,
            last.keys,
            volume(last.bytes),
            volume(last.bytes_per_second)
        );
        if let Some(eta_ms) = last.eta_ms {
            text += &format!(", {} left", span(Duration::from_millis(eta_ms)));
        }
    }
    for one in &last.waits_for {
        text += &format!("; waits for {one}");
    }
    text
}

fn to_json(last: &proto::DrainProgress) -> Value {
    json!({
        "node_id": last.node_id,
        "node_name": last.node_name,
        "phase": phase_name(last.phase()),
        "epoch": last.epoch,
        "partitions": last.partitions,
        "partitions_done": last.partitions_done,
        "keys": last.keys,
        "bytes": last.bytes,
        "bytes_per_second": last.bytes_per_second,
        "eta_ms": last.eta_ms,
        "waits_for": last.waits_for,
        "certificate": last.certificate,
        "certificate_digest": last.certificate_digest,
    })
}

fn report(args: &DrainArgs, last: &proto::DrainProgress) -> Result<(), Failure> {
    let mut text = line(last);
    if !last.certificate_digest.is_empty() {
        text += &format!("\ncertificate {}", last.certificate_digest);
    }
    let outcome = match last.phase() {
        DrainPhase::Left if args.cancel => {
            Err(Failure::refused("it is too late to cancel: the node has left"))
        }
        DrainPhase::Cancelled if args.wait => {
            let message = "the drain was cancelled: the node's data is still needed";
            Err(Failure::with_code(ABORTED, message))
        }
        DrainPhase::Removed if args.wait => {
            let message = "the drain was given up: there is no certificate";
            Err(Failure::with_code(ABORTED, message))
        }
        DrainPhase::Removed if args.cancel => {
            Err(Failure::refused("it is too late to cancel: the node is removed"))
        }
        _ => Ok(()),
    };
    args.connect.conclude(&text, &to_json(last), outcome)
}
