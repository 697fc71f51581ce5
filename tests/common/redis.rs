//! Real Redis servers on free ports in temporary directories.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use redis::Connection;
use serde_json::Value;

use super::{eventually, fixture, Repo};

/// One server, ended when dropped.
pub struct Redis {
    child: Option<Child>,
    pub port: u16,
    pub dir: tempfile::TempDir,
    args: Vec<String>,
}

pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Redis {
    pub fn start(args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        let mut redis = Self { child: None, port: free_port(), dir, args };
        redis.restart();
        redis
    }

    /// Starts it again on the same port, with what it had saved.
    pub fn restart(&mut self) {
        let child = Command::new("redis-server")
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", ""])
            .args(["--dir", self.dir.path().to_str().unwrap(), "--appendonly", "yes", "--appendfsync", "no"])
            .args(&self.args)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("redis-server is missing: run scripts/test, which installs it");
        self.child = Some(child);
        eventually("redis answers", || self.try_connect().is_some());
    }

    pub fn pid(&self) -> nix::unistd::Pid {
        nix::unistd::Pid::from_raw(self.child.as_ref().unwrap().id() as i32)
    }

    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn try_connect(&self) -> Option<Connection> {
        let client = redis::Client::open(format!("redis://{}", self.address())).unwrap();
        let mut connection = client.get_connection().ok()?;
        let said = redis::cmd("PING").query::<String>(&mut connection);
        // A server that wants a password answers, too.
        match said {
            Ok(_) => Some(connection),
            Err(error) => error.to_string().contains("NOAUTH").then_some(connection),
        }
    }

    pub fn connection(&self) -> Connection {
        self.try_connect().unwrap()
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}

fn bytes(hex: &Value) -> Vec<u8> {
    let text = hex.as_str().unwrap();
    (0..text.len() / 2).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap()).collect()
}

/// A key, and fields with their values.
pub type Hash = (Vec<u8>, Vec<(Vec<u8>, Vec<u8>)>);

/// The recorded hashes.
pub fn dump() -> Vec<Hash> {
    let text = fs::read_to_string(fixture("storage/redis_dump.jsonl")).unwrap();
    let hash = |line: &str| {
        let hash: Value = serde_json::from_str(line).unwrap();
        let fields = hash["fields"].as_array().unwrap();
        (bytes(&hash["key"]), fields.iter().map(|pair| (bytes(&pair[0]), bytes(&pair[1]))).collect())
    };
    text.lines().map(hash).collect()
}

/// Writes the recorded hashes.
pub fn load(connection: &mut impl redis::ConnectionLike) {
    for (key, fields) in dump() {
        let _: () = redis::cmd("HSET").arg(key).arg(fields).query(connection).unwrap();
    }
}

/// The repository of the recorded hashes, with this `online_store` block.
pub fn repo(online_store: &str) -> Repo {
    let repo = Repo::copy_of("storage");
    configure(repo.path(), online_store);
    repo
}

pub fn configure(repo: &Path, online_store: &str) {
    let yaml = format!(
        "project: shop\nregistry: registry.db\nprovider: local\nonline_store: {online_store}\n\
         entity_key_serialization_version: 3\n"
    );
    fs::write(repo.join("feature_store.yaml"), yaml).unwrap();
}
