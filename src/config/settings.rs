//! The settings of the server, resolved: every later module reads these and nothing else.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use crate::http::proxy::Versions;
use crate::http::Limits;
use crate::logging::logger::Target;
use crate::metrics::meters::LiveLabel;
use crate::metrics::statsd::StatsdSettings;
use crate::os::process::Identity;
use crate::tls::server::ClientCerts;

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bind {
    /// `HOST:PORT`, `[V6]:PORT`, `HOST` or `:PORT`.
    Tcp {
        /// Name or address.
        host: String,
        /// Port.
        port: u16,
    },
    /// `unix:PATH`
    Unix(PathBuf),
    /// `fd://N`: a socket opened by the parent process.
    Fd(i32),
}

/// Port of a `--bind` without one, as in gunicorn.
const DEFAULT_BIND_PORT: u16 = 8000;

impl Bind {
    /// Reads gunicorn's grammar.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return if path.is_empty() {
                Err("the path is empty".to_owned())
            } else {
                Ok(Self::Unix(path.into()))
            };
        }
        if let Some(number) = text.strip_prefix("fd://") {
            return number
                .parse()
                .map(Self::Fd)
                .map_err(|_| format!("'{number}' is not a descriptor number"));
        }
        let text = text.strip_prefix("tcp://").unwrap_or(text);
        let port = |text: &str| text.parse().map_err(|_| format!("'{text}' is not a valid port number."));
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let (host, tail) = rest.split_once(']').ok_or("the closing ] is missing")?;
            match tail.strip_prefix(':') {
                Some(digits) => (host, port(digits)?),
                None if tail.is_empty() => (host, DEFAULT_BIND_PORT),
                None => return Err(format!("'{tail}' after ] is not :PORT")),
            }
        } else {
            match text.rsplit_once(':') {
                Some((host, digits)) => (host, port(digits)?),
                None => (text, DEFAULT_BIND_PORT),
            }
        };
        let host = if host.is_empty() { "0.0.0.0" } else { host };
        Ok(Self::Tcp { host: host.to_ascii_lowercase(), port })
    }

    /// The address to bind, names resolved.
    pub fn resolve(host: &str, port: u16) -> Result<SocketAddr, String> {
        (host, port)
            .to_socket_addrs()
            .map_err(|error| format!("cannot resolve '{host}': {error}"))?
            .next()
            .ok_or_else(|| format!("'{host}' has no address"))
    }
}

impl std::fmt::Display for Bind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Fd(number) => write!(f, "fd://{number}"),
        }
    }
}

/// Peers whose forwarding headers are believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustedPeers {
    everybody: bool,
    networks: Vec<(IpAddr, u8)>,
}

impl TrustedPeers {
    /// Reads a comma-separated list of addresses and networks, or `*`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut trusted = Self { everybody: false, networks: Vec::new() };
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            if part == "*" {
                trusted.everybody = true;
                continue;
            }
            let (address, bits) = part.split_once('/').map_or((part, None), |(a, b)| (a, Some(b)));
            let wrong = || format!("'{part}' is not an IP address, a network or *");
            let address: IpAddr = address.parse().map_err(|_| wrong())?;
            let most = if address.is_ipv4() { 32 } else { 128 };
            let bits = match bits {
                None => most,
                Some(bits) => bits.parse().ok().filter(|&bits| bits <= most).ok_or_else(wrong)?,
            };
            trusted.networks.push((address, bits));
        }
        Ok(trusted)
    }

    /// True when forwarding headers of `peer` are believed. A peer on a Unix socket (`None`) is believed only
    /// when everybody is.
    pub fn trusts(&self, peer: Option<IpAddr>) -> bool {
        self.everybody
            || peer.is_some_and(|peer| {
                let peer = peer.to_canonical();
                self.networks.iter().any(|&(network, bits)| contains(network, bits, peer))
            })
    }
}

fn contains(network: IpAddr, bits: u8, address: IpAddr) -> bool {
    let mask = |value: u128, width: u8| value.checked_shr(u32::from(width - bits)).unwrap_or(0);
    match (network, address) {
        (IpAddr::V4(n), IpAddr::V4(a)) => {
            mask(u128::from(n.to_bits()), 32) == mask(u128::from(a.to_bits()), 32)
        }
        (IpAddr::V6(n), IpAddr::V6(a)) => mask(n.to_bits(), 128) == mask(a.to_bits(), 128),
        _ => false,
    }
}

impl Settings {
    /// How often a worker without work shows that it is alive: each second, and twice per `timeout`.
    pub fn beat_period(&self) -> Duration {
        let second = Duration::from_secs(1);
        if self.timeout.is_zero() {
            second
        } else {
            second.min(self.timeout / 2)
        }
    }
}

/// Where metrics are served. What is counted stands in the repository's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetricsSettings {
    /// Metrics are wanted.
    pub enabled: bool,
    /// Name or address to listen on; `None` = every address of the machine.
    pub host: Option<String>,
    /// Port to listen on; 0 = any free one.
    pub port: u16,
    /// What tells the live gauges of processes apart.
    pub live_label: LiveLabel,
}

/// Who may say on whose behalf a connection was made, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyRules {
    /// Forms that are understood.
    pub versions: Versions,
    /// Peers that are believed.
    pub trusted: TrustedPeers,
}

/// Files of a server that speaks TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate and those that lead to its authority.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Who signs certificates of clients.
    pub ca_certs: Option<PathBuf>,
    /// Whether clients show one.
    pub clients: ClientCerts,
}

/// What happens to the journal of a SQLite store that is written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Journal {
    /// Written ahead: readers and a writer do not block each other.
    Wal,
    /// As it is.
    Keep,
}

/// Everything the server was told, in the units the code works with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where to listen.
    pub binds: Vec<Bind>,
    /// Connections are encrypted.
    pub tls: Option<TlsFiles>,
    /// Connections begin with a balancer's word about the client.
    pub proxy_protocol: Option<ProxyRules>,
    /// Length of the kernel's queue of new connections.
    pub backlog: i32,
    /// Every worker has a listening socket of its own.
    pub reuse_port: bool,
    /// Number of workers.
    pub workers: usize,
    /// Most connections of one worker, if that was asked for.
    pub worker_connections: Option<usize>,
    /// Requests after which a worker is replaced; 0 = never.
    pub max_requests: u64,
    /// Most that is added to `max_requests`, at random.
    pub max_requests_jitter: u64,
    /// How long an idle connection is kept.
    pub keep_alive: Duration,
    /// How long a worker may be silent; zero = for ever.
    pub timeout: Duration,
    /// How long a fresh worker may take until it is ready.
    pub boot_timeout: Duration,
    /// How long a stopping worker may finish its work.
    pub graceful_timeout: Duration,
    /// How often the registry file is looked at; zero = only on demand.
    pub registry_ttl: Duration,
    /// How long a request head may take.
    pub header_timeout: Duration,
    /// How long a request body may stand still.
    pub body_timeout: Duration,
    /// What a client may send.
    pub limits: Limits,
    /// Whose forwarding headers are believed.
    pub trusted: TrustedPeers,
    /// Where access lines go.
    pub access_log: Target,
    /// gunicorn's format; `None` = uvicorn's line.
    pub access_format: Option<String>,
    /// Where everything else goes.
    pub error_log: Target,
    /// File for the master's process number.
    pub pid_file: Option<PathBuf>,
    /// Socket for `feast-prefork ctl`.
    pub control_socket: Option<PathBuf>,
    /// Who the workers run as.
    pub identity: Identity,
    /// Creation mask of Unix sockets.
    pub umask: u32,
    /// 422 for bodies that are not declared as JSON.
    pub strict_content_type: bool,
    /// 500 for views that are being materialized.
    pub strict_lifecycle: bool,
    /// OUTSIDE_MAX_AGE for values older than their TTL.
    pub enforce_ttl: bool,
    /// Where metrics are served.
    pub metrics: MetricsSettings,
    /// Figures go to a statsd server, too.
    pub statsd: Option<StatsdSettings>,
    /// How long a request may wait for a store on the network.
    pub store_timeout: Duration,
    /// How many requests of one worker may wait for it.
    pub store_in_flight: usize,
    /// What happens to the journal of a SQLite store that is written to.
    pub sqlite_journal: Journal,
    /// Where offline pushes wait for their batch; `None` = a folder of the repository.
    pub spool: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binds_follow_gunicorns_grammar() {
        for (text, expected) in [
            ("127.0.0.1:6566", "127.0.0.1:6566"),
            ("LOCALHOST:1", "localhost:1"),
            (":80", "0.0.0.0:80"),
            ("host", "host:8000"),
            ("[::1]:80", "[::1]:80"),
            ("tcp://a:1", "a:1"),
            ("unix:/run/x.sock", "unix:/run/x.sock"),
            ("unix:///run/x.sock", "unix:/run/x.sock"),
            ("fd://3", "fd://3"),
        ] {
            assert_eq!(Bind::parse(text).unwrap().to_string(), expected);
        }
        for text in ["a:b", "a:65536", "[::1", "[::1]x", "fd://x", "unix:"] {
            assert!(Bind::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn trust_is_by_network() {
        let trusted = TrustedPeers::parse("127.0.0.1, ::1,10.0.0.0/8").unwrap();
        let trusts = |text: &str| trusted.trusts(Some(text.parse().unwrap()));
        assert!(trusts("127.0.0.1") && trusts("::1") && trusts("10.9.8.7") && trusts("::ffff:10.0.0.1"));
        assert!(!trusts("11.0.0.1") && !trusts("::2") && !trusted.trusts(None));
        assert!(TrustedPeers::parse("*").unwrap().trusts(None));
        assert!(TrustedPeers::parse("x").is_err());
        assert!(TrustedPeers::parse("0.0.0.0/0").unwrap().trusts(Some("1.2.3.4".parse().unwrap())));
    }
}
