//! The events of `top`: keys, signals and answers of the server. Each kind has a thread, so keys and signals work
//! while the server does not answer.

use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use ratatui::crossterm::event::{self, Event, KeyEvent, KeyEventKind};
use signal_hook::consts::{
    SIGALRM, SIGCONT, SIGHUP, SIGINT, SIGPROF, SIGQUIT, SIGTERM, SIGTSTP, SIGUSR1, SIGUSR2,
    SIGVTALRM, SIGXCPU,
};
use signal_hook::iterator::Signals;
use taskfork::server::ServerStatus;
use taskfork_gateway::taskfork_nats::NodeStatus;

use crate::fleet_status::Service;

/// An event that `top` handles.
#[derive(Debug)]
pub(super) enum TopEvent {
    Key(KeyEvent),
    /// The size of the terminal has changed.
    Resized,
    /// A signal that ends, stops or continues this process.
    Signal(i32),
    /// The answer to a request for the status.
    StatusRead(io::Result<ServerStatus>),
    /// The answer to a request to dismiss a worker.
    Dismissed(u64, io::Result<ServerStatus>),
    /// The answers of the nodes of a service.
    NodesRead(Result<Vec<NodeStatus>, String>),
    /// The answer of one node with its workers.
    NodeRead(Result<Option<NodeStatus>, String>),
    /// The terminal cannot be read.
    Unreadable(io::Error),
}

/// A request to the thread that talks to the server.
#[derive(Debug)]
pub(super) enum Request {
    Status,
    Dismiss(u64),
}

/// A request to the thread that asks the nodes of a service.
#[derive(Debug)]
pub(super) enum FleetRequest {
    /// Besides all nodes, ask for the workers of this one, or of none.
    Workers(Option<String>),
}

/// Catches the signals that would end or stop this process without restoring the terminal.
pub(super) fn catch_signals(sender: &Sender<TopEvent>) -> io::Result<()> {
    let mut signals = Signals::new([
        SIGTERM, SIGHUP, SIGINT, SIGQUIT, SIGUSR1, SIGUSR2, SIGALRM, SIGVTALRM, SIGPROF, SIGXCPU,
        SIGTSTP, SIGCONT,
    ])?;
    let sender = sender.clone();
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for signal in signals.forever() {
            if sender.send(TopEvent::Signal(signal)).is_err() {
                return;
            }
        }
    })?;
    Ok(())
}

/// Reads keys from the terminal.
pub(super) fn read_keys(sender: &Sender<TopEvent>) -> io::Result<()> {
    let sender = sender.clone();
    thread::Builder::new().name("keys".to_owned()).spawn(move || {
        loop {
            let event = match event::read() {
                Ok(Event::Key(key)) if key.kind == KeyEventKind::Press => TopEvent::Key(key),
                Ok(Event::Resize(..)) => TopEvent::Resized,
                Ok(_) => continue,
                Err(error) => {
                    // The view may have ended.
                    let _ = sender.send(TopEvent::Unreadable(error));
                    return;
                }
            };
            if sender.send(event).is_err() {
                return;
            }
        }
    })?;
    Ok(())
}

/// Requests the status after each `interval`, and at once on request.
pub(super) fn ask_server(
    sender: &Sender<TopEvent>,
    socket: PathBuf,
    interval: Duration,
) -> io::Result<Sender<Request>> {
    let (requests, receiver): (_, Receiver<Request>) = channel();
    let sender = sender.clone();
    thread::Builder::new().name("status".to_owned()).spawn(move || {
        loop {
            let event = match receiver.recv_timeout(interval) {
                Ok(Request::Status) | Err(RecvTimeoutError::Timeout) => {
                    TopEvent::StatusRead(ServerStatus::read(&socket))
                }
                Ok(Request::Dismiss(worker)) => {
                    TopEvent::Dismissed(worker, ServerStatus::dismiss(&socket, worker, None))
                }
                Err(RecvTimeoutError::Disconnected) => return,
            };
            if sender.send(event).is_err() {
                return;
            }
        }
    })?;
    Ok(requests)
}

/// Asks the nodes of a service after each `interval`, and at once on request.
pub(super) fn ask_nodes(
    sender: &Sender<TopEvent>,
    service: Service,
    interval: Duration,
) -> io::Result<Sender<FleetRequest>> {
    let (requests, receiver): (_, Receiver<FleetRequest>) = channel();
    let sender = sender.clone();
    thread::Builder::new().name("status".to_owned()).spawn(move || {
        let mut shown: Option<String> = None;
        loop {
            match receiver.recv_timeout(interval) {
                Ok(FleetRequest::Workers(node)) => shown = node,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let node = shown.as_deref().map(|node| service.node(node));
            let node = node.map(|it| TopEvent::NodeRead(it.map_err(|error| error.to_string())));
            let nodes = service.nodes(false).map_err(|error| error.to_string());
            for event in node.into_iter().chain([TopEvent::NodesRead(nodes)]) {
                if sender.send(event).is_err() {
                    return;
                }
            }
        }
    })?;
    Ok(requests)
}
