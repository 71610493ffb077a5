//! What the store answers, as messages and back.

use crate::proto;
use crate::store::{Mutation, ReadRow, Sibling, Written};

impl From<Written> for proto::WriteResponse {
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

impl From<proto::WriteResponse> for Written {
    fn from(response: proto::WriteResponse) -> Self {
        Self {
            context: response.context.into(),
            siblings: response.siblings,
            sibling_warning: response.sibling_warning,
            duplicate: response.duplicate,
            hlc: response.hlc,
        }
    }
}

impl From<Sibling> for proto::Sibling {
    fn from(sibling: Sibling) -> Self {
        Self {
            value: sibling.value.into(),
            content_type: sibling.content_type,
            expires_at_ms: sibling.expires_at_ms,
            hlc: sibling.hlc,
        }
    }
}

impl From<ReadRow> for proto::ReadResponse {
    fn from(row: ReadRow) -> Self {
        Self {
            found: !row.siblings.is_empty(),
            siblings: row.siblings.into_iter().map(Into::into).collect(),
            context: row.context.into(),
            deleted_concurrently: row.deleted_concurrently,
        }
    }
}

/// A mutation as it is forwarded.
pub(super) fn forwarded(mutation: &Mutation) -> proto::Mutation {
    use proto::mutation::Change;
    let change = match &mutation.value {
        Some(value) => Change::Value(value.clone().into()),
        None => Change::Delete(true),
    };
    proto::Mutation {
        key: mutation.key.clone().into(),
        change: Some(change),
        content_type: mutation.content_type.clone(),
        context: mutation.context.clone().unwrap_or_default().into(),
        ttl_ms: mutation.ttl_ms,
        idempotency_key: mutation.idempotency_key.clone().unwrap_or_default().into(),
    }
}

/// A forwarded mutation; `None` if it says nothing of what becomes of the key.
pub(super) fn received(mutation: proto::Mutation) -> Option<Mutation> {
    use proto::mutation::Change;
    let given = |bytes: bytes::Bytes| (!bytes.is_empty()).then(|| bytes.to_vec());
    let value = match mutation.change? {
        Change::Value(value) => Some(value.to_vec()),
        Change::Delete(true) => None,
        Change::Delete(false) => return None,
    };
    Some(Mutation {
        key: mutation.key.to_vec(),
        value,
        content_type: mutation.content_type,
        context: given(mutation.context),
        ttl_ms: mutation.ttl_ms,
        idempotency_key: given(mutation.idempotency_key),
    })
}
