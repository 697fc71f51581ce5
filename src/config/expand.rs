//! `$NAME` and `${NAME}` in the raw text of a file, before it is parsed.

/// Replaces what `lookup` knows. An unset variable stays as it is written, as in the reference; its name is
/// collected unless it stands in a comment line.
pub fn expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> (String, Vec<String>) {
    let mut out = String::with_capacity(text.len());
    let mut unset: Vec<String> = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        let (name, length) = match after.strip_prefix('{') {
            Some(braced) => match braced.find('}') {
                Some(end) => (&braced[..end], end + 2),
                None => ("", 0),
            },
            None => {
                let end =
                    after.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(after.len());
                (&after[..end], end)
            }
        };
        match lookup(name).filter(|_| !name.is_empty()) {
            Some(value) => out.push_str(&value),
            None => {
                out.push('$');
                out.push_str(&after[..length]);
                let line = out.rsplit('\n').next().unwrap_or_default();
                let named = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
                if named && !line.trim_start().starts_with('#') && !unset.iter().any(|u| u == name) {
                    unset.push(name.to_owned());
                }
            }
        }
        rest = &after[length..];
    }
    out.push_str(rest);
    (out, unset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_set_names_are_replaced() {
        let lookup = |name: &str| match name {
            "AA" => Some("val".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        for (text, expected) in [
            ("$AA ${AA}", "val val"),
            ("$AAx", "$AAx"),
            ("${AA:-d}", "${AA:-d}"),
            ("$$AA \\$AA", "$val \\val"),
            ("'$AA'", "'val'"),
            ("${AA $1 ${} $ AA %AA% ~", "${AA $1 ${} $ AA %AA% ~"),
            ("a${EMPTY}b", "ab"),
        ] {
            assert_eq!(expand(text, lookup).0, expected);
        }
        let (_, unset) = expand("a: ${NOPE}\n# $COMMENT\nb: $NOPE $OTHER", lookup);
        assert_eq!(unset, ["NOPE", "OTHER"]);
    }
}
