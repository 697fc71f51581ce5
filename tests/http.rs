//! HTTP/1.1 over raw sockets: what is refused and how, what works, limits, timeouts, sockets, access lines.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use common::{encode, eventually, Client, Repo, Response, Server, PATIENCE};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

const PATH: &str = "/get-online-features";
const BODY: &str = r#"{"features":["driver_stats:rating"],"entities":{"driver_id":[1001]}}"#;
/// Stands behind requests that must be the last ones of their connection.
const SECOND: &[u8] = b"GET /health HTTP/1.1\r\nhost: second\r\n\r\n";

fn serve(args: &[&str]) -> Server {
    Server::start(Repo::copy_of("kitchen_sink"), args)
}

fn with_line(line: &[u8]) -> Vec<u8> {
    [line, b"\r\nhost: x\r\n\r\n"].concat()
}

fn with_fields(fields: &[u8]) -> Vec<u8> {
    let line = b"POST /get-online-features HTTP/1.1\r\nhost: x\r\n".as_slice();
    [line, fields, b"\r\n\r\nhello"].concat()
}

fn with_chunks(framed: &[u8]) -> Vec<u8> {
    let head = b"POST /health HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n".as_slice();
    [head, framed].concat()
}

/// A request whose line has `length` bytes.
fn line_of(length: usize) -> Vec<u8> {
    with_line(format!("GET /{} HTTP/1.1", "a".repeat(length - 14)).as_bytes())
}

/// A request with a header line of `length` bytes, its end included.
fn field_of(length: usize) -> Vec<u8> {
    format!("GET /health HTTP/1.1\r\nx: {}\r\n\r\n", "a".repeat(length - 5)).into_bytes()
}

fn fields_of(count: usize) -> Vec<u8> {
    format!("GET /health HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(count)).into_bytes()
}

fn shown(bytes: &[u8]) -> String {
    bytes[..bytes.len().min(200)].escape_ascii().to_string()
}

fn described(got: io::Result<Option<Response>>) -> String {
    match got {
        Ok(Some(answer)) => format!("{} {:?}", answer.status, answer.text()),
        Ok(None) => "the end".to_owned(),
        Err(error) => error.to_string(),
    }
}

fn answer(client: &mut Client, method: &str) -> Response {
    client.receive(method).unwrap().expect("an answer")
}

/// The connection ended in order: no other answer, no reset, no waiting until the client loses patience.
fn assert_ended(client: &mut Client, what: &str) {
    match client.receive("GET") {
        Ok(None) => {}
        other => panic!("{what}: {} instead of the end", described(other)),
    }
}

fn assert_served(client: &mut Client, status: u16, request: &[u8]) {
    client.send(request);
    match client.receive("GET") {
        Ok(Some(answer)) if answer.status == status && !answer.closes() => {}
        other => panic!("{} instead of {status}: {}", described(other), shown(request)),
    }
}

/// Every request gets its status and nothing else, although another request stands behind it.
fn assert_refused(server: &Server, cases: impl IntoIterator<Item = (u16, Vec<u8>)>) {
    let mut failures = Vec::new();
    for (status, request) in cases {
        let mut client = server.client();
        client.send(&[request.as_slice(), SECOND].concat());
        match client.receive("GET") {
            Ok(Some(answer)) if answer.status == status && answer.closes() => {}
            other => {
                failures.push(format!("{} instead of {status}: {}", described(other), shown(&request)));
                continue;
            }
        }
        match client.receive("GET") {
            Ok(None) => {}
            other => failures.push(format!("{} instead of the end: {}", described(other), shown(&request))),
        }
    }
    assert!(failures.is_empty(), "{} cases:\n{}", failures.len(), failures.join("\n"));
}

const BAD_LINES: &[&[u8]] = &[
    b"get /health HTTP/1.1",
    b"Get /health HTTP/1.1",
    b"BREW /health HTTP/1.1",
    b"-BLARGH /health HTTP/1.1",
    b"GET: /health HTTP/1.1",
    b"G\x00T /health HTTP/1.1",
    b"GET\x00 /health HTTP/1.1",
    b"\xc3\x9fGET /health HTTP/1.1",
    b"CONNECT testhost:80 HTTP/1.1",
    b"GET /health HTTP/2.0",
    b"GET /health HTTP/1.2",
    b"GET /health HTTP/0.9",
    b"GET /health HTTP/1",
    b"GET /health HTTP/1.10",
    b"GET /health HTTP/11.1",
    b"GET /health FTP/1.1",
    b"GET /health http/1.1",
    b"GET /health",
    b"GET",
    b"GET  /health HTTP/1.1",
    b"GET /health  HTTP/1.1",
    b"GET\t/health\tHTTP/1.1",
    b"GET /health\tHTTP/1.1",
    b" GET /health HTTP/1.1",
    b"GET /health HTTP/1.1 ",
    b"GET /hea lth HTTP/1.1",
    b"GET health HTTP/1.1",
    b"GET ?health HTTP/1.1",
    b"GET * HTTP/1.1",
    b"GET testhost:80 HTTP/1.1",
    b"GET http:///health HTTP/1.1",
    b"GET ftp://testhost/health HTTP/1.1",
    b"GET /h\xc3\xa9 HTTP/1.1",
    b"GET /h\xff HTTP/1.1",
    b"GET /h\x7f HTTP/1.1",
    b"GET /h\x01 HTTP/1.1",
    b"GET /health HTTP/1.1\rx: y",
    b"GET\n/health HTTP/1.1",
    b"PRI * HTTP/2.0\r\n\r\nSM",
    b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2",
];

#[test]
fn request_lines_that_are_not_http_1_are_refused() {
    let server = serve(&["--no-access-log"]);
    let raw: &[&[u8]] = &[
        b"\nGET /health HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /health HTTP/1.1\nhost: x\n\n",
        b"GET /health HTTP/1.1\r\nhost: x\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: x\r\n\n",
        b"GET /health HTTP/1.1\rhost: x\r\r",
        b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03\x5f\x12\x00\x00\x20\x20\x0d\x0a\x0d\x0a\x13\x01",
    ];
    let lines = BAD_LINES.iter().map(|line| (400, with_line(line)));
    assert_refused(&server, lines.chain(raw.iter().map(|bytes| (400, bytes.to_vec()))));
}

const BAD_FIELDS: &[&[u8]] = &[
    b"content-length: +5",
    b"content-length: -1",
    b"content-length: -0",
    b"content-length: 0x5",
    b"content-length: 1_0",
    b"content-length: 5, 5",
    b"content-length: 5 5",
    b"content-length: \"5\"",
    b"content-length: five",
    b"content-length:",
    b"content-length: 18446744073709551616",
    b"content-length: 99999999999999999999999",
    b"content-length: 5\r\ncontent-length: 5",
    b"content-length: 5\r\nContent-Length: 6",
    b"content-length: 5\r\ntransfer-encoding: chunked",
    b"transfer-encoding: chunked\r\ncontent-length: 5",
    b"transfer-encoding: identity\r\ncontent-length: 5",
    b"content-length : 5",
    b"content-length\t: 5",
    b"transfer-encoding : chunked",
    b"transfer-encoding:\x0bchunked",
    b"transfer-encoding:",
    b"transfer-encoding: ,chunked",
    b"transfer-encoding: chunked, chunked",
    b"transfer-encoding: chunked\r\ntransfer-encoding: chunked",
    b"transfer-encoding: chunked, identity",
    b"transfer-encoding: chunked\r\ntransfer-encoding: identity",
    b"transfer-encoding: chunked, gzip",
    b"transfer-encoding: identity",
    b"transfer-encoding: identity, chunked, identity, chunked",
    b"Host: x",
    b"host: y",
    b"x: a\r\n b",
    b"x: a\r\n\tb",
    b" x: a",
    b": a",
    b"x",
    b"x y: a",
    b"x\x00: a",
    b"x\xc3\x9f: a",
    b"x\xff: a",
    b"x: a\x00b",
    b"x: \x07",
    b"x: \x1b[0m",
    b"x: \x7f",
    b"x: a\rb",
    b"x: a\r",
    b"x: a\ncontent-length: 5",
];

#[test]
fn fields_that_two_parties_could_read_differently_are_refused() {
    let server = serve(&["--no-access-log"]);
    let old = b"POST /health HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    let bad = BAD_FIELDS.iter().map(|fields| (400, with_fields(fields)));
    let unknown: &[&[u8]] = &[
        b"transfer-encoding: gzip",
        b"transfer-encoding: xchunked",
        b"transfer-encoding: \"chunked\"",
        b"transfer-encoding: chunked;q=1",
        b"transfer-encoding: gzip, chunked",
        b"transfer-encoding: gzip\r\ntransfer-encoding: chunked",
    ];
    let unknown = unknown.iter().map(|fields| (501, with_fields(fields)));
    assert_refused(&server, bad.chain(unknown).chain([(400, old.to_vec())]));
}

const BAD_CHUNKS: &[&[u8]] = &[
    b"-5\r\nhello\r\n0\r\n\r\n",
    b"+5\r\nhello\r\n0\r\n\r\n",
    b"0x5\r\nhello\r\n0\r\n\r\n",
    b"6_0\r\nhello\r\n0\r\n\r\n",
    b"\r\nhello\r\n0\r\n\r\n",
    b" 5\r\nhello\r\n0\r\n\r\n",
    b" 0\r\n\r\n",
    b"0 \r\n\r\n",
    b"5 5\r\nhello\r\n0\r\n\r\n",
    b"g\r\nhello\r\n0\r\n\r\n",
    b"10000000000000005\r\nhello\r\n0\r\n\r\n",
    b"5\r\nhello0\r\n\r\n",
    b"5\r\nhelloworld\r\n0\r\n\r\n",
    b"5\r\nhello\n0\r\n\r\n",
    b"5\r\nhello\r0\r\n\r\n",
    b"5\nhello\r\n0\r\n\r\n",
    b"5\rhello\r\n0\r\n\r\n",
    b"5;a\nhello\r\n0\r\n\r\n",
    b"5;a\rb\r\nhello\r\n0\r\n\r\n",
    b"5;a=\x01\r\nhello\r\n0\r\n\r\n",
    b"5;\r\nhello\r\n0\r\n\r\n",
    b"5;=a\r\nhello\r\n0\r\n\r\n",
    b";a=b\r\nhello\r\n0\r\n\r\n",
    b"0\r\nHost: y\r\n\r\n",
    b"0\r\ncontent-length: 5\r\n\r\n",
    b"0\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"0\r\ntrailer: x\r\n\r\n",
    b"0\r\nauthorization: x\r\n\r\n",
    b"0\r\nTE: x\r\n\r\n",
    b"0\r\nx\r\n\r\n",
    b"0\r\nx : a\r\n\r\n",
    b"0\r\nx: a\r\n b\r\n\r\n",
    b"0\r\nx: a\n\r\n",
    b"0\r\nx: \x00\r\n\r\n",
];

#[test]
fn malformed_chunks_are_refused() {
    let server = serve(&["--no-access-log"]);
    let endless = format!("5;{}\r\nhello\r\n0\r\n\r\n", "a".repeat(9000));
    let bad = BAD_CHUNKS.iter().map(|framed| (400, with_chunks(framed)));
    assert_refused(&server, bad.chain([(400, with_chunks(endless.as_bytes()))]));
}

#[test]
fn requests_over_the_default_limits_are_refused() {
    let server = serve(&["--no-access-log"]);
    let cases = [
        (414, line_of(4095)),
        (414, [b"GET /".as_slice(), &[b'a'; 5000]].concat()),
        (431, field_of(8191)),
        (431, [b"GET / HTTP/1.1\r\nx: ".as_slice(), &[b'a'; 9000]].concat()),
        (431, fields_of(101)),
        (431, with_chunks(format!("0\r\nx: {}\r\n\r\n", "a".repeat(9000)).as_bytes())),
        (431, with_chunks(format!("0\r\n{}\r\n", "x: a\r\n".repeat(101)).as_bytes())),
        (413, with_fields(b"content-length: 67108865")),
        (413, with_fields(b"content-length: 67108865\r\nexpect: 100-continue")),
        (413, with_chunks(b"4000001\r\n")),
    ];
    assert_refused(&server, cases);
    let mut client = server.client();
    assert_served(&mut client, 404, &line_of(4094));
    assert_served(&mut client, 200, &field_of(8190));
    assert_served(&mut client, 200, &fields_of(100));
}

#[test]
fn a_refusal_is_the_references_byte_for_byte() {
    let mut server = serve(&[]);
    let mut client = server.client();
    client.send(b"BREW /health HTTP/1.1\r\n\r\n");
    let mut got = String::new();
    client.stream.read_to_string(&mut got).unwrap();
    let (before, rest) = got.split_once("date: ").unwrap();
    let (date, after) = rest.split_once("\r\n").unwrap();
    assert_eq!(before, "HTTP/1.1 400 Bad Request\r\n");
    assert_eq!(date.len(), 29, "{date}");
    httpdate::parse_http_date(date).unwrap();
    let expected = "server: uvicorn\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: 30\r\n\
                    connection: close\r\n\r\nInvalid HTTP request received.";
    assert_eq!(after, expected);
    server.wait_for_log("[WARNING] Invalid HTTP request received.");
    assert!(!server.log().contains("BREW"), "{}", server.log());

    let got = server.client().post(PATH, BODY);
    let names: Vec<&str> = got.headers.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["date", "server", "content-length", "content-type"]);
}

const GOOD: &[(u16, &[u8])] = &[
    (200, b"GET /health HTTP/1.1\r\n\r\n"),
    (200, b"\r\n\r\n\r\nGET /health HTTP/1.1\r\nhost: x\r\n\r\n"),
    (200, b"GET /health HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhello"),
    (200, b"GET /health HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"),
    (405, b"POST /health HTTP/1.1\r\nhost: x\r\ncontent-length: 005\r\n\r\nhello"),
    (405, b"POST /health HTTP/1.1\r\nhost: x\r\nTransfer-Encoding: Chunked\r\n\r\n0\r\n\r\n"),
    (405, b"POST /health HTTP/1.1\r\ntransfer-encoding: identity, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
    (405, b"QUERY /health HTTP/1.1\r\nhost: x\r\n\r\n"),
    (404, b"OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n"),
    (404, b"GET ///keeping_slashes HTTP/1.1\r\nhost: x\r\n\r\n"),
    (404, b"GET /\"a\"?b=\"c\" HTTP/1.1\r\nhost: x\r\n\r\n"),
    (200, b"GET http://testhost/health HTTP/1.1\r\nhost: x\r\n\r\n"),
    (200, b"GET http://testhost:80/health?x=1&y=/z HTTP/1.1\r\nhost: x\r\n\r\n"),
    (200, b"GET HTTPS://user:word@[::1]:80/health HTTP/1.1\r\nhost: x\r\n\r\n"),
    (404, b"GET http://testhost HTTP/1.1\r\nhost: x\r\n\r\n"),
    (200, b"GET /%68ealt%68 HTTP/1.1\r\nhost: x\r\n\r\n"),
    (200, b"GET /health?a=b%20c#d HTTP/1.1\r\nhost: x\r\n\r\n"),
    (200, b"GET /health HTTP/1.1\r\nconnection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\n\r\n"),
    (200, b"GET /health HTTP/1.1\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"),
    (200, b"GET /health HTTP/1.1\r\nexpect: the-unexpected\r\n\r\n"),
    (200, b"GET /health HTTP/1.1\r\nx: \t padded \t \r\nempty:\r\ny:++++\r\n\r\n"),
    (200, b"GET /health HTTP/1.1\r\nx: \x80\xff\r\nx.y|z~!#$%&'*+-^_`: 1\r\n\r\n"),
    (200, b"GET /health HTTP/1.1\r\ntransfer_encoding: chunked\r\ncontent_length: 9\r\n\r\n"),
];

#[test]
fn unusual_but_valid_requests_are_served_on_one_connection() {
    let server = serve(&["--no-access-log"]);
    let mut client = server.client();
    for (status, request) in GOOD {
        assert_served(&mut client, *status, request);
    }
    let escaped = client.post("/get%2Donline%2dfeatures?x=1", BODY);
    assert_eq!(escaped.status, 200);
    assert_eq!(escaped.body, client.post(PATH, BODY).body);
}

#[test]
fn a_head_request_gets_the_length_and_no_body() {
    let server = serve(&["--no-access-log"]);
    let mut client = server.client();
    let head = client.request("HEAD", "/health", &[], b"");
    let post = client.request("POST", "/health", &[], b"");
    assert_eq!((head.status, post.status), (405, 405));
    assert_eq!(head.header("allow"), Some("GET"));
    assert_eq!(head.header("content-length"), Some(post.body.len().to_string().as_str()));
    assert_eq!(client.get("/health").status, 200);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let server = serve(&["--no-access-log"]);
    let mut client = server.client();
    let post = encode("POST", PATH, &[("content-type", "application/json")], BODY.as_bytes());
    let expected = client.post(PATH, BODY);
    let round = [
        encode("GET", "/health", &[], b""),
        post,
        encode("GET", "/none", &[], b""),
        encode("HEAD", "/health", &[], b""),
        with_chunks(b"5\r\nhello\r\n0\r\n\r\n"),
    ];
    let rounds = 25;
    client.send(&[round.concat().repeat(rounds).as_slice(), b"BREW / HTTP/1.1\r\n\r\n", SECOND].concat());
    for number in 0..rounds {
        assert_eq!(answer(&mut client, "GET").status, 200, "{number}");
        assert_eq!(answer(&mut client, "POST").body, expected.body, "{number}");
        assert_eq!(answer(&mut client, "GET").status, 404, "{number}");
        assert_eq!(answer(&mut client, "HEAD").status, 405, "{number}");
        assert_eq!(answer(&mut client, "POST").status, 405, "{number}");
    }
    assert_eq!(answer(&mut client, "GET").status, 400);
    assert_ended(&mut client, "after a request that is none");
}

#[test]
fn chunked_bodies_and_single_bytes_make_no_difference() {
    let server = serve(&["--no-access-log"]);
    let mut client = server.client();
    let expected = client.post(PATH, BODY).body;
    let (first, second) = BODY.as_bytes().split_at(0x1A);
    let size = format!("000{:x} ; a = b\r\n", second.len());
    let chunked = [
        b"POST /get-online-features HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n".as_slice(),
        b"1A;name=\"quoted; value\";flag\r\n",
        first,
        b"\r\n",
        size.as_bytes(),
        second,
        b"\r\n000;last\r\nx-trailer: 1\r\ny-trailer:\r\n\r\n",
    ]
    .concat();
    client.send(&[chunked.as_slice(), SECOND].concat());
    assert_eq!(answer(&mut client, "POST").body, expected);
    assert_eq!(answer(&mut client, "GET").status, 200);
    let plain = encode("POST", PATH, &[], BODY.as_bytes());
    for byte in [chunked, plain].concat() {
        client.send(&[byte]);
    }
    assert_eq!(answer(&mut client, "POST").body, expected);
    assert_eq!(answer(&mut client, "POST").body, expected);
}

#[test]
fn the_last_request_of_a_connection_is_announced_and_kept() {
    let server = serve(&["--no-access-log"]);
    let close = |value: &str| format!("GET /health HTTP/1.1\r\nhost: x\r\nconnection: {value}\r\n\r\n");
    let requests = [
        close("close"),
        close("Close"),
        close("TE, close"),
        close("keep-alive,CLOSE ,x"),
        close("keep-alive\r\nconnection: close"),
        "GET /health HTTP/1.0\r\n\r\n".to_owned(),
        "GET /health HTTP/1.0\r\nhost: x\r\nconnection: keep-alive\r\n\r\n".to_owned(),
        "GET /health HTTP/1.0\r\nContent-Length: 5\r\n\r\nhello".to_owned(),
    ];
    assert_refused(&server, requests.iter().map(|request| (200, request.clone().into_bytes())));
    let mut client = server.client();
    client.send(requests[5].as_bytes());
    let mut got = String::new();
    client.stream.read_to_string(&mut got).unwrap();
    assert!(got.starts_with("HTTP/1.1 200 OK\r\n"), "{got}");
}

#[test]
fn a_client_that_waits_for_permission_gets_it_once() {
    let server = serve(&["--no-access-log"]);
    let head = |framing: &str| {
        format!("POST {PATH} HTTP/1.1\r\nhost: x\r\nexpect: 100-Continue\r\n{framing}\r\n\r\n")
    };
    let sized = head(&format!("content-length: {}", BODY.len()));
    let mut client = server.client();
    for _ in 0..2 {
        client.send(sized.as_bytes());
        assert_eq!(answer(&mut client, "POST").status, 100);
        for byte in BODY.bytes() {
            client.send(&[byte]);
        }
        assert_eq!(answer(&mut client, "POST").status, 200);
    }
    client.send(head("transfer-encoding: chunked").as_bytes());
    assert_eq!(answer(&mut client, "POST").status, 100);
    client.send(format!("{:x}\r\n{BODY}\r\n0\r\n\r\n", BODY.len()).as_bytes());
    assert_eq!(answer(&mut client, "POST").status, 200);

    client.send(format!("{sized}{BODY}").as_bytes());
    assert_eq!(answer(&mut client, "POST").status, 200, "the body came along");
    let (first, second) = BODY.split_at(10);
    client.send(format!("{sized}{first}").as_bytes());
    client.send(second.as_bytes());
    assert_eq!(answer(&mut client, "POST").status, 200, "part of the body came along");

    client.send(sized.replace("HTTP/1.1", "HTTP/1.0").as_bytes());
    client.send(BODY.as_bytes());
    assert_eq!(answer(&mut client, "POST").status, 200, "HTTP/1.0 knows no 100");
    assert_ended(&mut client, "HTTP/1.0");
}

/// Makes everything that `act` sends reach the worker at one moment.
fn while_the_worker_stands_still(server: &Server, act: impl FnOnce()) {
    let worker = server.workers()[0];
    kill(Pid::from_raw(worker), Signal::SIGSTOP).unwrap();
    eventually("the worker stands still", || {
        fs::read_to_string(format!("/proc/{worker}/stat")).is_ok_and(|stat| stat.contains(") T "))
    });
    act();
    kill(Pid::from_raw(worker), Signal::SIGCONT).unwrap();
}

#[test]
fn a_client_that_has_said_everything_gets_its_answers_and_the_end() {
    let server = serve(&["--no-access-log", "--keep-alive-timeout", "300", "--header-timeout", "300"]);
    let post = encode("POST", PATH, &[], BODY.as_bytes());
    let cases = [
        ("one request", post.clone(), 1),
        ("two pipelined requests", post.repeat(2), 2),
        ("a hundred pipelined requests", post.repeat(100), 100),
        ("a request and a half", [post.as_slice(), &post[..30]].concat(), 1),
        ("half a head", post[..30].to_vec(), 0),
        ("half a body", post[..post.len() - 10].to_vec(), 0),
        ("nothing", Vec::new(), 0),
    ];
    for (what, bytes, answers) in &cases {
        let mut client = server.client();
        while_the_worker_stands_still(&server, || {
            client.send(bytes);
            client.stream.shutdown(Shutdown::Write).unwrap();
        });
        for _ in 0..*answers {
            assert_eq!(answer(&mut client, "POST").status, 200, "{what}");
        }
        assert_ended(&mut client, what);
    }
    let mut client = server.client();
    assert_eq!(client.post(PATH, BODY).status, 200);
    client.stream.shutdown(Shutdown::Write).unwrap();
    assert_ended(&mut client, "after the answer");
}

#[test]
fn a_body_of_twenty_megabytes_is_accepted() {
    let server = serve(&["--no-access-log"]);
    let mut client = server.client();
    let padded = format!("{BODY}{}", " ".repeat(20 << 20));
    assert_eq!(client.post(PATH, &padded).status, 200);
    assert_eq!(client.post(PATH, &"x".repeat(20 << 20)).status, 422);
    assert_eq!(client.get("/health").status, 200);
}

#[test]
fn a_slow_reader_gets_everything_and_holds_up_nobody() {
    let server = serve(&["--no-access-log", "-w", "1"]);
    let features: Vec<String> = (0..60).map(|number| format!("wide:w{number:02}")).collect();
    let body = serde_json::json!({"features": features, "entities": {"driver_id": vec![1001; 6000]}});
    let request = encode("POST", PATH, &[], body.to_string().as_bytes());
    let mut other = server.client();
    other.send(&request);
    let expected = answer(&mut other, "POST");
    assert_eq!(expected.status, 200);
    // More than the kernel keeps for a client that does not read.
    assert!(expected.body.len() > 10 << 20, "{}", expected.body.len());

    let mut slow = server.client();
    slow.send(&request);
    assert_eq!(other.get("/health").status, 200);
    let mut got = Vec::new();
    let mut piece = [0; 4096];
    let mut wanted = usize::MAX;
    while got.len() < wanted {
        let length = slow.stream.read(&mut piece).unwrap();
        assert!(length > 0, "ended after {} bytes", got.len());
        got.extend_from_slice(&piece[..length]);
        if wanted == usize::MAX {
            let end = got.windows(4).position(|bytes| bytes == b"\r\n\r\n");
            wanted = end.map_or(wanted, |end| end + 4 + expected.body.len());
            assert_eq!(other.get("/health").status, 200);
        }
    }
    let announced = format!("\r\ncontent-length: {}\r\n", expected.body.len());
    assert!(String::from_utf8_lossy(&got[..400]).contains(&announced));
    assert!(got.len() == wanted && got.ends_with(&expected.body));
    assert_eq!(slow.get("/health").status, 200);
}

#[test]
fn limits_are_settings() {
    let server = serve(&[
        "--no-access-log",
        "--limit-request-line=100",
        "--limit-request-fields=3",
        "--limit-request-field_size=64",
        "--limit-request-body=10",
    ]);
    let cases = [
        (414, line_of(101)),
        (431, fields_of(4)),
        (431, field_of(65)),
        (413, with_fields(b"content-length: 11")),
        (413, with_chunks(b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n")),
    ];
    assert_refused(&server, cases);
    let mut client = server.client();
    assert_served(&mut client, 404, &line_of(100));
    assert_served(&mut client, 200, &fields_of(3));
    assert_served(&mut client, 200, &field_of(64));
    assert_served(&mut client, 405, &encode("POST", "/health", &[], b"0123456789"));
    assert_served(&mut client, 405, &with_chunks(b"5\r\nhello\r\n5\r\nworld\r\n0\r\n\r\n"));

    let mut client = server.client();
    client.send(&encode("POST", "/health", &[], &vec![b'a'; 1 << 20]));
    assert_eq!(answer(&mut client, "POST").status, 413, "while the body is still on its way");
    assert_ended(&mut client, "after a body that is too long");
}

#[test]
fn limits_of_zero_are_none_but_for_fields() {
    let limits = ["--limit-request-line=0", "--limit-request-field_size=0", "--limit-request-body=0"];
    let server = serve(&[&["--no-access-log"], limits.as_slice()].concat());
    assert_refused(&server, [(431, field_of(8191))]);
    let mut client = server.client();
    assert_served(&mut client, 404, &line_of(20_000));
    assert_served(&mut client, 200, &field_of(8190));
    client.send(b"POST /health HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 100000000\r\n\r\n");
    assert_eq!(answer(&mut client, "POST").status, 100);
}

#[test]
fn connections_that_stand_still_are_ended() {
    let timeouts = ["--header-timeout=1", "--body-timeout=1", "--keep-alive-timeout=1"];
    let server = serve(&[&["--no-access-log"], timeouts.as_slice()].concat());
    let start = Instant::now();
    // Each client speaks as soon as it is connected: the timeouts run from then.
    let mut silent = server.client();
    let mut idle = server.client();
    assert_eq!(idle.get("/health").status, 200);
    let mut head = server.client();
    head.send(b"GET /health HTTP/1.1\r\nhost:");
    let mut later_head = server.client();
    later_head.send(&[SECOND, b"G"].concat());
    assert_eq!(answer(&mut later_head, "GET").status, 200);
    let mut body = server.client();
    body.send(b"POST /health HTTP/1.1\r\ncontent-length: 10\r\n\r\nhello");
    let mut chunk = server.client();
    chunk.send(&with_chunks(b"5\r\nhel"));
    let late = [
        ("a head", &mut head),
        ("a later head", &mut later_head),
        ("a body", &mut body),
        ("a chunk", &mut chunk),
    ];
    for (what, client) in late {
        let got = answer(client, "GET");
        assert_eq!((got.status, got.closes()), (408, true), "{what}");
        assert_ended(client, what);
    }
    assert_ended(&mut silent, "no byte ever");
    assert_ended(&mut idle, "keep-alive");
    assert!(start.elapsed() >= Duration::from_secs(1));

    // A head has one deadline, however slowly its bytes come.
    let mut slow = server.client();
    slow.stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    slow.send(b"GET /health HTTP/1.1\r\nx: ");
    let mut got = None;
    eventually("an answer to a head without end", || {
        let _ = slow.stream.write_all(b"a");
        got = slow.receive("GET").unwrap_or(None);
        got.is_some()
    });
    assert_eq!(got.unwrap().status, 408);
}

/// The timeouts are for what the client does, not for what it waits for.
#[test]
fn a_request_that_waits_for_the_store_is_not_cut_off() {
    let timeouts = ["--header-timeout=1", "--body-timeout=1", "--keep-alive-timeout=1"];
    let server = serve(&[&["--no-access-log"], timeouts.as_slice()].concat());
    let writer = rusqlite::Connection::open(server.repo.path().join("online_store.db")).unwrap();
    writer.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let mut client = server.client();
    client.send(&encode("POST", PATH, &[], BODY.as_bytes()));
    // Longer than the timeouts, shorter than the patience with the store (5 s).
    client.stream.set_read_timeout(Some(Duration::from_millis(2500))).unwrap();
    assert_eq!(client.receive("POST").unwrap_err().kind(), ErrorKind::WouldBlock);
    writer.execute_batch("COMMIT").unwrap();
    client.stream.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(answer(&mut client, "POST").status, 200);
}

#[test]
fn connections_above_the_limit_wait_for_their_turn() {
    let server = serve(&["--no-access-log", "-w", "1", "--worker-connections", "2"]);
    let (mut first, mut second) = (server.client(), server.client());
    assert_eq!((first.get("/health").status, second.get("/health").status), (200, 200));
    let mut third = server.client();
    third.send(&encode("GET", "/health", &[], b""));
    for _ in 0..5 {
        assert_eq!((first.get("/health").status, second.get("/health").status), (200, 200));
    }
    third.stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    assert_eq!(third.receive("GET").unwrap_err().kind(), ErrorKind::WouldBlock);
    drop(first);
    third.stream.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(answer(&mut third, "GET").status, 200);
    assert_eq!((second.get("/health").status, third.get("/health").status), (200, 200));
}

fn over_unix(path: &Path, request: &[u8]) -> String {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn several_addresses_are_served_and_the_unix_socket_goes_with_the_server() {
    let repo = Repo::copy_of("kitchen_sink");
    let path = repo.path().join("api.sock");
    let unix = format!("unix:{}", path.display());
    let binds = ["--bind", "127.0.0.1:0", "--bind", unix.as_str(), "--bind", "127.0.0.1:0"];
    let mut server = Server::start(repo, &binds);
    let log = server.log();
    let line = log.lines().find(|line| line.contains("Listening at: ")).unwrap();
    let ports: Vec<u16> = line
        .split("http://127.0.0.1:")
        .skip(1)
        .map(|rest| rest.split([',', ' ']).next().unwrap().parse().unwrap())
        .collect();
    assert_eq!(ports.len(), 2, "{line}");
    for port in ports {
        assert_eq!(Client::connect(port).get("/health").status, 200);
    }
    let close = [("connection", "close"), ("x-forwarded-for", "1.2.3.4")];
    let got = over_unix(&path, &encode("POST", PATH, &close, BODY.as_bytes()));
    assert!(got.starts_with("HTTP/1.1 200 OK\r\n") && got.contains("\"rating\""), "{got}");
    assert!(over_unix(&path, b"BREW / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 400 Bad Request\r\n"));
    eventually("an access line without an address", || {
        server.log().lines().any(|line| line == format!(" - \"POST {PATH} HTTP/1.1\" 200"))
    });
    // A second server neither takes the socket over nor removes it.
    let second = std::process::Command::new(common::binary())
        .args(["-c", server.repo.path().to_str().unwrap(), "serve", "--bind", &unix])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&second.stderr);
    assert_eq!(second.status.code(), Some(1), "{text}");
    assert!(text.contains("another server listens there; stop it or choose another path"), "{text}");
    assert!(over_unix(&path, b"BREW / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 400 Bad Request\r\n"));
    server.signal(Signal::SIGTERM);
    assert!(server.wait().success());
    assert!(!path.exists());
}

#[test]
fn a_socket_that_was_replaced_is_left_alone() {
    let repo = Repo::copy_of("kitchen_sink");
    let path = repo.path().join("api.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let unix = format!("unix:{}", path.display());
    // The socket of a dead server is in nobody's way.
    let mut server = Server::start(repo, &["--bind", &unix]);
    assert!(over_unix(&path, b"BREW / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 400 Bad Request\r\n"));
    fs::rename(&path, path.with_extension("old")).unwrap();
    let _other = std::os::unix::net::UnixListener::bind(&path).unwrap();
    server.signal(Signal::SIGTERM);
    assert!(server.wait().success());
    assert!(path.exists());
}

#[test]
fn access_lines_are_uvicorns() {
    let server = serve(&[]);
    let mut client = server.client();
    let peer = client.stream.local_addr().unwrap();
    client.get("/no%20such%2Fpath/%C3%A9?a=b%20c&x=%C3%A9");
    client.post(PATH, BODY);
    client.request("HEAD", "/health", &[], b"");
    client.get("http://testhost/health?x=1");
    let forwarded = [("x-forwarded-for", "9.9.9.9, 1.2.3.4, 127.0.0.1"), ("x-forwarded-proto", "https")];
    let redirect = client.request("GET", "/health/?a=b", &forwarded, b"");
    assert_eq!(redirect.header("location"), Some("https://testhost/health?a=b"));
    client.send(b"GET /health HTTP/1.0\r\n\r\n");
    assert_eq!(answer(&mut client, "GET").status, 200);
    let expected = [
        format!("{peer} - \"GET /no%20such/path/%C3%A9?a=b%20c&x=%C3%A9 HTTP/1.1\" 404"),
        format!("{peer} - \"POST /get-online-features HTTP/1.1\" 200"),
        format!("{peer} - \"HEAD /health HTTP/1.1\" 405"),
        format!("{peer} - \"GET /health?x=1 HTTP/1.1\" 200"),
        "1.2.3.4:0 - \"GET /health/?a=b HTTP/1.1\" 307".to_owned(),
        format!("{peer} - \"GET /health HTTP/1.0\" 200"),
    ];
    let lines = || -> Vec<String> {
        server.log().lines().filter(|line| line.contains(" - \"")).map(str::to_owned).collect()
    };
    eventually("all access lines", || lines().len() >= expected.len());
    assert_eq!(lines(), expected);
}

#[test]
fn forwarding_headers_of_strangers_are_not_believed() {
    let server = serve(&["--forwarded-allow-ips", "10.0.0.0/8"]);
    let mut client = server.client();
    let peer = client.stream.local_addr().unwrap();
    let forwarded = [("x-forwarded-for", "1.2.3.4"), ("x-forwarded-proto", "https")];
    let redirect = client.request("GET", "/health/", &forwarded, b"");
    assert_eq!(redirect.header("location"), Some("http://testhost/health"));
    let line = format!("{peer} - \"GET /health/ HTTP/1.1\" 307");
    eventually("the peer's own address", || server.log().lines().any(|found| found == line));
}

#[test]
fn the_access_format_is_gunicorns() {
    let format =
        "%(h)s %(l)s %(u)s \"%(r)s\" %(s)s %(b)s \"%(f)s\" \"%(a)s\" %({X-Id}i)s %({content-length}o)s \
                  %(m)s %(U)s %(q)s %(H)s|%(L)s %(t)s %(p)s";
    let server = serve(&["--access-logformat", format]);
    let mut client = server.client();
    let headers = [("user-agent", "agent \"q\""), ("x-id", "7"), ("authorization", "Basic Ym9iOng=")];
    client.request("GET", "/no%20pe\"?a=b", &headers, b"");
    client.request("HEAD", "/health", &[], b"");
    // No bytes of a body are sent to HEAD.
    let expected = [
        "127.0.0.1 - bob \"GET /no%20pe\\\"?a=b HTTP/1.1\" 404 22 \"-\" \"agent \\\"q\\\"\" 7 22 \
         GET /no pe\\\" a=b HTTP/1.1",
        "127.0.0.1 - - \"HEAD /health HTTP/1.1\" 405 0 \"-\" \"-\" - 31 HEAD /health  HTTP/1.1",
    ];
    let lines = || -> Vec<String> {
        server.log().lines().filter(|line| line.starts_with("127.0.0.1 ")).map(str::to_owned).collect()
    };
    eventually("both access lines", || lines().len() == 2);
    let process = format!("<{}>", server.workers()[0]);
    for (line, expected) in lines().iter().zip(expected) {
        let (fixed, changing) = line.split_once('|').unwrap();
        assert_eq!(fixed, expected);
        let words: Vec<&str> = changing.split(' ').collect();
        assert_eq!((words.len(), words[2], words[3]), (4, "+0000]", process.as_str()), "{changing}");
        assert!(words[0].parse::<f64>().unwrap() < 20.0 && words[1].starts_with('['), "{changing}");
    }
}

#[test]
fn a_renamed_access_log_is_opened_again_on_usr1() {
    fn has(path: &Path, text: &str) -> bool {
        fs::read_to_string(path).is_ok_and(|log| log.contains(text))
    }
    let repo = Repo::copy_of("kitchen_sink");
    let (current, moved) = (repo.path().join("access.log"), repo.path().join("access.log.1"));
    let file = current.display().to_string();
    let mut server = Server::start(repo, &["-w", "1", "--access-logfile", file.as_str()]);
    let mut client = server.client();
    client.get("/first");
    eventually("a line in the file", || has(&current, "\"GET /first HTTP/1.1\" 404\n"));
    fs::rename(&current, &moved).unwrap();
    client.get("/second");
    eventually("a line in the renamed file", || has(&moved, "/second"));
    server.signal(Signal::SIGUSR1);
    eventually("a new file", || current.exists());
    client.get("/third");
    eventually("a line in the new file", || has(&current, "/third"));
    assert!(!has(&moved, "/third") && !has(&current, "/second"));
    server.wait_for_log("Handling signal: usr1");
    assert!(!server.log().contains("/first"), "{}", server.log());
}
