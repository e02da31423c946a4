//! The server process: it accepts connections, forks workers, reaps them and tells clients of deaths.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use super::check::Trouble;
use super::kernel::{Accepted, Event, Kernel};
use super::plan::ServerPlan;
use super::slot::Slot;
use crate::client::memory::Memory;
use crate::error::End;
use crate::wire::death_notice::DeathNotice;
use crate::wire::error_body::{ErrorBody, kind};
use crate::wire::first_message::{FirstMessage, Progress};
use crate::wire::frame::{self, PREAMBLE};
use crate::wire::native;
use crate::worker::scoreboard::{Phase, StopRequest};

/// How long no connection is accepted after that has failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a worker may take to notice the end of its client.
const NOTICE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a first message may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// What happens to a connection.
#[derive(Debug)]
enum News {
    /// Its first message is complete.
    Greeted(u64),
    /// Its first message is wrong.
    Invalid(u64),
    /// The client has closed it.
    Gone(u64),
    /// A worker has not noticed that in time.
    Late(u64),
    /// Connections can be accepted again.
    Resume,
}

/// A connection that the server has accepted.
struct Peer {
    stream: Memory,
    watch: AbortHandle,
    is_preamble_sent: bool,
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

struct Child {
    connection: u64,
    slot: Slot,
}

/// A server process.
pub(super) struct ServerProcess {
    number: u64,
    kernel: Kernel,
    limit: usize,
    peers: BTreeMap<u64, Peer>,
    queue: VecDeque<u64>,
    children: BTreeMap<u64, Child>,
    news: UnboundedSender<News>,
}

impl ServerProcess {
    /// Starts a server with this number. It runs until the kernel ends it.
    pub(super) fn start(kernel: &Kernel, number: u64) {
        let (events, receiver) = unbounded_channel();
        kernel.listen(number, events);
        let (news, newsfeed) = unbounded_channel();
        let ServerPlan::Server { workers, .. } = kernel.plan.server;
        let server = Self {
            number,
            kernel: kernel.clone(),
            limit: workers as usize,
            peers: BTreeMap::new(),
            queue: VecDeque::new(),
            children: BTreeMap::new(),
            news,
        };
        kernel.set_server_task(tokio::spawn(server.run(receiver, newsfeed)).abort_handle());
    }

    async fn run(
        mut self,
        mut events: UnboundedReceiver<Event>,
        mut newsfeed: UnboundedReceiver<News>,
    ) {
        loop {
            tokio::select! {
                biased;
                Some(event) = events.recv() => match event {
                    Event::Readable => self.accept(),
                    Event::Child(worker) => self.reap(worker),
                },
                Some(news) = newsfeed.recv() => match news {
                    News::Greeted(connection) => self.route(connection),
                    News::Invalid(connection) => self.refuse(connection, kind::REFUSED, "it is wrong"),
                    News::Gone(connection) => self.handle_gone(connection),
                    News::Late(worker) => self.kernel.kill(worker, "it does not leave"),
                    News::Resume => self.accept(),
                },
            }
        }
    }

    fn accept(&mut self) {
        loop {
            match self.kernel.accept() {
                Ok(Some(Accepted { number, stream })) => {
                    let watch = tokio::spawn(watch(stream.duplicate(), number, self.news.clone()));
                    let watch = watch.abort_handle();
                    self.peers.insert(number, Peer { stream, watch, is_preamble_sent: false });
                }
                Ok(None) => return,
                Err(()) => {
                    let news = self.news.clone();
                    drop(tokio::spawn(async move {
                        sleep(ACCEPT_PAUSE).await;
                        let _ = news.send(News::Resume);
                    }));
                    return;
                }
            }
        }
    }

    fn route(&mut self, connection: u64) {
        if self.children.len() < self.limit && self.queue.is_empty() {
            return self.fork(connection);
        }
        self.kernel.monitor.happened(Trouble::Unreachable);
        let Some(peer) = self.peers.get_mut(&connection) else { return };
        let mut out = PREAMBLE.to_vec();
        frame::put(&mut out, |out| native::put_queued(out, "all workers are in use"));
        if peer.stream.send_at_once(&out) {
            peer.is_preamble_sent = true;
            self.queue.push_back(connection);
        } else {
            self.remove(connection);
        }
    }

    fn fork(&mut self, connection: u64) {
        let Some(peer) = self.peers.get(&connection) else { return };
        match self.kernel.fork(self.number, &peer.stream, peer.is_preamble_sent) {
            Ok((worker, slot)) => {
                self.children.insert(worker, Child { connection, slot });
                if self.children.len() > self.limit {
                    self.kernel.monitor.complain("the server has too many workers");
                }
            }
            Err(()) => self.refuse(connection, kind::BUSY, "no worker can be forked"),
        }
    }

    fn refuse(&mut self, connection: u64, kind: &str, message: &str) {
        let Some(peer) = self.peers.get(&connection) else { return };
        let mut out = if peer.is_preamble_sent { Vec::new() } else { PREAMBLE.to_vec() };
        let body = ErrorBody { kind, message, ..ErrorBody::default() };
        frame::put(&mut out, |out| native::put_error(out, None, &body));
        peer.stream.send_at_once(&out);
        self.remove(connection);
    }

    fn remove(&mut self, connection: u64) {
        self.peers.remove(&connection);
    }

    fn handle_gone(&mut self, connection: u64) {
        self.queue.retain(|queued| *queued != connection);
        let child = self.children.iter().find(|(_, child)| child.connection == connection);
        let Some((&worker, child)) = child else { return self.remove(connection) };
        child.slot.mark_client_gone();
        let view = child.slot.view();
        if matches!(view.phase, Phase::Setup | Phase::Busy)
            && child.slot.try_stop(view, StopRequest::Kill)
        {
            self.kernel.kill(worker, "its client went away");
            return;
        }
        let news = self.news.clone();
        drop(tokio::spawn(async move {
            sleep(NOTICE_TIMEOUT).await;
            let _ = news.send(News::Late(worker));
        }));
    }

    fn reap(&mut self, worker: u64) {
        let Some(end) = self.kernel.reap(worker) else { return };
        let Some(Child { connection, slot }) = self.children.remove(&worker) else { return };
        if let Some(peer) = self.peers.get(&connection) {
            if let Some(notice) = notice(worker, end, &slot)
                && !self.kernel.loses_notice(worker)
            {
                let mut out = Vec::new();
                frame::put(&mut out, |out| notice.put(out));
                peer.stream.send_at_once(&out);
            }
            peer.stream.shut_down();
        }
        self.remove(connection);
        while self.children.len() < self.limit
            && let Some(connection) = self.queue.pop_front()
        {
            self.fork(connection);
        }
    }
}

fn notice(worker: u64, end: End, slot: &Slot) -> Option<DeathNotice> {
    let view = slot.view();
    if matches!(view.phase, Phase::AnsweringLong | Phase::Handshake | Phase::Spare) {
        return None;
    }
    Some(DeathNotice {
        pid: worker as u32 + 1,
        end,
        during: view.phase.activity(),
        calls: view.calls + slot.skipped(),
        ..DeathNotice::default()
    })
}

/// Tells a server when the first message of a connection is complete, and when its client has left.
async fn watch(stream: Memory, number: u64, news: UnboundedSender<News>) {
    let mut message = FirstMessage::default();
    let greeted = stream.peek(|bytes, is_ended| match message.scan(bytes, 1 << 16) {
        Ok(Progress::Complete(_)) => Some(News::Greeted(number)),
        Ok(_) if is_ended => Some(News::Gone(number)),
        Ok(_) => None,
        Err(_) => Some(News::Invalid(number)),
    });
    let first = timeout(HANDSHAKE_TIMEOUT, greeted).await.unwrap_or(News::Invalid(number));
    let is_greeted = matches!(first, News::Greeted(_));
    let _ = news.send(first);
    if is_greeted {
        stream.peek(|_, is_ended| is_ended.then_some(())).await;
        let _ = news.send(News::Gone(number));
    }
}
