//! Where are the servers? Names, sentinels and cluster maps, asked for in a thread with blocking calls.

use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

use redis::{
    ClientTlsConfig, Connection, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisConnectionInfo,
    TlsCertificates, Value,
};

use super::link::Address;
use crate::config::redis::{RedisConfig, RedisTls, Topology};

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The servers.
    pub nodes: Vec<Address>,
    /// For each slot of a cluster the index of its server; empty without a cluster.
    pub slots: Vec<u16>,
}

/// Number of slots of a cluster.
pub const SLOTS: usize = 16384;
/// A slot that no server has.
pub const NOBODY: u16 = u16::MAX;

/// How long one server may take.
const PATIENCE: Duration = Duration::from_millis(900);

/// What can be told without asking anybody: a socket file, or a single server by number.
pub fn known(config: &RedisConfig) -> Option<Found> {
    let one = |address| Some(Found { nodes: vec![address], slots: Vec::new() });
    if config.topology != Topology::Single {
        return None;
    }
    if let Some(path) = &config.unix {
        return one(Address::Unix(path.clone()));
    }
    let (host, port) = config.nodes.first()?;
    let address = SocketAddr::new(host.parse().ok()?, *port);
    one(Address::Tcp(address, format!("{host}:{port}")))
}

/// Asks names, sentinels or the cluster. The error is one line.
pub fn discover(config: &RedisConfig) -> Result<Found, String> {
    match &config.topology {
        Topology::Single => {
            let (host, port) = config.nodes.first().ok_or("no server is named")?;
            Ok(Found { nodes: vec![resolve(host, *port)?], slots: Vec::new() })
        }
        Topology::Sentinel(master) => sentinel(config, master),
        Topology::Cluster => first_answer(config, |host, port| {
            let mut connection = connect(config, host, port, true)?;
            let reply: Value = redis::cmd("CLUSTER").arg("SLOTS").query(&mut connection).map_err(text)?;
            slots(&reply, host, config.read_from_replicas)
        }),
    }
}

fn first_answer(
    config: &RedisConfig,
    ask: impl Fn(&str, u16) -> Result<Found, String>,
) -> Result<Found, String> {
    let mut error = "no server is named".to_owned();
    for (host, port) in &config.nodes {
        match ask(host, *port) {
            Ok(found) => return Ok(found),
            Err(problem) => error = format!("{host}:{port}: {problem}"),
        }
    }
    Err(error)
}

fn sentinel(config: &RedisConfig, master: &str) -> Result<Found, String> {
    let unknown = || format!("No master found for '{master}'");
    let found = first_answer(config, |host, port| {
        let mut connection = connect(config, host, port, false)?;
        let reply: Option<(String, u16)> = redis::cmd("SENTINEL")
            .arg("get-master-addr-by-name")
            .arg(master)
            .query(&mut connection)
            .map_err(text)?;
        let (host, port) = reply.ok_or_else(unknown)?;
        Ok(Found { nodes: vec![resolve(&host, port)?], slots: Vec::new() })
    });
    found.map_err(|error| {
        if error.contains("No master found") {
            unknown()
        } else {
            format!("{} ({error})", unknown())
        }
    })
}

fn resolve(host: &str, port: u16) -> Result<Address, String> {
    let name = format!("{host}:{port}");
    let mut addresses = (host, port)
        .to_socket_addrs()
        .map_err(|_| format!("Error -2 connecting to {name}. Name or service not known."))?;
    let first = addresses.next().ok_or_else(|| format!("Error -2 connecting to {name}. No address."))?;
    // A name with several addresses: the first one that somebody listens at.
    let listening =
        |address: &SocketAddr| std::net::TcpStream::connect_timeout(address, PATIENCE / 4).is_ok();
    let mut rest = addresses.filter(|address| *address != first).peekable();
    let chosen = if rest.peek().is_none() || listening(&first) {
        first
    } else {
        rest.find(listening).unwrap_or(first)
    };
    Ok(Address::Tcp(chosen, name))
}

/// A blocking connection to one server; sentinels are asked without password.
pub fn connect(config: &RedisConfig, host: &str, port: u16, login: bool) -> Result<Connection, String> {
    let info = connection_info(config, host, port, login).map_err(text)?;
    let client = match &config.tls {
        Some(tls) if login => redis::Client::build_with_tls(info, certificates(tls)?).map_err(text)?,
        _ => redis::Client::open(info).map_err(text)?,
    };
    let connection = client.get_connection_with_timeout(PATIENCE).map_err(text)?;
    connection.set_read_timeout(Some(PATIENCE)).map_err(text)?;
    connection.set_write_timeout(Some(PATIENCE)).map_err(text)?;
    Ok(connection)
}

/// The files of TLS as that library takes them.
fn certificates(tls: &RedisTls) -> Result<TlsCertificates, String> {
    let read = |path: &std::path::PathBuf| {
        std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
    };
    let client_tls = match &tls.cert {
        Some(cert) => Some(ClientTlsConfig {
            client_cert: read(cert)?,
            client_key: read(tls.key.as_ref().unwrap_or(cert))?,
        }),
        None => None,
    };
    Ok(TlsCertificates { client_tls, root_cert: tls.ca.as_ref().map(read).transpose()? })
}

fn connection_info(
    config: &RedisConfig,
    host: &str,
    port: u16,
    login: bool,
) -> redis::RedisResult<ConnectionInfo> {
    let address = match &config.unix {
        Some(path) if config.topology == Topology::Single => ConnectionAddr::Unix(path.clone()),
        // Sentinels are asked without.
        _ => match config.tls.as_ref().filter(|_| login) {
            Some(tls) => ConnectionAddr::TcpTls {
                host: host.to_owned(),
                port,
                insecure: tls.accept_any,
                tls_params: None,
            },
            None => ConnectionAddr::Tcp(host.to_owned(), port),
        },
    };
    let mut settings = RedisConnectionInfo::default();
    if login {
        settings = settings.set_db(i64::from(config.db));
        if let Some(user) = &config.username {
            settings = settings.set_username(user).set_password("");
        }
        if let Some(password) = &config.password {
            settings = settings.set_password(password);
        }
    }
    Ok(address.into_connection_info()?.set_redis_settings(settings))
}

#[allow(clippy::needless_pass_by_value)]
fn text(error: redis::RedisError) -> String {
    error.to_string()
}

/// Reads the answer to `CLUSTER SLOTS`: ranges with their servers, the master first. A server without a name
/// is the one that answered. With `replicas` any but the master is taken, if there is one.
fn slots(reply: &Value, asked: &str, replicas: bool) -> Result<Found, String> {
    let wrong = || "an answer to CLUSTER SLOTS that makes no sense".to_owned();
    let Value::Array(ranges) = reply else { return Err(wrong()) };
    let mut found = Found { nodes: Vec::new(), slots: vec![NOBODY; SLOTS] };
    for range in ranges {
        let Value::Array(parts) = range else { return Err(wrong()) };
        let [Value::Int(from), Value::Int(to), servers @ ..] = &parts[..] else { return Err(wrong()) };
        let chosen = if replicas && servers.len() > 1 { fastrand::usize(1..servers.len()) } else { 0 };
        let Some(Value::Array(server)) = servers.get(chosen) else { return Err(wrong()) };
        let [host, Value::Int(port), ..] = &server[..] else { return Err(wrong()) };
        let host = match host {
            Value::BulkString(bytes) if !bytes.is_empty() => String::from_utf8_lossy(bytes).into_owned(),
            _ => asked.to_owned(),
        };
        let address = resolve(&host, u16::try_from(*port).map_err(|_| wrong())?)?;
        let index = found.nodes.iter().position(|known| *known == address).unwrap_or_else(|| {
            found.nodes.push(address);
            found.nodes.len() - 1
        });
        let (from, to) = (usize::try_from(*from).unwrap_or(SLOTS), usize::try_from(*to).unwrap_or(SLOTS));
        let range = found.slots.get_mut(from..=to).ok_or_else(wrong)?;
        range.fill(index as u16);
    }
    if found.nodes.is_empty() {
        return Err("the cluster has no slots yet".to_owned());
    }
    Ok(found)
}

/// The slot that a `MOVED` or `ASK` speaks of.
pub fn slot_of(text: &str) -> Option<u16> {
    text.split(' ').nth(1)?.parse().ok().filter(|&slot| usize::from(slot) < SLOTS)
}

/// True when a `MOVED` or `ASK` names this server as we know it, by name or by number.
pub fn names(text: &str, address: &Address) -> bool {
    text.split(' ').nth(2).is_some_and(|server| server == address.to_string())
}

/// The server that a `MOVED` or `ASK` names: `<slot> <host>:<port>`; without a host it is `from`'s.
pub fn redirection(text: &str, from: &Address) -> Option<(u16, Address)> {
    let mut words = text.split(' ').skip(1);
    let slot: u16 = words.next()?.parse().ok().filter(|&slot| usize::from(slot) < SLOTS)?;
    let (host, port) = words.next()?.rsplit_once(':')?;
    let port = port.parse().ok()?;
    let (address, host) = match (host, from) {
        ("", Address::Tcp(known, _)) => (SocketAddr::new(known.ip(), port), known.ip().to_string()),
        // Names are left to the next look at the map: a lookup would stop the loop.
        (host, _) => (SocketAddr::new(host.parse().ok()?, port), host.to_owned()),
    };
    Some((slot, Address::Tcp(address, format!("{host}:{port}"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirections_name_slot_and_server() {
        let from = Address::Tcp("127.0.0.1:7000".parse().unwrap(), "a:7000".to_owned());
        let at = |port: u16| {
            let address = SocketAddr::from(([127, 0, 0, 1], port));
            Address::Tcp(address, format!("127.0.0.1:{port}"))
        };
        assert_eq!(redirection("MOVED 3999 127.0.0.1:6381", &from), Some((3999, at(6381))));
        assert_eq!(redirection("ASK 5 :6382", &from), Some((5, at(6382))));
        for text in ["MOVED", "MOVED x 127.0.0.1:1", "MOVED 16384 127.0.0.1:1", "MOVED 1 name:1", "ASK 1 :x"]
        {
            assert_eq!(redirection(text, &from), None, "{text}");
        }
    }
}
