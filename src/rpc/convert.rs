//! Messages to and from the store's types.
//!
//! Decoded bytes are slices of the connection's receive buffer: a 20-byte key would keep all of it
//! alive. What goes into the store is therefore copied here, once; what comes out is moved.

use bytes::Bytes;

use super::status::Problem;
use crate::proto;
use crate::replication::Level;
use crate::store::tenant::REPLICATION_FACTOR_MAX;
use crate::store::{
    Mode, Mutation, Outcome, ReadRow, ScanRequest, Tenant, TenantChange, TenantSpec, Written,
};

/// Absent and empty are the same for contexts, cursors and idempotency keys.
fn given(bytes: &Bytes) -> Option<Vec<u8>> {
    (!bytes.is_empty()).then(|| bytes.to_vec())
}

/// The level that a request asks for.
pub(super) fn level_of(consistency: i32) -> Result<Level, Problem> {
    let unknown = || Problem::invalid("consistency", format!("{consistency} is unknown"));
    Level::of(consistency).ok_or_else(unknown)
}

impl From<proto::WriteRequest> for Mutation {
    fn from(request: proto::WriteRequest) -> Self {
        Self {
            key: request.key.to_vec(),
            value: Some(request.value.to_vec()),
            content_type: request.content_type,
            context: given(&request.context),
            ttl_ms: request.ttl_ms,
            idempotency_key: given(&request.idempotency_key),
        }
    }
}

impl From<proto::DeleteRequest> for Mutation {
    fn from(request: proto::DeleteRequest) -> Self {
        Self {
            key: request.key.to_vec(),
            value: None,
            content_type: String::new(),
            context: given(&request.context),
            ttl_ms: None,
            idempotency_key: given(&request.idempotency_key),
        }
    }
}

impl TryFrom<proto::Mutation> for Mutation {
    type Error = Problem;

    fn try_from(mutation: proto::Mutation) -> Result<Self, Problem> {
        use proto::mutation::Change;
        let value = match mutation.change {
            Some(Change::Value(value)) => Some(value.to_vec()),
            Some(Change::Delete(true)) => None,
            Some(Change::Delete(false)) => {
                return Err(Problem::invalid("delete", "must be true where it is given"));
            }
            None => return Err(Problem::invalid("change", "neither a value nor a delete")),
        };
        Ok(Self {
            key: mutation.key.to_vec(),
            value,
            content_type: mutation.content_type,
            context: given(&mutation.context),
            ttl_ms: mutation.ttl_ms,
            idempotency_key: given(&mutation.idempotency_key),
        })
    }
}

impl From<Written> for proto::DeleteResponse {
    fn from(written: Written) -> Self {
        Self {
            context: written.context.into(),
            siblings: written.siblings,
            sibling_warning: written.sibling_warning,
            duplicate: written.duplicate,
            hlc: written.hlc,
        }
    }
}

/// A row of a scan.
pub(super) fn scan_row(key: Bytes, row: ReadRow) -> proto::ScanRow {
    proto::ScanRow {
        key,
        siblings: row.siblings.into_iter().map(Into::into).collect(),
        context: row.context.into(),
        deleted_concurrently: row.deleted_concurrently,
    }
}

impl From<&proto::StreamKeysRequest> for ScanRequest {
    fn from(request: &proto::StreamKeysRequest) -> Self {
        Self {
            partition_key: request.partition_key.as_ref().map(|key| key.to_vec()),
            prefix: request.prefix.to_vec(),
            cursor: given(&request.cursor),
            ..Default::default()
        }
    }
}

impl From<&proto::ScanRequest> for ScanRequest {
    fn from(request: &proto::ScanRequest) -> Self {
        Self {
            partition_key: request.partition_key.as_ref().map(|key| key.to_vec()),
            prefix: request.prefix.to_vec(),
            start: request.start.to_vec(),
            end: request.end.to_vec(),
            keys_only: request.keys_only,
            cursor: given(&request.cursor),
            ..Default::default()
        }
    }
}

impl From<&proto::GetKeyRangeRequest> for ScanRequest {
    fn from(request: &proto::GetKeyRangeRequest) -> Self {
        Self {
            partition_key: request.partition_key.as_ref().map(|key| key.to_vec()),
            prefix: request.prefix.to_vec(),
            start: request.start.to_vec(),
            end: request.end.to_vec(),
            keys_only: true,
            cursor: given(&request.cursor),
            ..Default::default()
        }
    }
}

/// Bytes of the values of a row, for the counters.
pub(super) fn bytes_of(row: &ReadRow) -> u64 {
    row.siblings.iter().map(|sibling| sibling.value.len() as u64).sum()
}

impl From<&Tenant> for proto::Tenant {
    fn from(tenant: &Tenant) -> Self {
        let mode = match tenant.mode {
            Mode::Siblings => proto::TenantMode::Siblings,
            Mode::LastWriteWins => proto::TenantMode::LastWriteWins,
        };
        Self {
            name: tenant.name.clone(),
            id: tenant.id.0,
            mode: mode.into(),
            partition_delimiter: tenant.partition_delimiter.clone().unwrap_or_default().into(),
            default_ttl_ms: tenant.default_ttl_ms.unwrap_or(0),
            max_ttl_ms: tenant.max_ttl_ms.unwrap_or(0),
            replication_factor: tenant.replication_factor.into(),
        }
    }
}

/// Zero is "none" on the wire.
fn nonzero(figure: u64) -> Option<u64> {
    (figure != 0).then_some(figure)
}

/// A number of replicas that a tenant may have.
fn replicas(count: u32) -> Result<u8, Problem> {
    let fits =
        u8::try_from(count).ok().filter(|count| (1..=REPLICATION_FACTOR_MAX).contains(count));
    fits.ok_or_else(|| {
        let why = format!("it is {count}, it must be 1 to {REPLICATION_FACTOR_MAX}");
        Problem::invalid("replication_factor", why).of_write(Outcome::NotApplied)
    })
}

impl TryFrom<proto::Tenant> for TenantSpec {
    type Error = Problem;

    fn try_from(tenant: proto::Tenant) -> Result<Self, Problem> {
        let mode = match proto::TenantMode::try_from(tenant.mode) {
            Ok(proto::TenantMode::Unspecified | proto::TenantMode::Siblings) => Mode::Siblings,
            Ok(proto::TenantMode::LastWriteWins) => Mode::LastWriteWins,
            Err(_) => {
                return Err(Problem::invalid("mode", format!("{} is unknown", tenant.mode)));
            }
        };
        let mut spec = Self::new(tenant.name);
        spec.mode = mode;
        spec.partition_delimiter = given(&tenant.partition_delimiter);
        spec.default_ttl_ms = nonzero(tenant.default_ttl_ms);
        spec.max_ttl_ms = nonzero(tenant.max_ttl_ms);
        if tenant.replication_factor != 0 {
            spec.replication_factor = replicas(tenant.replication_factor)?;
        }
        Ok(spec)
    }
}

impl TryFrom<&proto::SetTenantRequest> for TenantChange {
    type Error = Problem;

    fn try_from(request: &proto::SetTenantRequest) -> Result<Self, Problem> {
        Ok(Self {
            default_ttl_ms: request.default_ttl_ms.map(nonzero),
            max_ttl_ms: request.max_ttl_ms.map(nonzero),
            replication_factor: request.replication_factor.map(replicas).transpose()?,
            ..Self::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mutation_must_say_what_becomes_of_the_key() {
        // An absent value must never be taken for a delete.
        let bare = proto::Mutation { key: Bytes::from_static(b"k"), ..Default::default() };
        let refused = Mutation::try_from(bare.clone()).expect_err("no change");
        assert_eq!(refused.reason, "INVALID_ARGUMENT");
        let no = Some(proto::mutation::Change::Delete(false));
        assert!(Mutation::try_from(proto::Mutation { change: no, ..bare.clone() }).is_err());
        let yes = Some(proto::mutation::Change::Delete(true));
        let delete = Mutation::try_from(proto::Mutation { change: yes, ..bare }).expect("valid");
        assert!(delete.value.is_none());
    }

    #[test]
    fn a_number_of_replicas_is_refused_by_its_limit() {
        for count in [16, 1000] {
            let change =
                proto::SetTenantRequest { replication_factor: Some(count), ..Default::default() };
            let refused = TenantChange::try_from(&change).expect_err("too many");
            let told = format!("replication_factor: it is {count}, it must be 1 to 15");
            assert_eq!(refused.message, told);
            assert_eq!(refused.outcome, Some(Outcome::NotApplied));
            let tenant = proto::Tenant { replication_factor: count, ..Default::default() };
            assert_eq!(TenantSpec::try_from(tenant).expect_err("too many"), refused);
        }
    }

    #[test]
    fn an_unknown_mode_is_refused() {
        let tenant = proto::Tenant { name: "a".into(), mode: 17, ..Default::default() };
        assert!(TenantSpec::try_from(tenant).is_err());
    }
}
