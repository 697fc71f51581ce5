//! Sockets that systemd has opened for this process: descriptors from 3 on, with names.

use super::args::ServeArgs;

/// First descriptor that is handed over.
const FIRST: i32 = 3;
/// Name of the socket that serves metrics.
const METRICS: &str = "metrics";

/// Puts the sockets in the place of configured addresses, if `LISTEN_PID` says that they are ours. The one that is
/// called `metrics` serves metrics; all others serve requests.
pub(super) fn apply(args: &mut ServeArgs, env: impl Fn(&str) -> Option<String>) {
    let number = |name: &str| env(name).and_then(|text| text.parse::<i32>().ok());
    if number("LISTEN_PID") != Some(std::process::id().cast_signed()) {
        return;
    }
    let count = number("LISTEN_FDS").unwrap_or(0).max(0);
    let names = env("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    let mut binds = Vec::new();
    for fd in FIRST..FIRST + count {
        if names.next() == Some(METRICS) {
            args.metrics_host = Some(format!("fd://{fd}"));
        } else {
            binds.push(format!("fd://{fd}"));
        }
    }
    if !binds.is_empty() {
        args.bind = binds;
        args.host = None;
        args.port = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_replace_addresses() {
        let own = std::process::id().to_string();
        let env = |pid: String| {
            move |name: &str| match name {
                "LISTEN_PID" => Some(pid.clone()),
                "LISTEN_FDS" => Some("3".to_owned()),
                "LISTEN_FDNAMES" => Some("http:metrics:unknown".to_owned()),
                _ => None,
            }
        };
        let mut args = ServeArgs { port: Some(1), ..ServeArgs::default() };
        apply(&mut args, env("1".to_owned()));
        assert_eq!((args.port, args.bind.len()), (Some(1), 0));
        apply(&mut args, env(own));
        assert_eq!(args.bind, ["fd://3", "fd://5"]);
        assert_eq!((args.port, args.metrics_host.as_deref()), (None, Some("fd://4")));
    }
}
