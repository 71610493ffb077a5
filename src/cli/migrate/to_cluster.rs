//! Values into another cluster, through the doors of clients on both sides.
//!
//! Carried over: keys, values with their content types, siblings as siblings, and when a value
//! expires. Not carried over: contexts and clocks (the other cluster mints its own), deletes,
//! idempotency keys, the tenants themselves.
//!
//! 1. What a key holds there already is not written again; what is written is named after its row,
//!    so that within the window of idempotency keys a value is written once, however often the copy
//!    is repeated.
//! 2. A key counts only when its writes were acknowledged and it was read back; where it holds
//!    other values there than here, that is counted too.
//! 3. In memory there is a page of the scan and the batch that is made of it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use super::{Args, Job, Place, Totals};
use crate::cli::args::{decode, encode};
use crate::cli::failure::Failure;
use crate::cli::layout::cluster_id;
use crate::cli::writes::{self, Unwritten};
use crate::client::{Admin, Client, Error, Options};
use crate::proto;
use crate::store::TenantId;
use crate::store::key::{partition_key, token_of};

/// Rows, or writes, of a batch.
const BATCH_ITEMS: usize = 250;
/// Bytes of a batch, unless it has one row or write alone.
const BATCH_BYTES: usize = 1 << 20;
/// Times that a read is tried again in a row, beyond what the client does by itself.
const ATTEMPTS: u32 = 8;
/// Time for a call with its retries.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Both sides.
pub(super) struct Sides {
    here: Client,
    there: Client,
    /// The ids of both. The first one names the rows in the idempotency keys.
    pub clusters: [String; 2],
    overwrite: bool,
}

/// A tenant, as far as the copy needs it.
struct Tenant {
    name: String,
    id: TenantId,
    delimiter: Bytes,
}

/// What a key holds.
struct Row {
    key: Bytes,
    siblings: Vec<proto::Sibling>,
}

impl Sides {
    /// Reaches both, which must be two.
    pub async fn connect(args: &Args, endpoints: &str) -> Result<Self, Failure> {
        let consistency = args.consistency.into();
        let options = Options { consistency, ..args.connect.options(TIMEOUT)? };
        let endpoints = endpoints.split(',').map(|uri| uri.trim().to_owned()).collect();
        let there = Client::new(Options { endpoints, ..options.clone() })?;
        let here = Client::new(options)?;
        let clusters = [cluster_id(&here).await?, cluster_id(&there).await?];
        if !clusters[0].is_empty() && clusters[0] == clusters[1] {
            let message = "--to-cluster is the cluster itself; --to copies to a node";
            return Err(Failure::usage(message));
        }
        Ok(Self { here, there, clusters, overwrite: args.overwrite })
    }
}

pub(super) async fn run(job: &mut Job, sides: &Sides) -> Result<(), Failure> {
    let tenants = tenants(job, sides).await?;
    let all = tenants.len();
    for (at, tenant) in tenants.iter().enumerate() {
        // What stands before the tenant at work, by name, was copied by an earlier run.
        if tenant.name < job.saved.place.tenant {
            continue;
        }
        if tenant.name != job.saved.place.tenant {
            job.saved.place = Place { tenant: tenant.name.clone(), ..Place::default() };
        }
        let share = |done: f64| (at as f64 + done) / all as f64;
        match job.keys.take() {
            Some(mut file) => copy_keys(job, sides, tenant, &mut file).await?,
            None => copy_tenant(job, sides, tenant, share).await?,
        }
    }
    Ok(())
}

/// The tenants to copy, by name: each must be there, of the same mode.
async fn tenants(job: &Job, sides: &Sides) -> Result<Vec<Tenant>, Failure> {
    let list = async |admin: &mut Admin, request| admin.list_tenants(request).await;
    let here = sides.here.admin_call(proto::ListTenantsRequest {}, list).await?.tenants;
    let there = sides.there.admin_call(proto::ListTenantsRequest {}, list).await?.tenants;
    let wanted = |tenant: &proto::Tenant| match &job.args.tenant {
        Some(name) => tenant.name == *name,
        None => true,
    };
    let mut tenants = Vec::new();
    for tenant in here.into_iter().filter(wanted) {
        let name = tenant.name.clone();
        let Some(other) = there.iter().find(|other| other.name == name) else {
            let message = format!("there is no tenant {name:?} there: create it first");
            return Err(Failure::error(message));
        };
        if other.mode() != tenant.mode() {
            let message = format!("tenant {name:?} keeps concurrent writes in another way there");
            return Err(Failure::error(message));
        }
        let (id, delimiter) = (TenantId(tenant.id), tenant.partition_delimiter);
        tenants.push(Tenant { name, id, delimiter });
    }
    if let (Some(name), true) = (&job.args.tenant, tenants.is_empty()) {
        return Err(Failure::error(format!("there is no tenant {name:?}")));
    }
    tenants.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(tenants)
}

/// Copies the keys of the file.
async fn copy_keys(
    job: &mut Job,
    sides: &Sides,
    tenant: &Tenant,
    file: &mut super::keys::KeyFile,
) -> Result<(), Failure> {
    file.seek(job.saved.place.offset)?;
    loop {
        let keys = file.batch()?;
        if keys.is_empty() {
            return Ok(());
        }
        let mut done = Totals::default();
        for some in keys.chunks(BATCH_ITEMS) {
            let rows = read(&sides.here, tenant, some.to_vec()).await?;
            let rows = some.iter().zip(rows);
            let rows = rows.map(|(key, row)| Row { key: key.clone(), siblings: row.siblings });
            let rows: Vec<Row> = rows.collect();
            done.absent += rows.iter().filter(|row| row.siblings.is_empty()).count() as u64;
            done += copy_rows(sides, tenant, rows).await?;
        }
        let place = Place { offset: file.offset(), ..job.saved.place.clone() };
        job.reach(place, done, file.done())?;
    }
}

/// Copies what a scan of the tenant shows.
async fn copy_tenant(
    job: &mut Job,
    sides: &Sides,
    tenant: &Tenant,
    share: impl Fn(f64) -> f64,
) -> Result<(), Failure> {
    let mut request = proto::ScanRequest {
        tenant: tenant.name.clone(),
        prefix: job.args.prefix.clone().into(),
        cursor: decode("the cursor", &job.saved.place.cursor)?,
        ..Default::default()
    };
    let tokens = job.args.token_range.clone().unwrap_or(0..=u64::MAX);
    let mut attempt = 0;
    loop {
        let error = match sides.here.scan(request.clone()).await {
            Err(error) => error,
            Ok(mut pages) => loop {
                let page = match pages.next().await {
                    Ok(Some(page)) => page,
                    Ok(None) => return Ok(()),
                    Err(error) => break error,
                };
                attempt = 0;
                let mut reached = 0.0;
                let mut rows = Vec::new();
                for row in page.rows {
                    let token =
                        token_of(tenant.id, partition_key(&row.key, Some(&tenant.delimiter)));
                    reached = token as f64 / u64::MAX as f64;
                    if tokens.contains(&token) {
                        rows.push(Row { key: row.key, siblings: row.siblings });
                    }
                }
                let done = copy_rows(sides, tenant, rows).await?;
                let place = Place { cursor: encode(&page.cursor), ..job.saved.place.clone() };
                job.reach(place, done, share(reached))?;
                request.cursor = page.cursor;
            },
        };
        attempt += 1;
        if attempt > ATTEMPTS || !error.may_retry() {
            return Err(error.into());
        }
        tokio::time::sleep(Duration::from_millis(200) * attempt).await;
    }
}

/// Copies rows in batches; what became of them.
async fn copy_rows(sides: &Sides, tenant: &Tenant, mut rows: Vec<Row>) -> Result<Totals, Failure> {
    rows.retain(|row| !row.siblings.is_empty());
    let mut totals = Totals::default();
    for batch in batches(&rows, Row::bytes) {
        totals += copy_batch(sides, tenant, batch).await?;
    }
    Ok(totals)
}

/// Parts of `all` that are not too large, but for those of one item.
fn batches<T>(all: &[T], bytes_of: impl Fn(&T) -> usize) -> impl Iterator<Item = &[T]> {
    let mut rest = all;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = |item: &&T| {
            bytes += bytes_of(item);
            bytes <= BATCH_BYTES
        };
        let count = rest.iter().take(BATCH_ITEMS).take_while(fits).count();
        let (batch, more) = rest.split_at(count.max(1).min(rest.len()));
        rest = more;
        (!batch.is_empty()).then_some(batch)
    })
}

/// Reads what is there, writes what is not, and reads it back.
async fn copy_batch(sides: &Sides, tenant: &Tenant, batch: &[Row]) -> Result<Totals, Failure> {
    let keys = || batch.iter().map(|row| row.key.clone()).collect::<Vec<_>>();
    let found = read(&sides.there, tenant, keys()).await?;
    let now_ms = now_ms();
    let mut mutations = Vec::new();
    let mut owners = Vec::new();
    for (at, (row, found)) in batch.iter().zip(&found).enumerate() {
        let wanted = sides.mutations(tenant, row, found, now_ms);
        owners.extend(std::iter::repeat_n(at, wanted.len()));
        mutations.extend(wanted);
    }
    let mut given = vec![Given::default(); batch.len()];
    for (at, written) in owners.iter().zip(write(sides, tenant, &mutations).await?) {
        let one = &mut given[*at];
        match written {
            Ok(written) => {
                one.sent |= !written.duplicate;
            }
            Err(error) => one.refusal = Some(error.to_string()),
        }
    }
    let found = read(&sides.there, tenant, keys()).await?;
    let mut totals = Totals::default();
    for ((row, given), found) in batch.iter().zip(given).zip(found) {
        if let Some(why) = given.refusal {
            totals.refused += 1;
            totals.refusal = why;
            continue;
        }
        let there = Row { key: row.key.clone(), siblings: found.siblings };
        let (digest, digest_there) = (row.digest(tenant, now_ms), there.digest(tenant, now_ms));
        totals.keys += 1;
        // Other values were written there, or what was copied before was replaced since.
        totals.changed += u64::from(digest != digest_there);
        totals.digest ^= digest;
        totals.digest_there ^= digest_there;
        if given.sent {
            totals.sent += 1;
            totals.bytes += row.bytes() as u64;
        }
    }
    Ok(totals)
}

/// What became of a key's writes.
#[derive(Clone, Debug, Default)]
struct Given {
    sent: bool,
    refusal: Option<String>,
}

impl Sides {
    /// The writes that bring a row there.
    fn mutations(
        &self,
        tenant: &Tenant,
        row: &Row,
        found: &proto::ReadResponse,
        now_ms: u64,
    ) -> Vec<proto::Mutation> {
        let mut wanted: Vec<&proto::Sibling> =
            row.siblings.iter().filter(|sibling| !expired(sibling, now_ms)).collect();
        let is_there = |sibling: &&proto::Sibling| found.siblings.iter().any(|s| same(s, sibling));
        let context = match self.overwrite {
            // The context covers all that is there: all of the row is written, or nothing.
            true => {
                let is_all = wanted.iter().all(is_there);
                if is_all && found.siblings.len() <= wanted.len() {
                    return Vec::new();
                }
                found.context.clone()
            }
            false => {
                wanted.retain(|sibling| !is_there(sibling));
                Bytes::new()
            }
        };
        let mutation = |sibling: &proto::Sibling| proto::Mutation {
            key: row.key.clone(),
            change: Some(proto::mutation::Change::Value(sibling.value.clone())),
            content_type: sibling.content_type.clone(),
            context: context.clone(),
            ttl_ms: (sibling.expires_at_ms > 0).then(|| sibling.expires_at_ms - now_ms),
            idempotency_key: self.name(tenant, &row.key, sibling, &context),
        };
        wanted.into_iter().map(mutation).collect()
    }

    /// The name of a write: the same for the same version of the same row, whenever it is copied.
    fn name(&self, tenant: &Tenant, key: &[u8], sibling: &proto::Sibling, context: &[u8]) -> Bytes {
        let parts: [&[u8]; 6] = [
            self.clusters[0].as_bytes(),
            tenant.name.as_bytes(),
            key,
            &sibling.hlc.to_le_bytes(),
            &payload_hash(sibling).to_le_bytes(),
            context,
        ];
        xxh3_128(&framed(&parts)).to_le_bytes().to_vec().into()
    }
}

impl Row {
    fn bytes(&self) -> usize {
        let values = self.siblings.iter().map(|one| one.value.len() + one.content_type.len());
        self.key.len() + values.sum::<usize>()
    }

    /// XOR over its values: their order means nothing.
    fn digest(&self, tenant: &Tenant, now_ms: u64) -> u64 {
        let live = self.siblings.iter().filter(|sibling| !expired(sibling, now_ms));
        let hash = |sibling: &proto::Sibling| {
            let payload = payload_hash(sibling).to_le_bytes();
            xxh3_64(&framed(&[tenant.name.as_bytes(), &self.key, &payload]))
        };
        live.map(hash).fold(0, |all, one| all ^ one)
    }
}

/// Parts that cannot run into each other.
fn framed(parts: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in parts {
        bytes.extend_from_slice(&(part.len() as u64).to_le_bytes());
        bytes.extend_from_slice(part);
    }
    bytes
}

/// Of what a client wrote. An expiry is absolute, and a little later in each copy: that there is
/// one counts, not when it is.
fn payload_hash(sibling: &proto::Sibling) -> u64 {
    let expires = [u8::from(sibling.expires_at_ms > 0)];
    xxh3_64(&framed(&[sibling.content_type.as_bytes(), &sibling.value, &expires]))
}

fn same(one: &proto::Sibling, other: &proto::Sibling) -> bool {
    one.value == other.value
        && one.content_type == other.content_type
        && (one.expires_at_ms > 0) == (other.expires_at_ms > 0)
}

fn expired(sibling: &proto::Sibling, now_ms: u64) -> bool {
    sibling.expires_at_ms > 0 && sibling.expires_at_ms <= now_ms
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// Reads rows; all of them, or it fails.
async fn read(
    client: &Client,
    tenant: &Tenant,
    keys: Vec<Bytes>,
) -> Result<Vec<proto::ReadResponse>, Failure> {
    use proto::batch_read_result::Result as Item;
    let mut attempt = 0;
    loop {
        let rows = client.batch_read(&tenant.name, keys.clone()).await?;
        if rows.len() != keys.len() {
            return Err(Failure::error("the answer does not fit the batch"));
        }
        let rows: Result<Vec<_>, Error> = rows
            .into_iter()
            .map(|row| match row.result {
                Some(Item::Row(row)) => Ok(row),
                Some(Item::Failure(failure)) => Err(Error::of_item(&failure)),
                None => Ok(proto::ReadResponse::default()),
            })
            .collect();
        let error = match rows {
            Ok(rows) => return Ok(rows),
            Err(error) => error,
        };
        attempt += 1;
        let Some(wait) = error.retry_after().filter(|_| attempt <= ATTEMPTS) else {
            return Err(error.into());
        };
        tokio::time::sleep(wait * attempt).await;
    }
}

/// Writes; what a node refuses of it is told, a call that fails ends it.
async fn write(
    sides: &Sides,
    tenant: &Tenant,
    mutations: &[proto::Mutation],
) -> Result<Vec<Result<proto::WriteResponse, Error>>, Failure> {
    let mut results = Vec::with_capacity(mutations.len());
    for some in batches(mutations, value_bytes) {
        for written in writes::write(&sides.there, &tenant.name, some).await {
            results.push(match written {
                Ok(written) => Ok(written),
                Err(Unwritten::Itself(error)) => Err(error),
                Err(Unwritten::Call(error)) => return Err(Failure::of_write(error)),
            });
        }
    }
    Ok(results)
}

fn value_bytes(mutation: &proto::Mutation) -> usize {
    let value = match &mutation.change {
        Some(proto::mutation::Change::Value(value)) => value.len(),
        _ => 0,
    };
    mutation.key.len() + value + mutation.content_type.len() + mutation.context.len()
}
