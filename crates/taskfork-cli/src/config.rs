//! The options of a pool, from the command line or from a file.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::ValueEnum;
use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::error::{CommandError, nearest};
use crate::sandbox_options::SandboxLevel;
use crate::server_address::ServerAddress;
use crate::units::{Size, Time};

/// The options of a server of one program.
#[derive(Debug, Clone, Default, PartialEq, clap::Args, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct PoolOptions {
    /// Where to listen: unix:PATH, PATH, tcp:HOST:PORT or fd:NUMBER [default: the service manager's socket]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) listen: Option<ServerAddress>,
    /// The name in `ps` and in logs [default: taskfork, or the pool's name]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Which protocol the program speaks [default: native]
    #[arg(long)]
    pub(crate) protocol: Option<ProtocolName>,
    /// Which protocols clients may speak: native, json [default: both on unix sockets, native on TCP]
    #[arg(long, value_name = "PROTOCOL", value_delimiter = ',')]
    pub(crate) protocols: Option<Vec<ProtocolName>>,
    /// Serve only these users, by name or number, besides the server's own (unix sockets only; see
    /// --socket-mode) [default: all that the mode of the socket admits]
    #[arg(long, value_name = "USER", value_delimiter = ',')]
    #[serde(deserialize_with = "deserialize_names")]
    pub(crate) allow_users: Option<Vec<String>>,
    /// Serve only users of these groups, by name or number, and those of --allow-users
    #[arg(long, value_name = "GROUP", value_delimiter = ',')]
    #[serde(deserialize_with = "deserialize_names")]
    pub(crate) allow_groups: Option<Vec<String>>,
    /// Serve clients of other machines too: a gateway relays those that connect by TLS to HOST:PORT. Needs --cert,
    /// --key, and a unix socket to listen at
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) tls: Option<String>,
    /// The gateway's certificate in PEM, with those that lead to its authority. It is read again when it changes
    #[arg(long, value_name = "FILE")]
    pub(crate) cert: Option<PathBuf>,
    /// The private key of that certificate, in PEM
    #[arg(long, value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,
    /// Serve only those TLS clients that have a certificate of an authority in this file, in PEM [default: anyone
    /// who can reach the address]
    #[arg(long, value_name = "FILE")]
    pub(crate) client_ca: Option<PathBuf>,
    /// Serve only those TLS clients whose certificate has this subject alternative name, a DNS name or a URI. May
    /// be repeated [default: every certificate of --client-ca]
    #[arg(long, value_name = "NAME")]
    pub(crate) allow_name: Vec<String>,
    /// Be a node of a service at NATS: nats://HOST:PORT or tls://HOST:PORT, or several with commas. Clients connect to
    /// nats://HOST:PORT/SERVICE. Needs --service and a unix socket to listen at; --tls can be given too
    #[arg(long, value_name = "URL")]
    pub(crate) nats: Option<String>,
    /// The name of that service: letters, digits, `-` and `_`
    #[arg(long, value_name = "NAME")]
    pub(crate) service: Option<String>,
    /// The name of this node, which no other node of the service may have [default: the host's name]
    #[arg(long, value_name = "NAME")]
    pub(crate) node: Option<String>,
    /// A property of this node that clients can ask for, such as gpu=a100. May be repeated, up to 5 times
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) label: Vec<String>,
    /// The version of the service that this node tells, three numbers such as 1.2.0 [default: that of taskfork]
    #[arg(long, value_name = "VERSION")]
    pub(crate) service_version: Option<String>,
    /// A method of the program, for what this node tells about itself: the server does not know it. May be repeated
    #[arg(long, value_name = "NAME")]
    pub(crate) method: Vec<String>,
    /// Where clients of the service reach --tls from their machines, for direct connections that do not pass through
    /// NATS. `off` for none [default: the address of --tls, and none if that is a wildcard or
    /// --client-ca is given]
    #[arg(long, value_name = "HOST:PORT|off")]
    pub(crate) direct: Option<String>,
    /// The file with the credentials for NATS. It is read at the start
    #[arg(long, value_name = "FILE")]
    pub(crate) creds: Option<PathBuf>,
    /// The file with the authorities of the NATS servers, in PEM [default: those that the system trusts]
    #[arg(long, value_name = "FILE")]
    pub(crate) nats_ca: Option<PathBuf>,
    /// The certificate by which the NATS servers recognize this node, in PEM. Needs --nats-key
    #[arg(long, value_name = "FILE")]
    pub(crate) nats_cert: Option<PathBuf>,
    /// The private key of that certificate, in PEM
    #[arg(long, value_name = "FILE")]
    pub(crate) nats_key: Option<PathBuf>,
    /// Serve a page, health checks and metrics about this server at HOST:PORT, from a gateway: see `taskfork dashboard`. A
    /// loopback address, unless there is --http-token-file or --http-client-ca. Needs a unix socket to listen at; --tls and
    /// --nats can be given too
    #[cfg(feature = "dashboard")]
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) http: Option<String>,
    /// The file with the token that requests for the page need, of 16 characters or more
    #[cfg(feature = "dashboard")]
    #[arg(long, value_name = "FILE")]
    pub(crate) http_token_file: Option<PathBuf>,
    /// Let those who know the token dismiss and kill workers
    #[cfg(feature = "dashboard")]
    #[arg(long)]
    pub(crate) http_allow_actions: bool,
    /// Serve requests for this host name too, for example that of a proxy. May be repeated [default: IP addresses and
    /// localhost]
    #[cfg(feature = "dashboard")]
    #[arg(long, value_name = "NAME")]
    pub(crate) http_allow_host: Vec<String>,
    /// Serve the page by HTTPS with this certificate, in PEM. It may be that of --cert. It is read again when it changes
    #[cfg(feature = "dashboard")]
    #[arg(long, value_name = "FILE")]
    pub(crate) http_cert: Option<PathBuf>,
    /// The private key of that certificate, in PEM
    #[cfg(feature = "dashboard")]
    #[arg(long, value_name = "FILE")]
    pub(crate) http_key: Option<PathBuf>,
    /// Show the page only to those that have a certificate of an authority in this file, in PEM
    #[cfg(feature = "dashboard")]
    #[arg(long, value_name = "FILE")]
    pub(crate) http_client_ca: Option<PathBuf>,
    /// Do not ask workers for the stacks of slow calls, which interrupts system calls such as poll
    #[cfg(feature = "dashboard")]
    #[arg(long)]
    pub(crate) http_no_stacks: bool,
    /// The user of gateways, by name or number, whose processes may relay clients of other machines to the unix
    /// socket and do nothing else. The gateway of --tls and --nats runs as this user. Only root can start one, and
    /// --socket-mode must admit it [default: the server's own user]
    #[arg(long, value_name = "USER")]
    #[serde(deserialize_with = "deserialize_name")]
    pub(crate) gateway_user: Option<String>,
    /// Listen at an address that other machines can reach, although every client there can call every method
    #[arg(long)]
    pub(crate) allow_unauthenticated_network: bool,
    /// Tell all clients what dead workers wrote to standard error, stacks, and why the setup failed
    /// [default: only clients of the server's own user on unix sockets]
    #[arg(long)]
    pub(crate) share_details: bool,
    /// Close connections whose first message is not complete after this time [default: 10s, and never
    /// while a client of the server's own user is silent on a unix socket with JSON]
    #[arg(long, value_name = "TIME")]
    pub(crate) handshake_timeout: Option<Time>,
    /// The most connections without a first message; the oldest is closed for a new one [default: 1000,
    /// or a quarter of `ulimit -Hn`]
    #[arg(long, value_name = "COUNT")]
    pub(crate) max_handshakes: Option<usize>,
    /// Kill workers that have been in one call for longer than this, 0 for no limit [default: 5m]
    #[arg(long, value_name = "TIME")]
    pub(crate) hung_worker_timeout: Option<Time>,
    /// How long running checkouts may go on at a shutdown [default: 30s]
    #[arg(long, value_name = "TIME")]
    pub(crate) shutdown_grace: Option<Time>,
    /// How long a client may stop in the middle of a message [default: 30s]
    #[arg(long, value_name = "TIME")]
    pub(crate) stall_timeout: Option<Time>,
    /// Keep this number of spare workers, started and set up [default: 0]
    #[arg(long, value_name = "COUNT")]
    pub(crate) spare_workers: Option<usize>,
    /// The most workers for all clients together [default: 64, or 4 for each core if that is more]
    #[arg(long, value_name = "COUNT")]
    pub(crate) max_workers: Option<usize>,
    /// Replace workers after this number of calls
    #[arg(long, value_name = "COUNT")]
    pub(crate) max_calls: Option<u64>,
    /// Replace workers at this age
    #[arg(long, value_name = "TIME")]
    pub(crate) max_age: Option<Time>,
    /// End workers that have been idle for this time
    #[arg(long, value_name = "TIME")]
    pub(crate) max_idle: Option<Time>,
    /// Replace workers that occupy more than this after a checkout
    #[arg(long, value_name = "SIZE")]
    pub(crate) max_memory: Option<Size>,
    /// After which errors of a call its worker is replaced: panic, any-error or never. Programs do not panic, so with
    /// panic only those are replaced whose setup has failed [default: any-error]
    #[arg(long, value_name = "ERRORS", hide_possible_values = true)]
    pub(crate) replace_after: Option<ReplaceAfterErrors>,
    /// Limit what each worker may use: address-space, memory, cpu-time, open-files, core-size, processes or
    /// cpu-percent
    #[arg(long, value_name = "NAME=VALUE")]
    #[serde(deserialize_with = "deserialize_limits")]
    pub(crate) limit: Vec<WorkerLimit>,
    /// Give each worker a control group below this one, which is delegated to the server. Limits of memory, of
    /// processes and of cpu-percent then hold for a worker with all that it has started
    #[arg(long, value_name = "PATH")]
    pub(crate) cgroup: Option<PathBuf>,
    /// The niceness of workers
    #[arg(long, allow_hyphen_values = true)]
    pub(crate) niceness: Option<i32>,
    /// How soon the kernel chooses a worker when memory runs out, -1000 to 1000
    #[arg(long, value_name = "SCORE", allow_hyphen_values = true)]
    pub(crate) oom_score_adj: Option<i32>,
    /// The permissions of the socket's file, in octal [default: 600]
    #[arg(long, value_name = "MODE")]
    pub(crate) socket_mode: Option<Mode>,
    /// The most bytes of one message [default: 64MiB]
    #[arg(long, value_name = "SIZE")]
    pub(crate) max_frame: Option<Size>,
    /// The most bytes of a blob that a client hands over as memory [default: 256MiB]
    #[arg(long, value_name = "SIZE")]
    pub(crate) max_blob: Option<Size>,
    /// The path of the status socket, or none [default: the path of the listener with .status appended]
    #[arg(long, value_name = "PATH")]
    pub(crate) status_socket: Option<PathBuf>,
    /// Where the standard error of workers goes [default: capture]
    #[arg(long)]
    pub(crate) stderr: Option<StderrMode>,
    /// Log nothing but errors: no notices and no warnings. What workers write to standard error is shown all the same,
    /// unless --stderr hides it. With a file it is for all of its pools
    #[arg(long, short = 'q')]
    pub(crate) quiet: bool,
    /// Whether workers poll for the next call before they sleep [default: adaptive]
    #[arg(long)]
    pub(crate) busy_poll: Option<BusyPollMode>,
    /// What workers may do, beside executing their program. The options below open more. `taskfork sandbox check`
    /// says what this kernel supports [default: off]
    #[arg(long, value_name = "LEVEL")]
    pub(crate) sandbox: Option<SandboxLevel>,
    /// Let sandboxed workers read this file, or everything below this directory. May be repeated, like the
    /// other --allow options of the sandbox
    #[arg(long, value_name = "PATH")]
    pub(crate) allow_read: Vec<PathBuf>,
    /// Let sandboxed workers write this file, or everything below this directory
    #[arg(long, value_name = "PATH")]
    pub(crate) allow_write: Vec<PathBuf>,
    /// Let sandboxed workers execute this program, or those below this directory, in place of themselves
    #[arg(long, value_name = "PATH")]
    pub(crate) allow_execute: Vec<PathBuf>,
    /// Let sandboxed workers make TCP connections to this port, at any address
    #[arg(long, value_name = "PORT", value_delimiter = ',')]
    pub(crate) allow_connect: Vec<u16>,
    /// Let sandboxed workers connect to the unix socket at this path
    #[arg(long, value_name = "PATH")]
    pub(crate) allow_unix: Vec<PathBuf>,
    /// Let sandboxed workers accept connections at listening sockets that are open before the sandbox applies
    #[arg(long)]
    pub(crate) allow_accept: bool,
    /// Let sandboxed workers start processes, and the programs of --allow-execute in them
    #[arg(long)]
    pub(crate) allow_spawn: bool,
    /// Serve although the kernel lacks something that the sandbox needs, without that part
    #[arg(long)]
    pub(crate) sandbox_best_effort: bool,
    /// Kill a sandboxed worker at a forbidden system call [default: the system call fails]
    #[arg(long)]
    pub(crate) sandbox_kill: bool,
    /// The most bytes of a result of a sandboxed worker [default: as --max-frame]
    #[arg(long, value_name = "SIZE")]
    pub(crate) max_result: Option<Size>,
    /// Give each worker a private directory of this size, which is removed with the worker. It is in TMPDIR
    #[arg(long, value_name = "SIZE")]
    pub(crate) scratch: Option<Size>,
    /// The folder for these directories [default: TMPDIR, or /tmp]
    #[arg(long, value_name = "PATH", requires = "scratch")]
    pub(crate) scratch_folder: Option<PathBuf>,
    /// Run workers as this user, by name or number, with its groups [default: the server's]
    #[arg(long, value_name = "USER")]
    #[serde(deserialize_with = "deserialize_name")]
    pub(crate) user: Option<String>,
    /// The primary group of workers, by name or number [default: that of --user]
    #[arg(long, value_name = "GROUP")]
    #[serde(deserialize_with = "deserialize_name")]
    pub(crate) group: Option<String>,
    /// The supplementary groups of workers, by name or number [default: those of --user]
    #[arg(long, value_name = "GROUP", value_delimiter = ',')]
    #[serde(deserialize_with = "deserialize_names")]
    pub(crate) groups: Option<Vec<String>>,
    /// Give workers an empty environment, except for these variables: --clear-env=PATH,LANG
    #[arg(long, value_name = "NAME", num_args = 0..=1, require_equals = true, value_delimiter = ',')]
    pub(crate) clear_env: Option<Vec<String>>,
    /// The permissions that files of workers do not get, in octal [default: the server's]
    #[arg(long, value_name = "MODE")]
    pub(crate) umask: Option<Mode>,
    /// Let programs that workers execute gain privileges, as sudo does [default: they cannot]
    #[arg(long)]
    pub(crate) allow_new_privs: bool,
    /// The program and its arguments, in files only.
    #[arg(skip)]
    pub(crate) command: Vec<String>,
}

/// Which protocol a program speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ProtocolName {
    /// Length-prefixed MessagePack
    Native,
    /// JSON, the protocol of AnyEvent::Task
    Json,
}

/// Where the standard error of workers goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum StderrMode {
    /// Show each line with the process ids of the worker and of the program, and report the last lines with its death
    Capture,
    /// Only report the last lines with the death of the worker
    Hide,
    /// Write to the standard error of the server
    Inherit,
}

/// After which errors of calls workers are replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ReplaceAfterErrors {
    Panic,
    AnyError,
    Never,
}

/// Whether workers poll before they sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum BusyPollMode {
    /// While polling saves time
    Adaptive,
    /// Never
    Off,
}

/// Permissions in octal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mode(pub(crate) u32);

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mode = u32::from_str_radix(text, 8).ok().filter(|&mode| mode <= 0o777);
        mode.map(Self).ok_or_else(|| format!("`{text}` is no mode: write octal, such as 660"))
    }
}

impl<'de> Deserialize<'de> for Mode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // A TOML number would be decimal.
        match toml::Value::deserialize(deserializer)? {
            toml::Value::String(text) => text.parse().map_err(de::Error::custom),
            other => Err(de::Error::custom(format!("write the mode as text, such as \"{other}\""))),
        }
    }
}

/// A limit of a resource of each worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WorkerLimit {
    pub(crate) name: LimitName,
    pub(crate) value: u64,
}

/// A resource that can be limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LimitName {
    AddressSpace,
    Memory,
    CpuTime,
    OpenFiles,
    CoreSize,
    Processes,
    CpuPercent,
}

impl LimitName {
    fn value(self, text: &str) -> Result<u64, String> {
        match self {
            Self::AddressSpace | Self::Memory | Self::CoreSize => {
                text.parse().map(|Size(bytes)| bytes)
            }
            Self::CpuTime => text.parse().map(|Time(time)| time.as_secs_f64().ceil() as u64),
            Self::OpenFiles | Self::Processes | Self::CpuPercent => {
                text.parse().map_err(|_| format!("`{text}` is no number"))
            }
        }
    }
}

impl WorkerLimit {
    /// Accepts hyphens and underscores in the name, because other keys of files have underscores.
    fn new(name: &str, value: &str) -> Result<Self, String> {
        let name = LimitName::from_str(&name.replace('_', "-"), false).map_err(|_| {
            let known = LimitName::value_variants().iter().filter_map(ValueEnum::to_possible_value);
            let known: Vec<String> = known.map(|value| value.get_name().to_owned()).collect();
            match nearest(name, known.iter().map(String::as_str)) {
                Some(near) => format!("there is no limit `{name}`: did you mean `{near}`?"),
                None => format!("there is no limit `{name}`: there is {}", known.join(", ")),
            }
        })?;
        Ok(Self { name, value: name.value(value)? })
    }
}

impl FromStr for WorkerLimit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once('=').ok_or("write NAME=VALUE, as in cpu-time=60")?;
        Self::new(name, value)
    }
}

/// A user or a group in a file.
#[derive(Deserialize)]
#[serde(untagged)]
enum Name {
    Text(String),
    Number(u32),
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        match name {
            Name::Text(text) => text,
            Name::Number(number) => number.to_string(),
        }
    }
}

/// Reads a name or a number.
fn deserialize_name<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<String>, D::Error> {
    Name::deserialize(deserializer).map(|name| Some(name.into()))
}

/// Reads a list of names or numbers.
fn deserialize_names<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Vec<String>>, D::Error> {
    Ok(Some(Vec::<Name>::deserialize(deserializer)?.into_iter().map(String::from).collect()))
}

/// Reads limits: one as on the command line, a list of these, or a table.
fn deserialize_limits<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<WorkerLimit>, D::Error> {
    struct Limits;

    impl<'de> Visitor<'de> for Limits {
        type Value = Vec<WorkerLimit>;

        fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
            out.write_str("a list such as [\"cpu-time=60\", \"open-files=100\"]")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
            text.parse().map(|limit| vec![limit]).map_err(E::custom)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut limits = Vec::new();
            while let Some(text) = list.next_element::<String>()? {
                limits.push(text.parse().map_err(de::Error::custom)?);
            }
            Ok(limits)
        }

        fn visit_map<A: MapAccess<'de>>(self, mut table: A) -> Result<Self::Value, A::Error> {
            let mut limits = Vec::new();
            while let Some((name, value)) = table.next_entry::<String, toml::Value>()? {
                let text = match value {
                    toml::Value::String(text) => text,
                    other => other.to_string(),
                };
                limits.push(WorkerLimit::new(&name, &text).map_err(de::Error::custom)?);
            }
            Ok(limits)
        }
    }

    deserializer.deserialize_any(Limits)
}

/// The most bytes of a file of pools. Thousands of pools fit.
const MAX_FILE: u64 = 1 << 20;

/// A file of pools.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pools {
    pool: BTreeMap<String, PoolOptions>,
}

/// Reads the pools of a file. Each is named by its table unless it has a name of its own.
pub(crate) fn read(path: &Path) -> Result<BTreeMap<String, PoolOptions>, CommandError> {
    let shown = path.display();
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(MAX_FILE + 1).read_to_string(&mut text))
        .map_err(|error| CommandError::usage(format!("cannot read {shown}: {error}")))?;
    if text.len() as u64 > MAX_FILE {
        return Err(CommandError::usage(format!(
            "{shown} is longer than the limit of {MAX_FILE} bytes"
        ))
        .hint("divide it into several files, and serve each with a command of its own"));
    }
    let Pools { mut pool } =
        toml::from_str(&text).map_err(|error| parse_error(path, &text, &error))?;
    if pool.is_empty() {
        return Err(CommandError::usage(format!("{shown} has no pool"))
            .hint("write a table [pool.NAME] with listen and command"));
    }
    for (name, pool) in &mut pool {
        pool.name.get_or_insert_with(|| name.clone());
        let missing = [("listen", pool.listen.is_none()), ("command", pool.command.is_empty())];
        if let Some((key, _)) = missing.into_iter().find(|(_, missing)| *missing) {
            return Err(CommandError::usage(format!("{shown}: pool.{name} has no `{key}`"))
                .hint(format!("add `{key}` to the table [pool.{name}]")));
        }
    }
    Ok(pool)
}

/// The error for an invalid file, with the line, and with the nearest key for an unknown one.
fn parse_error(path: &Path, text: &str, error: &toml::de::Error) -> CommandError {
    let line = error
        .span()
        .map_or(1, |span| text.get(..span.start).unwrap_or(text).matches('\n').count() + 1);
    let message = error.message();
    let command_error = CommandError::usage(format!("{}:{line}: {message}", path.display()));
    let mut quoted = message.split('`').skip(1).step_by(2);
    match (message.starts_with("unknown"), quoted.next()) {
        (true, Some(wrong)) => match nearest(wrong, quoted) {
            Some(near) => command_error.hint(format!("did you mean `{near}`?")),
            None => command_error,
        },
        _ => command_error.hint("`taskfork serve --help` says what each option takes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_written_as_on_the_command_line() {
        let limits = |text: &str| {
            let pool: Result<PoolOptions, _> = toml::from_str(&format!("limit = {text}"));
            pool.map(|pool| pool.limit).map_err(|error| error.message().to_owned())
        };
        let both = ["cpu-time=60".parse().unwrap(), "address-space=4GiB".parse().unwrap()];
        assert_eq!(limits("[\"cpu-time=60\", \"address-space=4GiB\"]").unwrap(), both);
        assert_eq!(limits("\"cpu-time=60\"").unwrap(), both[..1]);
        let table = "{ cpu-time = \"1m\", address_space = \"4GiB\" }";
        assert_eq!(limits(table).unwrap().len(), 2);
        assert!(both.iter().all(|limit| limits(table).unwrap().contains(limit)));
        assert!(limits("[\"cpu-tme=60\"]").unwrap_err().contains("did you mean `cpu-time`?"));
        assert!(limits("{ cpu_tme = 60 }").unwrap_err().contains("did you mean `cpu-time`?"));
        assert!(limits("[\"cpu-time\"]").unwrap_err().contains("write NAME=VALUE"));
        assert!(limits("7").unwrap_err().contains("a list such as"));
    }

    #[test]
    fn a_file_that_is_too_long_is_refused_at_the_limit() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), " ".repeat(MAX_FILE as usize + 1)).unwrap();
        // The second file is endless.
        for path in [file.path(), Path::new("/dev/zero")] {
            let error = read(path).unwrap_err();
            let text = format!("{error:?}");
            assert!(text.contains("is longer than the limit of 1048576 bytes"), "{text}");
        }
    }
}
