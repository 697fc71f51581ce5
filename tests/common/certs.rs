//! Certificates for tests, made with the openssl command.

use std::path::PathBuf;
use std::process::Command;

/// An authority, and what it has signed.
pub struct Certs {
    dir: tempfile::TempDir,
}

impl Certs {
    /// Makes `ca`, and with it `server` (for `localhost` and 127.0.0.1) and `client`.
    pub fn make() -> Self {
        let certs = Self { dir: tempfile::tempdir().unwrap() };
        certs.run(
            "openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -days 2 -subj /CN=ca \
             -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign",
        );
        certs.sign("server", "rsa:2048");
        certs.sign("client", "rsa:2048");
        certs
    }

    /// One more certificate with a key of this kind, e.g. `rsa:2048` or `ec -pkeyopt ec_paramgen_curve:P-256`.
    pub fn sign(&self, name: &str, key: &str) {
        self.run(&format!(
            "printf 'subjectAltName=DNS:localhost,IP:127.0.0.1' > san && \
             openssl req -newkey {key} -nodes -keyout {name}.key -out {name}.csr -subj /CN={name} && \
             openssl x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out {name}.crt -days 2 \
             -extfile san"
        ));
    }

    /// Runs a shell command among the files.
    pub fn run(&self, script: &str) {
        let output = Command::new("sh").arg("-ec").arg(script).current_dir(self.dir.path()).output().unwrap();
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}
