//! Which files a file source has.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

/// A source's path, resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// One file.
    File(PathBuf),
    /// A folder, perhaps with `key=value` folders in it.
    Folder(PathBuf),
    /// A pattern.
    Pattern(PathBuf),
    /// Nothing is there.
    Missing(PathBuf),
}

/// A file and the values that its folders give to all its rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The file.
    pub path: PathBuf,
    /// Names and values of the partitions it lies in.
    pub partitions: Vec<(String, String)>,
}

/// Finds what `path` names; relative paths start at `repo`.
pub fn resolve(path: &str, repo: &Path) -> Result<Place, String> {
    let plain = path.strip_prefix("file://").unwrap_or(path);
    if let Some((scheme, _)) = plain.split_once("://") {
        return Err(format!("{path}: scheme {scheme}:// is not supported; use a local path"));
    }
    let full = repo.join(plain);
    if plain.contains(['*', '?', '[']) && !full.exists() {
        return Ok(Place::Pattern(full));
    }
    // A link stays one: what it points to is read, locked and replaced.
    let full = fs::canonicalize(&full).unwrap_or(full);
    match fs::metadata(&full) {
        Ok(found) if found.is_dir() => Ok(Place::Folder(full)),
        Ok(_) => Ok(Place::File(full)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Place::Missing(full)),
        Err(error) => Err(format!("{}: {error}", full.display())),
    }
}

/// The Parquet files of a place, sorted by path.
pub fn parts(place: &Place) -> Result<Vec<Part>, String> {
    let unreadable = |path: &Path| {
        format!(
            "An error occurred while calling the read_parquet method registered to the pandas backend.\nOriginal \
             Message: {}",
            path.display()
        )
    };
    let mut found = match place {
        Place::File(path) => vec![Part { path: path.clone(), partitions: Vec::new() }],
        Place::Missing(path) => return Err(unreadable(path)),
        Place::Folder(path) => {
            let mut found = Vec::new();
            walk(path, &mut Vec::new(), &mut found)
                .map_err(|error| format!("{}: {error}", path.display()))?;
            found
        }
        Place::Pattern(pattern) => glob::glob(&pattern.to_string_lossy())
            .map_err(|error| format!("{}: {error}", pattern.display()))?
            .filter_map(Result::ok)
            .filter(|path| is_parquet(path))
            .map(|path| Part { path, partitions: Vec::new() })
            .collect(),
    };
    found.sort_by(|a, b| a.path.cmp(&b.path));
    match place {
        Place::Folder(path) | Place::Pattern(path) if found.is_empty() => Err(unreadable(path)),
        _ => Ok(found),
    }
}

fn walk(folder: &Path, partitions: &mut Vec<(String, String)>, found: &mut Vec<Part>) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if name.starts_with(['_', '.']) {
            continue;
        }
        if path.is_dir() {
            let pair = name.split_once('=').map(|(key, value)| (key.to_owned(), decode(value)));
            let nested = pair.is_some();
            partitions.extend(pair);
            walk(&path, partitions, found)?;
            if nested {
                partitions.pop();
            }
        } else if is_parquet(&path) {
            found.push(Part { path, partitions: partitions.clone() });
        }
    }
    Ok(())
}

/// A value as a part of a folder's name: what might mean something else there is written as `%2F`.
pub fn encode(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for byte in value.bytes() {
        match byte {
            b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// The value in a folder's name.
fn decode(name: &str) -> String {
    let bytes = name.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = bytes.get(at + 1..at + 3).and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.filter(|_| bytes[at] == b'%').and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8(out).unwrap_or_else(|_| name.to_owned())
}

fn is_parquet(path: &Path) -> bool {
    let mut magic = [0; 4];
    fs::File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && &magic == b"PAR1"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_survive_being_names() {
        for value in ["", ".x", "a/b", "50%", "%2F", "é ü", "2025-03-01 00:00:00"] {
            let name = encode(value);
            assert!(!name.contains(['/', ' ']), "{name}");
            assert_eq!(decode(&name), value);
        }
        assert_eq!(decode("100%"), "100%");
    }

    #[test]
    fn folders_give_values_and_foreign_files_are_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let file = |path: &str, content: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        };
        file("t/day=1/a.parquet", "PAR1");
        file("t/day=2/b", "PAR1");
        file("t/_SUCCESS", "PAR1");
        file("t/notes.txt", "hello");
        let place = resolve("t", dir.path()).unwrap();
        let found = parts(&place).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(found[1].partitions, [("day".to_owned(), "2".to_owned())]);
        let place = resolve("t/day=*/*.parquet", dir.path()).unwrap();
        assert_eq!(parts(&place).unwrap().len(), 1);
        assert!(parts(&resolve("nope", dir.path()).unwrap()).unwrap_err().contains("read_parquet"));
        assert!(resolve("s3://a/b", dir.path()).unwrap_err().contains("s3://"));
    }
}
