//! YAML text as a tree, read the way PyYAML (YAML 1.1) reads it where the library (YAML 1.2) would differ.

use std::fmt;

use serde::de::{Deserialize, Deserializer, EnumAccess, MapAccess, SeqAccess, VariantAccess, Visitor};

/// A node.
#[derive(Debug, Clone, PartialEq)]
pub enum Yaml {
    /// `null`, `~` or nothing.
    Null,
    /// A bool; `yes`, `no`, `on`, `off` count.
    Bool(bool),
    /// An integer, also in octal (`010`), with `_`, or sexagesimal (`1:30`).
    Int(i64),
    /// Any other number.
    Float(f64),
    /// Text.
    Str(String),
    /// A list.
    List(Vec<Yaml>),
    /// A mapping in file order; of repeated keys the last value counts.
    Map(Vec<(String, Yaml)>),
}

impl Yaml {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Self> {
        match self {
            Self::Map(entries) => entries.iter().find(|(name, _)| name == key).map(|(_, value)| value),
            _ => None,
        }
    }

    /// What kind of thing this is, for an error text.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Int(_) => "an integer",
            Self::Float(_) => "a number",
            Self::Str(_) => "text",
            Self::List(_) => "a list",
            Self::Map(_) => "a block",
        }
    }

    /// The value as it would be written on one line, shortened.
    pub fn shown(&self) -> String {
        let text = match self {
            Self::Null => "null".to_owned(),
            Self::Bool(value) => value.to_string(),
            Self::Int(value) => value.to_string(),
            Self::Float(value) => value.to_string(),
            Self::Str(value) => format!("'{value}'"),
            Self::List(_) => "[...]".to_owned(),
            Self::Map(_) => "{...}".to_owned(),
        };
        if text.chars().count() > 60 {
            text.chars().take(57).chain("...".chars()).collect()
        } else {
            text
        }
    }
}

/// Parses one document. The error is one line with the place of the problem.
pub fn parse(text: &str) -> Result<Yaml, String> {
    // The library refuses a second document itself, and names the place of any other problem.
    serde_yaml::from_str(text).map_err(|error| error.to_string().replace('\n', " "))
}

/// Parses one document by the rules of YAML 1.2: what is quoted is text, and so are `yes`, `off` and `01234`.
pub fn parse_modern(text: &str) -> Result<Yaml, String> {
    let one_line = |error: serde_yaml::Error| error.to_string().replace('\n', " ");
    let mut value: serde_yaml::Value = serde_yaml::from_str(text).map_err(one_line)?;
    value.apply_merge().map_err(one_line)?;
    Ok(modern(value))
}

fn modern(value: serde_yaml::Value) -> Yaml {
    use serde_yaml::Value;
    match value {
        Value::Null => Yaml::Null,
        Value::Bool(value) => Yaml::Bool(value),
        Value::Number(number) => match number.as_i64() {
            Some(whole) => Yaml::Int(whole),
            None => Yaml::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        Value::String(text) => Yaml::Str(text),
        Value::Sequence(items) => Yaml::List(items.into_iter().map(modern).collect()),
        Value::Mapping(entries) => {
            let entry = |(key, value)| match (modern(key), modern(value)) {
                (Yaml::Str(key), value) => (key, value),
                (key, value) => (key.shown(), value),
            };
            Yaml::Map(entries.into_iter().map(entry).collect())
        }
        Value::Tagged(tagged) => modern(tagged.value),
    }
}

impl<'de> Deserialize<'de> for Yaml {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Tree)
    }
}

struct Tree;

impl<'de> Visitor<'de> for Tree {
    type Value = Yaml;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("YAML")
    }

    fn visit_unit<E>(self) -> Result<Yaml, E> {
        Ok(Yaml::Null)
    }

    fn visit_none<E>(self) -> Result<Yaml, E> {
        Ok(Yaml::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Yaml, D::Error> {
        Yaml::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Yaml, E> {
        Ok(Yaml::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Yaml, E> {
        Ok(Yaml::Int(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Yaml, E> {
        Ok(i64::try_from(value).map_or(Yaml::Float(value as f64), Yaml::Int))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Yaml, E> {
        Ok(Yaml::Float(value))
    }

    fn visit_str<E>(self, text: &str) -> Result<Yaml, E> {
        Ok(scalar(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Yaml, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Yaml::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Yaml, A::Error> {
        let mut entries: Vec<(String, Yaml)> = Vec::new();
        let mut merged: Vec<(String, Yaml)> = Vec::new();
        while let Some((key, value)) = map.next_entry::<Yaml, Yaml>()? {
            let key = match key {
                Yaml::Str(text) => text,
                other => other.shown(),
            };
            if key == "<<" {
                collect_merge(value, &mut merged);
                continue;
            }
            match entries.iter_mut().find(|(known, _)| *known == key) {
                Some(known) => known.1 = value,
                None => entries.push((key, value)),
            }
        }
        for (key, value) in merged {
            if !entries.iter().any(|(known, _)| *known == key) {
                entries.push((key, value));
            }
        }
        Ok(Yaml::Map(entries))
    }

    /// A tagged node (`!tag value`): the tag says nothing here.
    fn visit_enum<A: EnumAccess<'de>>(self, access: A) -> Result<Yaml, A::Error> {
        let (_, content) = access.variant::<String>()?;
        content.newtype_variant()
    }
}

fn collect_merge(value: Yaml, merged: &mut Vec<(String, Yaml)>) {
    match value {
        Yaml::Map(entries) => {
            for (key, value) in entries {
                if !merged.iter().any(|(known, _)| *known == key) {
                    merged.push((key, value));
                }
            }
        }
        Yaml::List(items) => items.into_iter().for_each(|item| collect_merge(item, merged)),
        _ => {}
    }
}

/// A text the library left as text, which YAML 1.1 may read as something else.
fn scalar(text: &str) -> Yaml {
    match text {
        "yes" | "Yes" | "YES" | "on" | "On" | "ON" => return Yaml::Bool(true),
        "no" | "No" | "NO" | "off" | "Off" | "OFF" => return Yaml::Bool(false),
        _ => {}
    }
    old_integer(text).map_or_else(|| Yaml::Str(text.to_owned()), Yaml::Int)
}

/// Integers that only YAML 1.1 knows. Plain decimal digits arrive here only when they were quoted: text.
fn old_integer(text: &str) -> Option<i64> {
    let (sign, digits) = match text.as_bytes().first()? {
        b'-' => (-1, &text[1..]),
        b'+' => (1, &text[1..]),
        _ => (1, text),
    };
    let first = *digits.as_bytes().first()?;
    if !first.is_ascii_digit() {
        return None;
    }
    let bare = digits.replace('_', "");
    let value = if digits.contains(':') {
        let mut sum = 0_i64;
        for (index, part) in bare.split(':').enumerate() {
            let number: i64 = part.parse().ok().filter(|&n| index == 0 || (0..60).contains(&n))?;
            sum = sum.checked_mul(60)?.checked_add(number)?;
        }
        sum
    } else if first == b'0' && bare.len() > 1 && bare.bytes().all(|b| (b'0'..=b'7').contains(&b)) {
        i64::from_str_radix(&bare, 8).ok()?
    } else if digits.contains('_') {
        bare.parse().ok()?
    } else {
        return None;
    };
    Some(sign * value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_yaml_1_1() {
        let tree = parse("a: yes\nb: 010\nc: 1_0\nd: 1:30\ne: '3'\nf: 3\na: no\ng: ~").unwrap();
        let get = |key| tree.get(key).unwrap().clone();
        assert_eq!(get("a"), Yaml::Bool(false));
        assert_eq!(get("b"), Yaml::Int(8));
        assert_eq!(get("c"), Yaml::Int(10));
        assert_eq!(get("d"), Yaml::Int(90));
        assert_eq!(get("e"), Yaml::Str("3".into()));
        assert_eq!(get("f"), Yaml::Int(3));
        assert_eq!(get("g"), Yaml::Null);
    }

    #[test]
    fn anchors_are_merged() {
        let tree = parse("base: &b {x: 1, y: 2}\nuse:\n  <<: *b\n  y: 3\n").unwrap();
        let used = tree.get("use").unwrap();
        assert_eq!((used.get("x"), used.get("y")), (Some(&Yaml::Int(1)), Some(&Yaml::Int(3))));
    }

    #[test]
    fn errors_are_one_line_with_a_place() {
        for text in ["a: [1", "a:\tb: c", "a: 1\n---\nb: 2", "a: b: c"] {
            let error = parse(text).unwrap_err();
            assert!(!error.contains('\n'), "{error}");
        }
    }
}
