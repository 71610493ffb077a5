//! When a call must be answered: the client's `grpc-timeout`, capped by the server.
//!
//! tonic's own timeout answers CANCELLED and drops the handler, which hides from a writer whether
//! its write was submitted. Here a deadline is a value that handlers hold: a write that was
//! submitted and is not yet durable answers DEADLINE_EXCEEDED with outcome `unknown`, one that was
//! still waiting its turn answers `not_applied`.
//!
//! tonic's timeout lies around every layer, and runs from the same header. So that it never comes
//! first, a deadline here ends ten milliseconds before the client's, or a tenth of its time if
//! that is less. An answer that is sent at the client's own deadline would not be received by then.

use std::time::Duration;

use tonic::codegen::http::HeaderMap;

use super::status::Problem;
pub use crate::resilience::deadline::Deadline;

/// The header, as gRPC names it.
const HEADER: &str = "grpc-timeout";

/// How much earlier than a client asks its call is answered, at most.
const MARGIN_MAX: Duration = Duration::from_millis(10);

impl Deadline {
    /// The deadline for what the headers ask for, or `cap` if that is earlier or they ask for none.
    ///
    /// # Errors
    /// The header is not a gRPC timeout.
    pub fn from_headers(headers: &HeaderMap, cap: Option<Duration>) -> Result<Self, Problem> {
        let asked = match headers.get(HEADER) {
            None => None,
            Some(value) => Some(value.to_str().ok().and_then(parse).ok_or_else(|| {
                Problem::invalid("grpc-timeout", "not 1 to 8 digits and one of H M S m u n")
            })?),
        };
        let asked = asked.map(|asked| asked - MARGIN_MAX.min(asked / 10));
        Ok(match (asked, cap) {
            (None, None) => Self::NEVER,
            (Some(one), None) | (None, Some(one)) => Self::after(one),
            (Some(asked), Some(cap)) => Self::after(asked.min(cap)),
        })
    }

    /// The deadline that the layer put on a request.
    pub fn of<T>(request: &tonic::Request<T>) -> Self {
        request.extensions().get().copied().unwrap_or(Self::NEVER)
    }
}

/// `1 to 8 digits` and a unit.
fn parse(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_up_to_eight_digits_and_a_unit() {
        assert_eq!(parse("3S"), Some(Duration::from_secs(3)));
        assert_eq!(parse("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        assert_eq!(parse("250m"), Some(Duration::from_millis(250)));
        assert_eq!(parse("7u"), Some(Duration::from_micros(7)));
        assert_eq!(parse("1n"), Some(Duration::from_nanos(1)));
        for bad in ["", "S", "5", "5x", "-1S", "+1S", "123456789S", "1.5S", " 1S", "1\u{e9}"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn the_server_caps_what_the_client_asks() {
        let mut headers = HeaderMap::new();
        headers.insert(HEADER, "1H".parse().expect("ASCII"));
        let capped = Deadline::from_headers(&headers, Some(Duration::from_secs(5))).expect("valid");
        assert!(capped.remaining().is_some_and(|left| left <= Duration::from_secs(5)));
        for (asked, left) in [("1S", 990), ("50m", 45)] {
            headers.insert(HEADER, asked.parse().expect("ASCII"));
            let sooner = Deadline::from_headers(&headers, None).expect("valid").remaining();
            assert!(sooner.is_some_and(|found| found <= Duration::from_millis(left)), "{asked}");
        }
        let free = Deadline::from_headers(&HeaderMap::new(), None).expect("valid");
        assert!(free.remaining().is_none());
        headers.insert(HEADER, "soon".parse().expect("ASCII"));
        let refused = Deadline::from_headers(&headers, None).expect_err("not a timeout");
        assert_eq!(refused.reason, "INVALID_ARGUMENT");
    }
}
