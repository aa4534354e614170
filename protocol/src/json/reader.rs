//! Reads types out of a parsed document, such that an error knows its place.
//!
//! The path is put together while an error goes up, so a document without one pays nothing. Each
//! method asks a visitor only for what its type may be: every other would be compiled for every
//! type there is, and all of that lies in the guest's memory.

use std::fmt::{self, Write as _};

use serde::de::{
    self, DeserializeSeed, Deserializer, Error as _, Unexpected, Visitor,
    value::BorrowedStrDeserializer,
};
use serde_json::Value;

/// What is wrong, and where.
#[derive(Debug)]
pub(super) struct Error(Box<Failure>);

#[derive(Debug)]
struct Failure {
    /// From the value up to the document.
    place: Vec<Segment>,
    source: serde_json::Error,
}

#[derive(Debug)]
enum Segment {
    Key(String),
    Index(usize),
}

impl Error {
    fn below(mut self, segment: Segment) -> Self {
        self.0.place.push(segment);
        self
    }

    /// The path from the document to the value, for example `Settings.Layers[1].Path`, or `.`; and
    /// the cause.
    pub(super) fn into_parts(self) -> (String, serde_json::Error) {
        let Failure { place, source } = *self.0;
        let mut path = String::new();
        for segment in place.iter().rev() {
            match segment {
                Segment::Key(key) => {
                    let dot = if path.is_empty() { "" } else { "." };
                    path.extend([dot, key]);
                }
                // Writing to a string cannot fail.
                Segment::Index(index) => drop(write!(path, "[{index}]")),
            }
        }
        if path.is_empty() {
            path.push('.');
        }
        (path, source)
    }
}

impl From<serde_json::Error> for Error {
    fn from(source: serde_json::Error) -> Self {
        Self(Box::new(Failure { place: Vec::new(), source }))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.source.fmt(f)
    }
}

impl std::error::Error for Error {}

impl de::Error for Error {
    fn custom<T: fmt::Display>(message: T) -> Self {
        serde_json::Error::custom(message).into()
    }

    fn invalid_type(unexpected: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        serde_json::Error::invalid_type(unexpected, expected).into()
    }

    fn invalid_value(unexpected: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        serde_json::Error::invalid_value(unexpected, expected).into()
    }
}

/// A document, or a value in it.
#[derive(Clone, Copy)]
pub(super) struct Reader<'de>(pub(super) &'de Value);

impl<'de> Reader<'de> {
    fn not<T>(self, expected: &dyn de::Expected) -> Result<T, Error> {
        let unexpected = match self.0 {
            Value::Null => Unexpected::Unit,
            Value::Bool(value) => Unexpected::Bool(*value),
            Value::Number(number) => match (number.as_u64(), number.as_i64(), number.as_f64()) {
                (Some(value), ..) => Unexpected::Unsigned(value),
                (_, Some(value), _) => Unexpected::Signed(value),
                (.., Some(value)) => Unexpected::Float(value),
                _ => Unexpected::Other("number"),
            },
            Value::String(value) => Unexpected::Str(value),
            Value::Array(_) => Unexpected::Seq,
            Value::Object(_) => Unexpected::Map,
        };
        Err(Error::invalid_type(unexpected, expected))
    }

    fn number<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let Value::Number(number) = self.0 else { return self.not(&visitor) };
        match (number.as_u64(), number.as_i64(), number.as_f64()) {
            (Some(value), ..) => visitor.visit_u64(value),
            (_, Some(value), _) => visitor.visit_i64(value),
            (.., Some(value)) => visitor.visit_f64(value),
            _ => self.not(&visitor),
        }
    }

    fn array<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let Value::Array(items) = self.0 else { return self.not(&visitor) };
        let mut rest = Items { items, next: 0 };
        let value = visitor.visit_seq(&mut rest)?;
        if rest.next < items.len() {
            return Err(Error::invalid_length(items.len(), &"fewer elements in array"));
        }
        Ok(value)
    }

    fn object<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let Value::Object(map) = self.0 else { return self.not(&visitor) };
        visitor.visit_map(Entries { entries: map.iter(), value: None })
    }
}

macro_rules! by {
    ($way:ident: $($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            self.$way(visitor)
        }
    )*};
}

impl<'de> Deserializer<'de> for Reader<'de> {
    type Error = Error;

    by!(number: deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128);
    by!(number: deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128);
    by!(number: deserialize_f32 deserialize_f64);
    by!(array: deserialize_seq);
    by!(object: deserialize_map);
    by!(deserialize_str: deserialize_char deserialize_string deserialize_identifier);
    by!(deserialize_bytes: deserialize_byte_buf);

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Number(_) => self.number(visitor),
            Value::String(value) => visitor.visit_borrowed_str(value),
            Value::Array(_) => self.array(visitor),
            Value::Object(_) => self.object(visitor),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Bool(value) => visitor.visit_bool(*value),
            _ => self.not(&visitor),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::String(value) => visitor.visit_borrowed_str(value),
            _ => self.not(&visitor),
        }
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Array(_) => self.array(visitor),
            _ => self.deserialize_str(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Null => visitor.visit_unit(),
            _ => self.not(&visitor),
        }
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Error> {
        self.array(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.array(visitor)
    }

    /// Of an object only: an array of a struct's fields in order is what no peer means.
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.object(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let (name, content) = match self.0 {
            Value::String(name) => (name, None),
            Value::Object(map) => match map.iter().next() {
                Some((name, content)) if map.len() == 1 => (name, Some(content)),
                _ => {
                    return Err(Error::invalid_value(Unexpected::Map, &"map with a single key"));
                }
            },
            _ => return self.not(&"string or map"),
        };
        visitor.visit_enum(Variant { name, content })
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }
}

struct Items<'de> {
    items: &'de [Value],
    next: usize,
}

impl<'de> de::SeqAccess<'de> for &mut Items<'de> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Error> {
        let index = self.next;
        let Some(value) = self.items.get(index) else { return Ok(None) };
        self.next += 1;
        let value = seed.deserialize(Reader(value));
        value.map(Some).map_err(|error| error.below(Segment::Index(index)))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.items.len() - self.next)
    }
}

struct Entries<'de> {
    entries: serde_json::map::Iter<'de>,
    /// Of the key that was read last.
    value: Option<(&'de str, &'de Value)>,
}

impl<'de> de::MapAccess<'de> for Entries<'de> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Error> {
        let Some((key, value)) = self.entries.next() else { return Ok(None) };
        self.value = Some((key, value));
        let read = seed.deserialize(Key(key));
        read.map(Some).map_err(|error| error.below(Segment::Key(key.clone())))
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Error> {
        let Some((key, value)) = self.value.take() else {
            return Err(Error::custom("a value was asked for before its key"));
        };
        let value = seed.deserialize(Reader(value));
        value.map_err(|error| error.below(Segment::Key(key.to_owned())))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.entries.len())
    }
}

/// An object's key, in which integers and truth values are written as strings.
struct Key<'de>(&'de str);

impl<'de> Key<'de> {
    fn integer<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match (self.0.parse(), self.0.parse()) {
            (Ok(value), _) => visitor.visit_u64(value),
            (_, Ok(value)) => visitor.visit_i64(value),
            _ => self.deserialize_any(visitor),
        }
    }
}

impl<'de> Deserializer<'de> for Key<'de> {
    type Error = Error;

    by!(integer: deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64);
    by!(integer: deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64);

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_borrowed_str(self.0)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            "true" => visitor.visit_bool(true),
            "false" => visitor.visit_bool(false),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_enum(BorrowedStrDeserializer::new(self.0))
    }

    serde::forward_to_deserialize_any! {
        i128 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple tuple_struct
        map struct identifier ignored_any
    }
}

/// An enum's variant: its name alone, or the one key of an object.
struct Variant<'de> {
    name: &'de str,
    content: Option<&'de Value>,
}

impl<'de> de::EnumAccess<'de> for Variant<'de> {
    type Error = Error;
    type Variant = Self;

    fn variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<(T::Value, Self), Error> {
        Ok((seed.deserialize(Key(self.name))?, self))
    }
}

impl<'de> Variant<'de> {
    fn content<T>(
        self,
        expected: &dyn de::Expected,
        read: impl FnOnce(Reader<'de>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let Some(content) = self.content else {
            return Err(Error::invalid_type(Unexpected::UnitVariant, expected));
        };
        read(Reader(content)).map_err(|error| error.below(Segment::Key(self.name.to_owned())))
    }
}

impl<'de> de::VariantAccess<'de> for Variant<'de> {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        match self.content {
            None => Ok(()),
            Some(_) => self.content(&"unit variant", de::Deserialize::deserialize),
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Error> {
        self.content(&"newtype variant", |reader| seed.deserialize(reader))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Error> {
        self.content(&"tuple variant", |reader| reader.array(visitor))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.content(&"struct variant", |reader| reader.object(visitor))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    /// Something of each shape.
    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default)]
    struct Shapes {
        small: i8,
        large: u64,
        real: f64,
        truth: bool,
        text: String,
        letter: Option<char>,
        list: Vec<Shapes>,
        pair: Option<(u8, String)>,
        by_name: BTreeMap<String, Option<i64>>,
        by_number: BTreeMap<i32, bool>,
        by_truth: BTreeMap<bool, Wrapped>,
        by_choice: BTreeMap<Choice, u8>,
        choice: Option<Choice>,
        nothing: (),
        either: Option<Either>,
        #[serde(flatten)]
        other: Option<Flat>,
    }

    #[derive(Debug, Default, PartialEq, Deserialize)]
    struct Flat {
        needed: Value,
    }

    #[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
    struct Wrapped(u16);

    #[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
    enum Choice {
        Plain,
        One(i16),
        Two(u8, bool),
        Named { a: u8 },
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(untagged)]
    enum Either {
        Number(f64),
        List(Vec<u8>),
    }

    fn read<'de, T: Deserialize<'de>>(value: &'de Value) -> Result<T, (String, String)> {
        T::deserialize(Reader(value)).map_err(|error| {
            let (path, source) = error.into_parts();
            (path, source.to_string())
        })
    }

    #[test]
    fn an_error_says_where_and_what() {
        #[track_caller]
        fn refused(document: Value, path: &str, what: &str) {
            let (at, why) = read::<Shapes>(&document).unwrap_err();
            assert_eq!((at.as_str(), why.as_str()), (path, what));
        }

        refused(json!("x"), ".", "invalid type: string \"x\", expected struct Shapes");
        refused(json!({"small": 128}), "small", "invalid value: integer `128`, expected i8");
        refused(
            json!({"list": [{}, {"list": [{"text": 1.5}]}]}),
            "list[1].list[0].text",
            "invalid type: floating point `1.5`, expected a string",
        );
        refused(
            json!({"list": [[1]]}),
            "list[0]",
            "invalid type: sequence, expected struct Shapes",
        );
        refused(json!({"list": [null]}), "list[0]", "invalid type: null, expected struct Shapes");
        refused(
            json!({"by_name": {"a": -1, "b": "c"}}),
            "by_name.b",
            "invalid type: string \"c\", expected i64",
        );
        refused(
            json!({"by_number": {"x": true}}),
            "by_number.x",
            "invalid type: string \"x\", expected i32",
        );
        refused(
            json!({"choice": {"Named": {"a": false}}}),
            "choice.Named.a",
            "invalid type: boolean `false`, expected u8",
        );
        refused(json!({"choice": {"Named": {}}}), "choice.Named", "missing field `a`");
        refused(
            json!({"choice": "None"}),
            "choice",
            "unknown variant `None`, expected one of `Plain`, `One`, `Two`, `Named`",
        );
        refused(
            json!({"pair": [1, "a", 2]}),
            "pair",
            "invalid length 3, expected fewer elements in array",
        );
    }

    /// JSON whose keys and values are often those of [`Shapes`].
    fn document() -> impl Strategy<Value = Value> {
        let key = prop::sample::select(vec![
            "small",
            "large",
            "real",
            "truth",
            "text",
            "letter",
            "list",
            "pair",
            "by_name",
            "by_number",
            "by_truth",
            "by_choice",
            "choice",
            "nothing",
            "either",
            "needed",
            "Plain",
            "One",
            "Two",
            "Named",
            "a",
            "1",
            "-7",
            "true",
            "",
        ]);
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            (0..3u8).prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            key.clone().prop_map(Value::from),
        ];
        leaf.prop_recursive(5, 48, 6, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(key.clone().prop_map(str::to_owned), inner, 0..5)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        /// Serde JSON's own reader gives the same value, or the same message without a place. But it
        /// takes an array for a struct, and says less of a variant, and of a key that is no number.
        #[test]
        fn reads_what_serde_json_reads(value in document()) {
            let own = read::<Shapes>(&value);
            match (own, Shapes::deserialize(&value)) {
                (Ok(own), Ok(theirs)) => prop_assert_eq!(own, theirs),
                (Err((_, own)), _) if own.starts_with("invalid type: sequence, expected struct") => {}
                (Err((_, own)), Err(theirs)) => {
                    let theirs = theirs.to_string();
                    let of_a_key = theirs.contains("expected key to be a number in quotes")
                        && own.starts_with("invalid type: string ");
                    prop_assert!(of_a_key || own.starts_with(&theirs), "{} {}", own, theirs);
                }
                (own, theirs) => prop_assert!(false, "{:?} {:?}", own, theirs),
            }
        }
    }
}
