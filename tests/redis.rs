//! The Redis online store: recorded answers, real servers, and what happens when they fail.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::certs::Certs;
use common::load::under_load;
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

#[test]
fn a_restart_under_load_fails_nobody() {
    let mut redis = Redis::start(&[]);
    let server = served(&redis, &["--workers", "2", "--store-timeout-ms", "10000"]);
    let expected = ask(&mut server.client()).text();
    let (good, failures) = under_load(&server, BODY, &expected, || {
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
    let (good, failures) = under_load(&server, BODY, &expected, || {
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
    let (good, failures) =
        under_load(&server, BODY, &expected, || std::thread::sleep(Duration::from_secs(1)));
    assert!(good > 1000 && failures.is_empty(), "{good} {failures:?}");
}

/// A server between the workers and Redis that misbehaves a number of times and then only passes bytes on.
fn misbehaving(redis: &Redis, times: usize, how: &'static [u8]) -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let to = redis.address();
    std::thread::spawn(move || {
        for (number, client) in listener.incoming().enumerate() {
            let Ok(mut client) = client else { return };
            if number < times {
                use std::io::{Read, Write};
                let mut request = [0; 4096];
                let _ = client.read(&mut request);
                let _ = client.write_all(how);
                continue;
            }
            let server = std::net::TcpStream::connect(&to).unwrap();
            let (mut a, mut b) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            let (mut client, mut server) = (client, server);
            std::thread::spawn(move || std::io::copy(&mut a, &mut server));
            std::thread::spawn(move || std::io::copy(&mut b, &mut client));
        }
    });
    port
}

#[test]
fn replies_that_are_cut_or_senseless_cost_a_connection_and_no_request() {
    let redis = Redis::start(&[]);
    load(&mut redis.connection());
    for how in [
        &b""[..],
        b"*3\r\n$2\r\n",
        b"*3\r\n$9\r\nabc",
        b"*2\r\n$1\r\nx\r\n$1\r\nx\r\n",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"-LOADING Redis is loading the dataset in memory\r\n",
        b":1\r\n",
    ] {
        let block =
            format!("{{type: redis, connection_string: '127.0.0.1:{}'}}", misbehaving(&redis, 3, how));
        let server = Server::start(repo(&block), &["--store-timeout-ms", "10000"]);
        let got = ask(&mut server.client());
        assert!(got.status == 200 && got.text().contains("[0,42,null]"), "{how:?}: {}", got.text());
    }
}

#[test]
fn a_server_that_takes_and_says_nothing_is_left() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let block = format!("{{type: redis, connection_string: '{address}'}}");
    let server = Server::start(repo(&block), &["--store-timeout-ms", "200"]);
    let mut client = server.client();
    for _ in 0..3 {
        let got = ask(&mut client);
        assert_eq!((got.status, got.text()), (500, format!("\"Timeout reading from {address}\"")));
    }
}

fn rows_of(view: &str, features: &[&str]) -> feast_prefork::feature::rows::Rows {
    let features = features.iter().map(|name| (*name).to_owned()).collect();
    feast_prefork::feature::rows::Rows::new(view, view, "", features)
}

/// Adds a row whose serialized values `value` gives.
fn add<'v>(
    rows: &mut feast_prefork::feature::rows::Rows,
    key: &[u8],
    event: i64,
    value: impl Fn(usize) -> &'v Vec<u8>,
) {
    let pushed: Result<(), ()> = rows.push(
        event,
        None,
        |out| {
            out.extend_from_slice(key);
            Ok(())
        },
        |index, out| {
            out.extend_from_slice(value(index));
            Ok(())
        },
    );
    pushed.unwrap();
}

#[test]
fn what_is_written_are_the_recorded_bytes() {
    use feast_prefork::online::redis::write::{write, Rules};
    let redis = Redis::start(&[]);
    let mut connection = redis.connection();
    let text = std::fs::read_to_string(common::fixture("storage/redis_dump.jsonl")).unwrap();
    let mut written = 0;
    for (line, (key, fields)) in text.lines().zip(common::redis::dump()) {
        let hash: serde_json::Value = serde_json::from_str(line).unwrap();
        let names = hash["doc"]["fields"].as_array().unwrap();
        let of =
            |name: &str| fields.iter().find(|(field, _)| field == name.as_bytes()).map(|(_, value)| value);
        let views: Vec<&str> =
            names.iter().filter_map(|name| name.as_str().unwrap().strip_prefix("_ts:")).collect();
        for view in views {
            let event =
                feast_prefork::registry::model::seconds_and_nanos(of(&format!("_ts:{view}")).unwrap());
            let mut features = Vec::new();
            for name in
                names.iter().filter_map(|name| name.as_str().unwrap().strip_prefix(&format!("{view}:")))
            {
                let field = feast_prefork::online::redis::keys::field(view, name);
                let value = &fields.iter().find(|(known, _)| *known == field).unwrap().1;
                features.push((name.to_owned(), value.clone()));
            }
            let (seconds, nanos) = event.unwrap();
            let names: Vec<&str> =
                features.iter().map(|(name, _): &(String, Vec<u8>)| name.as_str()).collect();
            let mut rows = rows_of(view, &names);
            let event = seconds * 1_000_000_000 + i64::from(nanos);
            add(&mut rows, &key[..key.len() - "shop".len()], event, |index| &features[index].1);
            written += write(&mut connection, "shop", &rows, &[0], Rules::default()).unwrap();
        }
    }
    assert!(written >= 18, "{written}");
    for (key, mut fields) in common::redis::dump() {
        let mut found: Vec<(Vec<u8>, Vec<u8>)> =
            redis::cmd("HGETALL").arg(&key).query(&mut connection).unwrap();
        // A hash without a time was not written by a view.
        if fields.iter().any(|(field, _)| field.starts_with(b"_ts:")) {
            fields.sort();
            found.sort();
            assert_eq!(found, fields);
        }
    }
}

#[test]
fn older_events_lose_and_expiry_is_renewed() {
    use feast_prefork::online::redis::write::{write, Rules};
    let redis = Redis::start(&[]);
    let mut connection = redis.connection();
    type Row = (i64, Vec<u8>);
    let row = |seconds: i64, value: &[u8]| -> Row { (seconds, value.to_vec()) };
    let several = |list: &[Row]| {
        let mut rows = rows_of("v", &["f"]);
        for (seconds, value) in list {
            add(&mut rows, b"key", seconds * 1_000_000_000, |_| value);
        }
        rows
    };
    let field = feast_prefork::online::redis::keys::field("v", "f");
    let mut run = |rows: &[Row], rules: Rules| {
        let which: Vec<u32> = (0..rows.len() as u32).collect();
        let count = write(&mut connection, "p", &several(rows), &which, rules).unwrap();
        let value: Vec<u8> = redis::cmd("HGET").arg("keyp").arg(&field).query(&mut connection).unwrap();
        (count, value)
    };
    let plain = Rules::default();
    assert_eq!(run(&[row(5, b"a"), row(5, b"b"), row(4, b"c")], plain), (1, b"a".to_vec()));
    assert_eq!(run(&[row(5, b"d")], plain), (0, b"a".to_vec()));
    assert_eq!(run(&[row(6, b"e"), row(7, b"f")], plain), (2, b"f".to_vec()));
    let rules = Rules { key_ttl: Some(100), skip_dedup: true, ..Rules::default() };
    assert_eq!(run(&[row(1, b"g")], rules), (1, b"g".to_vec()));
    let ttl: i64 = redis::cmd("TTL").arg("keyp").query(&mut redis.connection()).unwrap();
    assert!((1..=100).contains(&ttl), "{ttl}");
    let _: () = redis::cmd("CONFIG")
        .arg(&["SET", "maxmemory", "1", "maxmemory-policy", "noeviction"])
        .query(&mut redis.connection())
        .unwrap();
    let error = write(&mut redis.connection(), "p", &several(&[row(9, b"h")]), &[0], plain).unwrap_err();
    assert!(error.to_string().contains("OOM") || error.to_string().contains("memory"), "{error}");
}

#[test]
fn encrypted_connections() {
    let certs = Certs::make();
    let file = |name: &str| certs.path(name).to_str().unwrap().to_owned();
    let port = common::redis::free_port().to_string();
    let (ca, cert, key) = (file("ca.crt"), file("server.crt"), file("server.key"));
    let tls =
        ["--tls-port", &port, "--tls-ca-cert-file", &ca, "--tls-cert-file", &cert, "--tls-key-file", &key];
    let redis = Redis::start(&tls);
    load(&mut redis.connection());
    let block = |host: &str, options: &str| {
        format!("{{type: redis, connection_string: '{host}:{port},ssl=true{options}'}}")
    };
    let (client_cert, client_key) = (file("client.crt"), file("client.key"));
    let full = format!(",ssl_ca_certs={ca},ssl_certfile={client_cert},ssl_keyfile={client_key}");
    for (host, options) in [
        ("127.0.0.1", full.clone()),
        ("localhost", full.clone()),
        ("127.0.0.1", format!("{full},ssl_cert_reqs=none")),
    ] {
        let server = Server::start(repo(&block(host, &options)), &["--workers", "2"]);
        assert_eq!(replay(&server, &cases("storage/cases.jsonl")), 11, "{options}");
        let expected = ask(&mut server.client()).text();
        let (good, failures) = under_load(&server, BODY, &expected, || {});
        assert!(good > 200 && failures.is_empty(), "{failures:?}");
    }
    // A server nobody vouches for, and one that wants to know who we are.
    for options in [String::new(), format!(",ssl_ca_certs={ca}")] {
        let server = Server::start(repo(&block("127.0.0.1", &options)), &["--store-timeout-ms", "300"]);
        let got = ask(&mut server.client());
        assert_eq!(got.status, 500, "{options}: {}", got.text());
        assert!(got.text().contains("ertificate"), "{options}: {}", got.text());
    }
    // A missing file is noticed at the start.
    let repo = repo(&block("127.0.0.1", ",ssl_ca_certs=/nowhere/ca.crt"));
    let done = std::process::Command::new(common::binary())
        .arg("-c")
        .arg(repo.path())
        .args(["serve", "--port", "0"])
        .output()
        .unwrap();
    assert_eq!(done.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&done.stderr).contains("TLS: /nowhere/ca.crt: "));
}
