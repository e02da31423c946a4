//! An interface whose methods take inputs, and streams for their callers.

use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;
use taskfork::client::Value;
use taskfork::worker::ReceiveError;
use taskfork::{Blob, BoxError, Emitter, Receiver, ServerBuilder, ServerError};
use tokio::sync::mpsc;

#[taskfork::interface]
pub(crate) trait Inputs {
    /// Adds the numbers of the input.
    fn sum(&mut self, from: u64, input: &mut Receiver<u64>) -> Result<u64, BoxError>;
    /// The same by an iterator. The input is in front, and a parameter behind it.
    fn sum_of(&mut self, input: &mut Receiver<u64>, from: u64) -> Result<u64, BoxError>;
    /// Sends the length of each text, twice.
    fn lengths(
        &mut self,
        out: &mut Emitter<usize>,
        input: &mut Receiver<String>,
        times: usize,
    ) -> Result<usize, BoxError>;
    /// Adds the first `count` numbers and ignores the others.
    fn first(&mut self, count: usize, input: &mut Receiver<u64>) -> Result<u64, BoxError>;
    /// The length of each blob, and its first byte.
    fn blobs(&mut self, input: &mut Receiver<Blob>) -> Result<Vec<(usize, Option<u8>)>, BoxError>;
    /// Takes nothing until the file exists, and then counts the items.
    fn wait_for(&mut self, file: PathBuf, input: &mut Receiver<Value>) -> Result<u64, BoxError>;
    /// Takes two numbers, and then does this.
    fn two_and_then(&mut self, what: String, input: &mut Receiver<u64>) -> Result<u64, BoxError>;
    /// Takes all, and keeps how the input has ended.
    fn keep_end(&mut self, input: &mut Receiver<u64>) -> u64;
    /// How the last input of `keep_end` has ended, and the worker's process id.
    fn last_end(&mut self) -> (String, u32);
    /// Counts its runs in a file. The first run takes `count` numbers and kills its worker.
    #[taskfork(idempotent)]
    fn die_once(&mut self, runs: PathBuf, count: usize, input: &mut Receiver<u64>) -> u64;
    fn fail(&mut self) -> Result<(), BoxError>;
    fn echo(&mut self, text: String) -> String;
}

#[derive(Default)]
struct State {
    end: String,
}

impl Inputs for State {
    fn sum(&mut self, from: u64, input: &mut Receiver<u64>) -> Result<u64, BoxError> {
        let mut sum = from;
        while let Some(number) = input.next()? {
            sum += number;
        }
        assert!(input.next()?.is_none());
        Ok(sum)
    }

    fn sum_of(&mut self, input: &mut Receiver<u64>, from: u64) -> Result<u64, BoxError> {
        let mut sum = from;
        for number in input {
            sum += number?;
        }
        Ok(sum)
    }

    fn lengths(
        &mut self,
        out: &mut Emitter<usize>,
        input: &mut Receiver<String>,
        times: usize,
    ) -> Result<usize, BoxError> {
        let mut count = 0;
        while let Some(text) = input.next()? {
            count += 1;
            for _ in 0..times {
                out.send(&text.len())?;
            }
        }
        Ok(count)
    }

    fn first(&mut self, count: usize, input: &mut Receiver<u64>) -> Result<u64, BoxError> {
        Ok(input.take(count).sum::<Result<u64, _>>()?)
    }

    fn blobs(&mut self, input: &mut Receiver<Blob>) -> Result<Vec<(usize, Option<u8>)>, BoxError> {
        let mut found = Vec::new();
        while let Some(blob) = input.next()? {
            found.push((blob.len(), blob.first().copied()));
        }
        Ok(found)
    }

    fn wait_for(&mut self, file: PathBuf, input: &mut Receiver<Value>) -> Result<u64, BoxError> {
        while !file.exists() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut count = 0;
        while input.next()?.is_some() {
            count += 1;
        }
        Ok(count)
    }

    fn two_and_then(&mut self, what: String, input: &mut Receiver<u64>) -> Result<u64, BoxError> {
        let sum = input.by_ref().take(2).sum::<Result<u64, _>>()?;
        match &*what {
            "return" => Ok(sum),
            "fail" => Err("failed".into()),
            "panic" => panic!("panicked"),
            "abort" => std::process::abort(),
            // The input does not end.
            "wait" => Ok(input.count() as u64),
            _ => loop {
                std::thread::park();
            },
        }
    }

    fn keep_end(&mut self, input: &mut Receiver<u64>) -> u64 {
        let mut sum = 0;
        self.end = loop {
            match input.next() {
                Ok(Some(number)) => sum += number,
                Ok(None) => break "end".to_owned(),
                Err(error @ ReceiveError::Item(_)) => break format!("item: {error}"),
                Err(error) => break error.to_string(),
            }
        };
        sum
    }

    fn last_end(&mut self) -> (String, u32) {
        (std::mem::take(&mut self.end), std::process::id())
    }

    fn die_once(&mut self, runs: PathBuf, count: usize, input: &mut Receiver<u64>) -> u64 {
        let before = std::fs::read(&runs).unwrap_or_default();
        std::fs::write(&runs, [&before[..], b"x"].concat()).unwrap();
        if before.is_empty() {
            for number in input.by_ref().take(count) {
                number.unwrap();
            }
            let me = rustix::process::getpid();
            rustix::process::kill_process(me, rustix::process::Signal::KILL).unwrap();
        }
        input.map(Result::unwrap).sum()
    }

    fn fail(&mut self) -> Result<(), BoxError> {
        Err("failed".into())
    }

    fn echo(&mut self, text: String) -> String {
        text
    }
}

pub(crate) fn server(server: ServerBuilder) -> Result<(), ServerError> {
    let setup = || Ok::<_, BoxError>(State::default());
    server.setup(setup).interface(InputsInterface).run()
}

/// The items of an iterator.
pub(crate) struct Iter<I>(I);

impl<I: Iterator + Unpin> Stream for Iter<I> {
    type Item = I::Item;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<I::Item>> {
        Poll::Ready(self.0.next())
    }
}

pub(crate) fn iter<I: IntoIterator<IntoIter: Unpin>>(items: I) -> Iter<I::IntoIter> {
    Iter(items.into_iter())
}

/// The items that are sent through a channel.
pub(crate) struct Channel<T>(pub(crate) mpsc::UnboundedReceiver<T>);

impl<T> Stream for Channel<T> {
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        self.0.poll_recv(context)
    }
}

pub(crate) fn channel<T>() -> (mpsc::UnboundedSender<T>, Channel<T>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (sender, Channel(receiver))
}
