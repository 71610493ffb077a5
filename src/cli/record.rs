//! A record of import and export: one JSON object a line.
//!
//! `{"key": text, "value": text}`, with `key_base64` and `value_base64` in place of what is not
//! UTF-8, and optionally `content_type`, `ttl_ms`, `expires_at_ms` (milliseconds since 1970). A key
//! with several siblings has `siblings`, a list of such values, instead of one.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::args::put_bytes;
use crate::proto;

/// What is to be written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Record {
    pub key: Vec<u8>,
    /// One, or several siblings.
    pub values: Vec<RecordValue>,
}

/// One value of a record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct RecordValue {
    pub bytes: Vec<u8>,
    pub content_type: String,
    pub ttl_ms: Option<u64>,
    pub expires_at_ms: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    key: Option<String>,
    key_base64: Option<String>,
    value: Option<String>,
    value_base64: Option<String>,
    #[serde(default)]
    content_type: String,
    ttl_ms: Option<u64>,
    expires_at_ms: Option<u64>,
    siblings: Option<Vec<SiblingLine>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SiblingLine {
    value: Option<String>,
    value_base64: Option<String>,
    #[serde(default)]
    content_type: String,
    ttl_ms: Option<u64>,
    expires_at_ms: Option<u64>,
}

fn bytes(
    name: &str,
    text: Option<String>,
    base64: Option<String>,
) -> Result<Option<Vec<u8>>, String> {
    match (text, base64) {
        (None, None) => Ok(None),
        (Some(text), None) => Ok(Some(text.into_bytes())),
        (None, Some(text)) => match STANDARD.decode(text) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) => Err(format!("{name}_base64: {error}")),
        },
        (Some(_), Some(_)) => Err(format!("both {name} and {name}_base64")),
    }
}

/// What is wrong with a line, without its number: the parser calls every line the first.
fn reason_of(error: &serde_json::Error) -> String {
    let reason = error.to_string();
    match reason.rsplit_once(" at line 1 column ") {
        Some((what, column)) => format!("{what} at column {column}"),
        None => reason,
    }
}

/// The record of a line.
pub(super) fn from_json_line(line: &[u8]) -> Result<Record, String> {
    let line: Line = serde_json::from_slice(line).map_err(|error| reason_of(&error))?;
    let key = bytes("key", line.key, line.key_base64)?.ok_or("no key")?;
    let value = bytes("value", line.value, line.value_base64)?;
    let values = match (value, line.siblings) {
        (Some(bytes), None) => vec![RecordValue {
            bytes,
            content_type: line.content_type,
            ttl_ms: line.ttl_ms,
            expires_at_ms: line.expires_at_ms,
        }],
        (None, Some(siblings)) => {
            let values: Result<Vec<_>, String> = siblings.into_iter().map(sibling).collect();
            values?
        }
        (None, None) => return Err("no value".to_owned()),
        (Some(_), Some(_)) => return Err("both a value and siblings".to_owned()),
    };
    if values.is_empty() {
        return Err("an empty list of siblings".to_owned());
    }
    Ok(Record { key, values })
}

fn sibling(line: SiblingLine) -> Result<RecordValue, String> {
    let value = bytes("value", line.value, line.value_base64)?;
    Ok(RecordValue {
        bytes: value.ok_or("a sibling without a value")?,
        content_type: line.content_type,
        ttl_ms: line.ttl_ms,
        expires_at_ms: line.expires_at_ms,
    })
}

/// The record of any JSON object: a field of it is the key, the line as it stands the value.
pub(super) fn from_object_line(line: &[u8], key_field: &str) -> Result<Record, String> {
    let object: Value = serde_json::from_slice(line).map_err(|error| reason_of(&error))?;
    let key = match object.get(key_field) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(number)) => number.to_string(),
        Some(_) => return Err(format!("the field {key_field:?} is neither text nor a number")),
        None => return Err(format!("no field {key_field:?}")),
    };
    let content_type = "application/json".to_owned();
    let bytes = line.trim_ascii().to_vec();
    let value = RecordValue { bytes, content_type, ..RecordValue::default() };
    Ok(Record { key: key.into_bytes(), values: vec![value] })
}

/// The line of a row.
pub(super) fn to_json_line(row: &proto::ScanRow) -> String {
    let mut object = Map::new();
    put_bytes(&mut object, "key", &row.key);
    match row.siblings.as_slice() {
        [one] => put_sibling(&mut object, one),
        several => {
            let siblings = several.iter().map(|sibling| {
                let mut object = Map::new();
                put_sibling(&mut object, sibling);
                Value::from(object)
            });
            object.insert("siblings".to_owned(), siblings.collect());
        }
    }
    Value::from(object).to_string()
}

fn put_sibling(object: &mut Map<String, Value>, sibling: &proto::Sibling) {
    put_bytes(object, "value", &sibling.value);
    if !sibling.content_type.is_empty() {
        object.insert("content_type".to_owned(), sibling.content_type.as_str().into());
    }
    if sibling.expires_at_ms != 0 {
        object.insert("expires_at_ms".to_owned(), sibling.expires_at_ms.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(key: &[u8], values: &[&[u8]]) -> proto::ScanRow {
        let sibling = |value: &&[u8]| proto::Sibling {
            value: value.to_vec().into(),
            content_type: "text/plain".to_owned(),
            expires_at_ms: 7,
            hlc: 1,
        };
        proto::ScanRow {
            key: key.to_vec().into(),
            siblings: values.iter().map(sibling).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn what_is_exported_is_imported_as_it_was() {
        for (key, values) in [
            (&b"k"[..], &[&b"v"[..]][..]),
            (b"\xff\x00", &[b"\xfe"]),
            (b"a\"b\n", &[b"", b"two\t"]),
        ] {
            let record = from_json_line(to_json_line(&row(key, values)).as_bytes()).expect("valid");
            assert_eq!(record.key, key);
            let back: Vec<&[u8]> = record.values.iter().map(|v| v.bytes.as_slice()).collect();
            assert_eq!(back, values);
            assert!(record.values.iter().all(|v| v.content_type == "text/plain"));
            assert!(record.values.iter().all(|v| v.expires_at_ms == Some(7)));
        }
    }

    #[test]
    fn a_bad_line_is_refused_with_its_reason() {
        for (line, why) in [
            ("", "EOF"),
            ("[]", "invalid"),
            ("{\"key\":\"a\"}", "no value"),
            ("{\"value\":\"a\"}", "no key"),
            ("{\"key\":\"a\",\"key_base64\":\"YQ==\",\"value\":\"\"}", "both key"),
            ("{\"key\":\"a\",\"value_base64\":\"*\"}", "value_base64"),
            ("{\"key\":\"a\",\"value\":1}", "invalid type"),
            ("{\"key\":\"a\",\"value\":\"\",\"ttl_ms\":-1}", "invalid value"),
            ("{\"key\":\"a\",\"value\":\"\",\"vlaue\":\"\"}", "unknown field"),
            ("{\"key\":\"a\",\"siblings\":[]}", "empty list"),
        ] {
            let error = from_json_line(line.as_bytes()).expect_err(line);
            assert!(error.contains(why), "{line}: {error}");
        }
    }

    #[test]
    fn a_field_can_be_the_key_and_the_line_the_value() {
        let record = from_object_line(b" {\"id\":7,\"x\":[1]} ", "id").expect("valid");
        assert_eq!(record.key, b"7");
        assert_eq!(record.values[0].bytes, b"{\"id\":7,\"x\":[1]}");
        assert!(from_object_line(b"{\"id\":null}", "id").is_err());
        assert!(from_object_line(b"{}", "id").is_err());
    }
}
