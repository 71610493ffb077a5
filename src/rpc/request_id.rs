//! The name of a call in logs on every side: `x-request-id`, taken from the client if it is sane,
//! made otherwise, and echoed in the answer.

use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use tonic::codegen::http::{HeaderMap, HeaderValue};

/// The header.
pub const HEADER: &str = "x-request-id";

/// Longest id taken from a client, in bytes.
const BYTES_MAX: usize = 128;

/// The id of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(HeaderValue);

impl RequestId {
    /// The id in the headers, or a new one if there is none or it is not 1 to 128 of
    /// `[A-Za-z0-9._:/+=-]` (whatever goes into logs unescaped).
    pub fn accept_or_make(headers: &HeaderMap) -> Self {
        match headers.get(HEADER) {
            Some(given) if is_sane(given.as_bytes()) => Self(given.clone()),
            _ => Self::make(),
        }
    }

    /// A new id: 16 hex digits of the process, 16 of the call. Unique, not secret.
    fn make() -> Self {
        static PROCESS: LazyLock<u64> =
            LazyLock::new(|| RandomState::new().hash_one(std::process::id()));
        static CALL: AtomicU64 = AtomicU64::new(0);
        let text = format!("{:016x}{:016x}", *PROCESS, CALL.fetch_add(1, Ordering::Relaxed));
        Self(HeaderValue::from_str(&text).expect("hex digits are a valid header value"))
    }

    /// For logs.
    pub fn as_str(&self) -> &str {
        self.0.to_str().expect("only ASCII ids are accepted or made")
    }

    /// For the answer's header.
    pub fn into_header(self) -> HeaderValue {
        self.0
    }
}

fn is_sane(id: &[u8]) -> bool {
    (1..=BYTES_MAX).contains(&id.len())
        && id.iter().all(|b| b.is_ascii_alphanumeric() || b"._:/+=-".contains(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sane_id_is_kept_and_any_other_replaced() {
        let mut headers = HeaderMap::new();
        headers.insert(HEADER, HeaderValue::from_static("job-7/step:2"));
        assert_eq!(RequestId::accept_or_make(&headers).as_str(), "job-7/step:2");

        let long = "a".repeat(BYTES_MAX + 1);
        for bad in ["", "a b", "a\"b", "{}", &long] {
            headers.insert(HEADER, HeaderValue::from_str(bad).expect("visible ASCII"));
            let made = RequestId::accept_or_make(&headers);
            assert_ne!(made.as_str(), bad);
            assert_eq!(made.as_str().len(), 32);
        }
    }

    #[test]
    fn made_ids_differ() {
        assert_ne!(RequestId::make(), RequestId::make());
    }
}
