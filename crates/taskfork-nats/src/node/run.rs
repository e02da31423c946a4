//! The task of a node.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::{Client, HeaderMap, Message, Subject, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::SelectAll;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout};

use super::balance::{Balance, Load, Told};
use super::calls::{Calls, LEAVE_TIMEOUT};
use super::group::{Asked, Group};
use super::micro::{Micro, Verb};
use super::name::NAME_TIMEOUT;
use super::pause::Pause;
use super::permissions::Permissions;
use super::relay::Shared;
use super::sessions::Sessions;
use super::status::{MAX_ANSWERS, Own};
use super::usage::SessionUsage;
use super::waiters::Waiters;
use super::{CallHandler, Connector, Drain, SessionHandler, Settings, StatusHandler};
use crate::connect::check_connected;
use crate::direct::{Connection, Direct};
use crate::error::Error;
use crate::names::{Labels, Name, Subjects};
use crate::session::Windows;
use crate::wire::{Refusal, Request, Route, StatusRequest};

/// How long sessions and calls have to tell their ends.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// The header of a request that other nodes have passed on: how often.
const PASSED: &str = "Taskfork-Passed";

/// How often nodes pass on a request to make room that they cannot fulfil. The client repeats it each second.
const MAX_ROOM_PASSES: u8 = 4;

/// What a node is made of.
pub(super) struct Parts {
    pub(super) client: Client,
    pub(super) permissions: Permissions,
    pub(super) subjects: Subjects,
    pub(super) service: Name,
    pub(super) name: Name,
    pub(super) id: String,
    pub(super) labels: Labels,
    pub(super) settings: Settings,
    pub(super) connector: Connector,
    pub(super) handler: Option<SessionHandler>,
    pub(super) status: Option<StatusHandler>,
    pub(super) calls: Option<CallHandler>,
    pub(super) free: watch::Sender<usize>,
}

/// A node that runs.
pub(super) struct Runner {
    pub(super) shared: Shared,
    pub(super) permissions: Permissions,
    pub(super) subjects: Subjects,
    pub(super) service: Name,
    pub(super) name: Name,
    pub(super) id: String,
    labels: Labels,
    /// The subjects where clients that wait ask for room.
    rooms: Vec<String>,
    /// Subjects that a full node has too: `$SRV`, its name, clients that wait.
    pub(super) always: SelectAll<Subscriber>,
    group: Group,
    balance: Balance,
    pause: Pause,
    /// Gets whether the server could be reached.
    server: mpsc::Receiver<bool>,
    waiters: Waiters,
    sessions: Sessions,
    calls: JoinSet<()>,
    handler: Option<CallHandler>,
    status: Option<StatusHandler>,
    /// Answers to questions for the status.
    answers: JoinSet<()>,
    free: watch::Sender<usize>,
    ending: watch::Sender<bool>,
    draining: watch::Sender<bool>,
    state: State,
}

enum State {
    Serving,
    Draining {
        until: tokio::time::Instant,
        /// The grace is over, and the sessions are ending.
        ending: bool,
        done: oneshot::Sender<()>,
    },
}

/// What happens to a node.
enum Event {
    Asked(Asked),
    Message(Message),
    /// A session is over. It has left for the client that waits at this inbox.
    Freed(Option<String>),
    /// The calls are over.
    CallsEnded,
    /// A question for the status is answered.
    Answered,
    Drain(Drain),
    /// A client that waits may have gone.
    Forget,
    /// A session has tried to connect with the server.
    Server {
        reached: bool,
    },
    /// The pause of a node whose server cannot be reached is over.
    Resume,
    /// The grace of draining is over.
    GraceOver,
    /// The NATS client has closed.
    Closed,
}

impl Runner {
    pub(super) fn new(parts: Parts) -> Self {
        let Parts { client, subjects, service, name, id, labels, .. } = parts;
        let (ending, watched) = watch::channel(false);
        let (reached, server) = mpsc::channel(16);
        let (draining, drains) = watch::channel(false);
        let queue = subjects.group();
        let mut asked: Vec<_> = subjects
            .acquire_all(&labels)
            .into_iter()
            .map(|subject| (subject, Some(queue.clone())))
            .collect();
        asked.push((subjects.acquire_from(&name), None));
        let micro =
            Micro::new(service.clone(), &name, id.clone(), &labels, &parts.settings, &subjects);
        Self {
            group: Group::new(client.clone(), asked),
            shared: Shared {
                client,
                node: name.to_string(),
                windows: Windows::new(parts.settings.window),
                settings: Arc::new(parts.settings),
                connector: parts.connector,
                handler: parts.handler,
                micro: Arc::new(micro),
                reached,
                ending: watched,
                draining: drains,
            },
            permissions: parts.permissions,
            rooms: subjects.room_all(&labels),
            subjects,
            service,
            name,
            id,
            labels,
            always: SelectAll::new(),
            balance: Balance::default(),
            pause: Pause::default(),
            server,
            waiters: Waiters::default(),
            sessions: Sessions::default(),
            calls: JoinSet::new(),
            handler: parts.calls,
            status: parts.status,
            answers: JoinSet::new(),
            free: parts.free,
            ending,
            draining,
            state: State::Serving,
        }
    }

    /// Takes the node's name, and subscribes.
    pub(super) async fn join(mut self) -> Result<Self, Error> {
        let client = self.shared.client.clone();
        let mut inbox = self.take_name().await?;
        self.check_permissions()?;
        for verb in Verb::ALL {
            for subject in self.subjects.micro(verb.name(), &self.id) {
                self.subscribe(subject).await?;
            }
        }
        self.subscribe(self.subjects.wait()).await?;
        let loads = client.queue_subscribe(self.subjects.load(), self.subjects.group()).await;
        self.always.push(loads.map_err(Error::closed)?);
        for subject in &self.rooms {
            let asks = client.queue_subscribe(subject.clone(), self.subjects.group()).await;
            self.always.push(asks.map_err(Error::closed)?);
        }
        self.subscribe(self.subjects.status()).await?;
        self.subscribe(self.subjects.status_of(&self.name)).await?;
        let direct = self.shared.settings.direct.as_ref();
        for connection in direct.map_or(Vec::new(), Direct::connections) {
            self.keep(connection);
        }
        self.group.set_room(self.room()).await?;
        if let Some(handler) = self.handler.take() {
            let calls = Calls {
                client: client.clone(),
                subjects: self.subjects.clone(),
                settings: Arc::clone(&self.shared.settings),
                handler,
                micro: Arc::clone(&self.shared.micro),
            };
            self.calls.spawn(calls.serve(self.draining.subscribe()));
        }
        // A message to itself: when it is back, the server knows the subscriptions, and clients find the node.
        client.publish(inbox.subject.clone(), Bytes::new()).await.map_err(Error::closed)?;
        let _ = timeout(NAME_TIMEOUT, inbox.subscriber.next()).await;
        Ok(self)
    }

    /// All subjects at which the node is asked for something.
    pub(super) fn own_subjects(&self) -> Vec<String> {
        let Self { subjects, name, labels, .. } = self;
        let micro = Verb::ALL.into_iter().flat_map(|verb| subjects.micro(verb.name(), &self.id));
        let calls = self.handler.as_ref().map(|_| subjects.calls());
        let others = [
            subjects.node(name),
            subjects.acquire_from(name),
            subjects.wait(),
            subjects.load(),
            subjects.status(),
            subjects.status_of(name),
        ];
        let asked = subjects.acquire_all(labels).into_iter().chain(self.rooms.iter().cloned());
        others.into_iter().chain(micro).chain(asked).chain(calls).collect()
    }

    /// Serves until the node has drained, or the NATS client has closed.
    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<Drain>) {
        loop {
            let event = self.next(&mut commands).await;
            if let Err(error) = self.handle_in_time(event, &mut commands).await {
                tracing::error!(node = %self.name, %error, "a node has ended");
                return;
            }
            if matches!(self.state, State::Draining { .. })
                && self.sessions.is_empty()
                && self.calls.is_empty()
            {
                break;
            }
        }
        // What the sessions have said last is on its way before the connection goes, if there is one.
        if check_connected(&self.shared.client).is_ok() {
            let _ = timeout(END_TIMEOUT, self.shared.client.flush()).await;
        }
        if let State::Draining { done, .. } = self.state {
            let _ = done.send(());
        }
    }

    async fn next(&mut self, commands: &mut mpsc::Receiver<Drain>) -> Event {
        let forget = self.waiters.forget(Instant::now());
        let grace = match &self.state {
            State::Serving => None,
            State::Draining { until, .. } => Some(*until),
        };
        let at = |time: Option<tokio::time::Instant>| async move {
            match time {
                Some(time) => sleep_until(time).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            asked = self.group.next() => Event::Asked(asked),
            message = self.always.next() => message.map_or(Event::Closed, Event::Message),
            Some(made_for) = self.sessions.next_ended() => Event::Freed(made_for),
            Some(_) = self.calls.join_next() => Event::CallsEnded,
            Some(_) = self.answers.join_next() => Event::Answered,
            Some(drain) = commands.recv() => Event::Drain(drain),
            Some(reached) = self.server.recv() => Event::Server { reached },
            () = at(self.pause.until().map(Into::into)) => Event::Resume,
            () = at(forget.map(Into::into)) => Event::Forget,
            () = at(grace) => Event::GraceOver,
        }
    }

    /// Handles an event. While NATS is away, the NATS client takes nothing more at some time, until it is back. The
    /// order to drain does not wait for that, nor does what follows it.
    async fn handle_in_time(
        &mut self,
        event: Event,
        commands: &mut mpsc::Receiver<Drain>,
    ) -> Result<(), Error> {
        let mut event = event;
        if matches!(self.state, State::Serving) && !matches!(event, Event::Drain(_)) {
            event = tokio::select! {
                biased;
                handled = self.handle(event) => return handled,
                Some(drain) = commands.recv() => Event::Drain(drain),
            };
        }
        timeout(LEAVE_TIMEOUT, self.handle(event)).await.unwrap_or(Ok(()))
    }

    async fn handle(&mut self, event: Event) -> Result<(), Error> {
        match event {
            Event::Asked(Asked::Session { message, left }) => self.asked(message, left).await,
            Event::Message(message) => self.message(message).await,
            Event::Asked(Asked::Quota)
            | Event::Freed(None)
            | Event::CallsEnded
            | Event::Answered
            | Event::Forget => {}
            Event::Freed(Some(inbox)) => self.waiters.prefer(&inbox),
            Event::Server { reached: true } => self.pause.reset(),
            Event::Server { reached: false } => self.pause.begin(Instant::now()),
            Event::Resume => self.pause.end(Instant::now()),
            Event::Drain(Drain { grace, done }) => self.drain(grace, done),
            Event::GraceOver => self.end(),
            Event::Closed => return Err(Error::closed("its connection is closed")),
        }
        self.serve_waiters();
        // Clients that wait have got the room first: there are none, or the node is full and stays away from
        // clients that do not wait.
        self.group.set_room(self.room()).await?;
        self.free.send_replace(self.room());
        self.tell_load().await;
        Ok(())
    }

    /// For how many more sessions there is room. None while the server cannot be reached.
    fn room(&self) -> usize {
        match self.state {
            _ if self.pause.until().is_some() => 0,
            State::Serving => self.shared.settings.sessions.saturating_sub(self.sessions.len()),
            State::Draining { .. } => 0,
        }
    }

    async fn asked(&mut self, message: Message, left: usize) {
        let Some(reply) = message.reply else { return };
        match Request::decode(&message.payload) {
            Err(text) => {
                let text = format!("the request is wrong: {text}");
                self.shared.refuse(reply, Refusal::Request, text).await;
            }
            Ok(_) if self.room() == 0 => {
                self.shared.refuse(reply, Refusal::Full, "it is full".into()).await;
            }
            Ok(request) => {
                let passed = passed(message.headers.as_ref());
                let now = Instant::now();
                // A message that only this node can get must find it in the group, also if another request is
                // on its way.
                if left > 1
                    && message.subject.as_str() != self.subjects.acquire_from(&self.name)
                    && self.balance.passes_on(now, self.load(), passed)
                {
                    self.pass_on(message.subject, reply, passed + 1, message.payload).await;
                } else {
                    self.accept(request, reply);
                }
            }
        }
    }

    /// Lets NATS choose another node for a request. It may choose this one again.
    async fn pass_on(&self, subject: Subject, reply: Subject, passed: u8, payload: Bytes) {
        let mut headers = HeaderMap::new();
        headers.insert(PASSED, passed.to_string());
        let client = &self.shared.client;
        let sent = client.publish_with_reply_and_headers(subject, reply, headers, payload);
        if let Err(error) = sent.await {
            tracing::debug!(%error, "a request was not passed on");
        }
    }

    fn load(&self) -> Load {
        Load::new(self.sessions.len(), self.shared.settings.sessions)
    }

    /// Tells another node, which NATS chooses, of the own load.
    async fn tell_load(&mut self) {
        let load = self.load();
        if matches!(self.state, State::Serving) && self.balance.tell(Instant::now(), load) {
            let told = Told { load, id: self.id.clone() };
            self.send(self.subjects.load().into(), told.encode().into()).await;
        }
    }

    fn accept(&mut self, request: Request, reply: Subject) {
        let (holder, usage) = (request.holder(), SessionUsage::new());
        let serving = self.shared.clone().serve(request, reply, usage.clone());
        self.sessions.spawn(holder, usage, serving);
    }

    /// Counts a direct connection that a predecessor of this node has admitted.
    fn keep(&mut self, connection: Connection) {
        let (holder, usage) = (connection.holder().clone(), connection.usage().clone());
        self.sessions.spawn(holder, usage, self.shared.clone().keep(connection));
    }

    async fn message(&mut self, message: Message) {
        let passed = passed(message.headers.as_ref());
        let Message { subject, reply, payload, .. } = message;
        if subject.as_str() == self.subjects.load() {
            if let Some(Told { load, id }) = Told::decode(&payload)
                && id != self.id
            {
                self.balance.hear(Instant::now(), load);
            }
            return;
        }
        let Some(reply) = reply else { return };
        if subject.as_str() == self.subjects.wait() {
            self.wait(&reply, &payload);
        } else if self.rooms.iter().any(|room| subject.as_str() == room) {
            if !self.make_room(&reply) && passed < MAX_ROOM_PASSES {
                self.pass_on(subject, reply, passed + 1, Bytes::new()).await;
            }
        } else if subject.as_str() == self.subjects.status() {
            // One question must not have all nodes look for what happened lately.
            let request = StatusRequest { recent: None, ..StatusRequest::decode(&payload) };
            self.tell_status(reply, request);
        } else if subject.as_str() == self.subjects.status_of(&self.name) {
            self.tell_status(reply, StatusRequest::decode(&payload));
        } else if subject.as_str() == self.subjects.node(&self.name) {
            // A node that drains leaves its name to a successor.
            if payload != self.id.as_bytes() && matches!(self.state, State::Serving) {
                // Smaller than each id: this node has the name.
                self.send(reply, Bytes::new()).await;
            }
        } else if let Some(verb) = Verb::ALL.into_iter().find(|verb| {
            self.subjects.micro(verb.name(), &self.id).iter().any(|s| subject.as_str() == s)
        }) {
            let answer =
                self.shared.micro.answer(verb, self.room(), self.shared.client.max_payload());
            self.send(reply, answer).await;
        }
    }

    fn tell_status(&mut self, reply: Subject, request: StatusRequest) {
        if self.answers.len() >= MAX_ANSWERS {
            return;
        }
        let own = Own {
            node: self.name.to_string(),
            id: self.id.clone(),
            version: self.shared.settings.version.clone(),
            labels: self.labels.texts(),
            sessions: self.shared.settings.sessions,
            free: self.room(),
            draining: matches!(self.state, State::Draining { .. }),
        };
        let handler = self.status.clone();
        self.answers.spawn(self.shared.clone().answer_status(handler, own, request, reply));
    }

    async fn send(&self, subject: Subject, payload: Bytes) {
        // When NATS is back, nobody waits for it any more.
        if check_connected(&self.shared.client).is_err() {
            return;
        }
        if let Err(error) = self.shared.client.publish(subject, payload).await {
            tracing::debug!(%error, "an answer was not sent");
        }
    }

    fn wait(&mut self, inbox: &Subject, payload: &[u8]) {
        let request = match Request::decode(payload) {
            Ok(request) => request,
            Err(error) => {
                tracing::debug!(error, "a request for a place in the queue is wrong");
                return;
            }
        };
        if request.cancel {
            self.waiters.cancel(inbox);
        } else if matches!(self.state, State::Serving)
            && self.labels.have(&request.labels)
            && (request.route != Route::Direct || self.shared.settings.direct.is_some())
        {
            self.waiters.renew(Instant::now(), inbox, request);
        }
    }

    /// Makes room for a client in the own queue, if the node is full and a session has to leave.
    fn make_room(&mut self, inbox: &Subject) -> bool {
        // While the server cannot be reached, a session that ends helps nobody.
        if !matches!(self.state, State::Serving) || self.pause.until().is_some() {
            return false;
        }
        let now = Instant::now();
        let Some(request) = self.waiters.look(now, inbox) else { return false };
        let waiters = &self.waiters;
        self.room() > 0 || self.sessions.make_room(now, inbox, &request, |inbox| waiters.has(inbox))
    }

    fn serve_waiters(&mut self) {
        while self.room() > 0
            && let Some(waiter) = self.waiters.take(Instant::now())
        {
            self.accept(waiter.request, waiter.inbox.into());
        }
    }

    fn drain(&mut self, grace: Duration, done: oneshot::Sender<()>) {
        let now = tokio::time::Instant::now();
        // More than this is no limit.
        let until = now.checked_add(grace).unwrap_or(now + Duration::from_secs(86_400 * 365 * 100));
        self.state = State::Draining { until, ending: false, done };
        self.waiters.clear();
        self.draining.send_replace(true);
        // Their clients ask other nodes.
        if let Some(direct) = &self.shared.settings.direct {
            direct.withdraw_all();
        }
    }

    /// The grace is over: sessions end, and those that hang in their connectors are dropped later.
    fn end(&mut self) {
        let State::Draining { until, ending, .. } = &mut self.state else { return };
        *until = tokio::time::Instant::now() + END_TIMEOUT;
        if std::mem::replace(ending, true) {
            self.sessions.abort_all();
        }
        self.ending.send_replace(true);
        self.calls.abort_all();
    }

    async fn subscribe(&mut self, subject: String) -> Result<(), Error> {
        let subscriber = self.shared.client.subscribe(subject).await.map_err(Error::closed)?;
        self.always.push(subscriber);
        Ok(())
    }
}

/// How often a request was passed on.
fn passed(headers: Option<&HeaderMap>) -> u8 {
    let header = headers.and_then(|headers| headers.get(PASSED));
    // What is no number has been passed on too often.
    header.map_or(0, |header| header.as_str().parse().unwrap_or(u8::MAX - 1))
}
