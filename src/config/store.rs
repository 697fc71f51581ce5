//! `feature_store.yaml`: found, expanded, checked, typed.

use std::path::{Path, PathBuf};

use base64::Engine;

use super::expand::expand;
use super::metrics::categories;
use super::redis::{redis, RedisConfig};
use super::writes::{self, Writes};
use super::yaml::{self, Yaml};
use super::ConfigError;
use crate::metrics::meters::Categories;
use crate::registry::snapshot::SnapshotRules;

/// What the server needs of a repository.
#[derive(Debug, Clone, PartialEq)]
pub struct StoreConfig {
    /// Where it was read from, for messages.
    pub source: String,
    /// Base of relative paths.
    pub repo_path: PathBuf,
    /// Project to serve.
    pub project: String,
    /// Registry file.
    pub registry_path: PathBuf,
    /// What the registry's switches change.
    pub registry_rules: SnapshotRules,
    /// Online store.
    pub online_store: OnlineStoreConfig,
    /// `entity_key_serialization_version`
    pub key_version: i64,
    /// `feature_server.metrics.enabled`
    pub metrics_enabled: bool,
    /// The rest of `feature_server.metrics`: what is counted.
    pub metrics: Categories,
    /// How rows get into the stores.
    pub writes: Writes,
    /// The `feast_prefork` block: this server's own settings, as flags would give them.
    pub own_settings: Vec<(String, Yaml)>,
    /// What an operator should know although the server starts.
    pub warnings: Vec<String>,
}

/// An online store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OnlineStoreConfig {
    /// A SQLite file.
    Sqlite {
        /// The file.
        path: PathBuf,
    },
    /// Redis, or a server that speaks its protocol.
    Redis(Box<RedisConfig>),
}

/// Where to look for the file.
#[derive(Debug, Clone, Default)]
pub struct Location {
    /// `-c/--chdir`, or its environment variable.
    pub chdir: Option<PathBuf>,
    /// `-f/--feature-store-yaml`, or its environment variable.
    pub file: Option<PathBuf>,
    /// `FEATURE_STORE_YAML_BASE64`
    pub base64: Option<String>,
}

impl StoreConfig {
    /// Finds, reads and checks the file. Variables come from `env`.
    pub fn load(location: &Location, env: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let here = std::env::current_dir().map_err(|error| {
            ConfigError::new(".", error.to_string(), "start from a directory that exists")
        })?;
        let repo_path = location.chdir.as_ref().map_or(here.clone(), |chdir| here.join(chdir));
        let (source, text) = if let Some(encoded) = &location.base64 {
            ("FEATURE_STORE_YAML_BASE64".to_owned(), decode_base64(encoded)?)
        } else {
            let path = match &location.file {
                Some(file) => here.join(file),
                None => repo_path.join("feature_store.yaml"),
            };
            (path.display().to_string(), read(&path)?)
        };
        let (text, unset) = expand(&text, env);
        let mut config = Self::parse(&text, &source, &repo_path)?;
        if let Some(shown) = (!unset.is_empty()).then(|| unset.join(", ")) {
            config.warnings.insert(0, format!("{source}: not set, left as written: {shown}"));
        }
        Ok(config)
    }

    /// Checks text whose variables are already replaced.
    pub fn parse(text: &str, source: &str, repo_path: &Path) -> Result<Self, ConfigError> {
        let tree = yaml::parse(text).map_err(|problem| {
            ConfigError::new(source, format!("not valid YAML: {problem}"), "correct the file")
        })?;
        if !matches!(tree, Yaml::Map(_)) {
            let problem = format!("expected keys and values, found {}", tree.kind());
            return Err(ConfigError::new(source, problem, "see Feast's feature_store.yaml reference"));
        }
        Checker { source, tree: &tree, repo_path, warnings: Vec::new() }.run()
    }
}

fn is_redis(kind: &str) -> bool {
    REDIS_TYPES.contains(&kind) || kind.ends_with(".RedisOnlineStore")
}

fn decode_base64(encoded: &str) -> Result<String, ConfigError> {
    let compact: String = encoded.split_whitespace().collect();
    let wrong = |problem: String| {
        ConfigError::new("FEATURE_STORE_YAML_BASE64", problem, "set it to `base64 -w0 feature_store.yaml`")
    };
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(compact)
        .map_err(|error| wrong(format!("not base64: {error}")))?;
    String::from_utf8(bytes).map_err(|_| wrong("not UTF-8 text".to_owned()))
}

fn read(path: &Path) -> Result<String, ConfigError> {
    let shown = path.display();
    std::fs::read_to_string(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => ConfigError::new(
            format!("Can't find feature repo configuration file at {shown}"),
            "no such file",
            "run from a feature repository, or name it with `-c DIR` before the command",
        ),
        std::io::ErrorKind::IsADirectory => ConfigError::new(
            shown.to_string(),
            "is a directory",
            "`-f` takes the file; a repository is named with `-c`",
        ),
        _ => ConfigError::new(shown.to_string(), error.to_string(), "make it a readable UTF-8 text file"),
    })
}

/// What a value may be.
#[derive(Clone, Copy)]
enum Kind {
    Text,
    Int,
    PositiveInt,
    Bool,
    Bins,
    Any,
    OneOf(&'static [&'static str]),
}

/// A key of a block and what it may hold.
type Rule = (&'static str, Kind);

/// Keys that may also be null.
const NULLABLE: &[&str] = &[
    "materialization.online_write_batch_size",
    "feature_server.offline_push_batching_enabled",
    "feature_server.offline_push_batching_batch_size",
    "feature_server.offline_push_batching_batch_interval_seconds",
    "registry.registry_type",
    "online_store.key_ttl_seconds",
];

const SQLITE: &[Rule] = &[
    ("type", Kind::Text),
    ("path", Kind::Text),
    ("vector_enabled", Kind::Bool),
    ("similarity", Kind::Any),
    ("text_search_enabled", Kind::Bool),
    ("enable_openai_compatible_store", Kind::Bool),
];
const REDIS: &[Rule] = &[
    ("type", Kind::Text),
    ("redis_type", Kind::OneOf(&["redis", "redis_cluster", "redis_sentinel"])),
    ("client", Kind::OneOf(&["redis", "glide"])),
    ("connection_string", Kind::Text),
    ("sentinel_master", Kind::Text),
    ("key_ttl_seconds", Kind::Int),
    ("full_scan_for_deletion", Kind::Bool),
    ("skip_dedup", Kind::Bool),
];
/// Other names of stores that speak the same protocol.
const REDIS_TYPES: &[&str] = &["redis", "valkey", "dragonfly"];
const REGISTRY: &[Rule] = &[
    ("registry_type", Kind::Text),
    ("registry_store_type", Kind::Any),
    ("path", Kind::Text),
    ("cache_ttl_seconds", Kind::Int),
    ("cache_mode", Kind::Text),
    ("purge_feast_metadata", Kind::Bool),
    ("enable_online_feature_view_versioning", Kind::Bool),
    ("serve_features_while_materializing", Kind::Bool),
];
const MATERIALIZATION: &[Rule] =
    &[("pull_latest_features", Kind::Bool), ("online_write_batch_size", Kind::PositiveInt)];
const FEATURE_SERVER: &[Rule] = &[
    ("type", Kind::OneOf(&["local", "mcp"])),
    ("enabled", Kind::Bool),
    ("transformation_service_endpoint", Kind::Text),
    ("metrics", Kind::Any),
    ("feature_logging", Kind::Any),
    ("audit_logging", Kind::Any),
    ("offline_push_batching_enabled", Kind::Bool),
    ("offline_push_batching_batch_size", Kind::Int),
    ("offline_push_batching_batch_interval_seconds", Kind::Int),
];
const MCP: &[Rule] = &[
    ("mcp_enabled", Kind::Bool),
    ("mcp_server_name", Kind::Text),
    ("mcp_server_version", Kind::Text),
    ("mcp_transport", Kind::OneOf(&["sse", "http"])),
];
const METRICS: &[Rule] = &[
    ("enabled", Kind::Bool),
    ("resource", Kind::Bool),
    ("request", Kind::Bool),
    ("online_features", Kind::Bool),
    ("push", Kind::Bool),
    ("materialization", Kind::Bool),
    ("freshness", Kind::Bool),
    ("offline_features", Kind::Bool),
    ("audit_logging", Kind::Bool),
    ("feature_count_bins", Kind::Bins),
];
const FEATURE_LOGGING: &[Rule] = &[
    ("enabled", Kind::Bool),
    ("flush_interval_secs", Kind::Int),
    ("write_to_disk_interval_secs", Kind::Int),
    ("queue_capacity", Kind::Int),
    ("emit_timeout_micro_secs", Kind::Int),
];
const AUDIT_LOGGING: &[Rule] = &[
    ("enabled", Kind::Bool),
    ("sink", Kind::OneOf(&["stdout", "file", "logger"])),
    ("file_path", Kind::Text),
    ("log_successful_reads", Kind::Bool),
];
/// Top-level keys Feast knows; others are ignored there, and here with a warning.
const TOP_LEVEL: &[&str] = &[
    "project",
    "project_description",
    "provider",
    "registry",
    "online_store",
    "offline_store",
    "batch_engine",
    "materialization",
    "feature_server",
    "auth",
    "entity_key_serialization_version",
    "coerce_tz_aware",
    "flags",
    "repo_path",
    "embedding_model",
    "openlineage",
    "mlflow",
    "data_quality_monitoring",
    "feast_prefork",
];
/// Keys of earlier releases that select a server which no longer exists.
const GO_KEYS: &[&str] = &["go_feature_serving", "go_feature_retrieval"];

struct Checker<'c> {
    source: &'c str,
    tree: &'c Yaml,
    repo_path: &'c Path,
    warnings: Vec<String>,
}

impl Checker<'_> {
    fn error(&self, key: &str, problem: impl Into<String>, hint: impl Into<String>) -> ConfigError {
        ConfigError::new(format!("{}: {key}", self.source), problem, hint)
    }

    fn run(mut self) -> Result<StoreConfig, ConfigError> {
        self.unknown_keys();
        let project = self.project()?;
        let (registry_path, registry_rules) = self.registry()?;
        self.provider()?;
        let online_store = self.online_store(&project)?;
        self.no_auth()?;
        self.blocks()?;
        let (metrics_enabled, metrics) = self.feature_server()?;
        let key_version = match self.tree.get("entity_key_serialization_version") {
            None => 3,
            Some(value) => self.int("entity_key_serialization_version", value)?,
        };
        if key_version < 3 {
            self.warnings.push(format!(
                "{}: entity_key_serialization_version {key_version} is deprecated; move to 3",
                self.source
            ));
        }
        let own_settings = match self.tree.get("feast_prefork") {
            None | Some(Yaml::Null) => Vec::new(),
            Some(Yaml::Map(entries)) => entries.clone(),
            Some(other) => {
                return Err(self.mismatch("feast_prefork", other, "a block of settings"));
            }
        };
        Ok(StoreConfig {
            source: self.source.to_owned(),
            repo_path: self.repo_path.to_owned(),
            project,
            registry_path,
            registry_rules,
            online_store,
            key_version,
            metrics_enabled,
            metrics,
            writes: writes::of(self.tree, self.source, &mut self.warnings)?,
            own_settings,
            warnings: self.warnings,
        })
    }

    fn unknown_keys(&mut self) {
        let Yaml::Map(entries) = self.tree else { return };
        for (key, _) in entries {
            if GO_KEYS.contains(&key.as_str()) {
                log::info!("{}: {key} has no effect here", self.source);
            } else if !TOP_LEVEL.contains(&key.as_str()) {
                self.warnings.push(format!("{}: unknown key {key} is ignored", self.source));
            }
        }
    }

    fn project(&self) -> Result<String, ConfigError> {
        let value = self.tree.get("project").ok_or_else(|| {
            self.error("project", "required, but missing", "add e.g. `project: my_project`")
        })?;
        let Yaml::Str(name) = value else {
            return Err(self.mismatch("project", value, "text (put it in quotes)"));
        };
        let starts_wrong = name.starts_with(['_', '-']);
        if starts_wrong || !name.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '-') {
            return Err(self.error(
                "project",
                format!("'{name}' is not a project name"),
                "use letters, digits and underscores, not starting with an underscore or hyphen",
            ));
        }
        if name.contains('-') {
            return Err(self.error(
                "project",
                format!("'{name}' contains a hyphen, which table names cannot"),
                "use an underscore",
            ));
        }
        Ok(name.clone())
    }

    fn registry(&self) -> Result<(PathBuf, SnapshotRules), ConfigError> {
        let missing =
            || self.error("registry", "required, but missing", "add e.g. `registry: data/registry.db`");
        let value = self.tree.get("registry").ok_or_else(missing)?;
        let (path, rules) = match value {
            Yaml::Str(path) => (path.clone(), SnapshotRules::default()),
            Yaml::Map(_) => {
                self.check("registry", value, REGISTRY, false)?;
                match value.get("registry_type") {
                    None | Some(Yaml::Null) => {}
                    Some(Yaml::Str(kind)) if kind == "file" => {}
                    Some(other) => {
                        let problem = format!("registry type {} is not supported", other.shown());
                        return Err(self.error("registry.registry_type", problem, "supported: file"));
                    }
                }
                let path = match value.get("path") {
                    Some(Yaml::Str(path)) => path.clone(),
                    _ => String::new(),
                };
                let flag = |key| value.get(key) == Some(&Yaml::Bool(true));
                let rules = SnapshotRules {
                    versioning: flag("enable_online_feature_view_versioning"),
                    serve_while_materializing: flag("serve_features_while_materializing"),
                };
                (path, rules)
            }
            other => return Err(self.mismatch("registry", other, "a path or a block")),
        };
        if path.is_empty() {
            return Err(self.error(
                "registry.path",
                "is empty",
                "give the registry file, e.g. data/registry.db",
            ));
        }
        if let Some((scheme, _)) = path.split_once("://").filter(|(scheme, _)| scheme.len() > 1) {
            let problem = format!("registry scheme {scheme}:// is not supported");
            return Err(self.error("registry.path", problem, "supported: a file path"));
        }
        Ok((self.repo_path.join(path), rules))
    }

    fn provider(&self) -> Result<(), ConfigError> {
        match self.tree.get("provider") {
            None => Ok(()),
            Some(Yaml::Str(name)) if ["local", "gcp", "aws", "azure"].contains(&name.as_str()) => Ok(()),
            Some(other) => {
                let problem = format!("provider {} is not supported", other.shown());
                Err(self.error("provider", problem, "supported: local, gcp, aws, azure"))
            }
        }
    }

    fn online_store(&self, _project: &str) -> Result<OnlineStoreConfig, ConfigError> {
        let default_path = "data/online.db".to_owned();
        let unsupported = |shown: String| {
            let problem = format!("online store type {shown} is not supported");
            self.error("online_store.type", problem, "supported: sqlite, redis")
        };
        let path = match self.tree.get("online_store") {
            None => default_path,
            Some(Yaml::Str(kind)) if kind == "sqlite" => default_path,
            Some(value @ Yaml::Str(kind)) if is_redis(kind) => return self.redis(value),
            Some(Yaml::Str(kind)) => return Err(unsupported(format!("'{kind}'"))),
            Some(value @ Yaml::Map(_)) => {
                match value.get("type") {
                    None => {}
                    Some(Yaml::Str(kind)) if is_redis(kind) => return self.redis(value),
                    Some(Yaml::Str(kind)) if kind == "sqlite" || kind.ends_with(".SqliteOnlineStore") => {}
                    Some(other) => return Err(unsupported(other.shown())),
                }
                self.check("online_store", value, SQLITE, true)?;
                match value.get("path") {
                    Some(Yaml::Str(path)) => path.clone(),
                    _ => default_path,
                }
            }
            Some(Yaml::Null) => {
                return Err(self.error("online_store", "is null", "a server needs one, e.g. `type: sqlite`"))
            }
            Some(other) => return Err(self.mismatch("online_store", other, "a type or a block")),
        };
        Ok(OnlineStoreConfig::Sqlite { path: self.repo_path.join(path) })
    }

    fn redis(&self, block: &Yaml) -> Result<OnlineStoreConfig, ConfigError> {
        self.check("online_store", block, REDIS, true)?;
        redis(block).map(Box::new).map(OnlineStoreConfig::Redis).map_err(|(key, problem)| {
            let hint = "write host:port and options, e.g. 'redis:6379,db=0,password=secret'";
            self.error(&format!("online_store.{key}"), problem, hint)
        })
    }

    /// Never open by accident: whatever asks for authentication and is not built refuses to start.
    fn no_auth(&self) -> Result<(), ConfigError> {
        let hint = "supported: no_auth; this server would serve without checking anybody";
        let kind = match self.tree.get("auth") {
            None | Some(Yaml::Null) => return Ok(()),
            Some(Yaml::Str(kind)) => kind,
            Some(value @ Yaml::Map(entries)) => match value.get("type") {
                Some(Yaml::Str(kind)) => {
                    if let Some((key, _)) = entries.iter().find(|(key, _)| kind == "no_auth" && key != "type")
                    {
                        return Err(self.error(&format!("auth.{key}"), "unknown key", "known: type"));
                    }
                    kind
                }
                _ => {
                    let problem = "auth configuration is missing authentication type";
                    return Err(self.error("auth.type", problem, hint));
                }
            },
            Some(other) => return Err(self.mismatch("auth", other, "a type or a block")),
        };
        if kind == "no_auth" {
            return Ok(());
        }
        Err(self.error("auth.type", format!("authentication type '{kind}' is not supported"), hint))
    }

    /// Blocks that serving does not use, checked as the reference checks them.
    fn blocks(&self) -> Result<(), ConfigError> {
        if let Some(value @ Yaml::Map(_)) = self.tree.get("materialization") {
            self.check("materialization", value, MATERIALIZATION, false)?;
        }
        match self.tree.get("offline_store") {
            None | Some(Yaml::Str(_)) => {}
            Some(value @ Yaml::Map(_)) => {
                let plain = matches!(value.get("type"), None | Some(Yaml::Str(_)));
                if !plain {
                    let found = value.get("type").unwrap_or(&Yaml::Null);
                    return Err(self.mismatch("offline_store.type", found, "text"));
                }
                if matches!(value.get("type"), Some(Yaml::Str(kind)) if kind == "file" || kind == "dask") {
                    self.check("offline_store", value, &[("type", Kind::Text)], true)?;
                }
            }
            Some(other) => return Err(self.mismatch("offline_store", other, "a type or a block")),
        }
        Ok(())
    }

    /// Checks the block; whether metrics are on, and which.
    fn feature_server(&mut self) -> Result<(bool, Categories), ConfigError> {
        let value = match self.tree.get("feature_server") {
            None | Some(Yaml::Null) => return Ok((false, Categories::default())),
            Some(value @ Yaml::Map(_)) => value,
            Some(other) => return Err(self.mismatch("feature_server", other, "a block")),
        };
        let mcp = value.get("type") == Some(&Yaml::Str("mcp".to_owned()));
        let rules: Vec<Rule> = if mcp { [FEATURE_SERVER, MCP].concat() } else { FEATURE_SERVER.to_vec() };
        self.check("feature_server", value, &rules, true)?;
        for (key, rules) in
            [("metrics", METRICS), ("feature_logging", FEATURE_LOGGING), ("audit_logging", AUDIT_LOGGING)]
        {
            let place = format!("feature_server.{key}");
            match value.get(key) {
                None | Some(Yaml::Null) => {}
                Some(block @ Yaml::Map(_)) => self.check(&place, block, rules, true)?,
                Some(other) => return Err(self.mismatch(&place, other, "a block")),
            }
        }
        let on = |block: &str| value.get(block).and_then(|b| b.get("enabled")) == Some(&Yaml::Bool(true));
        for block in ["audit_logging", "feature_logging"] {
            if on(block) {
                let place = format!("{}: feature_server.{block}.enabled", self.source);
                self.warnings.push(format!("{place}: not supported yet, serving without"));
            }
        }
        if mcp {
            self.warnings.push(format!(
                "{}: feature_server.type mcp: not supported yet, serving HTTP only",
                self.source
            ));
        }
        Ok((on("metrics"), categories(value.get("metrics"))))
    }

    /// Checks every key of a block; `strict` blocks have no unknown ones.
    fn check(&self, block: &str, value: &Yaml, rules: &[Rule], strict: bool) -> Result<(), ConfigError> {
        let Yaml::Map(entries) = value else { return Ok(()) };
        for (key, value) in entries {
            let place = format!("{block}.{key}");
            match rules.iter().find(|(name, _)| name == key) {
                Some((_, kind)) => self.check_value(&place, value, *kind)?,
                None if strict => {
                    let names: Vec<&str> = rules.iter().map(|(name, _)| *name).collect();
                    return Err(self.error(&place, "unknown key", format!("known: {}", names.join(", "))));
                }
                None => {}
            }
        }
        Ok(())
    }

    fn check_value(&self, place: &str, value: &Yaml, kind: Kind) -> Result<(), ConfigError> {
        match (kind, value) {
            (Kind::Any, _) | (Kind::Text, Yaml::Str(_)) | (Kind::Bool, Yaml::Bool(_)) => Ok(()),
            (_, Yaml::Null) if NULLABLE.contains(&place) => Ok(()),
            (Kind::Int, Yaml::Int(_)) => Ok(()),
            (Kind::PositiveInt, Yaml::Int(1..)) => Ok(()),
            (Kind::PositiveInt, Yaml::Int(_)) => {
                Err(self.error(place, format!("{} is too small", value.shown()), "use a number above 0"))
            }
            (Kind::OneOf(choices), Yaml::Str(text)) if choices.contains(&text.as_str()) => Ok(()),
            (Kind::OneOf(choices), other) => Err(self.error(
                place,
                format!("{} is not one of the choices", other.shown()),
                format!("use {}", choices.join(" or ")),
            )),
            (Kind::Bins, Yaml::List(items)) => {
                let numbers: Vec<i64> =
                    items.iter().filter_map(|i| if let Yaml::Int(n) = i { Some(*n) } else { None }).collect();
                let fine = numbers.len() == items.len()
                    && numbers.first().is_none_or(|&first| first > 0)
                    && numbers.is_sorted_by(|a, b| a < b);
                if fine {
                    Ok(())
                } else {
                    Err(self.error(
                        place,
                        "must hold strictly increasing positive integers",
                        "e.g. [10, 50, 200]",
                    ))
                }
            }
            (Kind::Text, other) => Err(self.mismatch(place, other, "text")),
            (Kind::Int | Kind::PositiveInt, other) => Err(self.mismatch(place, other, "an integer")),
            (Kind::Bool, other) => Err(self.mismatch(place, other, "true or false")),
            (Kind::Bins, other) => Err(self.mismatch(place, other, "a list of integers")),
        }
    }

    fn int(&self, place: &str, value: &Yaml) -> Result<i64, ConfigError> {
        match value {
            Yaml::Int(number) => Ok(*number),
            other => Err(self.mismatch(place, other, "an integer")),
        }
    }

    fn mismatch(&self, place: &str, found: &Yaml, wanted: &str) -> ConfigError {
        let problem = format!("expected {wanted}, found {} {}", found.kind(), found.shown());
        self.error(place, problem, "correct the value")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<StoreConfig, String> {
        StoreConfig::parse(text, "fs.yaml", Path::new("/repo")).map_err(|error| error.to_string())
    }

    const MINIMAL: &str = "project: p\nregistry: data/registry.db\n";

    #[test]
    fn defaults_are_feasts() {
        let config = parse(MINIMAL).unwrap();
        assert_eq!(config.registry_path, Path::new("/repo/data/registry.db"));
        assert_eq!(config.online_store, OnlineStoreConfig::Sqlite { path: "/repo/data/online.db".into() });
        assert_eq!(config.key_version, 3);
        assert!(config.warnings.is_empty());
    }

    #[test]
    fn mistakes_name_the_key_and_the_remedy() {
        for (extra, expected) in [
            (
                "online_store: {type: postgres}",
                "fs.yaml: online_store.type: online store type 'postgres' is not supported; supported: sqlite",
            ),
            (
                "online_store: {type: sqlite, pth: x}",
                "fs.yaml: online_store.pth: unknown key; known: type, path, ",
            ),
            ("online_store: {path: 5}", "fs.yaml: online_store.path: expected text, found an integer 5; "),
            ("auth: {type: oidc}", "fs.yaml: auth.type: authentication type 'oidc' is not supported; "),
            ("auth: {}", "fs.yaml: auth.type: auth configuration is missing"),
            ("entity_key_serialization_version: '3'", "expected an integer, found text '3'"),
            ("provider: foo", "fs.yaml: provider: provider 'foo' is not supported"),
            (
                "feature_server: {metrics: {enabled: 1}}",
                "feature_server.metrics.enabled: expected true or false",
            ),
            ("feature_server: {metrics: {feature_count_bins: [5, 5]}}", "strictly increasing"),
            ("materialization: {online_write_batch_size: 0}", "0 is too small; use a number above 0"),
        ] {
            let error = parse(&format!("{MINIMAL}{extra}\n")).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        for (text, expected) in [
            ("registry: r", "fs.yaml: project: required, but missing"),
            ("project: p", "fs.yaml: registry: required, but missing"),
            ("project: a-b\nregistry: r", "contains a hyphen"),
            ("project: _a\nregistry: r", "is not a project name"),
            ("project: 5\nregistry: r", "expected text (put it in quotes), found an integer 5"),
            ("project: p\nregistry: s3://b/k", "registry scheme s3:// is not supported"),
            ("project: p\nregistry: {registry_type: sql, path: x}", "registry type 'sql' is not supported"),
            ("- a", "expected keys and values, found a list"),
            ("a: [", "not valid YAML"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{error}");
            assert!(!error.contains('\n'));
        }
    }

    #[test]
    fn unknown_top_level_keys_warn() {
        let config = parse(&format!("{MINIMAL}typo: 1\ngo_feature_serving: true\n")).unwrap();
        assert_eq!(config.warnings, ["fs.yaml: unknown key typo is ignored"]);
    }
}
