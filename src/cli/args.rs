//! The command line. `ServeArgs` is the one table of the server's settings: its fields are also the keys of
//! the `feast_prefork` block and of `--print-config`.

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};

/// Serve the features of a Feast repository: a drop-in for `feast serve`, with gunicorn's process model.
#[derive(Debug, Parser)]
#[command(name = "feast-prefork", version, max_term_width = 100)]
#[command(after_help = "Exit codes: 0 stopped, 1 bad configuration or address, 2 bad command line,\n\
    3 workers cannot boot, 4 registry cannot be read.")]
pub(super) struct Cli {
    /// Repository directory: relative paths start there [default: the current directory]
    #[arg(short = 'c', long, env = "FEATURE_REPO_DIR_ENV_VAR", value_name = "DIR", hide_env = true)]
    pub(super) chdir: Option<PathBuf>,
    /// Configuration file [default: DIR/feature_store.yaml]
    #[arg(short = 'f', long, env = "FEAST_FS_YAML_FILE_PATH", value_name = "FILE", hide_env = true)]
    pub(super) feature_store_yaml: Option<PathBuf>,
    /// Lines to log: debug, info, warning, error or critical
    #[arg(long, value_name = "LEVEL", default_value = "info", value_parser = level)]
    pub(super) log_level: log::LevelFilter,
    #[command(subcommand)]
    pub(super) command: Command,
}

fn level(text: &str) -> Result<log::LevelFilter, String> {
    match text.to_ascii_lowercase().as_str() {
        "debug" => Ok(log::LevelFilter::Debug),
        "info" => Ok(log::LevelFilter::Info),
        "warning" => Ok(log::LevelFilter::Warn),
        "error" | "critical" => Ok(log::LevelFilter::Error),
        _ => Err("use debug, info, warning, error or critical".to_owned()),
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Serve features over HTTP
    #[command(disable_help_flag = true)]
    Serve(Box<ServeArgs>),
    /// Make a demo repository in ./feast-quickstart and serve it (no Python needed)
    Quickstart(QuickstartArgs),
    /// Make a new repository
    Init(InitArgs),
    /// Make registry and online store what definitions.yaml (or, through Feast's SDK, *.py) says
    Apply,
    /// Show what `apply` would change
    Plan,
    /// Write the newest rows of a window of time to the online store
    Materialize(MaterializeArgs),
    /// The same from where each view's last run ended
    MaterializeIncremental(IncrementalArgs),
    /// Remove a project's values and definitions
    Teardown,
    /// Feature views
    #[command(subcommand, name = "feature-views")]
    FeatureViews(ListCommand),
    /// Entities
    #[command(subcommand)]
    Entities(ListCommand),
    /// Feature services
    #[command(subcommand, name = "feature-services")]
    FeatureServices(ListCommand),
    /// Read features once, without a server
    GetOnlineFeatures(GetArgs),
    /// Ask or tell a running server through its control socket
    Ctl(CtlArgs),
    /// Watch a running server
    Top(TopArgs),
    /// Read Prometheus multiprocess metric files
    #[command(subcommand)]
    Metrics(MetricsCommand),
    /// Print the version
    Version,
}

/// Options of `init`.
#[derive(Debug, Args)]
pub(super) struct InitArgs {
    /// Name of the project and its folder [default: my_project]
    pub(super) name: Option<String>,
    /// Without the example
    #[arg(short, long)]
    pub(super) minimal: bool,
    /// Folder to make it in [default: ./NAME]
    #[arg(long, value_name = "DIR")]
    pub(super) repo_path: Option<PathBuf>,
}

/// Options of `materialize`.
#[derive(Debug, Args)]
pub(super) struct MaterializeArgs {
    /// First instant, e.g. 2025-03-01T00:00:00; UTC unless it names an offset
    #[arg(value_name = "START_TS")]
    pub(super) start: Option<String>,
    /// Last instant
    #[arg(value_name = "END_TS")]
    pub(super) end: Option<String>,
    /// Only this feature view; may be repeated
    #[arg(short = 'v', long = "views", value_name = "VIEW")]
    pub(super) views: Vec<String>,
    /// All rows, whatever their time
    #[arg(long)]
    pub(super) disable_event_timestamp: bool,
}

/// Options of `materialize-incremental`.
#[derive(Debug, Args)]
pub(super) struct IncrementalArgs {
    /// Last instant, ISO 8601
    #[arg(value_name = "END_TS")]
    pub(super) end: String,
    /// Only this feature view; may be repeated
    #[arg(short = 'v', long = "views", value_name = "VIEW")]
    pub(super) views: Vec<String>,
}

/// Subcommands of `feature-views` and its like.
#[derive(Debug, Clone, Copy, Subcommand)]
pub(super) enum ListCommand {
    /// Print them as a table
    List,
}

/// Options of `get-online-features`.
#[derive(Debug, Args)]
pub(super) struct GetArgs {
    /// NAME=VALUE of a join key; repeated for several rows
    #[arg(short, long, value_name = "NAME=VALUE", required = true)]
    pub(super) entities: Vec<String>,
    /// VIEW:FEATURE; may be repeated
    #[arg(short, long, value_name = "VIEW:FEATURE")]
    pub(super) features: Vec<String>,
    /// A feature service instead of features
    #[arg(short, long)]
    pub(super) service: Option<String>,
    /// Print the answer as a server would send it
    #[arg(long)]
    pub(super) json: bool,
}

/// Options of `ctl`.
#[derive(Debug, Args)]
pub(super) struct CtlArgs {
    /// The socket that the server was given with --control-socket
    #[arg(short, long, env = "FEAST_PREFORK_CONTROL", value_name = "PATH", hide_env = true)]
    pub(super) socket: PathBuf,
    /// Print JSON instead of a table
    #[arg(long)]
    pub(super) json: bool,
    #[command(subcommand)]
    pub(super) command: CtlCommand,
}

/// Options of `top`.
#[derive(Debug, Args)]
pub(super) struct TopArgs {
    /// The socket that the server was given with --control-socket
    #[arg(short, long, env = "FEAST_PREFORK_CONTROL", value_name = "PATH", hide_env = true)]
    pub(super) socket: PathBuf,
    /// Print once and stop, as without a terminal
    #[arg(long)]
    pub(super) once: bool,
}

/// Subcommands of `ctl`.
#[derive(Debug, Clone, Copy, Subcommand)]
pub(super) enum CtlCommand {
    /// Show the master and its workers
    Status,
    /// Show the workers only
    Workers,
    /// Check the new configuration and replace the workers (HUP)
    Reload,
    /// One worker more
    Ttin,
    /// One worker less
    Ttou,
    /// Open log files again
    Reopen,
    /// Start the binary that is there now with the same sockets, wait until it serves, and stop this one
    Upgrade,
    /// Finish what is under way and stop (TERM)
    Stop,
}

/// Subcommands of `metrics`.
#[derive(Debug, Subcommand)]
pub(super) enum MetricsCommand {
    /// Print what a scrape of a directory of multiprocess files answers
    Render {
        /// Directory with `counter_*.db`, `gauge_*.db`, `histogram_*.db`
        dir: PathBuf,
        /// Format of the text
        #[arg(long, value_enum, default_value = "text")]
        format: MetricsFormat,
    },
}

/// Formats of `metrics render`.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum MetricsFormat {
    /// Prometheus text format 0.0.4
    Text,
    /// OpenMetrics 1.0.0
    Openmetrics,
}

/// Options of `quickstart`.
#[derive(Debug, Args)]
pub(super) struct QuickstartArgs {
    /// Where the repository is made; an existing one is used as it is
    #[arg(long, value_name = "DIR", default_value = "feast-quickstart")]
    pub(super) dir: PathBuf,
    /// Port to serve on [default: 6566; with --once any free one]
    #[arg(short, long)]
    pub(super) port: Option<u16>,
    /// Workers to serve with; -1 = 2 x cores + 1
    #[arg(short, long, default_value_t = 2, allow_negative_numbers = true)]
    pub(super) workers: i64,
    /// Send one request, print the answer and stop
    #[arg(long)]
    pub(super) once: bool,
}

const FEAST: &str = "Options of `feast serve`";
const SOCKETS: &str = "Sockets";
const PROCESSES: &str = "Processes";
const CLIENTS: &str = "Clients";
const LOGS: &str = "Logs";
const STORE: &str = "Online store";
const METRICS: &str = "Metrics";
const ANSWERS: &str = "Differences from Feast";

/// Options of `serve`. Everything is optional: what is missing comes from `FEAST_PREFORK_CMD_ARGS`, then from
/// the `feast_prefork` block of `feature_store.yaml`, then from the defaults.
#[derive(Debug, Default, Clone, Args, Serialize, Deserialize)]
#[serde(default)]
#[command(next_help_heading = FEAST)]
pub(super) struct ServeArgs {
    /// Host to listen on [default: 127.0.0.1]
    #[arg(short = 'h', long)]
    pub(super) host: Option<String>,
    /// Port to listen on [default: 6566]
    #[arg(short, long)]
    pub(super) port: Option<u16>,
    /// Protocol; only http [default: http]
    #[arg(short = 't', long = "type")]
    pub(super) r#type: Option<String>,
    /// Write no line per request
    #[arg(long)]
    pub(super) no_access_log: bool,
    /// Worker processes; -1 = 2 x cores + 1 [default: 1]
    #[arg(short, long, value_name = "N", allow_negative_numbers = true)]
    pub(super) workers: Option<i64>,
    /// Most connections of a worker; unlimited unless given
    #[arg(long, value_name = "N")]
    pub(super) worker_connections: Option<u32>,
    /// Requests after which a worker is replaced; 0 = never [default: 1000]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(super) max_requests: Option<u64>,
    /// Most that is added to it at random, per worker [default: 50]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(super) max_requests_jitter: Option<u64>,
    /// Seconds an idle connection is kept [default: 30]
    #[arg(long, value_name = "SECONDS")]
    pub(super) keep_alive_timeout: Option<u64>,
    /// Seconds between looks at the registry; 0 = only on demand [default: 60]
    #[arg(short = 'r', long = "registry_ttl_sec", alias = "registry-ttl-sec", value_name = "SECONDS")]
    pub(super) registry_ttl_sec: Option<u64>,
    /// Private key of the certificate, PEM
    #[arg(short, long, value_name = "FILE")]
    pub(super) key: Option<PathBuf>,
    /// Serve HTTPS with this certificate (and those above it), PEM; read again on reload
    #[arg(short, long, value_name = "FILE")]
    pub(super) cert: Option<PathBuf>,
    /// Count requests and serve the numbers to Prometheus on --metrics-port
    #[arg(short, long)]
    pub(super) metrics: bool,

    /// HOST:PORT, [V6]:PORT, unix:PATH or fd://N; may be repeated
    #[arg(long, value_name = "ADDRESS", help_heading = SOCKETS)]
    pub(super) bind: Vec<String>,
    /// Connections the kernel queues [default: 2048]
    #[arg(long, value_name = "N", help_heading = SOCKETS)]
    pub(super) backlog: Option<u32>,
    /// A socket per worker instead of a shared one
    #[arg(long, help_heading = SOCKETS)]
    pub(super) reuse_port: bool,
    /// Creation mask of Unix sockets, octal [default: 0]
    #[arg(long, value_name = "MASK", help_heading = SOCKETS)]
    pub(super) umask: Option<String>,

    /// Seconds a worker may be silent; 0 = for ever [default: 30]
    #[arg(long, value_name = "SECONDS", help_heading = PROCESSES)]
    pub(super) timeout: Option<u64>,
    /// Seconds a worker may take to boot; 0 = for ever [default: 60]
    #[arg(long, value_name = "SECONDS", help_heading = PROCESSES)]
    pub(super) boot_timeout: Option<u64>,
    /// Seconds a stopping worker may finish its work [default: 30]
    #[arg(long, value_name = "SECONDS", help_heading = PROCESSES)]
    pub(super) graceful_timeout: Option<u64>,
    /// Socket for `feast-prefork ctl` (mode 0600)
    #[arg(long, value_name = "PATH", help_heading = PROCESSES)]
    pub(super) control_socket: Option<PathBuf>,
    /// File for the master's process number
    #[arg(long, value_name = "FILE", help_heading = PROCESSES)]
    pub(super) pid: Option<PathBuf>,
    /// User the workers run as
    #[arg(long, help_heading = PROCESSES)]
    pub(super) user: Option<String>,
    /// Group the workers run as
    #[arg(long, help_heading = PROCESSES)]
    pub(super) group: Option<String>,

    /// Bytes of a request line; 0 = unlimited [default: 4094]
    #[arg(long, value_name = "BYTES", help_heading = CLIENTS)]
    pub(super) limit_request_line: Option<usize>,
    /// Number of header fields [default: 100]
    #[arg(long, value_name = "N", help_heading = CLIENTS)]
    pub(super) limit_request_fields: Option<usize>,
    /// Bytes of a header line [default: 8190]
    #[arg(long = "limit-request-field_size", alias = "limit-request-field-size", value_name = "BYTES",
          help_heading = CLIENTS)]
    pub(super) limit_request_field_size: Option<usize>,
    /// Bytes of a request body; 0 = unlimited [default: 67108864]
    #[arg(long, value_name = "BYTES", help_heading = CLIENTS)]
    pub(super) limit_request_body: Option<u64>,
    /// Seconds a request head may take [default: 60]
    #[arg(long, value_name = "SECONDS", help_heading = CLIENTS)]
    pub(super) header_timeout: Option<u64>,
    /// Seconds a request body may stand still [default: 60]
    #[arg(long, value_name = "SECONDS", help_heading = CLIENTS)]
    pub(super) body_timeout: Option<u64>,
    /// Authorities whose client certificates are accepted, PEM
    #[arg(long, value_name = "FILE", help_heading = CLIENTS)]
    pub(super) ca_certs: Option<PathBuf>,
    /// Client certificates: 0 none, 1 optional, 2 required [default: 0]
    #[arg(long, value_name = "0|1|2", help_heading = CLIENTS)]
    pub(super) cert_reqs: Option<String>,
    /// Connections begin with a PROXY line: off, v1, v2 or auto (either) [default: off]
    #[arg(long, value_name = "off|v1|v2|auto", help_heading = CLIENTS)]
    pub(super) proxy_protocol: Option<String>,
    /// Balancers that may send one: addresses, networks, * [default: 127.0.0.1,::1]
    #[arg(long, value_name = "LIST", help_heading = CLIENTS)]
    pub(super) proxy_allow_ips: Option<String>,
    /// Proxies whose X-Forwarded headers count: addresses, networks, * [default: 127.0.0.1,::1]
    #[arg(long, value_name = "LIST", help_heading = CLIENTS)]
    pub(super) forwarded_allow_ips: Option<String>,

    /// File for access lines; - = standard output [default: -]
    #[arg(long, value_name = "FILE", help_heading = LOGS)]
    pub(super) access_logfile: Option<String>,
    /// gunicorn's access format, e.g. '%(h)s "%(r)s" %(s)s %(L)s' [default: uvicorn's line]
    #[arg(long, value_name = "FORMAT", help_heading = LOGS)]
    pub(super) access_logformat: Option<String>,
    /// File for everything else; - = standard error [default: -]
    #[arg(long, value_name = "FILE", help_heading = LOGS)]
    pub(super) error_logfile: Option<String>,

    /// Milliseconds a request may wait for Redis [default: 1000]
    #[arg(long, value_name = "MS", help_heading = STORE)]
    pub(super) store_timeout_ms: Option<u64>,
    /// Requests of a worker that may wait for Redis; more are answered 503 [default: 4096]
    #[arg(long, value_name = "N", help_heading = STORE)]
    pub(super) store_in_flight: Option<usize>,

    /// Journal of a SQLite store that is written to: wal (nobody waits for a writer) or keep [default: wal]
    #[arg(long, value_name = "wal|keep", help_heading = STORE)]
    pub(super) sqlite_journal: Option<String>,
    /// Folder in which offline pushes wait for their batch [default: DIR/.feast_prefork_spool]
    #[arg(long, value_name = "DIR", help_heading = STORE)]
    pub(super) spool_dir: Option<PathBuf>,

    /// Port that serves metrics [default: 8000]
    #[arg(long, value_name = "PORT", help_heading = METRICS)]
    pub(super) metrics_port: Option<u16>,
    /// Address that serves metrics [default: every address, IPv6 and IPv4]
    #[arg(long, value_name = "HOST", help_heading = METRICS)]
    pub(super) metrics_host: Option<String>,
    /// Label `pid` of live gauges: the process number, or the slot (steady series while workers come and go)
    /// [default: pid]
    #[arg(long, value_name = "pid|slot", help_heading = METRICS)]
    pub(super) metrics_live_label: Option<String>,

    /// Send gunicorn's figures to this statsd server (UDP)
    #[arg(long, value_name = "HOST:PORT", help_heading = METRICS)]
    pub(super) statsd_host: Option<String>,
    /// In front of their names
    #[arg(long, value_name = "NAME", help_heading = METRICS)]
    pub(super) statsd_prefix: Option<String>,
    /// Tags for DogStatsD, e.g. env:prod,team:ml
    #[arg(long, value_name = "LIST", help_heading = METRICS)]
    pub(super) dogstatsd_tags: Option<String>,

    /// 422 for bodies that are not declared as JSON
    #[arg(long, help_heading = ANSWERS)]
    pub(super) strict_content_type: bool,
    /// 500 for views that are being materialized
    #[arg(long, help_heading = ANSWERS)]
    pub(super) strict_lifecycle: bool,
    /// OUTSIDE_MAX_AGE for values older than their TTL
    #[arg(long, help_heading = ANSWERS)]
    pub(super) enforce_ttl: bool,

    /// Print the resulting settings and exit
    #[arg(long, help_heading = "Other")]
    #[serde(skip)]
    pub(super) print_config: bool,
    /// Check configuration and registry and exit
    #[arg(long, help_heading = "Other")]
    #[serde(skip)]
    pub(super) check_config: bool,
    /// Print help
    #[arg(long, action = ArgAction::Help, help_heading = "Other")]
    #[serde(skip)]
    pub(super) help: Option<bool>,
}

/// Parses the words of `FEAST_PREFORK_CMD_ARGS` or of the file's block with the same rules.
#[derive(Debug, Parser)]
#[command(name = "serve", disable_help_flag = true, no_binary_name = true)]
pub(super) struct LayerArgs {
    #[command(flatten)]
    pub(super) serve: ServeArgs,
}
