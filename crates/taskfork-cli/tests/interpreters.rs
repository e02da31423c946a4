//! The levels of sandboxes for interpreters, with the interpreters themselves.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(missing_docs, reason = "nothing here is for users")]

mod common;

use std::process::Command;

use common::{Server, address};
use predicates::prelude::*;
use predicates::str::contains;

/// A worker in JavaScript that does what attackers would do.
const NODE: &str = r#"
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import { connect, Socket } from 'node:net';
const methods = {
    digest: (text) => createHash('sha256').update(text).digest('hex'),
    read: (path) => readFileSync(path, 'utf8').length,
    write: (path) => writeFileSync(path, 'x'),
    run: (program) => { const { error } = spawnSync(program); if (error) throw error; return 'it runs'; },
    connect: (port) => new Promise((done, failed) => {
        connect(port, '127.0.0.1').on('connect', () => done('connected')).on('error', failed);
    }),
};
const connection = new Socket({ fd: Number(process.env.TASKFORK_FD), readable: true, writable: true });
connection.on('data', async (piece) => {
    const [kind, , method, ...args] = JSON.parse(piece);
    if (kind === 'dn') return;
    let answer;
    try { answer = ['ok', {}, (await methods[method](...args)) ?? null]; }
    catch (error) { answer = ['er', {}, error.message]; }
    connection.write(JSON.stringify(answer));
});
"#;

/// The same in Perl. It loads a module when it is called.
const PERL: &str = r#"
use strict; use warnings; use JSON::PP; use Errno (); use IO::Socket::INET;
my %methods = (
    digest => sub { require Digest::SHA; Digest::SHA::sha256_hex($_[0]) },
    read => sub { open my $file, '<', $_[0] or die "$!\n"; local $/; length <$file> },
    write => sub { open my $file, '>', $_[0] or die "$!\n"; undef },
    run => sub { defined(my $pid = fork) or die "$!\n"; exec @_ if !$pid; waitpid $pid, 0; 'it runs' },
    connect => sub { IO::Socket::INET->new("127.0.0.1:$_[0]") or die "$!\n"; 'connected' },
);
open my $connection, '+<&=', $ENV{TASKFORK_FD} or die;
my $json = JSON::PP->new->utf8->allow_nonref;
while (sysread $connection, my $text, 65536) {
    my ($kind, undef, $method, @arguments) = @{ $json->decode($text) };
    next if $kind eq 'dn';
    my $value = eval { $methods{$method}->(@arguments) };
    syswrite $connection, $json->encode($@ ? ['er', {}, $@] : ['ok', {}, $value]);
}
"#;

/// The same in Python.
const PYTHON: &str = r#"
import hashlib, json, os, socket, subprocess
def read(path):
    with open(path) as file: return len(file.read())
def write(path):
    with open(path, "w") as file: file.write("x")
def run(program):
    subprocess.run([program]); return "it runs"
def connect(port):
    socket.create_connection(("127.0.0.1", port)).close(); return "connected"
methods = {
    "digest": lambda text: hashlib.sha256(text.encode()).hexdigest(),
    "read": read, "write": write, "run": run, "connect": connect,
}
connection = socket.socket(fileno=int(os.environ["TASKFORK_FD"]))
while text := connection.recv(65536):
    kind, _, *rest = json.loads(text)
    if kind == "dn": continue
    try: answer = ["ok", {}, methods[rest[0]](*rest[1:])]
    except Exception as error: answer = ["er", {}, str(error)]
    connection.sendall(json.dumps(answer).encode())
"#;

/// The path of an interpreter, as the output of its program `ask`. `None` if it is not installed; in CI all must be.
/// An interpreter that is there and refuses `ask` fails the test everywhere.
fn interpreter(name: &str, ask: &[&str]) -> Option<String> {
    match Command::new(name).args(ask).output() {
        Ok(output) => {
            assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
            Some(String::from_utf8(output.stdout).unwrap().trim().to_owned())
        }
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "there is no {name}: {error}");
            eprintln!("not tried: there is no {name}: {error}");
            None
        }
    }
}

/// A server whose workers run `script` under the level that is named after the interpreter.
fn start(level: &str, interpreter: &str, script: &str, options: &[&str]) -> Server {
    let folder = tempfile::tempdir().unwrap();
    // Node takes a program for a module by its name.
    let file = folder.path().join("worker.mjs");
    std::fs::write(&file, script).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_taskfork"));
    command.args(["serve", "--protocol", "json", "--listen", &address(folder.path())]);
    if level != "off" {
        command.args(["--sandbox", level, "--allow-read"]).arg(&file).args(options);
    }
    command.arg("--").arg(interpreter).arg(&file);
    Server::run(folder, command)
}

/// `own` is a folder that the interpreter reads its modules from.
fn is_confined(level: &str, interpreter: &str, own: Option<&str>, script: &str) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let outside = tempfile::tempdir().unwrap();
    let created = outside.path().join("created");
    let created = created.to_str().unwrap();
    let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    let own: Vec<_> = own.iter().flat_map(|folder| ["--allow-read", folder]).collect();
    let server = start(level, interpreter, script, &own);
    server.call(&["digest", "abc"]).assert().success().stdout(contains(abc));
    let refused = [
        ["read", "/etc/passwd"],
        ["read", "/proc/self/environ"],
        ["write", created],
        ["run", "/bin/true"],
        ["connect", &port],
    ];
    for words in refused {
        let error = server.call(&words).assert().code(1);
        error.stderr(
            contains("ermission denied")
                .or(contains("not permitted"))
                .or(contains("EACCES"))
                .or(contains("EPERM")),
        );
    }
    server.call(&["digest", "abc"]).assert().success().stdout(contains(abc));
    assert_eq!(server.status()["sandbox"], level);
    drop(server);

    // The same script may do what is opened, and can without a sandbox.
    let outside = outside.path().to_str().unwrap();
    let options =
        ["--allow-read", "/etc/passwd", "--allow-write", outside, "--allow-connect", &port];
    let opened = start(level, interpreter, script, &[&own[..], &options].concat());
    for words in [["read", "/etc/passwd"], ["write", created], ["connect", &port]] {
        opened.call(&words).assert().success();
    }
    opened.call(&["read", "/etc/group"]).assert().code(1);
    opened.call(&["run", "/bin/true"]).assert().code(1);
    drop(opened);
    let free = start("off", interpreter, script, &[]);
    for words in refused {
        free.call(&words).assert().success();
    }
}

#[test]
fn node_is_confined() {
    if let Some(node) = interpreter("node", &["-p", "fs.realpathSync(process.execPath)"]) {
        is_confined("node", &node, None, NODE);
    }
}

#[test]
fn perl_is_confined() {
    if let Some(perl) = interpreter("perl", &["-MCwd=abs_path", "-e", "print abs_path $^X"]) {
        is_confined("perl", &perl, None, PERL);
    }
}

#[test]
fn python_is_confined() {
    let ask = "import os, sys; print(os.path.realpath(sys.executable), sys.base_prefix, sep='\\n')";
    if let Some(answer) = interpreter("python3", &["-c", ask]) {
        let (python, own) = answer.split_once('\n').unwrap();
        is_confined("python", python, Some(own), PYTHON);
    }
}
