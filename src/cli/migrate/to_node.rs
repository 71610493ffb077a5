//! Rows from one node of a cluster to another one: the first one does the work, this carries it.

use std::collections::BTreeSet;
use std::time::Duration;

use tonic::Streaming;

use super::{Args, Job, Place, Totals};
use crate::cli::args::{decode, encode};
use crate::cli::failure::Failure;
use crate::cli::layout;
use crate::client::{Admin, Client, Error};
use crate::proto;

/// Times that a broken stream is begun again where it broke, in a row.
const ATTEMPTS: u32 = 5;

pub(super) async fn run(job: &mut Job, client: &Client) -> Result<(), Failure> {
    let mut request = proto::ReplicateDataRequest {
        to: job.args.to.clone().unwrap_or_default(),
        tenant: job.args.tenant.clone().unwrap_or_default(),
        prefix: job.args.prefix.clone().into(),
        keys: Vec::new(),
        token_start: job.args.token_range.as_ref().map(|range| *range.start()),
        token_end: job.args.token_range.as_ref().map(|range| *range.end()),
        cursor: decode("the cursor", &job.saved.place.cursor)?,
        bytes_per_second: job.args.rate.map_or(0, |rate| rate.0),
    };
    let Some(mut file) = job.keys.take() else {
        return copy(job, client, &mut request, &|done, place| (done, place)).await;
    };
    file.seek(job.saved.place.offset)?;
    loop {
        request.keys = file.batch()?;
        if request.keys.is_empty() {
            return Ok(());
        }
        // A batch is one page: it is done as a whole, or begun again.
        let (done, offset) = (file.done(), file.offset());
        let placed = |_, place| (done, Place { offset, ..place });
        copy(job, client, &mut request, &placed).await?;
    }
}

/// A client of the node that has the rows.
pub(super) async fn source(args: &Args) -> Result<Client, Failure> {
    let connect = &args.connect;
    let Some(named) = &args.from else { return connect.one_node_client() };
    let told = layout::status(&connect.admin_client()?).await?;
    layout::client_of(layout::member(&told, named)?, connect)
}

/// Copies pages until the last; each is counted, and its place remembered.
async fn copy(
    job: &mut Job,
    client: &Client,
    request: &mut proto::ReplicateDataRequest,
    placed: &(impl Fn(f64, Place) -> (f64, Place) + Sync),
) -> Result<(), Failure> {
    let mut attempt = 0;
    loop {
        let error = match begin(client, request).await {
            Ok(mut pages) => match pages.message().await {
                Ok(first) => match follow(job, request, first, &mut pages, placed).await? {
                    None => return Ok(()),
                    Some((error, moved)) => {
                        attempt = if moved { 0 } else { attempt };
                        error
                    }
                },
                Err(status) => Error::of(&status, false),
            },
            Err(error) => error,
        };
        attempt += 1;
        if attempt > ATTEMPTS || !error.may_retry() {
            return Err(Failure::of_plan(error));
        }
        tokio::time::sleep(Duration::from_millis(200) * attempt).await;
    }
}

async fn begin(
    client: &Client,
    request: &proto::ReplicateDataRequest,
) -> Result<Streaming<proto::ReplicateDataProgress>, Error> {
    let call = async |admin: &mut Admin, request| admin.replicate_data(request).await;
    client.admin_stream(request.clone(), call).await
}

/// Takes pages until the last one, or an error; says whether any came before it.
async fn follow(
    job: &mut Job,
    request: &mut proto::ReplicateDataRequest,
    first: Option<proto::ReplicateDataProgress>,
    pages: &mut Streaming<proto::ReplicateDataProgress>,
    placed: &(impl Fn(f64, Place) -> (f64, Place) + Sync),
) -> Result<Option<(Error, bool)>, Failure> {
    let distinct = request.keys.iter().collect::<BTreeSet<_>>().len() as u64;
    let mut next = first;
    let mut moved = false;
    while let Some(page) = next {
        moved = true;
        let is_last = page.cursor.is_empty();
        let place = Place { cursor: encode(&page.cursor), ..Place::default() };
        let (share, place) = placed(page.done, place);
        let found = page.keys + page.elsewhere + page.refused;
        let done = Totals {
            keys: page.keys,
            sent: page.sent,
            bytes: page.bytes,
            changed: page.newer,
            elsewhere: page.elsewhere,
            // Keys of a file are one page; where none are named, none is missing.
            absent: distinct.saturating_sub(found),
            refused: page.refused,
            refusal: page.refusal,
            digest: page.digest,
            digest_there: page.digest_there,
        };
        job.reach(place, done, share)?;
        request.cursor = page.cursor;
        if is_last {
            return Ok(None);
        }
        next = match pages.message().await {
            Ok(next) => next,
            Err(status) => return Ok(Some((Error::of(&status, false), moved))),
        };
    }
    Ok(Some((Error::ended_early(), moved)))
}
