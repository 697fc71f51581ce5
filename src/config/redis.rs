//! `online_store: {type: redis}`: its keys, and the grammar of `connection_string`.
//!
//! The string is a list separated by commas: `host:port` parts are nodes, `name=value` parts are options of the
//! Python client. Those that mean something here are read, those that only tune its pools are passed over, and
//! unknown ones are refused, as the Python client refuses them.

use std::path::PathBuf;

use super::yaml::Yaml;

/// How the servers are organised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Topology {
    /// One server.
    Single,
    /// Redis Cluster; the nodes are where its map is asked for.
    Cluster,
    /// The nodes are sentinels, which know the master of this name.
    Sentinel(String),
}

/// TLS to the servers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RedisTls {
    /// CA certificates (PEM) to trust instead of the usual ones.
    pub ca: Option<PathBuf>,
    /// Client certificate (PEM).
    pub cert: Option<PathBuf>,
    /// Its key (PEM).
    pub key: Option<PathBuf>,
    /// Anybody's certificate is accepted (`ssl_cert_reqs=none`).
    pub accept_any: bool,
}

/// Where the features are and how to reach them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisConfig {
    /// How the servers are organised.
    pub topology: Topology,
    /// Host and port of each node.
    pub nodes: Vec<(String, u16)>,
    /// Socket file, instead of the nodes.
    pub unix: Option<PathBuf>,
    /// Number of the database.
    pub db: u32,
    /// User, for servers with access lists.
    pub username: Option<String>,
    /// Password.
    pub password: Option<String>,
    /// Name that the server shows for our connections.
    pub client_name: Option<String>,
    /// TLS, if it is wanted.
    pub tls: Option<RedisTls>,
    /// Seconds after which an entity expires that is not written again.
    pub key_ttl: Option<u64>,
    /// Older events overwrite newer ones.
    pub skip_dedup: bool,
    /// A cluster's replicas answer reads, where there are any.
    pub read_from_replicas: bool,
}

/// Options of the Python client that only tune what this server does in another way.
const PASSED_OVER: &[&str] = &[
    "socket_timeout",
    "socket_connect_timeout",
    "socket_keepalive",
    "socket_keepalive_options",
    "health_check_interval",
    "max_connections",
    "protocol",
    "retry_on_timeout",
    "retry_on_error",
    "decode_responses",
    "encoding",
    "encoding_errors",
    "single_connection_client",
    "auto_close_connection_pool",
    "lib_name",
    "lib_version",
    "skip_full_coverage_check",
    "require_full_coverage",
    "reinitialize_steps",
    "ssl_check_hostname",
];

/// A key of the block and what is wrong with it.
pub(super) type Problem = (String, String);

/// Reads the block, whose keys and types have been checked.
pub(super) fn redis(block: &Yaml) -> Result<RedisConfig, Problem> {
    let text = |key: &str| match block.get(key) {
        Some(Yaml::Str(text)) => Some(text.clone()),
        _ => None,
    };
    let topology = match text("redis_type").as_deref() {
        None | Some("redis") => Topology::Single,
        Some("redis_cluster") => Topology::Cluster,
        Some(_) => Topology::Sentinel(text("sentinel_master").unwrap_or_else(|| "mymaster".to_owned())),
    };
    let mut config = RedisConfig {
        topology,
        nodes: Vec::new(),
        unix: None,
        db: 0,
        username: None,
        password: None,
        client_name: None,
        tls: None,
        key_ttl: match block.get("key_ttl_seconds") {
            Some(Yaml::Int(seconds)) => u64::try_from(*seconds).ok().filter(|&seconds| seconds > 0),
            _ => None,
        },
        read_from_replicas: false,
        skip_dedup: block.get("skip_dedup") == Some(&Yaml::Bool(true)),
    };
    let string = text("connection_string").unwrap_or_else(|| "localhost:6379".to_owned());
    config.connection(&string).map_err(|problem| ("connection_string".to_owned(), problem))?;
    Ok(config)
}

impl RedisConfig {
    fn connection(&mut self, string: &str) -> Result<(), String> {
        let mut tls = None;
        let mut files = RedisTls::default();
        for part in string.split(',') {
            let Some((name, value)) = part.split_once('=') else {
                self.nodes.push(node(part)?);
                continue;
            };
            let value = scalar(value);
            match name {
                "db" => {
                    let number = value.as_ref().and_then(|text| text.parse().ok());
                    self.db = number.ok_or_else(|| format!("option db: '{part}' names no database"))?;
                }
                // An empty one is none, as to the Python client.
                "username" => self.username = value.filter(|text| !text.is_empty()),
                "password" => self.password = value.filter(|text| !text.is_empty()),
                "client_name" => self.client_name = value,
                "unix_socket_path" => self.unix = value.map(PathBuf::from),
                // Any text but nothing means yes to the Python client, also `False`.
                "ssl" => tls = Some(value.is_some_and(|text| !matches!(text.as_str(), "" | "0" | "false"))),
                "ssl_ca_certs" => files.ca = value.map(PathBuf::from),
                "ssl_certfile" => files.cert = value.map(PathBuf::from),
                "ssl_keyfile" => files.key = value.map(PathBuf::from),
                "read_from_replicas" => self.read_from_replicas = value.as_deref() == Some("true"),
                "ssl_cert_reqs" => files.accept_any = value.is_none_or(|text| text == "none"),
                name if PASSED_OVER.contains(&name) => {}
                name => return Err(format!("unknown option '{name}'")),
            }
        }
        self.tls = (tls == Some(true)).then_some(files);
        if self.nodes.is_empty() && self.unix.is_none() {
            return Err("names no host:port".to_owned());
        }
        if self.topology == Topology::Cluster && self.db != 0 {
            return Err("option db: a cluster has only database 0".to_owned());
        }
        Ok(())
    }

    /// The nodes for people, without passwords.
    pub fn shown(&self) -> String {
        if let Some(path) = &self.unix {
            return format!("unix:{}", path.display());
        }
        let nodes: Vec<String> = self.nodes.iter().map(|(host, port)| format!("{host}:{port}")).collect();
        nodes.join(",")
    }
}

/// `host:port`; anything behind a second colon is passed over, as in Feast.
fn node(part: &str) -> Result<(String, u16), String> {
    let mut pieces = part.split(':');
    let host = pieces.next().unwrap_or("").trim();
    let port = pieces.next().ok_or_else(|| format!("'{part}' has no port: write host:port"))?;
    let port = port.trim().parse().map_err(|_| format!("'{part}': '{port}' is not a port"))?;
    if host.is_empty() {
        return Err(format!("'{part}' names no host"));
    }
    Ok((host.to_owned(), port))
}

/// The value of an option: JSON where it is JSON, else the text itself. `None`: null.
fn scalar(text: &str) -> Option<String> {
    match serde_json::from_str::<serde_json::Value>(text) {
        Ok(serde_json::Value::String(inner)) => Some(inner),
        Ok(serde_json::Value::Null) => None,
        Ok(serde_json::Value::Number(number)) if number.is_f64() => {
            let mut out = Vec::new();
            crate::text::pyfmt::write_f64(&mut out, number.as_f64().unwrap_or(0.0));
            Some(String::from_utf8_lossy(&out).into_owned())
        }
        Ok(other) => Some(other.to_string()),
        Err(_) => Some(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(string: &str) -> Result<RedisConfig, String> {
        let block = super::super::yaml::parse(&format!("connection_string: '{string}'")).unwrap();
        redis(&block).map_err(|(key, problem)| format!("{key}: {problem}"))
    }

    #[test]
    fn the_connection_string_is_feasts() {
        let config = parse("a:1,b:2:x,password=12345,username=u,db=3,ssl=true,ssl_ca_certs=/ca.pem").unwrap();
        assert_eq!(config.nodes, [("a".to_owned(), 1), ("b".to_owned(), 2)]);
        assert_eq!((config.password.as_deref(), config.username.as_deref()), (Some("12345"), Some("u")));
        assert_eq!((config.db, config.tls.unwrap().ca), (3, Some(PathBuf::from("/ca.pem"))));
        for (text, expected) in [
            ("password=00123", Some("00123")),
            ("password=1e5", Some("100000.0")),
            ("password=\"q\"", Some("q")),
            ("password=null", None),
            ("password=abc=d==", Some("abc=d==")),
        ] {
            assert_eq!(parse(&format!("h:1,{text}")).unwrap().password.as_deref(), expected, "{text}");
        }
        assert!(parse("h:1,ssl=False").unwrap().tls.is_some());
        assert!(parse("h:1,ssl=false").unwrap().tls.is_none());
    }

    #[test]
    fn mistakes_are_named() {
        for (string, expected) in [
            ("localhost", "has no port"),
            ("h:x", "'x' is not a port"),
            ("h:1,nope=1", "unknown option 'nope'"),
            ("h:1, db=1", "unknown option ' db'"),
            ("h:1,db=x", "names no database"),
            ("db=1", "names no host:port"),
        ] {
            let error = parse(string).unwrap_err();
            assert!(error.starts_with("connection_string: ") && error.contains(expected), "{error}");
        }
    }
}
