//! A worker in plain Rust, without any of taskfork's crates: JSON on the descriptor that it is given.
//!
//! ```text
//! cargo build -p taskfork-cli --example plain_worker
//! taskfork serve --protocol json --listen unix:/tmp/plain.sock -- target/debug/examples/plain_worker
//! ```

use std::io::{Read, Write};
use std::os::fd::{FromRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use serde_json::{Value, json};

fn main() -> ExitCode {
    let descriptor = std::env::var("TASKFORK_FD").ok().and_then(|number| number.parse().ok());
    let Some(descriptor) = descriptor else {
        eprintln!(
            "start it by `taskfork serve --protocol json --listen unix:PATH -- plain_worker`"
        );
        return ExitCode::from(2);
    };
    match serve(&mut connection(descriptor)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("plain_worker: {error}");
            ExitCode::FAILURE
        }
    }
}

#[allow(unsafe_code)]
fn connection(descriptor: RawFd) -> UnixStream {
    // SAFETY: the server has opened the descriptor that the variable names for this program alone.
    unsafe { UnixStream::from_raw_fd(descriptor) }
}

fn serve(connection: &mut UnixStream) -> std::io::Result<()> {
    let mut incoming = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = connection.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        incoming.extend_from_slice(&buffer[..length]);
        // The stream may be cut anywhere. A long message is not read again and again before its end.
        if buffer[length - 1] != b']' {
            continue;
        }
        let mut messages = serde_json::Deserializer::from_slice(&incoming).into_iter::<Value>();
        let (mut used, mut answers) = (0, String::new());
        while let Some(Ok(message)) = messages.next() {
            used = messages.byte_offset();
            // `["dn", {}]` says that the checkout is done, and has no answer.
            if message[0] == "do" {
                answers += &answer(&message).to_string();
            }
        }
        incoming.drain(..used);
        connection.write_all(answers.as_bytes())?;
    }
}

fn answer(call: &Value) -> Value {
    let log = json!({"start": 0.0, "logs": [[0.0, 30, "asked", call[2]]]});
    match (call[2].as_str(), &call[3]) {
        (Some("echo"), value) => json!(["ok", {}, value]),
        (Some("kind"), value) => json!(["ok", {}, kind(value)]),
        (Some("pid"), _) => json!(["ok", {}, std::process::id()]),
        (Some("variable"), name) => {
            json!(["ok", {}, name.as_str().and_then(|name| std::env::var(name).ok())])
        }
        (Some("read"), path) => match std::fs::read(path.as_str().unwrap_or_default()) {
            Ok(bytes) => json!(["ok", {}, bytes.len()]),
            Err(error) => json!(["er", {}, error.to_string()]),
        },
        (Some("record"), path) => match record(path, &call[4], &call[6]) {
            Ok(()) => json!(["ok", {}, call[5]]),
            Err(error) => json!(["er", {}, error.to_string()]),
        },
        (Some("logged"), value) => json!(["ok", {"ld": log}, value]),
        (Some("sleep"), milliseconds) => {
            let milliseconds = milliseconds.as_u64().unwrap_or(0);
            std::thread::sleep(std::time::Duration::from_millis(milliseconds));
            json!(["ok", {}, null])
        }
        (Some(method), _) if method.starts_with("exit") => std::process::exit(0),
        (Some("abort"), _) => std::process::abort(),
        (other, _) => json!(["er", {}, format!("no method {}", other.unwrap_or("given"))]),
    }
}

/// Appends a line to a file and waits some milliseconds: so a test knows that a call has begun, and how often.
fn record(path: &Value, line: &Value, milliseconds: &Value) -> std::io::Result<()> {
    let path = path.as_str().unwrap_or_default();
    let mut file = std::fs::OpenOptions::new().append(true).open(path)?;
    // At once, so that lines of several workers do not mix.
    file.write_all(format!("{}\n", line.as_str().unwrap_or_default()).as_bytes())?;
    std::thread::sleep(std::time::Duration::from_millis(milliseconds.as_u64().unwrap_or(0)));
    Ok(())
}

/// What a value is, in the words of JSON.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}
