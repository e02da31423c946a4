//! Connections whose clients have not sent their first message. The server watches them itself, and forks
//! a worker only when that message has come. A silent client costs a descriptor.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use rustix::process::{Resource, getrlimit};

use super::access::{Origin, Rules};
use super::builder::ServerBuilder;
use super::error::ServerError;
use super::event_loop::{ACCEPT_PAUSE, EventLoop};
use super::fair_share::ClientId;
use super::log;
use super::refusal::{self, Refusal};
use crate::display::seconds;
use crate::time_limit::TimeLimit;
use crate::wire::Protocol;
use crate::wire::first_message::{self, FirstMessage, Progress};
use crate::worker::AcceptedClient;

const DEFAULT_TIMEOUT: TimeLimit = TimeLimit::new(Duration::from_secs(10));
const DEFAULT_MOST: usize = 1000;

/// How many connections are accepted, or heard, before other events have their turn.
const BATCH: usize = 64;

/// Room for the first look. The hello of this crate's own client is shorter.
const FIRST_LOOK: usize = 1024;

/// The most bytes of one read after the first look.
const READ: usize = 4096;

/// What is set about handshakes.
#[derive(Debug, Default)]
pub(crate) struct HandshakeLimits {
    timeout: Option<TimeLimit>,
    most: Option<usize>,
}

impl HandshakeLimits {
    pub(crate) fn check(&self) -> Result<(), ServerError> {
        let wrong =
            |option, reason: &str| Err(ServerError::Option { option, reason: reason.to_owned() });
        if self.timeout.is_some_and(TimeLimit::is_zero) {
            return wrong("handshake_timeout", "with 0, no client on TCP could be served");
        }
        if self.most == Some(0) {
            let reason =
                "with 0, a client whose first message does not come at once is never served";
            return wrong("max_handshakes", reason);
        }
        Ok(())
    }

    fn most(&self) -> usize {
        self.most.unwrap_or_else(|| {
            let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX) / 4;
            usize::try_from(descriptors).unwrap_or(usize::MAX).clamp(1, DEFAULT_MOST)
        })
    }
}

/// All connections that wait for their clients' first messages.
#[derive(Debug)]
pub(crate) struct Handshakes {
    /// One descriptor for the event loop to watch for all of them.
    epoll: OwnedFd,
    /// By numbers that grow: the first has waited longest.
    waiting: BTreeMap<u64, PendingHandshake>,
    /// When they are closed.
    deadlines: BTreeSet<(Instant, u64)>,
    next: u64,
    most: usize,
    timeout: TimeLimit,
    /// Clients of the server's own user may be silent for ever.
    keeps_own: bool,
    /// How many did not complete their greetings.
    pub(super) failures: u64,
}

#[derive(Debug)]
struct PendingHandshake {
    connection: OwnedFd,
    origin: Origin,
    received: Vec<u8>,
    greeting: FirstMessage,
    deadline: Option<Instant>,
}

impl Handshakes {
    pub(crate) fn new(limits: &HandshakeLimits, rules: &Rules) -> Result<Self, ServerError> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)
            .map_err(ServerError::system("cannot make an epoll instance"))?;
        Ok(Self {
            epoll,
            waiting: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            next: 0,
            most: limits.most(),
            timeout: limits.timeout.unwrap_or(DEFAULT_TIMEOUT),
            // A client of AnyEvent::Task connects before it has anything to say, and its next call
            // fails if the connection has been closed meanwhile.
            keeps_own: limits.timeout.is_none() && rules.takes(Protocol::Perl, Origin::Local),
            failures: 0,
        })
    }

    /// The most of them.
    pub(crate) fn most(&self) -> usize {
        self.most
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// All that a worker has no use for.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let waiting = self.waiting.values().map(|waiting| waiting.connection.as_fd());
        [self.epoll.as_fd()].into_iter().chain(waiting)
    }

    /// In a process that is forked from the server: closes its copies.
    pub(crate) fn forget(&mut self) {
        self.waiting.clear();
    }

    /// In the server: closes all.
    pub(crate) fn close_all(&mut self) {
        while let Some((number, _)) = self.waiting.first_key_value() {
            self.take(*number);
        }
    }

    /// Adds a connection. Returns the oldest one if it has to make room.
    fn add(
        &mut self,
        connection: OwnedFd,
        origin: Origin,
        is_silent: bool,
        rules: &Rules,
    ) -> Result<(u64, Option<PendingHandshake>), Errno> {
        let number = self.next;
        epoll::add(&self.epoll, &connection, EventData::new_u64(number), EventFlags::IN)?;
        self.next += 1;
        let oldest = self.waiting.first_key_value().map(|(number, _)| *number);
        let oldest = oldest.filter(|_| self.waiting.len() >= self.most);
        let evicted = oldest.and_then(|oldest| self.take(oldest));
        let is_kept =
            is_silent && self.keeps_own && origin == Origin::Local && rules.is_own(&connection);
        let (received, greeting) = (Vec::new(), FirstMessage::default());
        let waiting = PendingHandshake { connection, origin, received, greeting, deadline: None };
        self.waiting.insert(number, waiting);
        if !is_kept {
            self.set_deadline(number);
        }
        Ok((number, evicted))
    }

    fn set_deadline(&mut self, number: u64) {
        let Some(waiting) = self.waiting.get_mut(&number) else { return };
        if waiting.deadline.is_none()
            && let Some(deadline) = self.timeout.after(Instant::now())
        {
            waiting.deadline = Some(deadline);
            self.deadlines.insert((deadline, number));
        }
    }

    /// Removes a connection and ends its watch.
    fn take(&mut self, number: u64) -> Option<PendingHandshake> {
        let waiting = self.waiting.remove(&number)?;
        if let Some(deadline) = waiting.deadline {
            self.deadlines.remove(&(deadline, number));
        }
        // A worker that has just been forked may hold a copy, with which closing would not end the
        // watch.
        let _ = epoll::delete(&self.epoll, &waiting.connection);
        Some(waiting)
    }

    /// One whose time is over.
    fn expired(&mut self, now: Instant) -> Option<PendingHandshake> {
        let &(deadline, number) = self.deadlines.first()?;
        if deadline > now { None } else { self.take(number) }
    }

    /// Reads from a connection, and returns how much of its first message has come.
    fn hear(&mut self, number: u64, max_frame: usize) -> ReadOutcome {
        loop {
            let Some(waiting) = self.waiting.get_mut(&number) else { return ReadOutcome::Nothing };
            let lacks = match waiting.greeting.look(&waiting.received, max_frame) {
                Ok(Progress::Needs(lacks)) => lacks,
                Ok(Progress::Complete(protocol)) => return ReadOutcome::Greeted(protocol, None),
                Ok(Progress::TooLong(protocol)) => {
                    return ReadOutcome::Greeted(protocol, waiting.deadline);
                }
                Err(error) => return ReadOutcome::SettingError(error.to_string()),
            };
            let there = waiting.received.len();
            waiting.received.resize(there + lacks.min(READ), 0);
            let read =
                recv(&waiting.connection, &mut waiting.received[there..], RecvFlags::DONTWAIT);
            let length = read.map_or(0, |(_, length)| length);
            waiting.received.truncate(there + length);
            match read.map(|_| length) {
                Ok(0) if there == 0 => return ReadOutcome::Left,
                Ok(0) => {
                    let reason = "the client closed the connection in the middle of its greeting";
                    return ReadOutcome::SettingError(reason.to_owned());
                }
                Ok(_) => self.set_deadline(number),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return ReadOutcome::Nothing,
                Err(_) => return ReadOutcome::Left,
            }
        }
    }
}

/// The state of a connection after a read.
enum ReadOutcome {
    Nothing,
    /// A first message, or, with the time until which the rest may come, a part of a long one.
    Greeted(Protocol, Option<Instant>),
    /// No first message, and this is why.
    SettingError(String),
    /// The client has gone without a word.
    Left,
}

impl AsFd for Handshakes {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

impl EventLoop {
    /// Accepts connections, until a worker has been found for one or others have their turn.
    pub(super) fn accept(&mut self) {
        for _ in 0..BATCH {
            let Some(listener) = &self.listener else { return };
            let origin = listener.origin();
            match listener.accept() {
                Ok(connection) => {
                    if self.admit(connection, origin) {
                        return;
                    }
                }
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(Errno::AGAIN) => return,
                Err(errno) => {
                    let now = Instant::now();
                    if self.log_limits.accept.allows(now) {
                        log::error!("cannot accept connections for a while: {errno}");
                    }
                    self.accept_again = Some(now + ACCEPT_PAUSE);
                    self.set_listener_paused(true);
                    return;
                }
            }
        }
    }

    /// Gives a new connection to a worker if its first message is there, and otherwise begins to wait
    /// for that. Returns whether a worker has got it.
    pub(super) fn admit(&mut self, connection: OwnedFd, origin: Origin) -> bool {
        let mut room = [MaybeUninit::uninit(); FIRST_LOOK];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let look = recv(&connection, &mut room, flags).map(|((there, _), _)| &*there);
        if let Some(reason) = self.rules.refusal(&connection) {
            let there = look.unwrap_or_default();
            self.refuse(connection, Refusal::access(first_message::protocol(there), reason));
            return false;
        }
        let there = match look {
            Ok([]) => return false,
            Ok(there) => there,
            Err(Errno::AGAIN | Errno::INTR) => &[],
            Err(_) => return false,
        };
        match FirstMessage::default().look(there, self.options.max_frame) {
            Ok(Progress::Complete(protocol)) => {
                let holder = ClientId::of(&connection, first_message::client_number(there));
                let client = AcceptedClient::new(connection, Vec::new(), None);
                self.route_client(client, protocol, origin, holder);
                return true;
            }
            Ok(Progress::Needs(_) | Progress::TooLong(_)) => {}
            Err(error) => {
                self.handshakes.failures += 1;
                let protocol = first_message::protocol(there);
                self.refuse(connection, Refusal::handshake(protocol, error.to_string()));
                return false;
            }
        }
        match self.handshakes.add(connection, origin, there.is_empty(), &self.rules) {
            Ok((number, evicted)) => {
                if let Some(evicted) = evicted {
                    self.handshakes.failures += 1;
                    let most = self.handshakes.most;
                    let reason = format!("{most} others wait with it (max_handshakes)");
                    let protocol = first_message::protocol(&evicted.received);
                    self.refuse(evicted.connection, Refusal::handshake(protocol, reason));
                }
                !there.is_empty() && self.hear(number)
            }
            Err(errno) => {
                if self.log_limits.accept.allows(Instant::now()) {
                    log::error!("a connection cannot be watched: {errno}");
                }
                false
            }
        }
    }

    /// Reads from the connections that are readable, until one of them has got a worker.
    pub(super) fn read_handshakes(&mut self) {
        let mut room = [MaybeUninit::uninit(); BATCH];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let Ok((events, _)) = epoll::wait(&self.handshakes.epoll, &mut room, Some(&at_once)) else {
            return;
        };
        for event in events.iter() {
            if self.hear(event.data.u64()) {
                return;
            }
        }
    }

    /// Reads from one connection. Returns whether a worker has got it.
    fn hear(&mut self, number: u64) -> bool {
        match self.handshakes.hear(number, self.options.max_frame) {
            ReadOutcome::Nothing => {}
            ReadOutcome::Greeted(protocol, until) => {
                let Some(PendingHandshake { connection, received, origin, .. }) =
                    self.handshakes.take(number)
                else {
                    return false;
                };
                let holder = ClientId::of(&connection, first_message::client_number(&received));
                let client = AcceptedClient::new(connection, received, until);
                self.route_client(client, protocol, origin, holder);
                return true;
            }
            ReadOutcome::SettingError(reason) => {
                self.handshakes.failures += 1;
                if let Some(PendingHandshake { connection, received, .. }) =
                    self.handshakes.take(number)
                {
                    let protocol = first_message::protocol(&received);
                    self.refuse(connection, Refusal::handshake(protocol, reason));
                }
            }
            ReadOutcome::Left => drop(self.handshakes.take(number)),
        }
        false
    }

    /// Gives a client with a complete first message to a worker, if it may speak this protocol, or has it wait
    /// for one.
    fn route_client(
        &mut self,
        client: AcceptedClient,
        protocol: Protocol,
        origin: Origin,
        holder: ClientId,
    ) {
        if !self.rules.takes(protocol, origin) {
            let called = match protocol {
                Protocol::Native => "native protocol",
                Protocol::Perl => "JSON protocol",
            };
            let reason = format!("this server does not take the {called} here (protocols)");
            self.refuse(client.socket, Refusal::access(Some(protocol), reason));
        } else if !self.queue.is_empty() {
            self.enqueue_client(client, protocol, holder);
        } else if let Some(client) = self.assign_spare(client, holder) {
            self.fork_for_client(client, protocol, holder);
        }
    }

    /// Closes connections whose time is over. Returns the time until the next one is due.
    pub(super) fn expire_handshakes(&mut self) -> Option<Duration> {
        let now = Instant::now();
        while let Some(waiting) = self.handshakes.expired(now) {
            self.handshakes.failures += 1;
            let after = seconds(self.handshakes.timeout.get().unwrap_or_default());
            let reason = format!("its greeting was not complete after {after} (handshake_timeout)");
            let protocol = first_message::protocol(&waiting.received);
            self.refuse(waiting.connection, Refusal::handshake(protocol, reason));
        }
        self.handshakes.deadlines.first().map(|(deadline, _)| *deadline - now)
    }

    /// Refuses a client: tells it the reason, and logs it.
    pub(super) fn refuse(&mut self, connection: OwnedFd, refusal: Refusal) {
        if self.log_limits.refusals.allows(Instant::now()) {
            refusal::log(&self.options.name, &connection, &refusal.reason);
        }
        self.tally.refused += 1;
        refusal::tell(&connection, &refusal);
    }
}

impl<S> ServerBuilder<S> {
    /// How long a client may take for its first message, counted from when its connection is
    /// accepted; then the connection is closed. 10 seconds unless set. Bytes that come one by one
    /// do not prolong it. No worker is forked for a client before its first message is there.
    ///
    /// Unless this is set, it counts from the first byte for processes of the server's own user, on
    /// unix sockets that allow JSON ([`protocols`](Self::protocols)). Such a client may be silent
    /// for ever. Clients of AnyEvent::Task connect before their first call and send nothing until
    /// then; their next call fails if the connection has been closed meanwhile. Such a connection costs a
    /// descriptor, and [`max_handshakes`](Self::max_handshakes) limits how many there are.
    ///
    /// 100 years and more are no limit; 0 is an error of [`run`](crate::Server::run).
    ///
    /// ```
    /// use std::time::Duration;
    /// let server = taskfork::Server::builder().handshake_timeout(Duration::from_secs(2));
    /// # let _ = server;
    /// ```
    pub fn handshake_timeout(mut self, timeout: Duration) -> Self {
        self.options.handshakes.timeout = Some(timeout.into());
        self
    }

    /// The most connections that have not completed their first message. 1000 unless set, or a
    /// quarter of the descriptors that the process may open (`ulimit -Hn`) if that is less. With one
    /// more, the oldest of them is closed: a client that greets at once is always served.
    ///
    /// 0 is an error of [`run`](crate::Server::run).
    ///
    /// ```
    /// let server = taskfork::Server::builder().max_handshakes(100);
    /// # let _ = server;
    /// ```
    pub fn max_handshakes(mut self, connections: usize) -> Self {
        self.options.handshakes.most = Some(connections);
        self
    }
}
