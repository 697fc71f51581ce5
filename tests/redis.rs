//! The Redis online store: recorded answers, real servers, and what happens when they fail.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::redis::{load, repo, Redis};
use common::replay::{cases, replay};
use common::{eventually, Client, Response, Server};
use nix::sys::signal::{kill, Signal};

const BODY: &str =
    r#"{"features":["store_daily:sales","store_daily:rating"],"entities":{"store_id":[8,7,999]}}"#;

fn single(redis: &Redis) -> String {
    format!("{{type: redis, connection_string: '{}'}}", redis.address())
}

fn ask(client: &mut Client) -> Response {
    client.post("/get-online-features", BODY)
}

fn served(redis: &Redis, args: &[&str]) -> Server {
    load(&mut redis.connection());
    Server::start(repo(&single(redis)), args)
}

#[test]
fn recorded_answers() {
    let redis = Redis::start(&[]);
    for workers in ["1", "3"] {
        let server = served(&redis, &["--workers", workers]);
        assert_eq!(replay(&server, &cases("storage/cases.jsonl")), 11);
    }
}

#[test]
fn a_socket_file_a_password_and_another_database() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("redis.sock");
    let path = path.to_str().unwrap();
    let redis = Redis::start(&["--unixsocket", path]);
    let mut connection = redis.connection();
    let _: () = redis::cmd("SELECT").arg(3).query(&mut connection).unwrap();
    load(&mut connection);
    for (user, secret) in [(None, "0123"), (Some("reader"), "q")] {
        let rules = user.unwrap_or("default");
        let _: () = redis::cmd("ACL")
            .arg(&["SETUSER", rules, "on", &format!(">{secret}"), "~*", "+@all"])
            .query(&mut connection)
            .unwrap();
        let login = user.map_or(String::new(), |user| format!("username={user},"));
        for address in [format!("unix_socket_path={path}"), redis.address()] {
            let string = format!("{address},{login}password={secret},db=3,client_name=features");
            let block = format!("{{type: redis, connection_string: '{string}'}}");
            let server = Server::start(repo(&block), &[]);
            assert_eq!(replay(&server, &cases("storage/cases.jsonl")), 11, "{string}");
        }
    }
    // A wrong password is an error of every request, and no reason to stop.
    let block =
        format!("{{type: redis, connection_string: '{},username=reader,password=no'}}", redis.address());
    let server = Server::start(repo(&block), &["--store-timeout-ms", "200"]);
    let got = ask(&mut server.client());
    assert_eq!(got.status, 500);
    assert!(got.text().contains("WRONGPASS"), "{}", got.text());
    assert_eq!(server.client().get("/health").status, 200);
}

#[test]
fn keys_of_another_type_fail_their_own_request_only() {
    let redis = Redis::start(&[]);
    let server = served(&redis, &[]);
    let (key, _) = common::redis::dump().into_iter().next().unwrap();
    let mut connection = redis.connection();
    let _: () = redis::cmd("SET").arg(key).arg("text").query(&mut connection).unwrap();
    // Both in flight at once: two connections, pipelined by the worker.
    let (mut bad, mut good) = (server.client(), server.client());
    let other = r#"{"features":["store_daily:sales"],"entities":{"store_id":[8]}}"#;
    for _ in 0..20 {
        let encode = |body: &str| common::encode("POST", "/get-online-features", &[], body.as_bytes());
        bad.send(&encode(BODY));
        good.send(&encode(other));
        let (bad, good) = (bad.receive("POST").unwrap().unwrap(), good.receive("POST").unwrap().unwrap());
        assert_eq!(good.status, 200);
        assert_eq!(bad.status, 500);
        assert!(bad.text().contains("of pipeline caused error: ('WRONGTYPE Operation"), "{}", bad.text());
    }
}

#[test]
fn a_store_that_is_down_costs_each_request_its_deadline() {
    let mut redis = Redis::start(&[]);
    let mut server = served(&redis, &["--store-timeout-ms", "300"]);
    let expected = ask(&mut server.client()).text();
    redis.kill();
    let mut client = server.client();
    let start = Instant::now();
    let got = ask(&mut client);
    assert_eq!(got.status, 500);
    let text = format!("\"Error 111 connecting to {}. Connection refused.\"", redis.address());
    assert_eq!(got.text(), text);
    assert!((Duration::from_millis(290)..Duration::from_secs(5)).contains(&start.elapsed()));
    assert_eq!(server.client().get("/health").status, 200);
    server.wait_for_log("Connection refused.");
    redis.restart();
    eventually("it answers again", || ask(&mut client).text() == expected);
}

/// Clients that ask all the time while `action` happens. Returns answers that were right, and failures.
fn under_load(server: &Server, expected: &str, action: impl FnOnce()) -> (usize, Vec<String>) {
    let (stop, good) = (AtomicBool::new(false), AtomicUsize::new(0));
    let failures = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut client = server.client();
                while !stop.load(Ordering::Relaxed) {
                    let got = ask(&mut client);
                    if got.text() == expected {
                        good.fetch_add(1, Ordering::Relaxed);
                    } else {
                        failures.lock().unwrap().push(got.text());
                    }
                }
            });
        }
        let reached = |count| eventually("progress", || good.load(Ordering::Relaxed) >= count);
        reached(200);
        action();
        let now = good.load(Ordering::Relaxed);
        reached(now + 200);
        stop.store(true, Ordering::Relaxed);
    });
    (good.into_inner(), failures.into_inner().unwrap())
}

#[test]
fn a_restart_under_load_fails_nobody() {
    let mut redis = Redis::start(&[]);
    let server = served(&redis, &["--workers", "2", "--store-timeout-ms", "10000"]);
    let expected = ask(&mut server.client()).text();
    let (good, failures) = under_load(&server, &expected, || {
        for _ in 0..3 {
            redis.kill();
            redis.restart();
        }
    });
    assert!(good > 400 && failures.is_empty(), "{good} {failures:?}");
}

#[test]
fn closed_connections_are_made_again() {
    let redis = Redis::start(&[]);
    let server = served(&redis, &["--workers", "2"]);
    let expected = ask(&mut server.client()).text();
    let (good, failures) = under_load(&server, &expected, || {
        let mut connection = redis.connection();
        for _ in 0..20 {
            let _: i64 = redis::cmd("CLIENT")
                .arg(&["KILL", "TYPE", "normal", "SKIPME", "yes"])
                .query(&mut connection)
                .unwrap();
            std::thread::sleep(Duration::from_millis(10));
        }
    });
    assert!(good > 400 && failures.is_empty(), "{good} {failures:?}");
}

#[test]
fn a_server_that_stands_still_is_given_up_and_never_answers_somebody_else() {
    let redis = Redis::start(&[]);
    let server = served(&redis, &["--store-timeout-ms", "200"]);
    let expected = ask(&mut server.client()).text();
    kill(redis.pid(), Signal::SIGSTOP).unwrap();
    let mut client = server.client();
    let late = ask(&mut client);
    kill(redis.pid(), Signal::SIGCONT).unwrap();
    assert_eq!((late.status, late.text()), (500, format!("\"Timeout reading from {}\"", redis.address())));
    // The replies to the request that was given up come now, on a connection that is closed.
    let other = r#"{"features":["store_daily:sales"],"entities":{"store_id":[7]}}"#;
    eventually("it answers again", || client.post("/get-online-features", other).status == 200);
    for _ in 0..50 {
        assert!(client.post("/get-online-features", other).text().contains("[42]"));
        assert_eq!(ask(&mut client).text(), expected);
    }
}

#[test]
fn more_than_may_wait_are_sent_away() {
    let redis = Redis::start(&[]);
    let server = served(&redis, &["--store-in-flight", "2", "--store-timeout-ms", "1000"]);
    kill(redis.pid(), Signal::SIGSTOP).unwrap();
    let request = common::encode("POST", "/get-online-features", &[], BODY.as_bytes());
    let mut waiting = [server.client(), server.client()];
    waiting.iter_mut().for_each(|client| client.send(&request));
    let mut third = server.client();
    eventually("too many", || {
        let got = ask(&mut third);
        got.status == 503 && got.header("retry-after") == Some("1")
    });
    kill(redis.pid(), Signal::SIGCONT).unwrap();
    for client in &mut waiting {
        assert_eq!(client.receive("POST").unwrap().unwrap().status, 200);
    }
    assert_eq!(ask(&mut third).status, 200);
}

#[test]
fn a_client_that_leaves_disturbs_nobody() {
    let redis = Redis::start(&[]);
    let server = served(&redis, &[]);
    let expected = ask(&mut server.client()).text();
    let request = common::encode("POST", "/get-online-features", &[], BODY.as_bytes());
    for _ in 0..100 {
        let mut leaver = server.client();
        leaver.send(&request);
        drop(leaver);
        assert_eq!(ask(&mut server.client()).text(), expected);
    }
}

#[test]
fn workers_that_are_recycled_answer_what_they_asked_for() {
    let redis = Redis::start(&[]);
    let server = served(&redis, &["--workers", "2", "--max-requests", "30", "--max-requests-jitter", "5"]);
    let expected = ask(&mut server.client()).text();
    let (good, failures) = under_load(&server, &expected, || std::thread::sleep(Duration::from_secs(1)));
    assert!(good > 1000 && failures.is_empty(), "{good} {failures:?}");
}
