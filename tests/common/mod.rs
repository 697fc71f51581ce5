//! What the tests share: a repository in a temporary directory, the shipped binary serving it, raw clients.
#![allow(
    dead_code,
    missing_docs,
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::missing_panics_doc,
    unreachable_pub
)]

pub mod certs;
pub mod load;
pub mod redis;
pub mod replay;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long anything may take before a test fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub fn binary() -> &'static str {
    env!("CARGO_BIN_EXE_feast-prefork")
}

/// A Python that has what the tests need; the test command makes it.
pub fn python() -> PathBuf {
    let made = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-venv/bin/python");
    assert!(made.exists(), "{} is missing: run scripts/test, which makes it", made.display());
    made
}

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// Copies the files below `from`; the copies can be written to.
pub fn copy_tree(from: &Path, to: &Path) {
    use std::os::unix::fs::PermissionsExt;
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let copy = to.join(path.file_name().unwrap());
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name == "data") {
                fs::create_dir(&copy).unwrap();
                copy_tree(&path, &copy);
            }
        } else {
            fs::copy(&path, &copy).unwrap();
            fs::set_permissions(&copy, fs::Permissions::from_mode(0o644)).unwrap();
        }
    }
}

/// A private copy of a fixture repository.
pub struct Repo {
    pub dir: tempfile::TempDir,
}

impl Repo {
    pub fn copy_of(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        copy_tree(&fixture(name), dir.path());
        Self { dir }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

/// The server, ended when dropped. Its log is shown when the test fails.
pub struct Server {
    child: Child,
    pub port: u16,
    log: Arc<Mutex<String>>,
    pub repo: Repo,
}

impl Server {
    /// Serves `repo` on a free port with these arguments and waits until a worker is ready.
    pub fn start(repo: Repo, args: &[&str]) -> Self {
        Self::start_with(repo, args, &[])
    }

    pub fn start_with(repo: Repo, args: &[&str], env: &[(&str, &str)]) -> Self {
        Self::start_program(Path::new(binary()), repo, args, env)
    }

    /// Serves with a copy of the binary.
    pub fn start_program(program: &Path, repo: Repo, args: &[&str], env: &[(&str, &str)]) -> Self {
        let mut command = Command::new(program);
        command.arg("-c").arg(repo.path()).arg("serve").args(args);
        if !args.iter().any(|arg| arg.starts_with("--bind") || *arg == "--port") {
            command.args(["--port", "0"]);
        }
        command.env("TZ", "UTC").envs(env.iter().copied());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        follow(child.stdout.take().unwrap(), &log);
        follow(child.stderr.take().unwrap(), &log);
        let mut server = Self { child, port: 0, log, repo };
        server.wait_for_log("Application startup complete.");
        let text = server.log();
        if let Some((_, rest)) = text.split_once("Listening at: http") {
            let rest = rest.trim_start_matches("s://").trim_start_matches("://");
            let digits = rest.split_once(':').unwrap().1;
            server.port = digits.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap();
        }
        server
    }

    /// The repository, after the server has been ended.
    pub fn into_repo(mut self) -> Repo {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let empty = Repo { dir: tempfile::tempdir().unwrap() };
        std::mem::replace(&mut self.repo, empty)
    }

    pub fn repo(&self) -> &Repo {
        &self.repo
    }

    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid()), signal).unwrap();
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub fn wait_for_log(&mut self, text: &str) {
        self.wait_for_log_count(text, 1);
    }

    pub fn wait_for_log_count(&mut self, text: &str, count: usize) {
        let start = Instant::now();
        while self.log().matches(text).count() < count {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "ended with {ended:?}:\n{}", self.log());
            assert!(start.elapsed() < PATIENCE, "no {text:?} in:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for the end of the master.
    pub fn wait(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < PATIENCE + PATIENCE, "does not end:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Pids of the live workers.
    pub fn workers(&self) -> Vec<i32> {
        children(self.pid())
    }

    pub fn client(&self) -> Client {
        Client::connect(self.port)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of the server ---\n{}", self.log());
        }
        let workers = self.workers();
        let _ = self.child.kill();
        let _ = self.child.wait();
        for pid in workers {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
    }
}

fn follow(mut from: impl Read + Send + 'static, log: &Arc<Mutex<String>>) {
    let log = log.clone();
    std::thread::spawn(move || {
        let mut buffer = [0; 8192];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            log.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
    });
}

/// Live (not zombie) children of a process.
pub fn children(parent: i32) -> Vec<i32> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        if fields[1] == parent.to_string() && fields[0] != "Z" {
            found.push(pid);
        }
    }
    found
}

pub fn is_alive(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(") ").next().unwrap().starts_with('Z'))
}

/// Runs an action when dropped, also by a panic.
pub struct OnDrop<F: FnMut()>(pub F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// Waits until `test` holds.
pub fn eventually(what: &str, mut test: impl FnMut() -> bool) {
    let start = Instant::now();
    while !test() {
        assert!(start.elapsed() < PATIENCE, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn closes(&self) -> bool {
        self.header("connection") == Some("close")
    }
}

/// A client on one connection.
pub struct Client {
    pub stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    pub fn connect(port: u16) -> Self {
        Self::try_connect(port).unwrap()
    }

    pub fn try_connect(port: u16) -> std::io::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: Vec::new() })
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Reads one answer; `None` at end-of-file before its first byte.
    pub fn receive(&mut self, method: &str) -> std::io::Result<Option<Response>> {
        let end = loop {
            if let Some(at) = self.buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                break at + 4;
            }
            if !self.fill()? {
                return if self.buffer.is_empty() {
                    Ok(None)
                } else {
                    Err(std::io::ErrorKind::UnexpectedEof.into())
                };
            }
        };
        let head = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
        self.buffer.drain(..end);
        let mut lines = head.trim_end().split("\r\n");
        let status: u16 = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers: Vec<(String, String)> = lines
            .map(|line| line.split_once(": ").unwrap())
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        let length =
            headers.iter().find(|(n, _)| n == "content-length").map_or(0, |(_, v)| v.parse().unwrap());
        let length = if method == "HEAD" || status == 100 { 0 } else { length };
        while self.buffer.len() < length {
            if !self.fill()? {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
        let body = self.buffer.drain(..length).collect();
        Ok(Some(Response { status, headers, body }))
    }

    fn fill(&mut self) -> std::io::Result<bool> {
        let mut chunk = [0; 16 << 10];
        let length = self.stream.read(&mut chunk)?;
        self.buffer.extend_from_slice(&chunk[..length]);
        Ok(length > 0)
    }

    pub fn request(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
        self.send(&encode(method, path, headers, body));
        self.receive(method).unwrap().expect("an answer")
    }

    pub fn get(&mut self, path: &str) -> Response {
        self.request("GET", path, &[], b"")
    }

    pub fn post(&mut self, path: &str, body: &str) -> Response {
        self.request("POST", path, &[("content-type", "application/json")], body.as_bytes())
    }

    /// True when the server has closed the connection and nothing more came.
    /// Sends a request; the status of its answer, or nothing when the connection ends.
    pub fn try_exchange(&mut self, bytes: &[u8]) -> Option<u16> {
        self.stream.write_all(bytes).ok()?;
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            if self.stream.read(&mut byte).ok()? == 0 {
                return None;
            }
            head.push(byte[0]);
        }
        String::from_utf8_lossy(&head).split(' ').nth(1)?.parse().ok()
    }

    pub fn is_closed(&mut self) -> bool {
        match self.receive("GET") {
            Ok(None) => true,
            Ok(Some(_)) => false,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}

pub fn encode(method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut out = format!("{method} {path} HTTP/1.1\r\nhost: testhost\r\n");
    for (name, value) in headers {
        out.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() || method == "POST" || method == "PUT" {
        out.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    out.push_str("\r\n");
    [out.as_bytes(), body].concat()
}
