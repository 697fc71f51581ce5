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
        let mut redis = Self { child: None, port: 0, dir, args };
        // A port that was free may have a new owner before the server gets it: then it is another one.
        let started = (0..5).any(|_| {
            redis.port = free_port();
            // The port of a cluster's bus must be free, too, and is no larger than 65535.
            if let Some(at) = redis.args.iter().position(|arg| arg == "--cluster-port") {
                redis.args[at + 1] = free_port().to_string();
            }
            redis.run()
        });
        assert!(started, "redis-server does not start");
        redis
    }

    /// A sentinel with this configuration.
    pub fn sentinel(conf: &str) -> Self {
        let mut redis =
            Self { child: None, port: free_port(), dir: tempfile::tempdir().unwrap(), args: Vec::new() };
        let child = Command::new("redis-server")
            .args([conf, "--sentinel", "--port", &redis.port.to_string(), "--bind", "127.0.0.1"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        redis.child = Some(child);
        eventually("the sentinel answers", || redis.try_connect().is_some());
        redis
    }

    /// Starts it again on the same port, with what it had saved.
    pub fn restart(&mut self) {
        assert!(self.run(), "redis-server does not start again");
    }

    /// Starts it; false when it has ended at once.
    fn run(&mut self) -> bool {
        let child = Command::new("redis-server")
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", ""])
            .args(["--dir", self.dir.path().to_str().unwrap(), "--appendonly", "yes", "--appendfsync", "no"])
            .args(&self.args)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("redis-server is missing: run scripts/test, which installs it");
        self.child = Some(child);
        let mut ended = false;
        eventually("redis answers", || {
            ended = !matches!(self.child.as_mut().unwrap().try_wait(), Ok(None));
            ended || self.try_connect().is_some()
        });
        !ended
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

/// A cluster of three masters with a replica each.
pub struct Cluster {
    pub nodes: Vec<Redis>,
}

impl Cluster {
    pub fn start() -> Self {
        let nodes: Vec<Redis> = (0..6)
            .map(|_| {
                Redis::start(&[
                    "--cluster-enabled",
                    "yes",
                    "--cluster-port",
                    "0",
                    "--cluster-node-timeout",
                    "1500",
                    "--cluster-replica-validity-factor",
                    "0",
                    "--repl-diskless-sync-delay",
                    "0",
                ])
            })
            .collect();
        let addresses: Vec<String> = nodes.iter().map(Redis::address).collect();
        let done = Command::new("redis-cli")
            .args(["--cluster", "create"])
            .args(&addresses)
            .args(["--cluster-replicas", "1", "--cluster-yes"])
            .output()
            .unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
        let cluster = Self { nodes };
        for node in &cluster.nodes {
            eventually("the cluster is whole", || {
                let info: String = redis::cmd("CLUSTER").arg("INFO").query(&mut node.connection()).unwrap();
                info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:6")
            });
        }
        let client = redis::cluster::ClusterClient::new(vec![format!("redis://{}", addresses[0])]).unwrap();
        load(&mut client.get_connection().unwrap());
        // Replicas answer with what they have.
        for node in &cluster.nodes {
            eventually("replicas follow", || {
                let role: redis::Value = redis::cmd("ROLE").query(&mut node.connection()).unwrap();
                !format!("{role:?}").contains("\"sync") && !format!("{role:?}").contains("connect\"")
            });
        }
        cluster
    }

    pub fn block(&self, options: &str) -> String {
        let nodes: Vec<String> = self.nodes[..2].iter().map(Redis::address).collect();
        let string = format!("{}{options}", nodes.join(","));
        format!("{{type: redis, redis_type: redis_cluster, connection_string: '{string}'}}")
    }

    /// Sends a command to the node at `index`.
    pub fn tell(&self, index: usize, words: &[&str]) -> redis::RedisResult<redis::Value> {
        redis::cmd(words[0]).arg(&words[1..]).query(&mut self.nodes[index].connection())
    }

    /// Name of the node at `index`.
    pub fn id(&self, index: usize) -> String {
        redis::cmd("CLUSTER").arg("MYID").query(&mut self.nodes[index].connection()).unwrap()
    }

    /// Nodes that are masters now.
    pub fn masters(&self) -> Vec<usize> {
        let is_master =
            |index: &usize| format!("{:?}", self.tell(*index, &["ROLE"]).unwrap()).contains("master");
        (0..self.nodes.len()).filter(is_master).collect()
    }
}
