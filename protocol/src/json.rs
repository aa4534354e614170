//! How the documents are read and written.
//!
//! The peers are Go programs, for whom `null` is an absent key and the last of two equal keys
//! counts. Both rules are kept here, in one place: a document becomes a [`Value`] without nulls
//! before any type looks at it.

mod reader;

use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use reader::Reader;

/// A document that is no JSON, or that has a value of the wrong shape.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Not JSON at all.
    #[error("not valid JSON: {0}")]
    Syntax(#[source] serde_json::Error),
    /// JSON, but `path` holds something else than it should.
    #[error("{path}: {source}")]
    Shape {
        /// Which field, for example `Settings.Lun`; `.` for the whole document.
        path: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

/// Parses a document and takes the nulls out of its objects.
pub(crate) fn parse(bytes: &[u8]) -> Result<Value, DecodeError> {
    let mut value = serde_json::from_slice(bytes).map_err(DecodeError::Syntax)?;
    drop_nulls(&mut value);
    if value.is_null() {
        value = Value::Object(serde_json::Map::new());
    }
    Ok(value)
}

fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

/// Reads one type out of a parsed document; other keys are ignored.
pub(crate) fn read<T: DeserializeOwned>(value: &Value) -> Result<T, DecodeError> {
    // Serde would take an array for a struct's fields in order; no peer means that.
    if !value.is_object() {
        let source = serde_json::Error::custom("is not a JSON object");
        return Err(DecodeError::Shape { path: ".".to_owned(), source });
    }
    T::deserialize(Reader(value)).map_err(|error| {
        let (path, source) = error.into_parts();
        DecodeError::Shape { path, source }
    })
}

/// Whether a value is the one that Go's `omitempty` leaves out.
pub(crate) fn is_zero<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A document inside a JSON string, as the protocol likes to nest them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JsonString<T>(pub T);

impl<T: Serialize> Serialize for JsonString<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = serde_json::to_string(&self.0).map_err(serde::ser::Error::custom)?;
        serializer.serialize_str(&text)
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for JsonString<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        let value = parse(text.as_bytes()).map_err(D::Error::custom)?;
        read(&value).map(Self).map_err(D::Error::custom)
    }
}

/// For `Option<JsonString<T>>` fields in which the empty string means the same as no key.
pub(crate) fn empty_is_none<'de, D, T>(deserializer: D) -> Result<Option<JsonString<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: DeserializeOwned,
{
    let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
    if text.is_empty() {
        return Ok(None);
    }
    let value = parse(text.as_bytes()).map_err(D::Error::custom)?;
    read(&value).map(|value| Some(JsonString(value))).map_err(D::Error::custom)
}

/// Writes an absent nested document as the empty string, as Go hosts do.
pub(crate) fn none_is_empty<S, T>(
    value: &Option<JsonString<T>>,
    serializer: S,
) -> Result<S::Ok, S::Error>
where
    S: Serializer,
    T: Serialize,
{
    match value {
        Some(value) => value.serialize(serializer),
        None => serializer.serialize_str(""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default)]
    struct Sample {
        a: u8,
        b: Vec<Sample>,
        c: Option<JsonString<Value>>,
    }

    fn sample(text: &str) -> Result<Sample, DecodeError> {
        read(&parse(text.as_bytes())?)
    }

    #[test]
    fn null_is_an_absent_key_and_the_last_duplicate_counts() {
        let want = Sample { a: 3, b: vec![Sample::default()], c: None };
        assert_eq!(sample(r#"{"a":1,"a":3,"c":null,"x":{},"b":[{"a":null}]}"#).unwrap(), want);
        assert_eq!(sample("null").unwrap(), Sample::default());
    }

    #[test]
    fn a_value_of_the_wrong_shape_is_named_by_its_path() {
        let error = sample(r#"{"b":[{},{"a":300}]}"#).unwrap_err();
        assert_eq!(error.to_string(), "b[1].a: invalid value: integer `300`, expected u8");
        assert!(sample("[1]").is_err());
        assert!(sample("{\"a\":").unwrap_err().to_string().starts_with("not valid JSON"));
    }

    #[test]
    fn a_document_in_a_string_round_trips() {
        let inner = JsonString(serde_json::json!({"k": "<&>\n", "n": u64::MAX}));
        let text = serde_json::to_string(&inner).unwrap();
        assert!(text.starts_with("\"{\\\"k\\\""));
        assert_eq!(serde_json::from_str::<JsonString<Value>>(&text).unwrap(), inner);
    }
}
