//! JSON the quick way: what clients usually send. Whatever needs care is left to the exact reader.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use super::pyjson::Json;

/// Plain JSON without repeated keys or numbers that need care; `None`: ask [`super::pyjson`].
pub fn parse(body: &[u8]) -> Option<Json<'_>> {
    let text = std::str::from_utf8(body).ok()?;
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let value = Any::<true>.deserialize(&mut deserializer).ok()?;
    deserializer.end().ok()?;
    Some(value)
}

/// Reads one value: any, or, when not `NESTED`, anything but lists and objects.
#[derive(Debug)]
pub struct Any<const NESTED: bool>;

impl<'de, const NESTED: bool> DeserializeSeed<'de> for Any<NESTED> {
    type Value = Json<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

/// Stops a fast reader; the text is never shown.
pub const UNUSUAL: &str = "unusual";

impl<'de, const NESTED: bool> Visitor<'de> for Any<NESTED> {
    type Value = Json<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if NESTED { "JSON" } else { "a scalar" })
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
        Ok(Json::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Self::Value, E> {
        Ok(Json::Int(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Self::Value, E> {
        Ok(i64::try_from(value).map_or_else(|_| Json::Big(value.to_string()), Json::Int))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Self::Value, E> {
        // Integers beyond 64 bits and a bare `-0` arrive as floats, too: the exact reader tells them apart.
        if value.abs() >= 9.2e18 || (value == 0.0 && value.is_sign_negative()) {
            return Err(E::custom(UNUSUAL));
        }
        Ok(Json::Float(value))
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Json::Str(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Json::Str(Cow::Owned(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        if !NESTED {
            return Err(A::Error::custom(UNUSUAL));
        }
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(Any::<true>)? {
            items.push(item);
        }
        Ok(Json::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        if !NESTED {
            return Err(A::Error::custom(UNUSUAL));
        }
        let mut members: Vec<(Cow<'de, str>, Json<'de>)> = Vec::new();
        while let Some(Json::Str(name)) = map.next_key_seed(Any::<true>)? {
            members.push((name, map.next_value_seed(Any::<true>)?));
        }
        // A repeated key takes its last value in the reference: left to the exact reader.
        let mut seen: HashSet<&str, foldhash::fast::RandomState> = HashSet::default();
        if !members.iter().all(|(name, _)| seen.insert(name)) {
            return Err(A::Error::custom(UNUSUAL));
        }
        Ok(Json::Object(members))
    }
}
