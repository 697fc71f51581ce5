//! TLS on non-blocking sockets. The only place that knows the provider of cryptography.

pub mod client;
pub mod server;
pub mod tickets;
mod traffic;

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use rustls::crypto::{ring, CryptoProvider};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::RootCertStore;

/// The provider of cryptography.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// Makes [`provider`] the one that libraries use.
pub fn install_provider() {
    let _ = ring::default_provider().install_default();
}

fn named(path: &Path, error: &dyn fmt::Display) -> String {
    format!("{}: {error}", path.display())
}

/// What is wrong with a PEM file, in words that help.
fn pem_problem(path: &Path, wanted: &str, error: &pem::Error) -> String {
    match error {
        pem::Error::NoItemsFound => named(path, &format!("holds no {wanted} in PEM format")),
        pem::Error::MissingSectionEnd { .. } => named(path, &"is cut off: an END line is missing"),
        other => named(path, other),
    }
}

/// The certificates of a PEM file, at least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let problem = |error: pem::Error| pem_problem(path, "certificate", &error);
    let list: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).map_err(problem)?.collect();
    let list = list.map_err(problem)?;
    if list.is_empty() {
        return Err(pem_problem(path, "certificate", &pem::Error::NoItemsFound));
    }
    Ok(list)
}

/// The private key of a PEM file.
fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| {
        let encrypted = std::fs::read_to_string(path).is_ok_and(|text| text.contains("ENCRYPTED"));
        if encrypted {
            return named(path, &"the key is encrypted; decrypt it with `openssl pkey`, a server cannot ask");
        }
        pem_problem(path, "private key", &error)
    })
}

/// The certificates of a PEM file, as those who may sign others.
fn authorities(path: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| named(path, &error))?;
    }
    Ok(roots)
}
