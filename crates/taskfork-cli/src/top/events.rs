//! What `top` waits for: keys, signals and the server's answers. Each comes from a thread of its own, so that
//! a server that does not answer holds up neither keys nor signals.

use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use ratatui::crossterm::event::{self, Event, KeyEvent, KeyEventKind};
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP};
use signal_hook::iterator::Signals;
use taskfork::server::ServerStatus;

/// Something that `top` reacts to.
#[derive(Debug)]
pub(super) enum Happened {
    Key(KeyEvent),
    /// The terminal has another size.
    Resized,
    /// A signal that ends, stops or continues this process.
    Signal(i32),
    /// The server was asked for its status.
    Looked(io::Result<ServerStatus>),
    /// The server was asked to dismiss a worker.
    Dismissed(u64, io::Result<ServerStatus>),
    /// The terminal cannot be read.
    Unreadable(io::Error),
}

/// What the thread that asks the server is to do at once.
#[derive(Debug)]
pub(super) enum Wish {
    Look,
    Dismiss(u64),
}

/// Catches the signals that would leave the terminal as it is.
pub(super) fn catch_signals(sender: &Sender<Happened>) -> io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGHUP, SIGINT, SIGQUIT, SIGTSTP, SIGCONT])?;
    let sender = sender.clone();
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for signal in signals.forever() {
            if sender.send(Happened::Signal(signal)).is_err() {
                return;
            }
        }
    })?;
    Ok(())
}

/// Reads the terminal.
pub(super) fn read_keys(sender: &Sender<Happened>) -> io::Result<()> {
    let sender = sender.clone();
    thread::Builder::new().name("keys".to_owned()).spawn(move || {
        loop {
            let happened = match event::read() {
                Ok(Event::Key(key)) if key.kind == KeyEventKind::Press => Happened::Key(key),
                Ok(Event::Resize(..)) => Happened::Resized,
                Ok(_) => continue,
                Err(error) => {
                    // There is nobody to tell once the view has ended.
                    let _ = sender.send(Happened::Unreadable(error));
                    return;
                }
            };
            if sender.send(happened).is_err() {
                return;
            }
        }
    })?;
    Ok(())
}

/// Asks the server for its status each time that `interval` is over, and at once for each wish.
pub(super) fn ask_server(
    sender: &Sender<Happened>,
    socket: PathBuf,
    interval: Duration,
) -> io::Result<Sender<Wish>> {
    let (wishes, wished): (_, Receiver<Wish>) = channel();
    let sender = sender.clone();
    thread::Builder::new().name("status".to_owned()).spawn(move || {
        loop {
            let happened = match wished.recv_timeout(interval) {
                Ok(Wish::Look) | Err(RecvTimeoutError::Timeout) => {
                    Happened::Looked(ServerStatus::read(&socket))
                }
                Ok(Wish::Dismiss(worker)) => {
                    Happened::Dismissed(worker, ServerStatus::dismiss(&socket, worker))
                }
                Err(RecvTimeoutError::Disconnected) => return,
            };
            if sender.send(happened).is_err() {
                return;
            }
        }
    })?;
    Ok(wishes)
}
