//! What an operator sees: exit codes, one-line errors, help, printed settings.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};

use common::{binary, Repo, Server};

fn run(dir: &Path, args: &[&str], env: &[(&str, &str)]) -> Output {
    Command::new(binary())
        .current_dir(dir)
        .args(args)
        .env("TZ", "UTC")
        .envs(env.iter().copied())
        .output()
        .unwrap()
}

/// Runs a command that must fail; returns the one line it says.
fn fails(dir: &Path, args: &[&str], env: &[(&str, &str)], code: i32) -> String {
    let output = run(dir, args, env);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {text}");
    text
}

fn yaml(repo: &Repo, text: &str) {
    fs::write(repo.path().join("feature_store.yaml"), text).unwrap();
}

#[test]
fn startup_errors_are_one_line_with_a_remedy() {
    let empty = tempfile::tempdir().unwrap();
    let text = fails(empty.path(), &["serve"], &[], 1);
    assert!(text.starts_with("Error: Can't find feature repo configuration file at "), "{text}");

    let repo = Repo::copy_of("kitchen_sink");
    for (config, expected) in [
        (
            "project: p\nregistry: r.db\nauth: {type: oidc}\n",
            "auth.type: authentication type 'oidc' is not supported",
        ),
        (
            "project: p\nregistry: r.db\nonline_store: {type: postgres}\n",
            "online_store.type: online store type 'postgres' is not supported; supported: sqlite",
        ),
        (
            "project: p\nregistry: {registry_type: sql, path: x}\n",
            "registry.registry_type: registry type 'sql' is not supported; supported: file",
        ),
        ("project: p\nregistry: s3://b/k\n", "registry scheme s3:// is not supported"),
        ("project: p\nregistry: deep/er/registry.db\n", "cannot read the registry"),
        ("project: p\nregistry: r.db\nfeast_prefork: {wrkers: 2}\n", "feast_prefork.wrkers: unknown setting"),
        (
            "project: p\nregistry: r.db\nfeast_prefork: {timeout: soon}\n",
            "feast_prefork.timeout: invalid value 'soon'",
        ),
    ] {
        yaml(&repo, config);
        let text = fails(repo.path(), &["serve", "--port", "0"], &[], 1);
        assert!(text.contains(expected), "{text}");
        assert_eq!(text.lines().filter(|line| line.starts_with("Error: ")).count(), 1, "{text}");
    }
}

#[test]
fn mistakes_on_the_command_line_exit_2() {
    let repo = Repo::copy_of("kitchen_sink");
    for (args, expected) in [
        (&["serve", "--nope"][..], "unexpected argument '--nope'"),
        (&["serve", "--workers", "0"], "--workers 0: use -1 (2 x cores + 1) or a number from 1 to"),
        (&["serve", "--workers", "-2"], "--workers -2: use -1"),
        (
            &["serve", "--bind", "127.0.0.1:0", "--port", "1"],
            "--bind: cannot be used together with --host or --port",
        ),
        (&["serve", "--bind", "127.0.0.1:x"], "'x' is not a valid port number."),
        (&["serve", "--metrics-live-label", "x"], "--metrics-live-label 'x': use pid or slot"),
        (
            &["serve", "--key", "k"],
            "Please pass --cert and --key args to start the feature server in TLS mode.",
        ),
        (&["serve", "--type", "grpc"], "--type grpc: not supported"),
        (&["serve", "--max-requests", "-1"], "invalid value"),
        (&["serve", "--umask", "9"], "not an octal mask"),
        (&["--log-level", "loud", "serve"], "use debug, info, warning, error or critical"),
        (&["nope"], "unrecognized subcommand 'nope'"),
        (&[], "Usage:"),
    ] {
        let text = fails(repo.path(), args, &[], 2);
        assert!(text.contains(expected), "{args:?}: {text}");
    }
    let text = fails(repo.path(), &["serve", "--type", "ftp"], &[], 1);
    assert!(text.contains("only supports 'http', got 'ftp'"), "{text}");
    let text = fails(repo.path(), &["serve"], &[("FEAST_PREFORK_CMD_ARGS", "--workers 'x")], 2);
    assert!(text.contains("FEAST_PREFORK_CMD_ARGS: a quote is not closed"), "{text}");
    let text = fails(repo.path(), &["serve"], &[("FEAST_PREFORK_CMD_ARGS", "--print-config")], 2);
    assert!(text.contains("FEAST_PREFORK_CMD_ARGS: --print-config and --check-config belong"), "{text}");
    let text = fails(repo.path(), &["serve", "--access-logfile", "/nonexistent/a"], &[], 1);
    assert!(text.contains("--access-logfile: '/nonexistent/a' isn't writable: No such file"), "{text}");
    let text = fails(repo.path(), &["serve", "--user", "nosuchuser"], &[], 1);
    assert!(text.contains("No such user: 'nosuchuser'"), "{text}");
}

#[test]
fn a_taken_port_and_a_broken_registry_have_their_codes() {
    let repo = Repo::copy_of("kitchen_sink");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let text = fails(repo.path(), &["serve", "--port", &port], &[], 1);
    assert!(
        text.contains("address already in use; stop the other server or choose another address"),
        "{text}"
    );
    fs::write(repo.path().join("registry.db"), b"not a registry").unwrap();
    let text = fails(repo.path(), &["serve", "--port", "0"], &[], 4);
    assert!(
        text.contains("Error parsing message with type 'feast.core.Registry': Wire format was corrupt"),
        "{text}"
    );
}

#[test]
fn settings_come_from_four_layers() {
    let repo = Repo::copy_of("kitchen_sink");
    let base = fs::read_to_string(repo.path().join("feature_store.yaml")).unwrap();
    yaml(&repo, &format!("{base}feast_prefork:\n  timeout: 11\n  graceful_timeout: 12\n  workers: 3\n  bind: ['127.0.0.1:1', '[::1]:2']\n  no_access_log: yes\n"));
    let env = [("FEAST_PREFORK_CMD_ARGS", "--workers=4 --timeout 21")];
    let output = run(repo.path(), &["serve", "--timeout", "31", "--print-config"], &env);
    let text = String::from_utf8(output.stdout).unwrap();
    let value = |key: &str| {
        let line = text
            .lines()
            .find(|line| line.split(' ').next() == Some(key))
            .unwrap_or_else(|| panic!("{key}: {text}"));
        line.split_once(" = ").unwrap().1.to_owned()
    };
    assert_eq!(value("timeout"), "31");
    assert_eq!(value("workers"), "4");
    assert_eq!(value("graceful_timeout"), "12");
    assert_eq!(value("max_requests"), "1000");
    assert_eq!(value("bind"), "127.0.0.1:1, [::1]:2");
    assert_eq!(value("no_access_log"), "true");
    let keys: Vec<&str> = text.lines().map(|line| line.split(' ').next().unwrap()).collect();
    assert!(keys.is_sorted(), "{text}");
    // A port on the command line takes the place of the file's addresses.
    let output = run(repo.path(), &["serve", "-p", "5", "--print-config"], &[]);
    assert!(String::from_utf8(output.stdout).unwrap().contains("= 127.0.0.1:5\n"));
}

#[test]
fn workers_minus_one_is_twice_the_cores_and_one() {
    let repo = Repo::copy_of("kitchen_sink");
    let output = run(repo.path(), &["serve", "-w", "-1", "--print-config"], &[]);
    let expected = 2 * num_cpus::get() + 1;
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.lines().any(|line| line.starts_with("workers ") && line.ends_with(&format!("= {expected}"))),
        "{text}"
    );
}

#[test]
fn check_config_loads_everything() {
    let repo = Repo::copy_of("kitchen_sink");
    let output = run(repo.path(), &["serve", "--check-config"], &[]);
    assert_eq!(output.status.code(), Some(0));
    assert!(String::from_utf8(output.stdout).unwrap().starts_with("ok: project kitchen_sink, "));
}

#[test]
fn the_configuration_is_found_as_feast_finds_it() {
    use base64::Engine;
    let repo = Repo::copy_of("kitchen_sink");
    let elsewhere = tempfile::tempdir().unwrap();
    let dir = repo.path().to_str().unwrap();
    let other = elsewhere.path().join("other.yaml");
    fs::copy(repo.path().join("feature_store.yaml"), &other).unwrap();
    let text = fs::read_to_string(&other).unwrap();
    let encoded = base64::engine::general_purpose::STANDARD.encode(text.replace("kitchen_sink", "$NAME"));
    let other = other.to_str().unwrap();
    let check = |cwd: &Path, args: &[&str], env: &[(&str, &str)]| {
        let output = run(cwd, args, env);
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            stdout.contains("project kitchen_sink"),
            "{args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    check(elsewhere.path(), &["-c", dir, "serve", "--check-config"], &[]);
    check(elsewhere.path(), &["serve", "--check-config"], &[("FEATURE_REPO_DIR_ENV_VAR", dir)]);
    // Paths start at the repository, never at the file.
    check(repo.path(), &["-f", other, "serve", "--check-config"], &[]);
    check(repo.path(), &["serve", "--check-config"], &[("FEAST_FS_YAML_FILE_PATH", other)]);
    let base64 = [("FEATURE_STORE_YAML_BASE64", encoded.as_str()), ("NAME", "kitchen_sink")];
    check(repo.path(), &["serve", "--check-config"], &base64);
}

#[test]
fn an_unset_variable_stays_and_is_warned_about() {
    let repo = Repo::copy_of("kitchen_sink");
    let text = fs::read_to_string(repo.path().join("feature_store.yaml")).unwrap();
    yaml(&repo, &(text + "project_description: ${NOT_SET_ANYWHERE}\n"));
    let output = run(repo.path(), &["serve", "--check-config"], &[]);
    assert_eq!(output.status.code(), Some(0));
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(log.contains("[WARNING]") && log.contains("not set, left as written: NOT_SET_ANYWHERE"), "{log}");
}

#[test]
fn a_missing_registry_is_created_and_an_empty_one_served() {
    let repo = Repo::copy_of("kitchen_sink");
    let file = repo.path().join("registry.db");
    fs::remove_file(&file).unwrap();
    let text = fails(repo.path(), &["serve", "--check-config"], &[], 4);
    assert!(text.contains("Registry not found at path"), "{text}");
    assert!(!file.exists(), "a check changes nothing");
    let server = Server::start(repo, &[]);
    assert!(server.log().contains("no registry there, created an empty one"));
    assert!(fs::metadata(&file).unwrap().len() > 40);
    assert_eq!(server.client().get("/health").status, 200);
    fs::write(&file, b"").unwrap();
    let output = run(server.repo.path(), &["serve", "--check-config"], &[]);
    assert_eq!(output.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&output.stderr).contains("the registry is empty"));
}

#[test]
fn help_fits_a_terminal_and_names_every_group() {
    let here = tempfile::tempdir().unwrap();
    for args in [&["--help"][..], &["serve", "--help"], &["quickstart", "--help"]] {
        let output = run(here.path(), args, &[("COLUMNS", "80")]);
        assert_eq!(output.status.code(), Some(0));
        let text = String::from_utf8(output.stdout).unwrap();
        let long: Vec<&str> = text.lines().filter(|line| line.chars().count() > 80).collect();
        assert!(long.is_empty(), "{long:?}");
        if args[0] == "serve" {
            for part in [
                "Options of `feast serve`",
                "Sockets",
                "Processes",
                "Clients",
                "Logs",
                "-h, --host",
                "--registry_ttl_sec",
            ] {
                assert!(text.contains(part), "{part} is not in\n{text}");
            }
        }
    }
}

#[test]
fn quickstart_makes_serves_and_reuses_a_repository() {
    let here = tempfile::tempdir().unwrap();
    for (round, first) in [(1, "Made a demo repository in"), (2, "Using the repository in")] {
        let output = run(here.path(), &["quickstart", "--once"], &[]);
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(
            output.status.code(),
            Some(0),
            "round {round}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(text.starts_with(first), "{text}");
        let body: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        assert_eq!(body["results"][0]["values"], serde_json::json!([1001, 1002]));
        assert_eq!(body["results"][1]["statuses"], serde_json::json!(["PRESENT", "PRESENT"]));
    }
    fs::create_dir(here.path().join("mine")).unwrap();
    fs::write(here.path().join("mine/file"), "x").unwrap();
    let text = fails(here.path(), &["quickstart", "--once", "--dir", "mine"], &[], 1);
    assert!(text.contains("it exists and is not a feature repository"), "{text}");
    assert!(here.path().join("mine/file").exists());
}
