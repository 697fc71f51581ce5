//! Everything that can go wrong before the first fork: files, settings, sockets.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use socket2::Socket;

use crate::config::settings::TlsFiles;
use crate::config::store::OnlineStoreConfig;
use crate::config::{Bind, ConfigError, Settings, StoreConfig};
use crate::exit;
use crate::logging::logger::Target;
use crate::net::Listener;
use crate::os::process::{wall_clock, with_umask, Identity};
use crate::os::sockets;
use crate::registry::file::Stamp;
use crate::registry::{RegistryError, RegistryFile, Snapshot};

/// Why the server does not start (or a reload is refused): one line and an exit code.
#[derive(Debug)]
pub struct StartError {
    /// Exit code.
    pub code: i32,
    text: String,
}

impl StartError {
    /// An error with its line.
    pub fn new(code: i32, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }

    /// The log file that `flag` names cannot be written.
    pub fn unwritable(flag: &str, path: &Path, error: &std::io::Error) -> Self {
        Self::new(exit::CONFIG, format!("{flag}: '{}' isn't writable: {error}", path.display()))
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<ConfigError> for StartError {
    fn from(error: ConfigError) -> Self {
        Self::new(exit::CONFIG, error.to_string())
    }
}

/// A checked configuration with its registry loaded.
#[derive(Debug)]
pub struct Prepared {
    /// Settings of the server.
    pub settings: Settings,
    /// The repository.
    pub store: StoreConfig,
    /// The registry file.
    pub registry: RegistryFile,
    /// Its content.
    pub snapshot: Arc<Snapshot>,
    /// The version of the file that `snapshot` was read from, or one that could not be read.
    pub stamp: Option<Stamp>,
    /// How the online store is reached, if that is encrypted.
    pub store_tls: Option<Arc<rustls::ClientConfig>>,
    /// What clients are shown, if their connections are encrypted.
    pub tls: Option<rustls::ServerConfig>,
}

/// What to do when the registry file is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MissingRegistry {
    /// Make an empty one, as the reference does at its start.
    Create,
    /// The same without a warning: it is about to be filled.
    Make,
    /// An error.
    Refuse,
}

/// Loads the registry that `store` names.
pub fn load(
    mut settings: Settings,
    store: StoreConfig,
    missing: MissingRegistry,
) -> Result<Prepared, StartError> {
    if let Target::File(path) = &settings.access_log {
        let unusable = |error: std::io::Error| StartError::unwritable("--access-logfile", path, &error);
        let file = settings.access_log.open().map_err(unusable)?;
        // Workers open it again, as another user if there is one.
        let Identity { uid, gid, .. } = settings.identity;
        if file.and_then(|file| file.metadata().ok()).is_some_and(|found| found.is_file())
            && (uid.is_some() || gid.is_some())
        {
            nix::unistd::chown(path, uid, gid).map_err(|error| unusable(error.into()))?;
        }
    }
    settings.metrics.enabled |= store.metrics_enabled;
    let store_tls = store_tls(&store)?;
    let tls = settings.tls.as_ref().map(client_tls).transpose()?;
    let mut rules = store.registry_rules;
    rules.serve_while_materializing |= !settings.strict_lifecycle;
    let registry = RegistryFile::new(store.registry_path.clone(), &store.project, rules);
    let shown = registry.path().display();
    let created = missing != MissingRegistry::Refuse
        && registry.create_if_missing(&crate::registry::file::version_id(), now()).map_err(|error| {
            let hint = "check `registry` in feature_store.yaml, or run `feast apply`";
            StartError::new(exit::CONFIG, format!("{error}; {hint}"))
        })?;
    if created && missing == MissingRegistry::Create {
        log::warn!("{shown}: no registry there, created an empty one; run `feast apply` to fill it");
    }
    let (snapshot, stamp) = registry.load(1).map_err(|error| match error {
        RegistryError::Corrupt(_) => StartError::new(
            exit::LOAD_FAILED,
            format!("{shown}: {error}; restore the file or run `feast apply`"),
        ),
        other => StartError::new(exit::LOAD_FAILED, other.to_string()),
    })?;
    if !created && std::fs::metadata(registry.path()).is_ok_and(|found| found.len() == 0) {
        log::warn!("{shown}: the registry is empty; run `feast apply` to fill it");
    }
    Ok(Prepared { settings, store, registry, snapshot: Arc::new(snapshot), stamp, store_tls, tls })
}

/// Reads the files that TLS to the online store needs: once, because a worker has no time for it.
fn store_tls(store: &StoreConfig) -> Result<Option<Arc<rustls::ClientConfig>>, StartError> {
    let OnlineStoreConfig::Redis(config) = &store.online_store else { return Ok(None) };
    let Some(tls) = &config.tls else { return Ok(None) };
    crate::tls::install_provider();
    crate::online::redis::client_config(tls).map(Some).map_err(|error| {
        let key = "online_store.connection_string";
        StartError::new(exit::CONFIG, format!("{}: {key}: TLS: {error}", store.source))
    })
}

/// Reads the files of a server that speaks TLS: all that can be wrong with them shows before the first fork.
fn client_tls(files: &TlsFiles) -> Result<rustls::ServerConfig, StartError> {
    let wrong = |text: String| StartError::new(exit::CONFIG, text);
    let named = [
        ("certfile", Some(&files.cert)),
        ("keyfile", Some(&files.key)),
        ("ca_certs", files.ca_certs.as_ref()),
    ];
    for (what, path) in named {
        let Some(path) = path else { continue };
        match std::fs::File::open(path) {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(wrong(format!("{what} \"{}\" does not exist", path.display())));
            }
            Err(error) => {
                return Err(wrong(format!("{what} \"{}\" cannot be read: {error}", path.display())))
            }
        }
    }
    crate::tls::server::config(&files.cert, &files.key, files.clients, files.ca_certs.as_deref())
        .map_err(|error| wrong(format!("TLS: {error}")))
}

impl Prepared {
    /// When the registry file is looked at next.
    pub fn next_check(&self, now: Instant) -> Option<Instant> {
        (!self.settings.registry_ttl.is_zero()).then(|| now + self.settings.registry_ttl)
    }

    /// Loads the registry again if its file has changed; a file that cannot be read changes nothing.
    pub fn refresh(&mut self) {
        let found = self.registry.stamp();
        // An empty file where there was a registry is one that is being rewritten.
        if found.is_none_or(|stamp| stamp.is_empty()) || found == self.stamp {
            return;
        }
        match self.registry.load(self.snapshot.generation + 1) {
            Ok((snapshot, stamp)) => {
                self.snapshot = Arc::new(snapshot);
                self.stamp = stamp;
            }
            Err(error) => {
                self.stamp = found;
                log::error!("{error}; serving the registry loaded before");
            }
        }
    }
}

fn now() -> (i64, i32) {
    let since = wall_clock();
    (since.as_secs() as i64, (since.subsec_micros() * 1000) as i32)
}

/// Opens every listening socket.
pub fn bind_all(settings: &Settings) -> Result<Vec<Listener>, StartError> {
    settings.binds.iter().map(|bind| open(bind, settings)).collect()
}

/// Opens one.
pub(super) fn open(bind: &Bind, settings: &Settings) -> Result<Listener, StartError> {
    let failed =
        |problem: String| StartError::new(exit::CONFIG, format!("Can't listen on {bind}: {problem}"));
    let socket: Socket = match bind {
        Bind::Tcp { host, port } => {
            let address = Bind::resolve(host, *port).map_err(failed)?;
            let opened = if settings.reuse_port {
                reserve(address)
            } else {
                sockets::listen_tcp(address, settings.backlog, false)
            };
            opened.map_err(|error| match error.kind() {
                std::io::ErrorKind::AddrInUse => failed(format!(
                    "address already in use; stop the other server or choose another address ({error})"
                )),
                std::io::ErrorKind::AddrNotAvailable => {
                    failed(format!("this machine has no such address ({error})"))
                }
                _ => failed(error.to_string()),
            })?
        }
        Bind::Unix(path) => with_umask(settings.umask, || sockets::listen_unix(path, settings.backlog))
            .and_then(|socket| {
                let identity = &settings.identity;
                if identity.uid.is_some() || identity.gid.is_some() {
                    nix::unistd::chown(path, identity.uid, identity.gid)?;
                }
                Ok(socket)
            })
            .map_err(|error| match error.kind() {
                std::io::ErrorKind::AddrInUse => {
                    failed("another server listens there; stop it or choose another path".to_owned())
                }
                _ => failed(error.to_string()),
            })?,
        Bind::Fd(number) => {
            sockets::adopt(*number, settings.backlog).map_err(|error| failed(error.to_string()))?
        }
    };
    let listener = Listener::new(socket).map_err(|error| failed(error.to_string()))?;
    Ok(if matches!(bind, Bind::Unix(_)) { listener.owning_file() } else { listener })
}

/// Binds without listening: the port is ours, and the kernel sends connections to the workers' sockets only.
fn reserve(address: std::net::SocketAddr) -> std::io::Result<Socket> {
    let socket = Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}
