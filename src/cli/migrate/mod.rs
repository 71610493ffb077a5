//! `pairdb migrate`
//!
//! | file | what |
//! |---|---|
//! | here | what is asked for, the place reached, the report |
//! | `keys` | a file of keys |
//! | `to_node` | raw rows from one node of a cluster to another one |
//! | `to_cluster` | values into another cluster, through the doors of clients |

mod keys;
mod to_cluster;
mod to_node;

use std::ops::{AddAssign, RangeInclusive};
use std::path::PathBuf;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::args::{Connect, Consistency, size};
use super::failure::{Failure, say};
use super::layout::cluster_id;
use super::progress::{Checkpoint, share_bar};
use crate::client::Client;
use crate::ops::config::Size;
use indicatif::ProgressBar;
use keys::KeyFile;
use to_cluster::Sides;

/// Copy rows to another node, or to another cluster, and check that they are there
///
/// To a node of the same cluster (--to) whole rows are copied as they are; rows that the node may
/// not hold under the layout are counted and left out. To another cluster (--to-cluster) the values
/// are, with their content types and expiries. It may be repeated, and an interrupted one goes on
/// where it was.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("receiver").required(true).args(["to", "to_cluster"]))]
pub(super) struct Args {
    /// The node to copy from, by name or id [default: the one that is asked]
    #[arg(long, value_name = "NODE", conflicts_with = "to_cluster")]
    from: Option<String>,
    /// The node of the same cluster to copy to, by name or id
    #[arg(long, value_name = "NODE")]
    to: Option<String>,
    /// A node of the cluster to copy to; several, comma-separated, are taken in turn
    #[arg(long, value_name = "URI")]
    to_cluster: Option<String>,
    /// Only rows of this tenant [default: of all]
    #[arg(long)]
    tenant: Option<String>,
    /// Only keys that begin with this
    #[arg(long, default_value = "", conflicts_with = "keys")]
    prefix: String,
    /// Only the keys in this file, one a line as keys writes them
    #[arg(long, value_name = "FILE", requires = "tenant", conflicts_with = "token_range")]
    keys: Option<PathBuf>,
    /// Only tokens from A to below B, in hexadecimal as ring shows them; either may be left out
    #[arg(long, value_name = "A..B", value_parser = token_range)]
    token_range: Option<RangeInclusive<u64>>,
    /// To another cluster: replace what a key has there; else a second value becomes a sibling
    #[arg(long, conflicts_with = "to")]
    overwrite: bool,
    /// To a node: send at most so many bytes a second, such as 10MiB
    #[arg(long, value_name = "SIZE", value_parser = size, conflicts_with = "to_cluster")]
    rate: Option<Size>,
    /// To another cluster: how many replicas of a key take part, on both sides
    #[arg(long, value_enum, default_value = "quorum", conflicts_with = "to")]
    consistency: Consistency,
    /// Where to remember how far it is
    #[arg(long, value_name = "PATH", default_value = "migrate.pairdb-progress")]
    progress_file: PathBuf,
    #[command(flatten)]
    connect: Connect,
}

/// What the progress file holds.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    /// What is copied whereto, to notice that it is another copy.
    job: String,
    /// The cluster that is copied from, and the one that is copied to.
    clusters: [String; 2],
    place: Place,
    /// Of what lies before the place.
    totals: Totals,
}

/// The place reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Place {
    /// The tenant at work, where several are copied one after the other.
    tenant: String,
    /// In base64; empty: at the beginning.
    cursor: String,
    /// Of the file of keys, in bytes.
    offset: u64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Totals {
    /// Keys that the receiver holds now.
    keys: u64,
    /// Of those, keys for which something had to be sent.
    sent: u64,
    bytes: u64,
    /// Of those it holds, keys that have changed since, there or here.
    changed: u64,
    /// Keys that are left out because the receiver may not hold them.
    elsewhere: u64,
    /// Keys of the file that are not here.
    #[serde(default)]
    absent: u64,
    /// Keys that the receiver did not take.
    refused: u64,
    /// Why, of the last of them.
    refusal: String,
    /// XOR over all keys, here and there.
    digest: u64,
    digest_there: u64,
}

impl AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        self.keys += other.keys;
        self.sent += other.sent;
        self.bytes += other.bytes;
        self.changed += other.changed;
        self.elsewhere += other.elsewhere;
        self.absent += other.absent;
        self.refused += other.refused;
        if !other.refusal.is_empty() {
            self.refusal = other.refusal;
        }
        self.digest ^= other.digest;
        self.digest_there ^= other.digest_there;
    }
}

impl Totals {
    fn is_none(&self) -> bool {
        self.keys + self.elsewhere + self.absent + self.refused == 0
    }
}

/// Who copies.
enum Way {
    /// This program, from one cluster to another one.
    ToCluster(Sides),
    /// This node, to another one of its cluster.
    ToNode(Client),
}

impl Way {
    async fn find(args: &Args) -> Result<Self, Failure> {
        Ok(match &args.to_cluster {
            Some(endpoints) => Self::ToCluster(Sides::connect(args, endpoints).await?),
            None => Self::ToNode(to_node::source(args).await?),
        })
    }

    async fn clusters(&self) -> Result<[String; 2], Failure> {
        match self {
            Self::ToCluster(sides) => Ok(sides.clusters.clone()),
            Self::ToNode(source) => {
                let id = cluster_id(source).await?;
                Ok([id.clone(), id])
            }
        }
    }
}

/// A copy under way.
struct Job {
    args: Args,
    checkpoint: Checkpoint,
    saved: Saved,
    bar: ProgressBar,
    keys: Option<KeyFile>,
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let keys = args.keys.as_deref().map(KeyFile::open).transpose()?;
    let checkpoint = Checkpoint::beside(Some(&args.progress_file), None);
    let way = Way::find(&args).await?;
    let saved = resume(&checkpoint, &args, way.clusters().await?)?;
    let mut job = Job { args, checkpoint, saved, bar: share_bar(), keys };
    let began = Instant::now();
    let worked = match way {
        Way::ToCluster(sides) => to_cluster::run(&mut job, &sides).await,
        Way::ToNode(source) => to_node::run(&mut job, &source).await,
    };
    job.bar.finish_and_clear();
    match worked {
        Ok(()) => job.checkpoint.done(),
        // Nothing is there to go on from.
        Err(failure) if job.saved.totals.is_none() => return Err(failure),
        Err(failure) => {
            job.checkpoint.save(&job.saved, true)?;
            let (keys, path) = (job.saved.totals.keys, job.args.progress_file.display());
            say(format_args!("{keys} keys are copied; start it again to go on, as {path} says"));
            return Err(failure);
        }
    }
    report(&job, began.elapsed().as_secs_f64())
}

/// The place that an earlier run has reached, or the beginning.
fn resume(checkpoint: &Checkpoint, args: &Args, clusters: [String; 2]) -> Result<Saved, Failure> {
    let job = job_of(args);
    let Some(saved) = checkpoint.load::<Saved>()? else {
        return Ok(Saved { job, clusters, ..Saved::default() });
    };
    let path = args.progress_file.display();
    if saved.job != job {
        return Err(Failure::error(format!(
            "{path} belongs to another copy: {}. Name another file with --progress-file; or remove \
             it, and that copy begins anew when it is started again",
            saved.job
        )));
    }
    for (began, now) in saved.clusters.iter().zip(&clusters) {
        checkpoint.belongs(began, now)?;
    }
    say(format_args!("going on after {} keys, as {path} says", saved.totals.keys));
    Ok(saved)
}

/// What is copied whereto, in words that no other copy has.
fn job_of(args: &Args) -> String {
    let mut job = match &args.tenant {
        Some(tenant) => format!("tenant {tenant:?}"),
        None => "all tenants".to_owned(),
    };
    if !args.prefix.is_empty() {
        job += &format!(", keys that begin with {:?}", args.prefix);
    }
    if let Some(file) = &args.keys {
        job += &format!(", the keys in {file:?}");
    }
    if let Some(tokens) = &args.token_range {
        job += &format!(", tokens {:016x} to {:016x}", tokens.start(), tokens.end());
    }
    if let Some(from) = &args.from {
        job += &format!(", from node {from:?}");
    }
    if let Some(to) = &args.to {
        job += &format!(", to node {to:?}");
    }
    if let Some(there) = &args.to_cluster {
        job += &format!(", to the cluster at {there:?}");
    }
    if args.overwrite {
        job += ", replacing what is there";
    }
    job
}

impl Job {
    /// Remembers a place, and what was `done` since the last one: what is counted lies before it,
    /// so that what the next run does again is not counted twice. `share`: of all that is to do.
    fn reach(&mut self, place: Place, done: Totals, share: f64) -> Result<(), Failure> {
        self.saved.place = place;
        self.saved.totals += done;
        // Thousandths: a bar has whole steps.
        self.bar.set_position((share.clamp(0.0, 1.0) * 1000.0) as u64);
        let totals = &self.saved.totals;
        self.bar.set_message(format!("{} keys, {} bytes", totals.keys, totals.bytes));
        self.checkpoint.save(&self.saved, false)
    }
}

fn report(job: &Job, seconds: f64) -> Result<(), Failure> {
    let totals = &job.saved.totals;
    let mut text = format!(
        "{} keys are there, {} of them sent now, {} bytes, in {seconds:.1} s\n",
        totals.keys, totals.sent, totals.bytes
    );
    match totals.digest == totals.digest_there {
        true => text += &format!("digest {:016x}, the same on both sides", totals.digest),
        false => {
            text += &format!(
                "digest {:016x} here and {:016x} there: {} keys have changed",
                totals.digest, totals.digest_there, totals.changed
            );
        }
    }
    if totals.elsewhere > 0 {
        text += &format!("\n{} keys belong to other nodes: left out", totals.elsewhere);
    }
    if totals.absent > 0 {
        text += &format!("\n{} keys of the file are not here: left out", totals.absent);
    }
    let json = json!({
        "keys": totals.keys,
        "sent": totals.sent,
        "bytes": totals.bytes,
        "changed": totals.changed,
        "elsewhere": totals.elsewhere,
        "absent": totals.absent,
        "refused": totals.refused,
        "digest": format!("{:016x}", totals.digest),
        "digest_there": format!("{:016x}", totals.digest_there),
    });
    let outcome = match totals.refused {
        0 => Ok(()),
        count => Err(Failure::error(format!("{count} keys were not taken: {}", totals.refusal))),
    };
    job.args.connect.conclude(&text, &json, outcome)
}

/// Tokens from A to below B.
fn token_range(text: &str) -> Result<RangeInclusive<u64>, String> {
    let expected = || "expected A..B, each up to 16 hexadecimal digits or nothing".to_owned();
    let (start, end) = text.split_once("..").ok_or_else(expected)?;
    let token = |text: &str| {
        let is_token = text.len() <= 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        u64::from_str_radix(text, 16).ok().filter(|_| is_token).ok_or_else(expected)
    };
    let start = if start.is_empty() { 0 } else { token(start)? };
    let last = match end {
        "" => u64::MAX,
        end => token(end)?.checked_sub(1).ok_or_else(|| "no token is below 0".to_owned())?,
    };
    if start > last {
        return Err("the range is empty".to_owned());
    }
    Ok(start..=last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_of_tokens_is_what_lies_between_two_partitions_of_the_ring() {
        assert_eq!(token_range("0040000000000000..0080000000000000"), Ok(1 << 54..=(1 << 55) - 1));
        assert_eq!(token_range(".."), Ok(0..=u64::MAX));
        assert_eq!(token_range("ff.."), Ok(255..=u64::MAX));
        assert_eq!(token_range("..1"), Ok(0..=0));
        for bad in ["", "1", "1..1", "2..1", "..0", "x..", "-1..", "1..00000000000000000f"] {
            assert!(token_range(bad).is_err(), "{bad}");
        }
    }
}
