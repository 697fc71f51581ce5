//! `quickstart`: a running server with data in it, on a machine that has nothing else.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use log::LevelFilter;
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

use super::args::{QuickstartArgs, ServeArgs};
use super::commands::{say, serve};
use super::{apply, init, site};
use crate::config::store::Location;
use crate::exit;
use crate::ipc::job::{Report, Run, Window};
use crate::jobs::{self, Observer};
use crate::master::{MissingRegistry, StartError};
use crate::os::process::wall_clock;

const REQUEST: &str = r#"{"feature_service":"driver_activity_v2","entities":{"driver_id":[1001,1002]}}"#;
/// How long `--once` waits for its server.
const PATIENCE: Duration = Duration::from_secs(10);

/// Makes the repository unless it is there, and serves it.
pub(super) fn run(args: &QuickstartArgs, level: LevelFilter) -> Result<i32, StartError> {
    let shown = args.dir.display();
    if args.dir.join("feature_store.yaml").exists() {
        say(&format!("Using the repository in {shown}."));
    } else {
        make(&args.dir)?;
        say(&format!(
            "Made a demo repository in {shown}: 2 feature views, 3 feature services, {} drivers.",
            init::DRIVERS.len()
        ));
    }
    if args.once {
        return once(args);
    }
    let port = args.port.unwrap_or(DEFAULT_PORT);
    say(&format!(
        "Serving it on http://127.0.0.1:{port} until Ctrl-C. Try:\n\n  \
         curl -s http://127.0.0.1:{port}/get-online-features -d '{REQUEST}'\n"
    ));
    let flags = ServeArgs { port: Some(port), workers: Some(args.workers), ..ServeArgs::default() };
    serve(Location { chdir: Some(args.dir.clone()), ..Location::default() }, flags, level)
}

const DEFAULT_PORT: u16 = 6566;

fn make(dir: &Path) -> Result<(), StartError> {
    let failed = |error: std::io::Error| {
        let hint = match error.kind() {
            ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists | ErrorKind::NotADirectory => {
                "it exists and is not a feature repository; choose another --dir"
            }
            _ => "choose a --dir that can be written",
        };
        StartError::new(exit::CONFIG, format!("cannot make {}: {error}; {hint}", dir.display()))
    };
    // It appears whole or not at all.
    let name = dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let building = dir.with_file_name(format!(".{name}.{}", std::process::id()));
    let made = fill(&building, failed).and_then(|()| std::fs::rename(&building, dir).map_err(failed));
    if made.is_err() {
        let _ = std::fs::remove_dir_all(&building);
    }
    made
}

/// What a newcomer does with `init`, `apply` and `materialize`, without the words.
fn fill(dir: &Path, failed: impl Fn(std::io::Error) -> StartError) -> Result<(), StartError> {
    init::write(dir, PROJECT, false).map_err(failed)?;
    let location = Location { chdir: Some(dir.to_owned()), ..Location::default() };
    let (prepared, site) = site::open(&location, MissingRegistry::Make)?;
    apply::make(&prepared, &site)?;
    let (prepared, site) = site::open(&location, MissingRegistry::Refuse)?;
    let views = prepared.snapshot.views().iter().map(|view| view.name.clone()).collect();
    let window = Window::Between { start: 0, end: wall_clock().as_nanos() as i128 };
    let run = Run { views, window, in_background: false };
    jobs::materialize::run(&run, &site, &mut Silent).map_err(|error| site::failed(&error))
}

/// Project of the demo.
const PROJECT: &str = "feast_quickstart";

struct Silent;

impl Observer for Silent {
    fn say(&mut self, _: &str) {}

    fn report(&mut self, _: Report) {}

    fn stopped(&mut self) -> bool {
        false
    }
}

/// Serves in a child process, sends one request, prints the answer.
fn once(args: &QuickstartArgs) -> Result<i32, StartError> {
    let failed = |text: String| StartError::new(exit::CONFIG, format!("quickstart --once: {text}"));
    let port = match args.port {
        Some(port) => port,
        None => free_port().map_err(|error| failed(error.to_string()))?,
    };
    let program = std::env::current_exe().map_err(|error| failed(error.to_string()))?;
    let mut server = Command::new(program)
        .arg("--log-level=error")
        .arg("-c")
        .arg(&args.dir)
        .args([
            "serve",
            "--no-access-log",
            "--port",
            &port.to_string(),
            "--workers",
            &args.workers.to_string(),
        ])
        // What configures other servers does not concern this one.
        .env_remove("FEATURE_STORE_YAML_BASE64")
        .env_remove("FEAST_FS_YAML_FILE_PATH")
        .env_remove("FEAST_PREFORK_CMD_ARGS")
        .stdin(Stdio::null())
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    let answer = ask(port, &mut server);
    let _ = kill(Pid::from_raw(server.id().cast_signed()), Signal::SIGTERM);
    let _ = server.wait();
    let (status, body) = answer.map_err(failed)?;
    say(&body);
    if status.contains(" 200 ") {
        Ok(exit::OK)
    } else {
        Err(failed(format!("the answer was {status}")))
    }
}

fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// Sends the demo request as soon as somebody listens; returns status line and body.
fn ask(port: u16, server: &mut Child) -> Result<(String, String), String> {
    let start = Instant::now();
    let mut stream = loop {
        match TcpStream::connect((Ipv4Addr::LOCALHOST, port)) {
            Ok(stream) => break stream,
            Err(error) => {
                if let Ok(Some(status)) = server.try_wait() {
                    return Err(format!("the server ended: {status}"));
                }
                if start.elapsed() > PATIENCE {
                    return Err(error.to_string());
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    };
    let request = format!(
        "POST /get-online-features HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n\
         connection: close\r\ncontent-length: {}\r\n\r\n{REQUEST}",
        REQUEST.len()
    );
    let mut answer = String::new();
    let exchanged = stream
        .set_read_timeout(Some(PATIENCE))
        .and_then(|()| stream.write_all(request.as_bytes()))
        .and_then(|()| stream.read_to_string(&mut answer));
    exchanged.map_err(|error| error.to_string())?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("the answer is not HTTP")?;
    Ok((head.lines().next().unwrap_or_default().to_owned(), body.to_owned()))
}
