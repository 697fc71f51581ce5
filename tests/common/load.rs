//! Clients that count what goes wrong.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use super::{eventually, Client, OnDrop, Server};

pub const BODY: &str = r#"{"features":["driver_stats:nickname"],"entities":{"driver_id":[1001]}}"#;
pub const ANSWER: &str = "\"Ann\"";

#[derive(Debug, Default)]
pub struct Counts {
    pub answered: AtomicU64,
    /// Bytes were sent and no complete correct answer came.
    pub failed: AtomicU64,
    /// The server ended a kept connection.
    pub reconnects: AtomicU64,
    pub refused: AtomicU64,
}

/// Clients in threads of their own until [`Load::stop`].
pub struct Load {
    stop: Arc<AtomicBool>,
    pub counts: Arc<Counts>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// `kept` clients keep their connection (every second one pauses between requests), `fresh` open one per
    /// request.
    pub fn start(port: u16, kept: usize, fresh: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let counts = Arc::new(Counts::default());
        let spawn = |number: usize, keeps: bool| {
            let (stop, counts) = (stop.clone(), counts.clone());
            std::thread::spawn(move || {
                if keeps {
                    keep(port, number % 2 == 1, &stop, &counts);
                } else {
                    renew(port, &stop, &counts);
                }
            })
        };
        let threads = (0..kept + fresh).map(|number| spawn(number, number < kept)).collect();
        let load = Self { stop, counts, threads };
        eventually("load runs", || load.answered() > (kept + fresh) as u64 * 3);
        load
    }

    pub fn answered(&self) -> u64 {
        self.counts.answered.load(SeqCst)
    }

    /// Waits for so many more answers.
    pub fn more(&self, count: u64) {
        let goal = self.answered() + count;
        eventually("more answers", || self.answered() >= goal);
    }

    pub fn stop(self) -> Arc<Counts> {
        self.stop.store(true, SeqCst);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
        self.counts
    }
}

fn one(client: &mut Client) -> Option<bool> {
    use std::io::Write;
    let request = super::encode(
        "POST",
        "/get-online-features",
        &[("content-type", "application/json")],
        BODY.as_bytes(),
    );
    client.stream.write_all(&request).ok()?;
    let answer = client.receive("POST").ok()??;
    (answer.status == 200 && answer.text().contains(ANSWER)).then(|| answer.closes())
}

fn keep(port: u16, pauses: bool, stop: &AtomicBool, counts: &Counts) {
    let mut client: Option<Client> = None;
    while !stop.load(SeqCst) {
        let Some(connected) = client.as_mut() else {
            match Client::try_connect(port) {
                Ok(fresh) => client = Some(fresh),
                Err(_) => {
                    counts.refused.fetch_add(1, SeqCst);
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
            continue;
        };
        // As good clients do: look for the server's close before the connection is used again.
        if closed(connected) {
            counts.reconnects.fetch_add(1, SeqCst);
            client = None;
            continue;
        }
        match one(connected) {
            Some(closes) => {
                counts.answered.fetch_add(1, SeqCst);
                if closes {
                    counts.reconnects.fetch_add(1, SeqCst);
                    client = None;
                }
            }
            None => {
                counts.failed.fetch_add(1, SeqCst);
                client = None;
            }
        }
        if pauses {
            std::thread::sleep(Duration::from_millis(3));
        }
    }
}

fn closed(client: &Client) -> bool {
    client.stream.set_nonblocking(true).unwrap();
    let seen = client.stream.peek(&mut [0]);
    client.stream.set_nonblocking(false).unwrap();
    !matches!(seen, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
}

fn renew(port: u16, stop: &AtomicBool, counts: &Counts) {
    while !stop.load(SeqCst) {
        match Client::try_connect(port) {
            Ok(mut client) => {
                let done = one(&mut client);
                let counter = if done.is_some() { &counts.answered } else { &counts.failed };
                counter.fetch_add(1, SeqCst);
            }
            Err(_) => {
                counts.refused.fetch_add(1, SeqCst);
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }
}

/// Clients that send `body` all the time while `action` happens, until each part of that has had 200 right answers.
/// Returns how many answers were right, and the others.
pub fn under_load(
    server: &Server,
    body: &str,
    expected: &str,
    action: impl FnOnce(),
) -> (usize, Vec<String>) {
    let (stop, good) = (AtomicBool::new(false), AtomicUsize::new(0));
    let wrong = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut client = server.client();
                while !stop.load(SeqCst) {
                    let got = client.post("/get-online-features", body).text();
                    if got == expected {
                        good.fetch_add(1, SeqCst);
                    } else {
                        wrong.lock().unwrap().push(got);
                    }
                }
            });
        }
        // A failure here must not leave the others asking for ever.
        let _ending = OnDrop(|| stop.store(true, SeqCst));
        let reached = |count| eventually("progress", || good.load(SeqCst) >= count);
        reached(200);
        action();
        reached(good.load(SeqCst) + 200);
    });
    (good.into_inner(), wrong.into_inner().unwrap())
}
