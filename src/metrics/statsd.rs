//! Figures for a statsd server, under gunicorn's names and with its suffixes.
//!
//! Source of names and forms: gunicorn's instrumentation. Unlike gunicorn, which sends a datagram per figure, lines are gathered for
//! a turn of the loop and counters are added up: a worker that answers 10,000 requests a second could not afford 30,000 system calls.

use std::fmt::Write;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::time::{Duration, Instant};

use crate::logging::logger;

/// Bytes of a datagram that fits into an Ethernet frame behind any header.
const DATAGRAM: usize = 1400;

/// How often the number of workers is said again.
const REPEAT: Duration = Duration::from_secs(10);

/// Where figures go and what they are called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatsdSettings {
    /// The server: a name or an address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// In front of every name, with its dot.
    pub prefix: String,
    /// Behind every line, such as `|#env:prod`, or nothing.
    pub tags: String,
}

impl StatsdSettings {
    /// Reads gunicorn's `statsd_prefix` and `dogstatsd_tags`.
    pub fn new(host: &str, port: u16, prefix: &str, tags: &str) -> Self {
        let dot = if prefix.is_empty() || prefix.ends_with('.') { "" } else { "." };
        let hash = if tags.is_empty() { "" } else { "|#" };
        Self { host: host.to_owned(), port, prefix: format!("{prefix}{dot}"), tags: format!("{hash}{tags}") }
    }
}

/// The way to the server. Figures that it does not take are lost.
#[derive(Debug)]
pub struct Statsd {
    socket: UdpSocket,
    settings: StatsdSettings,
    /// Lines that have not gone.
    lines: String,
    requests: u64,
    /// Answers by status since the last turn.
    statuses: Vec<(u16, u64)>,
    /// What was said about workers, and when.
    workers: Option<(usize, Instant)>,
    logged: logger::Counts,
}

impl Statsd {
    /// Opens a socket; nobody has to listen.
    pub fn open(settings: &StatsdSettings) -> io::Result<Self> {
        let address = (settings.host.as_str(), settings.port).to_socket_addrs()?.next();
        let address = address.ok_or_else(|| io::Error::other("the name has no address"))?;
        let own: SocketAddr = match address {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = UdpSocket::bind(own)?;
        socket.connect(address)?;
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            settings: settings.clone(),
            lines: String::new(),
            requests: 0,
            statuses: Vec::new(),
            workers: None,
            logged: logger::counts(),
        })
    }

    /// Counts a request that was answered.
    pub fn request(&mut self, status: u16, took: Duration) {
        self.requests += 1;
        match self.statuses.iter_mut().find(|(known, _)| *known == status) {
            Some((_, count)) => *count += 1,
            None => self.statuses.push((status, 1)),
        }
        self.add("request.duration", format_args!("{:.3}|ms", took.as_secs_f64() * 1e3));
    }

    /// Says how many workers there are, when that has changed, and now and then: somebody else may have said otherwise.
    pub fn workers(&mut self, count: usize, now: Instant) {
        let said = |(known, at): (usize, Instant)| known == count && now.duration_since(at) < REPEAT;
        if !self.workers.is_some_and(said) {
            self.workers = Some((count, now));
            self.add("workers", format_args!("{count}|g"));
        }
    }

    /// Sends what has come together.
    pub fn end_turn(&mut self) {
        let requests = std::mem::take(&mut self.requests);
        if requests > 0 {
            self.add("requests", format_args!("{requests}|c|@1.0"));
        }
        let mut statuses = std::mem::take(&mut self.statuses);
        for (status, count) in statuses.drain(..) {
            self.add(&format!("request.status.{status}"), format_args!("{count}|c|@1.0"));
        }
        self.statuses = statuses;
        let logged = logger::counts();
        if logged != self.logged {
            for (name, count) in logged.since(&self.logged) {
                self.add(&format!("log.{name}"), format_args!("{count}|c|@1.0"));
            }
            self.logged = logged;
        }
        self.send();
    }

    fn add(&mut self, name: &str, value: std::fmt::Arguments<'_>) {
        let StatsdSettings { prefix, tags, .. } = &self.settings;
        let before = self.lines.len();
        let newline = if before == 0 { "" } else { "\n" };
        let _ = write!(self.lines, "{newline}{prefix}gunicorn.{name}:{value}{tags}");
        if self.lines.len() > DATAGRAM && before > 0 {
            let last = self.lines.split_off(before);
            self.send();
            self.lines.push_str(last.trim_start_matches('\n'));
        }
    }

    fn send(&mut self) {
        if !self.lines.is_empty() {
            let _ = self.socket.send(self.lines.as_bytes());
            self.lines.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_gunicorns_and_fit_into_datagrams() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let port = server.local_addr().unwrap().port();
        let settings = StatsdSettings::new("127.0.0.1", port, "feast", "env:t");
        let mut statsd = Statsd::open(&settings).unwrap();
        let mut buffer = [0; 2000];
        let mut receive = || {
            let length = server.recv(&mut buffer).unwrap();
            assert!(length <= DATAGRAM);
            String::from_utf8(buffer[..length].to_vec()).unwrap()
        };
        let now = Instant::now();
        statsd.workers(2, now);
        statsd.workers(2, now + REPEAT / 2);
        statsd.request(200, Duration::from_micros(1275));
        statsd.request(404, Duration::from_millis(2));
        statsd.end_turn();
        assert_eq!(
            receive(),
            "feast.gunicorn.workers:2|g|#env:t\n\
             feast.gunicorn.request.duration:1.275|ms|#env:t\n\
             feast.gunicorn.request.duration:2.000|ms|#env:t\n\
             feast.gunicorn.requests:2|c|@1.0|#env:t\n\
             feast.gunicorn.request.status.200:1|c|@1.0|#env:t\n\
             feast.gunicorn.request.status.404:1|c|@1.0|#env:t"
        );
        for _ in 0..100 {
            statsd.request(200, Duration::from_millis(1));
        }
        statsd.end_turn();
        let mut durations = 0;
        loop {
            let text = receive();
            durations += text.matches("request.duration:1.000|ms|#env:t").count();
            if text.contains("requests:100|c") {
                break;
            }
        }
        assert_eq!(durations, 100);
        statsd.end_turn();
    }

    #[test]
    fn nobody_has_to_listen() {
        let gone = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut statsd = Statsd::open(&StatsdSettings::new("127.0.0.1", gone.port(), "", "")).unwrap();
        for _ in 0..10 {
            statsd.request(200, Duration::ZERO);
            statsd.end_turn();
        }
    }
}
