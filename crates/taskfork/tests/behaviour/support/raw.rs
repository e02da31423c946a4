//! The protocol spoken by hand, from its description alone, to say what no client would say.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use taskfork::Client;
use taskfork::client::Value;

use super::address_in;

pub(crate) struct Raw(pub(crate) UnixStream);

pub(crate) fn text(text: &str) -> Value {
    Value::from(text)
}

pub(crate) fn map(entries: &[(&str, Value)]) -> Value {
    Value::Map(entries.iter().map(|(key, value)| (text(key), value.clone())).collect())
}

/// What the answer to the call of this number has in its map.
pub(crate) fn of_call(number: u64) -> Value {
    map(&[("call", number.into())])
}

pub(crate) fn frame(message: Vec<Value>) -> Vec<u8> {
    let mut body = Vec::new();
    rmpv::encode::write_value(&mut body, &Value::Array(message)).unwrap();
    let mut frame = (body.len() as u32).to_le_bytes().to_vec();
    frame.extend(body);
    frame
}

impl Raw {
    /// Connects, once the server listens.
    pub(crate) async fn connect(path: &Path) -> Self {
        loop {
            if let Ok(stream) = UnixStream::connect(path) {
                stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                return Self(stream);
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    pub(crate) fn accept(listener: &UnixListener) -> Self {
        Self(listener.accept().unwrap().0)
    }

    /// Connects and greets; gives the worker's hello as well.
    pub(crate) async fn greeted(path: &Path) -> (Self, Value) {
        Self::greeted_with(path, &[]).await
    }

    /// The same with more in the hello.
    pub(crate) async fn greeted_with(path: &Path, more: &[(&str, Value)]) -> (Self, Value) {
        let mut raw = Self::connect(path).await;
        raw.send(b"taskfork");
        let known = [("versions", Value::Array(vec![1.into()])), ("name", text("raw"))];
        raw.send_message(vec![0.into(), map(&[&known, more].concat())]);
        let mut preamble = [0; 8];
        raw.0.read_exact(&mut preamble).unwrap();
        assert_eq!(&preamble, b"taskfork");
        let hello = raw.receive().unwrap();
        (raw, hello)
    }

    /// Greets as a client that shares so much memory, and calls `method` with no arguments; gives how many bytes of
    /// this client's memory the worker keeps, if it shares memory.
    pub(crate) async fn sharing(path: &Path, lent: u64, method: &str) -> (Self, Option<u64>) {
        let hello = [("files", 16.into()), ("lent", lent.into())];
        let (mut raw, _) = Self::greeted_with(path, &hello).await;
        raw.call(method, vec![]);
        let agreed = raw.receive_agreed();
        (raw, agreed)
    }

    /// Receives an answer; gives what was agreed in front of it.
    pub(crate) fn receive_agreed(&mut self) -> Option<u64> {
        let first = self.receive().unwrap();
        let first = first.as_array().unwrap();
        if first[0] != 7.into() {
            return None;
        }
        let answer = self.receive().unwrap();
        assert_ne!(answer.as_array().unwrap()[0], 7.into());
        let mut said = first[1].as_map().unwrap().iter();
        said.find_map(|(key, value)| (*key == text("agreed")).then(|| value.as_u64().unwrap()))
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    pub(crate) fn send_message(&mut self, message: Vec<Value>) {
        self.send(&frame(message));
    }

    pub(crate) fn call(&mut self, method: &str, args: Vec<Value>) {
        self.send_message(vec![1.into(), map(&[]), text(method), Value::Array(args)]);
    }

    /// The next message, or nothing at the end of the connection.
    pub(crate) fn receive(&mut self) -> Option<Value> {
        let mut length = [0; 4];
        self.0.read_exact(&mut length).ok()?;
        let mut body = vec![0; u32::from_le_bytes(length) as usize];
        self.0.read_exact(&mut body).ok()?;
        Some(rmpv::decode::read_value(&mut &body[..]).unwrap())
    }

    /// Waits for the end of the connection; gives what came before it.
    pub(crate) fn drain(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        // A reset is an end too.
        let _ = self.0.read_to_end(&mut rest);
        rest
    }
}

/// A server that does with each connection what `serve` does.
pub(crate) fn fake(
    folder: &tempfile::TempDir,
    mut serve: impl FnMut(Raw) + Send + 'static,
) -> Client {
    let listener = UnixListener::bind(folder.path().join("s")).unwrap();
    std::thread::spawn(move || {
        loop {
            serve(Raw::accept(&listener));
        }
    });
    Client::builder()
        .address(address_in(folder))
        .min_workers(0)
        .max_workers(1)
        .timeout(Duration::from_millis(400))
        .connect_timeout(Duration::from_millis(100))
        .build()
        .unwrap()
}

/// Greets, and waits for the client's greeting and first messages.
pub(crate) fn greet(raw: &mut Raw, calls: usize) {
    greet_as(raw, &[]);
    for _ in 0..calls {
        raw.receive();
    }
}

/// What a worker says that shares memory, in front of its first answer.
pub(crate) fn agreed(bytes: u64) -> Vec<u8> {
    frame(vec![7.into(), map(&[("agreed", bytes.into())])])
}

/// Greets with more in the hello, and waits for the client's greeting.
pub(crate) fn greet_as(raw: &mut Raw, more: &[(&str, Value)]) {
    raw.0.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut preamble = [0; 8];
    raw.0.read_exact(&mut preamble).unwrap();
    raw.receive().unwrap();
    raw.send(b"taskfork");
    let known = [("version", 1.into()), ("pid", 4_000_000.into())];
    raw.send_message(vec![0.into(), map(&[&known, more].concat())]);
}
