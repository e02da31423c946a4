//! `taskfork config`: checks a file of pools without serving it, or prints an example of one.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::config::{self, PoolOptions};
use crate::error::CommandError;
use crate::{output, serve};

/// What to do with a file of pools.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Check a file as `taskfork serve --config FILE` reads it: keys and values, programs, users and addresses.
    /// Nothing is started. The exit status is 2 if there is a mistake
    Check {
        /// The file
        file: PathBuf,
    },
    /// Print a file with one pool and all keys, each with an example and its description
    Example,
}

pub(crate) fn run(options: Options) -> Result<(), CommandError> {
    match options.action {
        Action::Check { file } => check(&file),
        Action::Example => output::text(&example()),
    }
}

fn check(file: &std::path::Path) -> Result<(), CommandError> {
    let pools = config::read(file)?;
    let names = pools.keys().cloned().collect::<Vec<_>>().join(", ");
    let mut addresses: BTreeMap<&OsStr, &str> = BTreeMap::new();
    for (name, pool) in &pools {
        let Some(listen) = &pool.listen else { continue };
        if let Some(other) = addresses.insert(listen.as_os_str(), name) {
            return Err(CommandError::usage(format!(
                "the pools {other} and {name} both listen at {listen}"
            ))
            .hint("give each pool an address of its own"));
        }
    }
    let count = pools.len();
    for (name, pool) in pools {
        serve::check(pool).map_err(|error| error.within(&format!("pool.{name}")))?;
    }
    let pools = if count == 1 { "1 pool" } else { &format!("{count} pools") };
    output::line(&format!("{}: {pools}: {names}", file.display()))
}

/// A valid file, with the optional keys as comments.
fn example() -> String {
    let mut out = "# Pools of workers. `taskfork serve --config FILE` serves them, `taskfork config check FILE`\n\
                   # checks them. Each table is a server of its own, named by its key.\n\n\
                   [pool.example]\n\
                   # The program to start for each connection, and its arguments.\n\
                   command = [\"cat\"]\n"
        .to_owned();
    let described = PoolOptions::augment_args(clap::Command::new("pool"));
    for option in described.get_arguments() {
        let Some(key) = option.get_long().map(|long| long.replace('-', "_")) else { continue };
        let help = option.get_help().map(ToString::to_string).unwrap_or_default();
        out.push('\n');
        for line in wrap(&help) {
            out += &format!("# {line}\n");
        }
        let mark = if key == "listen" { "" } else { "# " };
        out += &format!("{mark}{key} = {}\n", example_value(&key));
    }
    out
}

/// An example for the value of a key.
fn example_value(key: &str) -> &'static str {
    match key {
        "listen" => "\"unix:/tmp/example.sock\"",
        "name" => "\"example\"",
        "protocol" => "\"native\"",
        "protocols" => "[\"native\", \"json\"]",
        "tls" => "\"0.0.0.0:7000\"",
        "direct" => "\"gateway.example.com:7000\"",
        "nats" => "\"nats://nats.example:4222\"",
        "service" => "\"resize\"",
        "node" => "\"node-1\"",
        "label" => "[\"gpu=a100\"]",
        "method" => "[\"resize\"]",
        "service_version" => "\"1.2.0\"",
        "creds" => "\"/etc/resize/nats.creds\"",
        "nats_ca" => "\"/etc/resize/nats-ca.pem\"",
        "nats_cert" => "\"/etc/resize/nats-cert.pem\"",
        "nats_key" => "\"/etc/resize/nats-key.pem\"",
        "http" => "\"127.0.0.1:9180\"",
        "http_token_file" => "\"/etc/taskfork/token\"",
        "http_allow_host" => "[\"pools.example.com\"]",
        "http_cert" => "\"/etc/ssl/pools.pem\"",
        "http_key" => "\"/etc/ssl/private/pools.key\"",
        "http_client_ca" => "\"/etc/ssl/on-call.pem\"",
        "http_allow_actions" | "http_no_stacks" => "false",
        "cert" => "\"/etc/ssl/example.pem\"",
        "key" => "\"/etc/ssl/private/example.key\"",
        "client_ca" => "\"/etc/ssl/clients.pem\"",
        "allow_name" => "[\"web.example.com\"]",
        "allow_users" | "allow_groups" => "[\"root\", 1000]",
        "gateway_user" | "user" => "\"nobody\"",
        "limit" => "[\"cpu-time=60\", \"address-space=4GiB\"]",
        "socket_mode" => "\"660\"",
        "status_socket" => "\"/tmp/example.sock.status\"",
        "stderr" => "\"capture\"",
        "replace_after" => "\"any-error\"",
        "busy_poll" => "\"adaptive\"",
        "niceness" => "5",
        "oom_score_adj" => "100",
        "handshake_timeout" => "\"10s\"",
        "hung_worker_timeout" | "max_idle" => "\"5m\"",
        "shutdown_grace" | "stall_timeout" => "\"30s\"",
        "max_age" => "\"1h\"",
        "max_memory" | "max_blob" => "\"256MiB\"",
        "max_frame" => "\"64MiB\"",
        "allow_unauthenticated_network" | "share_details" | "quiet" => "false",
        "max_calls" | "max_handshakes" => "1000",
        "max_workers" => "64",
        "spare_workers" => "2",
        "cgroup" => "\"/sys/fs/cgroup/system.slice/example.service\"",
        "sandbox" => "\"compute\"",
        "allow_read" => "[\"/usr/share/fonts\"]",
        "allow_write" => "[\"/tmp\"]",
        "allow_execute" => "[\"/bin/cat\"]",
        "allow_connect" => "[5432]",
        "allow_unix" => "[\"/run/postgresql/.s.PGSQL.5432\"]",
        "max_result" => "\"1MiB\"",
        "scratch" => "\"64MiB\"",
        "scratch_folder" => "\"/var/tmp\"",
        "group" => "\"nogroup\"",
        "groups" => "[\"video\", 1000]",
        "clear_env" => "[\"PATH\", \"LANG\"]",
        "umask" => "\"077\"",
        "allow_accept"
        | "allow_spawn"
        | "sandbox_best_effort"
        | "sandbox_kill"
        | "allow_new_privs" => "false",
        // A test checks that there is no other key.
        _ => "",
    }
}

/// The text in lines that fit a comment.
fn wrap(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.len() + word.len() < 90 => {
                line.push_str(if line.is_empty() { "" } else { " " });
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<BTreeMap<String, PoolOptions>, CommandError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        config::read(file.path())
    }

    #[test]
    fn the_example_has_each_key_and_is_right_with_and_without_it() {
        let example = example();
        let pools = read(&example).unwrap();
        assert_eq!(pools["example"].max_workers, None);
        let all: String = example
            .lines()
            .map(|line| match line.strip_prefix("# ").filter(|rest| rest.contains(" = ")) {
                Some(rest)
                    if !rest.contains(' ')
                        || rest.split(" = ").next().is_some_and(|key| !key.contains(' ')) =>
                {
                    format!("{rest}\n")
                }
                _ => format!("{line}\n"),
            })
            .collect();
        let pools = read(&all).unwrap();
        let pool = &pools["example"];
        assert_eq!((pool.max_workers, pool.limit.len(), pool.niceness), (Some(64), 2, Some(5)));
        let described = PoolOptions::augment_args(clap::Command::new("pool"));
        for option in described.get_arguments() {
            let key = option.get_long().unwrap().replace('-', "_");
            assert!(all.contains(&format!("\n{key} = ")), "{key}");
            assert!(!example_value(&key).is_empty(), "{key}");
        }
    }
}
