//! The `Admin` service. Upkeep runs on a pool of its own with one place, so that a compaction can
//! take its minutes without holding up scans, and two do not run at once.

use std::io;
use std::sync::Arc;

use tonic::{Code, Request, Response, Status};

use super::deadline::Deadline;
use super::migrate;
use super::server::Core;
use super::status::Problem;
use crate::cluster::layout::{Answer, Command, error_of};
use crate::engine;
use crate::proto;
use crate::proto::admin_server::Admin;
use crate::store::tenant::validate_name;
use crate::store::{self, Outcome, Store, Tenant, TenantChange, TenantSpec};

/// The service.
#[derive(Clone)]
pub(super) struct AdminService(pub Arc<Core>);

impl AdminService {
    /// Runs upkeep on its pool.
    async fn run<T: Send + 'static>(
        &self,
        deadline: Deadline,
        work: impl FnOnce(&Store) -> store::Result<T> + Send + 'static,
    ) -> Result<T, Problem> {
        let store = Arc::clone(&self.0.store);
        let done = self.0.upkeep.run(deadline, move || work(&store)).await?;
        done.map_err(|error| Problem::from(&error))
    }

    /// Times to live of a tenant: longer than this node's limit they would be cut silently.
    fn check_ttls(&self, all: [Option<u64>; 2]) -> Result<(), Problem> {
        let limits = self.0.store.limits();
        let checked = all.into_iter().flatten().try_for_each(|ttl_ms| limits.check_ttl(ttl_ms));
        checked.map_err(|error| Problem::from(&error))
    }

    /// Changes a tenant in the layout; this node knows it on return.
    async fn change_tenant(&self, command: Command, deadline: Deadline) -> Result<Tenant, Problem> {
        let end = self.0.instant(deadline);
        let name = match &command {
            Command::CreateTenant { spec, .. } => spec.name.clone(),
            Command::AlterTenant { name, .. } => name.clone(),
            _ => String::new(),
        };
        match self.0.cluster.propose(command, end).await? {
            Answer::Refused { reason, message } => {
                Err(Problem::from(&error_of(&name, &reason, message)))
            }
            Answer::Tenant(tenant) => {
                self.0.cluster.wait_for_tenant(&tenant, end).await;
                Ok(*tenant)
            }
            other => Err(Problem::new(Code::Internal, "INTERNAL", format!("{other:?}"))),
        }
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn create_tenant(
        &self,
        request: Request<proto::CreateTenantRequest>,
    ) -> Result<Response<proto::CreateTenantResponse>, Status> {
        let deadline = Deadline::of(&request);
        let tenant = request.into_inner().tenant;
        let tenant = tenant.ok_or_else(|| Problem::invalid("tenant", "is not given"))?;
        let spec = TenantSpec::try_from(tenant)?;
        validate_name(&spec.name).map_err(|error| Problem::from(&error))?;
        self.check_ttls([spec.default_ttl_ms, spec.max_ttl_ms])?;
        let now_ms = self.0.store.now_ms();
        let tenant = self.change_tenant(Command::CreateTenant { spec, now_ms }, deadline).await?;
        tracing::info!(tenant = tenant.name, id = tenant.id.0, "created a tenant");
        Ok(Response::new(proto::CreateTenantResponse { tenant: Some((&tenant).into()) }))
    }

    async fn get_tenant(
        &self,
        request: Request<proto::GetTenantRequest>,
    ) -> Result<Response<proto::GetTenantResponse>, Status> {
        let tenant = self.0.store.tenant(&request.get_ref().name);
        let tenant = tenant.map_err(|error| Problem::of_read(&error))?;
        Ok(Response::new(proto::GetTenantResponse { tenant: Some((&*tenant).into()) }))
    }

    async fn list_tenants(
        &self,
        _request: Request<proto::ListTenantsRequest>,
    ) -> Result<Response<proto::ListTenantsResponse>, Status> {
        let mut tenants: Vec<proto::Tenant> =
            self.0.store.tenants().iter().map(|tenant| (&**tenant).into()).collect();
        tenants.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(Response::new(proto::ListTenantsResponse { tenants }))
    }

    async fn set_tenant(
        &self,
        request: Request<proto::SetTenantRequest>,
    ) -> Result<Response<proto::SetTenantResponse>, Status> {
        let deadline = Deadline::of(&request);
        let request = request.into_inner();
        let mut change = TenantChange::try_from(&request)?;
        self.check_ttls([change.default_ttl_ms.flatten(), change.max_ttl_ms.flatten()])?;
        if let Ok(tenant) = self.0.store.tenant(&request.name) {
            // All of it, before a part of it is begun.
            tenant.altered(change.clone()).map_err(|error| Problem::from(&error))?;
        }
        let mut transition_epoch = 0;
        let cluster = &self.0.cluster;
        let moves = |factor: &u8| cluster.moves_rows(&request.name, *factor);
        if let Some(factor) = change.replication_factor.take_if(|factor| moves(factor)) {
            // Other replicas own its rows when they have them.
            let replication_factors = [(request.name.clone(), factor.into())].into();
            let asked = proto::LayoutChange { replication_factors, ..Default::default() };
            let commit = proto::CommitLayoutRequest { epoch: 0, change: Some(asked) };
            transition_epoch = cluster.commit(&commit, self.0.instant(deadline)).await?.epoch;
        }
        let command = Command::AlterTenant { name: request.name, change };
        let tenant = self.change_tenant(command, deadline).await;
        let tenant = tenant.map_err(|problem| rest_failed(problem, transition_epoch))?;
        tracing::info!(tenant = tenant.name, "changed a tenant");
        let tenant = Some((&tenant).into());
        Ok(Response::new(proto::SetTenantResponse { tenant, transition_epoch }))
    }

    async fn flush(
        &self,
        request: Request<proto::FlushRequest>,
    ) -> Result<Response<proto::FlushResponse>, Status> {
        self.run(Deadline::of(&request), Store::flush).await?;
        Ok(Response::new(proto::FlushResponse {}))
    }

    async fn compact(
        &self,
        request: Request<proto::CompactRequest>,
    ) -> Result<Response<proto::CompactResponse>, Status> {
        self.run(Deadline::of(&request), Store::compact).await?;
        Ok(Response::new(proto::CompactResponse {}))
    }

    async fn checkpoint(
        &self,
        request: Request<proto::CheckpointRequest>,
    ) -> Result<Response<proto::CheckpointResponse>, Status> {
        let deadline = Deadline::of(&request);
        let name = request.into_inner().name;
        check_name(&name)?;
        let path = self.0.options.checkpoint_dir.join(&name);
        let (store, into) = (Arc::clone(&self.0.store), path.clone());
        let made = self.0.upkeep.run(deadline, move || store.checkpoint(&into)).await?;
        made.map_err(|error| checkpoint_problem(&name, &error))?;
        tracing::info!(path = %path.display(), "made a checkpoint");
        Ok(Response::new(proto::CheckpointResponse { path: path.display().to_string() }))
    }

    async fn scrub(
        &self,
        request: Request<proto::ScrubRequest>,
    ) -> Result<Response<proto::ScrubResponse>, Status> {
        let report = self.run(Deadline::of(&request), Store::scrub).await?;
        let damage = report.damaged.into_iter().map(|one| proto::Damage {
            file: one.file.display().to_string(),
            offset: one.offset,
            what: one.what,
        });
        Ok(Response::new(proto::ScrubResponse {
            tables: report.tables,
            bytes: report.bytes,
            damage: damage.collect(),
        }))
    }

    async fn node_status(
        &self,
        _request: Request<proto::NodeStatusRequest>,
    ) -> Result<Response<proto::NodeStatusResponse>, Status> {
        let core = &self.0;
        let facts = &core.facts;
        Ok(Response::new(proto::NodeStatusResponse {
            node_id: facts.node_id.clone(),
            node_name: facts.node_name.clone(),
            zone: facts.zone.clone(),
            version: facts.version.clone(),
            uptime_seconds: core.started.elapsed().as_secs(),
            state: (facts.state)(),
            pressure: core.store.pressure(),
            figures: (facts.figures)().into_iter().collect(),
        }))
    }

    async fn cluster_status(
        &self,
        _request: Request<proto::ClusterStatusRequest>,
    ) -> Result<Response<proto::ClusterStatusResponse>, Status> {
        Ok(Response::new(self.0.cluster.status()))
    }

    async fn ring(
        &self,
        request: Request<proto::RingRequest>,
    ) -> Result<Response<proto::RingResponse>, Status> {
        Ok(Response::new(self.0.cluster.ring(request.get_ref())?))
    }

    async fn explain_key(
        &self,
        request: Request<proto::ExplainKeyRequest>,
    ) -> Result<Response<proto::ExplainKeyResponse>, Status> {
        Ok(Response::new(self.0.cluster.explain(request.get_ref()).await?))
    }

    async fn list_hints(
        &self,
        _request: Request<proto::ListHintsRequest>,
    ) -> Result<Response<proto::ListHintsResponse>, Status> {
        Ok(Response::new(self.0.cluster.hints()))
    }

    async fn repair_partitions(
        &self,
        request: Request<proto::RepairPartitionsRequest>,
    ) -> Result<Response<proto::RepairPartitionsResponse>, Status> {
        let deadline = Deadline::of(&request);
        let repair = self.0.cluster.repair(request.get_ref());
        let late = || Problem::deadline("the comparison did not end in time");
        Ok(Response::new(deadline.limit(repair).await.ok_or_else(late)??))
    }

    async fn plan_layout(
        &self,
        request: Request<proto::PlanLayoutRequest>,
    ) -> Result<Response<proto::PlanLayoutResponse>, Status> {
        Ok(Response::new(self.0.cluster.plan(request.get_ref())?))
    }

    async fn commit_layout(
        &self,
        request: Request<proto::CommitLayoutRequest>,
    ) -> Result<Response<proto::CommitLayoutResponse>, Status> {
        let end = self.0.instant(Deadline::of(&request));
        Ok(Response::new(self.0.cluster.commit(request.get_ref(), end).await?))
    }

    async fn abort_layout(
        &self,
        request: Request<proto::AbortLayoutRequest>,
    ) -> Result<Response<proto::AbortLayoutResponse>, Status> {
        let end = self.0.instant(Deadline::of(&request));
        Ok(Response::new(self.0.cluster.abort(request.get_ref(), end).await?))
    }

    type DrainNodeStream = super::drain::Progresses;

    async fn drain_node(
        &self,
        request: Request<proto::DrainNodeRequest>,
    ) -> Result<Response<Self::DrainNodeStream>, Status> {
        let deadline = Deadline::of(&request);
        let stream = super::drain::stream(Arc::clone(&self.0), request.into_inner(), deadline);
        Ok(Response::new(stream.await?))
    }

    async fn verify_certificate(
        &self,
        request: Request<proto::VerifyCertificateRequest>,
    ) -> Result<Response<proto::VerifyCertificateResponse>, Status> {
        Ok(Response::new(self.0.cluster.verify(request.get_ref()).await?))
    }

    async fn set_transfer_rate(
        &self,
        request: Request<proto::SetTransferRateRequest>,
    ) -> Result<Response<proto::SetTransferRateResponse>, Status> {
        let rate = &self.0.cluster.moving.rate;
        if let Some(bytes_per_second) = request.get_ref().bytes_per_second {
            rate.set(bytes_per_second);
            tracing::info!(bytes_per_second, "set the rate of transfers");
        }
        Ok(Response::new(proto::SetTransferRateResponse { bytes_per_second: rate.get() }))
    }

    type ReplicateDataStream = migrate::Pages;

    async fn replicate_data(
        &self,
        request: Request<proto::ReplicateDataRequest>,
    ) -> Result<Response<Self::ReplicateDataStream>, Status> {
        let deadline = Deadline::of(&request);
        Ok(Response::new(migrate::stream(&self.0, request.get_ref(), deadline)?))
    }

    async fn stop_node(
        &self,
        _request: Request<proto::StopNodeRequest>,
    ) -> Result<Response<proto::StopNodeResponse>, Status> {
        tracing::info!("asked to stop by an operator's call");
        self.0.asked_to_stop.cancel();
        let within = self.0.options.stop_max.as_millis();
        let within_ms = u64::try_from(within).unwrap_or(u64::MAX);
        Ok(Response::new(proto::StopNodeResponse { within_ms }))
    }
}

/// A change of a tenant that failed, maybe after the transition of an epoch was begun for a part of
/// it: then it is not so that nothing was changed.
fn rest_failed(problem: Problem, transition_epoch: u64) -> Problem {
    if transition_epoch == 0 {
        return problem;
    }
    let begun = format!("the replicas change with epoch {transition_epoch}, the rest has failed");
    let message = format!("{begun}: {}", problem.message);
    Problem { message, ..problem }
        .with("transition_epoch", transition_epoch)
        .of_write(Outcome::Unknown)
}

/// Why there is no checkpoint of this name.
fn checkpoint_problem(name: &str, error: &store::Error) -> Problem {
    if let store::Error::Engine(cause) = error
        && let engine::Error::Io { source, .. } = &**cause
        && source.kind() == io::ErrorKind::AlreadyExists
    {
        let message = format!("the checkpoint {name:?} exists already, or a part of it");
        return Problem::new(Code::AlreadyExists, "CHECKPOINT_EXISTS", message)
            .of_write(Outcome::NotApplied);
    }
    Problem::from(error)
}

/// A name is one path component of harmless characters: it cannot leave the checkpoint directory.
fn check_name(name: &str) -> Result<(), Problem> {
    let harmless = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    let ok =
        (1..=128).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(harmless);
    let rule = "must be 1 to 128 of [A-Za-z0-9._-] without a leading dot";
    if ok { Ok(()) } else { Err(Problem::invalid("name", rule)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_of_which_a_part_was_begun_is_not_said_to_be_undone() {
        let refused = Problem::invalid("tenant", "no").of_write(Outcome::NotApplied);
        assert_eq!(rest_failed(refused.clone(), 0), refused);
        let rest = rest_failed(refused, 7);
        assert_eq!(rest.outcome, Some(Outcome::Unknown));
        assert_eq!(
            rest.message,
            "the replicas change with epoch 7, the rest has failed: tenant: no"
        );
    }

    #[test]
    fn a_checkpoint_cannot_leave_its_directory() {
        check_name("before-upgrade_1.2").expect("harmless");
        for bad in ["", ".", "..", ".hidden", "a/b", "/etc", "a\\b", "a b", &"a".repeat(129)] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }
}
