//! The bodies and queries of the writing routes: the fast reader with the exact one behind it, and the fields
//! that each route takes.

use std::borrow::Cow;

use super::super::json_in::{self, Details, Loc};
use super::super::Answer;
use crate::text::fastjson;
use crate::text::pyjson::Json;

/// Reads a body as JSON, or writes the refusal.
pub(super) fn read<'b>(
    body: &'b [u8],
    content_type: Option<&str>,
    strict: bool,
    answer: &mut Answer,
) -> Option<Json<'b>> {
    if !strict || json_in::is_json_type(content_type) {
        if let Some(value) = fastjson::parse(body) {
            return Some(value);
        }
    }
    json_in::read_value(body, content_type, strict, answer)
}

/// The fields of a request, checked one by one in the order of the reference's model; problems are collected.
pub(super) struct Fields<'r, 'b> {
    request: &'r Json<'b>,
    pub(super) details: Details,
}

impl<'r, 'b> Fields<'r, 'b> {
    /// Of a request that is an object; otherwise the refusal is written.
    pub(super) fn of(request: &'r Json<'b>, details: Details, answer: &mut Answer) -> Option<Self> {
        if !matches!(request, Json::Object(_)) {
            json_in::not_an_object(request, details).reply(answer);
            return None;
        }
        Some(Self { request, details })
    }

    /// A text that must be there.
    pub(super) fn text(&mut self, name: &'static str) -> Cow<'r, str> {
        match self.request.get(name) {
            None => {
                self.details.add("missing", &[Loc::Key(name)], "Field required", self.request);
                Cow::Borrowed("")
            }
            Some(value) => self.string(name, value),
        }
    }

    /// A text that may be missing.
    pub(super) fn text_or(&mut self, name: &'static str, default: &'static str) -> Cow<'r, str> {
        self.request.get(name).map_or(Cow::Borrowed(default), |value| self.string(name, value))
    }

    /// A text that may be missing or null.
    pub(super) fn optional(&mut self, name: &'static str) -> Option<Cow<'r, str>> {
        match self.request.get(name) {
            None | Some(Json::Null) => None,
            Some(value) => Some(self.string(name, value)),
        }
    }

    fn string(&mut self, name: &'static str, value: &'r Json<'b>) -> Cow<'r, str> {
        if let Json::Str(text) = value {
            return Cow::Borrowed(text);
        }
        self.details.add("string_type", &[Loc::Key(name)], "Input should be a valid string", value);
        Cow::Borrowed("")
    }

    /// The data.
    pub(super) fn frame(&mut self) -> &'r [(Cow<'b, str>, Json<'b>)] {
        match self.request.get("df") {
            None => {
                self.details.add("missing", &[Loc::Key("df")], "Field required", self.request);
            }
            Some(Json::Object(columns)) => return columns,
            Some(other) => {
                self.details.add("dict_type", &[Loc::Key("df")], "Input should be a valid dictionary", other);
            }
        }
        &[]
    }

    /// A bool with a default.
    pub(super) fn flag(&mut self, name: &'static str, default: bool) -> bool {
        json_in::flag(self.request, name, default, &mut self.details)
    }

    /// A list of texts that may be missing or null.
    pub(super) fn list(&mut self, name: &'static str) -> Option<Vec<String>> {
        match self.request.get(name) {
            None | Some(Json::Null) => None,
            Some(Json::List(items)) => {
                let mut list = Vec::new();
                for (index, item) in items.iter().enumerate() {
                    match item {
                        Json::Str(text) => list.push(text.clone().into_owned()),
                        other => {
                            let loc = [Loc::Key(name), Loc::Index(index)];
                            self.details.add("string_type", &loc, "Input should be a valid string", other);
                        }
                    }
                }
                Some(list)
            }
            Some(other) => {
                self.details.add("list_type", &[Loc::Key(name)], "Input should be a valid list", other);
                None
            }
        }
    }

    /// True when nothing was wrong; otherwise the refusal is written.
    pub(super) fn fine(self, answer: &mut Answer) -> bool {
        if self.details.is_empty() {
            return true;
        }
        self.details.reply(answer);
        false
    }
}

/// A bool of the query (without its `?`); the last one of a name counts.
pub(super) fn query_flag(query: &str, name: &str, details: &mut Details) -> bool {
    let value = query.trim_start_matches('?').split('&').rev().find_map(|part| {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        let decode = |text: &str| super::super::routes::percent_decode(&text.replace('+', " ")).into_owned();
        (decode(key) == name).then(|| decode(value))
    });
    let Some(value) = value else { return false };
    json_in::bool_word(&value).unwrap_or_else(|| {
        let text = "Input should be a valid boolean, unable to interpret input";
        details.add_in("query", "bool_parsing", &[Loc::Key(name)], text, &Json::Str(value.into()));
        false
    })
}
