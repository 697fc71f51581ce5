//! From layers of arguments to settings: flag, environment, file, default, in this order.

use std::time::Duration;

use clap::{CommandFactory, Parser};
use serde_json::Value;

use super::args::{LayerArgs, ServeArgs};
use crate::config::settings::{Journal, MetricsSettings, ProxyRules, TlsFiles, TrustedPeers};
use crate::config::yaml::Yaml;
use crate::config::{Bind, Settings, StoreConfig};
use crate::exit;
use crate::http::proxy::Versions;
use crate::http::{head, Limits};
use crate::ipc::scoreboard::MAX_WORKERS;
use crate::logging::logger::Target;
use crate::master::StartError;
use crate::metrics::meters::LiveLabel;
use crate::metrics::statsd::StatsdSettings;
use crate::os::process::Identity;
use crate::tls::server::ClientCerts;

/// Name of the variable that holds more arguments.
pub(super) const CMD_ARGS: &str = "FEAST_PREFORK_CMD_ARGS";

/// Ten years: longer than any timeout needs to be, and short enough to be added to a clock.
const LONGEST: u64 = 315_360_000;

/// Puts the layers together: what `flags` leave open comes from `words`, then from the file's block.
pub(super) fn layers(
    flags: &ServeArgs,
    words: Option<&str>,
    store: &StoreConfig,
) -> Result<ServeArgs, StartError> {
    let mut merged = to_map(flags);
    if let Some(words) = words {
        let split = shlex::split(words)
            .ok_or_else(|| StartError::new(exit::USAGE, format!("{CMD_ARGS}: a quote is not closed")))?;
        let layer = LayerArgs::try_parse_from(split)
            .map_err(|error| StartError::new(exit::USAGE, format!("{CMD_ARGS}: {}", first_line(&error))))?;
        if layer.serve.print_config || layer.serve.check_config {
            let text = "--print-config and --check-config belong on the command line";
            return Err(StartError::new(exit::USAGE, format!("{CMD_ARGS}: {text}")));
        }
        fill(&mut merged, to_map(&layer.serve));
    }
    fill(&mut merged, to_map(&file_layer(store)?));
    if let Ok(list) = std::env::var("FORWARDED_ALLOW_IPS") {
        // A default only, as in gunicorn: every layer stands above it.
        fill(&mut merged, to_map(&ServeArgs { forwarded_allow_ips: Some(list), ..ServeArgs::default() }));
    }
    serde_json::from_value(Value::Object(merged))
        .map_err(|error| StartError::new(exit::CONFIG, error.to_string()))
}

fn first_line(error: &clap::Error) -> String {
    let text = error.to_string();
    text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
}

type Map = serde_json::Map<String, Value>;

fn to_map(args: &ServeArgs) -> Map {
    match serde_json::to_value(args) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    }
}

/// Takes from `lower` what is not set in `upper`. `host`/`port` and `bind` exclude each other over layers.
fn fill(upper: &mut Map, lower: Map) {
    let unset = |value: Option<&Value>| match value {
        None | Some(Value::Null | Value::Bool(false)) => true,
        Some(Value::Array(items)) => items.is_empty(),
        Some(_) => false,
    };
    let upper_binds = !unset(upper.get("bind"));
    let upper_host = !unset(upper.get("host")) || !unset(upper.get("port"));
    for (key, value) in lower {
        let shadowed = match key.as_str() {
            "host" | "port" => upper_binds,
            "bind" => upper_host,
            _ => false,
        };
        if !shadowed && unset(upper.get(&key)) {
            upper.insert(key, value);
        }
    }
}

/// The `feast_prefork` block, read as if its keys were flags.
fn file_layer(store: &StoreConfig) -> Result<ServeArgs, StartError> {
    let command = LayerArgs::command();
    let mut words = Vec::new();
    for (key, value) in &store.own_settings {
        let wrong = |problem: String| {
            StartError::new(exit::CONFIG, format!("{}: feast_prefork.{key}: {problem}", store.source))
        };
        let wanted = key.replace('_', "-");
        let flag = command
            .get_arguments()
            .filter(|arg| !["help", "print_config", "check_config"].contains(&arg.get_id().as_str()))
            .filter_map(|arg| arg.get_long())
            .find(|long| long.replace('_', "-") == wanted)
            .ok_or_else(|| wrong("unknown setting; see `feast-prefork serve --help`".to_owned()))?;
        let scalar = |value: &Yaml| match value {
            Yaml::Str(text) => Ok(text.clone()),
            // An octal literal (0o27) was read as its value; a plain 27 cannot be told from it.
            Yaml::Int(_) if wanted == "umask" => {
                Err(wrong("write the mask in quotes, such as '027'".to_owned()))
            }
            Yaml::Int(number) => Ok(number.to_string()),
            Yaml::Float(number) => Ok(number.to_string()),
            other => Err(wrong(format!("expected one value, found {}", other.kind()))),
        };
        match value {
            Yaml::Null | Yaml::Bool(false) => {}
            Yaml::Bool(true) => words.push(format!("--{flag}")),
            Yaml::List(items) if wanted == "forwarded-allow-ips" => {
                let items: Result<Vec<String>, _> = items.iter().map(scalar).collect();
                words.push(format!("--{flag}={}", items?.join(",")));
            }
            Yaml::List(items) => {
                for item in items {
                    words.push(format!("--{flag}={}", scalar(item)?));
                }
            }
            value => words.push(format!("--{flag}={}", scalar(value)?)),
        }
        // Parsed key by key, so that a mistake is reported with its own key.
        LayerArgs::try_parse_from(&words).map_err(|error| wrong(first_line(&error)))?;
    }
    LayerArgs::try_parse_from(&words).map(|layer| layer.serve).map_err(|error| {
        StartError::new(exit::CONFIG, format!("{}: feast_prefork: {}", store.source, first_line(&error)))
    })
}

/// Makes settings of the merged arguments.
pub(super) fn settings(args: &ServeArgs) -> Result<Settings, StartError> {
    let usage = |text: String| StartError::new(exit::USAGE, text);
    refuse_later_work(args)?;
    let limits = Limits::default();
    let seconds = |value: Option<u64>, default| Duration::from_secs(value.unwrap_or(default).min(LONGEST));
    // Zero means no limit where a limit of zero would refuse everybody.
    let patience = |value: Option<u64>| seconds(value.map(|v| if v == 0 { LONGEST } else { v }), 60);
    let access_log = match args.access_logfile.as_deref() {
        _ if args.no_access_log => Target::Off,
        None | Some("-") => Target::Stdout,
        Some(path) => Target::File(path.into()),
    };
    let settings = Settings {
        binds: binds(args)?,
        tls: tls(args)?,
        proxy_protocol: proxy_protocol(args)?,
        backlog: i32::try_from(args.backlog.unwrap_or(2048))
            .map_err(|_| usage("--backlog: too large".to_owned()))?,
        reuse_port: args.reuse_port,
        workers: workers(args.workers.unwrap_or(1))?,
        worker_connections: args.worker_connections.map(|most| most as usize),
        max_requests: args.max_requests.unwrap_or(1000),
        max_requests_jitter: args.max_requests_jitter.unwrap_or(50).min(u64::MAX - 1),
        keep_alive: seconds(args.keep_alive_timeout, 30),
        timeout: seconds(args.timeout, 30),
        boot_timeout: seconds(args.boot_timeout, 60),
        graceful_timeout: seconds(args.graceful_timeout, 30),
        registry_ttl: seconds(args.registry_ttl_sec, 60),
        header_timeout: patience(args.header_timeout),
        body_timeout: patience(args.body_timeout),
        limits: Limits {
            request_line: args.limit_request_line.unwrap_or(limits.request_line),
            fields: match args.limit_request_fields {
                None => limits.fields,
                Some(0) => head::MAX_FIELDS,
                Some(count) => count.min(head::MAX_FIELDS),
            },
            field_size: match args.limit_request_field_size {
                None | Some(0) => limits.field_size,
                Some(size) => size,
            },
            body: args.limit_request_body.unwrap_or(limits.body),
        },
        trusted: TrustedPeers::parse(args.forwarded_allow_ips.as_deref().unwrap_or("127.0.0.1,::1"))
            .map_err(|error| usage(format!("--forwarded-allow-ips: {error}")))?,
        access_log,
        access_format: args.access_logformat.clone(),
        error_log: match args.error_logfile.as_deref() {
            None | Some("-") => Target::Stderr,
            Some(path) => Target::File(path.into()),
        },
        pid_file: args.pid.clone(),
        control_socket: args.control_socket.clone(),
        identity: Identity::find(args.user.as_deref(), args.group.as_deref())
            .map_err(|text| StartError::new(exit::CONFIG, text))?,
        umask: match &args.umask {
            None => 0,
            Some(text) => u32::from_str_radix(text.trim_start_matches("0o"), 8)
                .ok()
                .filter(|mask| *mask <= 0o777)
                .ok_or_else(|| usage(format!("--umask: '{text}' is not an octal mask such as 007")))?,
        },
        strict_content_type: args.strict_content_type,
        strict_lifecycle: args.strict_lifecycle,
        enforce_ttl: args.enforce_ttl,
        metrics: metrics(args)?,
        statsd: statsd(args)?,
        store_timeout: Duration::from_millis(args.store_timeout_ms.unwrap_or(1000).clamp(1, LONGEST)),
        store_in_flight: args.store_in_flight.unwrap_or(4096).max(1),
        sqlite_journal: journal(args)?,
        spool: args.spool_dir.clone(),
    };
    if settings.worker_connections == Some(0) {
        return Err(usage("--worker-connections: must be at least 1".to_owned()));
    }
    if settings.reuse_port && settings.binds.iter().any(|bind| !matches!(bind, Bind::Tcp { .. })) {
        return Err(usage("--reuse-port: works with TCP addresses only".to_owned()));
    }
    Ok(settings)
}

/// Flags whose work is not done yet are refused, so that nobody believes they do something.
fn refuse_later_work(args: &ServeArgs) -> Result<(), StartError> {
    let later = |flag: &str| {
        StartError::new(exit::USAGE, format!("{flag}: not supported by this version of feast-prefork"))
    };
    match args.r#type.as_deref() {
        None | Some("http") => {}
        Some("grpc") => return Err(later("--type grpc")),
        Some(other) => {
            let text = format!("--type: this server only supports 'http', got '{other}' instead");
            return Err(StartError::new(exit::CONFIG, text));
        }
    }
    Ok(())
}

fn tls(args: &ServeArgs) -> Result<Option<TlsFiles>, StartError> {
    let usage = |text: &str| Err(StartError::new(exit::USAGE, text));
    let clients = match args.cert_reqs.as_deref() {
        None | Some("0" | "none") => ClientCerts::None,
        Some("1" | "optional") => ClientCerts::Optional,
        Some("2" | "required") => ClientCerts::Required,
        Some(other) => {
            return usage(&format!("--cert-reqs '{other}': use 0 (none), 1 (optional) or 2 (required)"))
        }
    };
    let pair = args.cert.clone().zip(args.key.clone());
    Ok(pair.map(|(cert, key)| TlsFiles { cert, key, ca_certs: args.ca_certs.clone(), clients }))
}

/// What can only be judged when all layers are there: a setting that would silently do nothing.
pub(super) fn check_together(args: &ServeArgs, settings: &Settings) -> Result<(), StartError> {
    let usage = |text: &str| Err(StartError::new(exit::USAGE, text));
    if args.cert.is_some() != args.key.is_some() {
        return usage(
            "Invalid value: Please pass --cert and --key args to start the feature server in TLS mode.",
        );
    }
    let asks = settings.tls.as_ref().is_some_and(|tls| tls.clients != ClientCerts::None);
    if settings.tls.is_none() && (args.ca_certs.is_some() || args.cert_reqs.is_some()) {
        return usage("--ca-certs and --cert-reqs need TLS: pass --cert and --key");
    }
    if asks && args.ca_certs.is_none() {
        return usage("--cert-reqs: name the authorities of the clients with --ca-certs");
    }
    if args.ca_certs.is_some() && !asks {
        return usage(
            "--ca-certs: add --cert-reqs 1 (optional) or 2 (required), otherwise no client is asked",
        );
    }
    if settings.statsd.is_none() && (args.statsd_prefix.is_some() || args.dogstatsd_tags.is_some()) {
        return usage("--statsd-prefix and --dogstatsd-tags need --statsd-host");
    }
    if args.proxy_allow_ips.is_some() && settings.proxy_protocol.is_none() {
        return usage("--proxy-allow-ips: add --proxy-protocol v1, v2 or auto");
    }
    Ok(())
}

fn proxy_protocol(args: &ServeArgs) -> Result<Option<ProxyRules>, StartError> {
    let versions = match args.proxy_protocol.as_deref() {
        None | Some("off") => return Ok(None),
        Some("v1") => Versions::One,
        Some("v2") => Versions::Two,
        Some("auto") => Versions::Either,
        Some(other) => {
            let text = format!("--proxy-protocol '{other}': use off, v1, v2 or auto");
            return Err(StartError::new(exit::USAGE, text));
        }
    };
    let list = args.proxy_allow_ips.as_deref().unwrap_or("127.0.0.1,::1");
    let trusted = TrustedPeers::parse(list)
        .map_err(|error| StartError::new(exit::USAGE, format!("--proxy-allow-ips: {error}")))?;
    Ok(Some(ProxyRules { versions, trusted }))
}

fn journal(args: &ServeArgs) -> Result<Journal, StartError> {
    match args.sqlite_journal.as_deref() {
        None | Some("wal") => Ok(Journal::Wal),
        Some("keep") => Ok(Journal::Keep),
        Some(other) => {
            Err(StartError::new(exit::USAGE, format!("--sqlite-journal '{other}': use wal or keep")))
        }
    }
}

fn metrics(args: &ServeArgs) -> Result<MetricsSettings, StartError> {
    Ok(MetricsSettings {
        enabled: args.metrics,
        host: args.metrics_host.as_ref().map(|host| host.trim_matches(['[', ']']).to_owned()),
        port: args.metrics_port.unwrap_or(8000),
        live_label: match args.metrics_live_label.as_deref() {
            None | Some("pid") => LiveLabel::Pid,
            Some("slot") => LiveLabel::Slot,
            Some(other) => {
                let text = format!("--metrics-live-label '{other}': use pid or slot");
                return Err(StartError::new(exit::USAGE, text));
            }
        },
    })
}

fn statsd(args: &ServeArgs) -> Result<Option<StatsdSettings>, StartError> {
    let Some(host) = &args.statsd_host else { return Ok(None) };
    let Ok(Bind::Tcp { host: name, port }) = Bind::parse(host) else {
        return Err(StartError::new(exit::USAGE, format!("--statsd-host {host}: use HOST:PORT")));
    };
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    Ok(Some(StatsdSettings::new(&name, port, &text(&args.statsd_prefix), &text(&args.dogstatsd_tags))))
}

fn binds(args: &ServeArgs) -> Result<Vec<Bind>, StartError> {
    if args.bind.is_empty() {
        let host = args.host.clone().unwrap_or_else(|| "127.0.0.1".to_owned());
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        return Ok(vec![Bind::Tcp { host, port: args.port.unwrap_or(6566) }]);
    }
    if args.host.is_some() || args.port.is_some() {
        let text = "--bind: cannot be used together with --host or --port";
        return Err(StartError::new(exit::USAGE, text));
    }
    let parse = |text: &String| {
        Bind::parse(text).map_err(|error| StartError::new(exit::USAGE, format!("--bind {text}: {error}")))
    };
    args.bind.iter().map(parse).collect()
}

fn workers(asked: i64) -> Result<usize, StartError> {
    match asked {
        -1 => Ok(2 * num_cpus::get() + 1),
        1.. if asked as usize <= MAX_WORKERS => Ok(asked as usize),
        _ => {
            let text =
                format!("--workers {asked}: use -1 (2 x cores + 1) or a number from 1 to {MAX_WORKERS}");
            Err(StartError::new(exit::USAGE, text))
        }
    }
}

/// `name = value` lines, sorted and aligned.
pub(super) fn print(args: &ServeArgs, settings: &Settings) -> String {
    let mut map = to_map(args);
    let mut set = |key: &str, value: Value| map.insert(key.to_owned(), value);
    let seconds = |duration: Duration| Value::from(duration.as_secs());
    let binds: Vec<String> = settings.binds.iter().map(ToString::to_string).collect();
    set("bind", Value::from(binds));
    set("workers", Value::from(settings.workers));
    set("backlog", Value::from(settings.backlog));
    set("max_requests", Value::from(settings.max_requests));
    set("max_requests_jitter", Value::from(settings.max_requests_jitter));
    set("keep_alive_timeout", seconds(settings.keep_alive));
    set("registry_ttl_sec", seconds(settings.registry_ttl));
    set("timeout", seconds(settings.timeout));
    set("boot_timeout", seconds(settings.boot_timeout));
    set("graceful_timeout", seconds(settings.graceful_timeout));
    set("header_timeout", seconds(settings.header_timeout));
    set("body_timeout", seconds(settings.body_timeout));
    set("limit_request_line", Value::from(settings.limits.request_line));
    set("limit_request_fields", Value::from(settings.limits.fields));
    set("limit_request_field_size", Value::from(settings.limits.field_size));
    set("limit_request_body", Value::from(settings.limits.body));
    set("umask", Value::from(format!("{:03o}", settings.umask)));
    set("type", Value::from("http"));
    set("store_timeout_ms", Value::from(settings.store_timeout.as_millis() as u64));
    set("store_in_flight", Value::from(settings.store_in_flight));
    set("sqlite_journal", Value::from(if settings.sqlite_journal == Journal::Wal { "wal" } else { "keep" }));
    set("metrics_port", Value::from(settings.metrics.port));
    for (key, given, default) in [
        ("cert_reqs", &args.cert_reqs, "0"),
        ("proxy_protocol", &args.proxy_protocol, "off"),
        ("metrics_live_label", &args.metrics_live_label, "pid"),
    ] {
        if given.is_none() {
            set(key, Value::from(default));
        }
    }
    if settings.proxy_protocol.is_some() && args.proxy_allow_ips.is_none() {
        set("proxy_allow_ips", Value::from("127.0.0.1,::1"));
    }
    if args.forwarded_allow_ips.is_none() {
        set("forwarded_allow_ips", Value::from("127.0.0.1,::1"));
    }
    if args.access_logfile.is_none() && !args.no_access_log {
        set("access_logfile", Value::from("-"));
    }
    if args.error_logfile.is_none() {
        set("error_logfile", Value::from("-"));
    }
    // `bind` shows these already.
    for key in ["host", "port"] {
        map.remove(key);
    }
    let width = map.keys().map(String::len).max().unwrap_or(0);
    let mut lines: Vec<String> = map
        .iter()
        .map(|(key, value)| match value {
            Value::String(text) => format!("{key:width$} = {text}"),
            Value::Null => format!("{key:width$} = none"),
            Value::Array(items) => {
                let items: Vec<&str> = items.iter().filter_map(Value::as_str).collect();
                format!("{key:width$} = {}", items.join(", "))
            }
            other => format!("{key:width$} = {other}"),
        })
        .collect();
    lines.sort();
    lines.join("\n")
}
