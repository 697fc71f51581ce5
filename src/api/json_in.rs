//! The body of `POST /get-online-features`: a fast reader for what clients send, and an exact one for the
//! rest, which knows Python's grammar and the reference's validation errors.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::error::ApiError;
use super::Answer;
use crate::text::fastjson::{Any, UNUSUAL};
use crate::text::pyjson::{self, Json, JsonError};
use crate::text::{json, pyfmt};

/// A validated request.
#[derive(Debug)]
pub struct Request<'a> {
    /// A non-empty service name.
    pub service: Option<Cow<'a, str>>,
    /// The references.
    pub features: Features<'a>,
    /// `full_feature_names`
    pub full_names: bool,
    /// `include_feature_view_version_metadata`
    pub version_metadata: bool,
    /// `entities`
    pub entities: Entities<'a>,
}

/// The `features` list: its JSON text (checked when a plan is made from it), or the strings.
#[derive(Debug)]
pub enum Features<'a> {
    /// JSON text.
    Raw(&'a str),
    /// Parsed.
    List(Vec<String>),
}

impl Features<'_> {
    /// The references; `None` when the JSON text is not a list of strings.
    pub fn parse(&self) -> Option<Cow<'_, [String]>> {
        match self {
            Self::Raw(text) => serde_json::from_str::<Vec<String>>(text).ok().map(Cow::Owned),
            Self::List(list) => Some(Cow::Borrowed(list)),
        }
    }
}

/// The `entities` object as columns over one list of values.
#[derive(Debug, Default)]
pub struct Entities<'a> {
    /// Column names.
    pub names: Vec<Cow<'a, str>>,
    /// Where each column ends in `values`.
    ends: Vec<usize>,
    values: Vec<Json<'a>>,
}

impl<'a> Entities<'a> {
    /// The values of column `index`.
    pub fn column(&self, index: usize) -> &[Json<'a>] {
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.values[start..self.ends[index]]
    }

    /// Takes the buffers out for reuse.
    pub fn into_buffers(self) -> Buffers {
        Buffers { names: recycle_names(self.names), ends: self.ends, values: recycle(self.values) }
    }
}

/// Buffers of an earlier request.
#[derive(Debug, Default)]
pub struct Buffers {
    names: Vec<Cow<'static, str>>,
    ends: Vec<usize>,
    values: Vec<Json<'static>>,
}

/// An empty list with the memory of `list`, free to borrow from another body. (Collecting in place keeps the
/// allocation.)
fn recycle<'b>(mut list: Vec<Json<'_>>) -> Vec<Json<'b>> {
    list.clear();
    list.into_iter().map(|_| Json::Null).collect()
}

fn recycle_names<'b>(mut list: Vec<Cow<'_, str>>) -> Vec<Cow<'b, str>> {
    list.clear();
    list.into_iter().map(|_| Cow::Borrowed("")).collect()
}

/// Reads a body the fast way. `None`: not a plain request, ask [`read_exact`].
pub fn read_fast<'a>(body: &'a [u8], buffers: &mut Buffers) -> Option<Request<'a>> {
    let text = std::str::from_utf8(body).ok()?;
    let Buffers { names, mut ends, values } = std::mem::take(buffers);
    ends.clear();
    let mut reader = FastReader {
        service: None,
        features: None,
        full_names: None,
        version_metadata: None,
        entities: None,
        spare: Entities { names: recycle_names(names), ends, values: recycle(values) },
    };
    let mut deserializer = serde_json::Deserializer::from_str(text);
    deserializer.deserialize_map(&mut reader).ok()?;
    deserializer.end().ok()?;
    Some(Request {
        service: reader.service.and_then(|ServiceName(name)| name).filter(|name| !name.is_empty()),
        features: reader.features.map_or(Features::List(Vec::new()), |raw| Features::Raw(raw.get())),
        full_names: reader.full_names.unwrap_or(false),
        version_metadata: reader.version_metadata.unwrap_or(false),
        entities: reader.entities?,
    })
}

struct FastReader<'a> {
    service: Option<ServiceName<'a>>,
    features: Option<&'a RawValue>,
    full_names: Option<bool>,
    version_metadata: Option<bool>,
    entities: Option<Entities<'a>>,
    spare: Entities<'a>,
}

impl<'de> Visitor<'de> for &mut FastReader<'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a request object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        // A repeated key takes its last value in the reference: left to the exact reader.
        fn once<T, E: serde::de::Error>(slot: &mut Option<T>, value: T) -> Result<(), E> {
            if slot.replace(value).is_some() {
                Err(E::custom(UNUSUAL))
            } else {
                Ok(())
            }
        }
        while let Some(key) = map.next_key_seed(Text)? {
            match &*key {
                "features" => once(&mut self.features, map.next_value()?)?,
                "entities" => {
                    if self.entities.is_some() {
                        return Err(A::Error::custom(UNUSUAL));
                    }
                    map.next_value_seed(Columns(&mut self.spare))?;
                    self.entities = Some(std::mem::take(&mut self.spare));
                }
                "feature_service" => once(&mut self.service, map.next_value_seed(OptionalText)?)?,
                "full_feature_names" => once(&mut self.full_names, map.next_value()?)?,
                "include_feature_view_version_metadata" => {
                    once(&mut self.version_metadata, map.next_value()?)?;
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}

/// A string, borrowed when it has no escapes.
struct Text;

impl<'de> DeserializeSeed<'de> for Text {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Text {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(text))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(text.to_owned()))
    }
}

/// `feature_service`, which may be null.
struct ServiceName<'a>(Option<Cow<'a, str>>);

struct OptionalText;

impl<'de> DeserializeSeed<'de> for OptionalText {
    type Value = ServiceName<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_option(self)
    }
}

impl<'de> Visitor<'de> for OptionalText {
    type Value = ServiceName<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or null")
    }

    fn visit_none<E>(self) -> Result<Self::Value, E> {
        Ok(ServiceName(None))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        Text.deserialize(deserializer).map(|name| ServiceName(Some(name)))
    }
}

struct Columns<'e, 'a>(&'e mut Entities<'a>);

impl<'de> DeserializeSeed<'de> for Columns<'_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Columns<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of lists")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key_seed(Text)? {
            if self.0.names.contains(&name) || self.0.names.len() >= 64 {
                return Err(A::Error::custom(UNUSUAL));
            }
            self.0.names.push(name);
            map.next_value_seed(Values(&mut self.0.values))?;
            self.0.ends.push(self.0.values.len());
        }
        Ok(())
    }
}

struct Values<'e, 'a>(&'e mut Vec<Json<'a>>);

impl<'de> DeserializeSeed<'de> for Values<'_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Values<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while let Some(value) = seq.next_element_seed(Any::<false>)? {
            self.0.push(value);
        }
        Ok(())
    }
}

/// True for `application/json` and `application/<anything>+json`, parameters aside.
pub fn is_json_type(content_type: Option<&str>) -> bool {
    let Some(text) = content_type else { return false };
    let essence = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence.strip_prefix("application/").is_some_and(|sub| sub == "json" || sub.ends_with("+json"))
}

/// Reads a body as the reference does, or writes the reference's refusal into `answer`.
///
/// `content_type` counts only when `strict`; otherwise a body is JSON if it parses as JSON.
pub fn read_exact(
    body: &[u8],
    content_type: Option<&str>,
    strict: bool,
    answer: &mut Answer,
) -> Option<Request<'static>> {
    let value = read_value(body, content_type, strict, answer)?;
    validate(&value, answer)
}

/// The body as a JSON value, for any route that takes JSON.
pub fn read_value(
    body: &[u8],
    content_type: Option<&str>,
    strict: bool,
    answer: &mut Answer,
) -> Option<Json<'static>> {
    if body.is_empty() {
        Details::new().add("missing", &[], "Field required", &Json::Null).reply(answer);
        return None;
    }
    let typed = is_json_type(content_type);
    if !typed && strict {
        refuse_text(body, answer);
        return None;
    }
    match pyjson::parse(body) {
        Ok(parsed) => {
            if let Some((unit, at)) = parsed.lone_surrogate {
                let text = format!(
                    "'utf-8' codec can't encode character '\\u{unit:04x}' in position {at}: surrogates not allowed"
                );
                ApiError::Other(text).reply(answer);
                return None;
            }
            Some(parsed.value)
        }
        Err(_) if !typed => {
            refuse_text(body, answer);
            None
        }
        Err(JsonError::Unreadable) => {
            answer.json(400).extend_from_slice(b"{\"detail\":\"There was an error parsing the body\"}");
            None
        }
        Err(JsonError::Syntax(text, at)) => {
            let out = answer.json(422);
            out.extend_from_slice(b"{\"detail\":[{\"type\":\"json_invalid\",\"loc\":[\"body\",");
            pyfmt::write_i64(out, at as i64);
            out.extend_from_slice(b"],\"msg\":\"JSON decode error\",\"input\":{},\"ctx\":{\"error\":");
            json::write_str(out, text);
            out.extend_from_slice(b"}}]}");
            None
        }
    }
}

/// A body that is not taken for JSON is validated as a text.
fn refuse_text(body: &[u8], answer: &mut Answer) {
    match std::str::from_utf8(body) {
        Ok(text) => not_an_object(&Json::Str(Cow::Owned(text.to_owned())), Details::new()).reply(answer),
        Err(error) => {
            let at = error.valid_up_to();
            let text = format!(
                "'utf-8' codec can't decode byte 0x{:02x} in position {at}: invalid start byte",
                body[at]
            );
            ApiError::Other(text).reply(answer);
        }
    }
}

/// The refusal of a body that is no object, behind what is wrong already.
pub(super) fn not_an_object(value: &Json<'_>, mut details: Details) -> Details {
    let text = "Input should be a valid dictionary or object to extract fields from";
    details.add("model_attributes_type", &[], text, value);
    details
}

/// One step of an error's location behind `"body"`.
#[derive(Debug, Clone, Copy)]
pub enum Loc<'l> {
    /// A key.
    Key(&'l str),
    /// A position in a list.
    Index(usize),
}

/// The list of a 422.
#[derive(Debug)]
pub struct Details {
    body: Vec<u8>,
    count: usize,
    unprintable: bool,
}

impl Details {
    /// An empty list.
    pub fn new() -> Self {
        Self { body: b"{\"detail\":[".to_vec(), count: 0, unprintable: false }
    }

    /// Adds one problem.
    pub fn add(&mut self, kind: &str, loc: &[Loc<'_>], text: &str, input: &Json<'_>) -> &mut Self {
        self.add_in("body", kind, loc, text, input)
    }

    /// Adds one problem of another `part` of the request than its body.
    pub fn add_in(
        &mut self,
        part: &str,
        kind: &str,
        loc: &[Loc<'_>],
        text: &str,
        input: &Json<'_>,
    ) -> &mut Self {
        if self.count > 0 {
            self.body.push(b',');
        }
        self.count += 1;
        self.body.extend_from_slice(b"{\"type\":");
        json::write_str(&mut self.body, kind);
        self.body.extend_from_slice(b",\"loc\":[");
        json::write_str(&mut self.body, part);
        for step in loc {
            self.body.push(b',');
            match step {
                Loc::Key(key) => json::write_str(&mut self.body, key),
                Loc::Index(index) => pyfmt::write_i64(&mut self.body, *index as i64),
            }
        }
        self.body.extend_from_slice(b"],\"msg\":");
        json::write_str(&mut self.body, text);
        self.body.extend_from_slice(b",\"input\":");
        self.unprintable |= !input.write(&mut self.body);
        self.body.push(b'}');
        self
    }

    /// True when nothing was added.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Writes the answer: the 422, or the reference's 500 when an input cannot be written as JSON.
    pub fn reply(&self, answer: &mut Answer) {
        if self.unprintable {
            return ApiError::Other("Out of range float values are not JSON compliant".to_owned())
                .reply(answer);
        }
        let out = answer.json(422);
        out.extend_from_slice(&self.body);
        out.extend_from_slice(b"]}");
    }
}

impl Default for Details {
    fn default() -> Self {
        Self::new()
    }
}

/// Checks the schema field by field in the reference's order, collecting every problem.
fn validate(value: &Json<'static>, answer: &mut Answer) -> Option<Request<'static>> {
    let Json::Object(_) = value else {
        not_an_object(value, Details::new()).reply(answer);
        return None;
    };
    let mut details = Details::new();
    let entities = entities(value, &mut details);
    let service = match value.get("feature_service") {
        None | Some(Json::Null) => None,
        Some(Json::Str(name)) => Some(name.clone()).filter(|name| !name.is_empty()),
        Some(other) => {
            let loc = [Loc::Key("feature_service")];
            details.add("string_type", &loc, "Input should be a valid string", other);
            None
        }
    };
    let features = features(value, &mut details);
    let full_names = flag(value, "full_feature_names", false, &mut details);
    let version_metadata = flag(value, "include_feature_view_version_metadata", false, &mut details);
    if !details.is_empty() {
        details.reply(answer);
        return None;
    }
    Some(Request { service, features: Features::List(features), full_names, version_metadata, entities })
}

fn entities(request: &Json<'static>, details: &mut Details) -> Entities<'static> {
    let mut entities = Entities::default();
    match request.get("entities") {
        None => {
            details.add("missing", &[Loc::Key("entities")], "Field required", request);
        }
        Some(Json::Object(columns)) => {
            for (name, value) in columns {
                let Json::List(items) = value else {
                    let loc = [Loc::Key("entities"), Loc::Key(name)];
                    details.add("list_type", &loc, "Input should be a valid list", value);
                    continue;
                };
                entities.names.push(name.clone());
                entities.values.extend(items.iter().cloned());
                entities.ends.push(entities.values.len());
            }
        }
        Some(other) => {
            let loc = [Loc::Key("entities")];
            details.add("dict_type", &loc, "Input should be a valid dictionary", other);
        }
    }
    entities
}

fn features(request: &Json<'static>, details: &mut Details) -> Vec<String> {
    let mut list = Vec::new();
    match request.get("features") {
        None => {}
        Some(Json::List(items)) => {
            for (index, item) in items.iter().enumerate() {
                match item {
                    Json::Str(text) => list.push(text.clone().into_owned()),
                    other => {
                        let loc = [Loc::Key("features"), Loc::Index(index)];
                        details.add("string_type", &loc, "Input should be a valid string", other);
                    }
                }
            }
        }
        Some(other) => {
            let loc = [Loc::Key("features")];
            details.add("list_type", &loc, "Input should be a valid list", other);
        }
    }
    list
}

/// A bool with the reference's spellings.
pub(super) fn flag(request: &Json<'_>, name: &'static str, default: bool, details: &mut Details) -> bool {
    let Some(value) = request.get(name) else { return default };
    let read = match value {
        Json::Bool(flag) => Ok(*flag),
        Json::Int(0) => Ok(false),
        Json::Int(1) => Ok(true),
        Json::Float(number) if *number == 0.0 => Ok(false),
        Json::Float(number) if *number == 1.0 => Ok(true),
        Json::Str(text) => bool_word(text).ok_or("bool_parsing"),
        Json::Int(_) => Err("bool_parsing"),
        // 2^63: a float beyond 64 bits is no number to be interpreted.
        Json::Float(number) if number.fract() == 0.0 && number.abs() < 9_223_372_036_854_775_808.0 => {
            Err("bool_parsing")
        }
        _ => Err("bool_type"),
    };
    read.unwrap_or_else(|kind| {
        let text = match kind {
            "bool_parsing" => "Input should be a valid boolean, unable to interpret input",
            _ => "Input should be a valid boolean",
        };
        details.add(kind, &[Loc::Key(name)], text, value);
        false
    })
}

/// A bool as a word.
pub(super) fn bool_word(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "0" | "off" | "f" | "false" | "n" | "no" => Some(false),
        "1" | "on" | "t" | "true" | "y" | "yes" => Some(true),
        _ => None,
    }
}
