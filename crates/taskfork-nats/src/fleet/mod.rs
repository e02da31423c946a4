//! The client's side: sessions with nodes of a service.

mod attempt;
mod avoided;
mod directory;
mod farewells;
mod grant;
mod holder;
mod inbox;
mod rendezvous;
mod status;
mod waiting;

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::ConnectOptions;
use tokio::time::timeout;

use crate::connect::{check_connected, check_payload, connect};
use crate::error::Error;
use crate::names::{Label, Labels, Name, Subjects};
use crate::session::Session;
use crate::wire::{Offer, Request, Route, VERSION};
use attempt::{Answer, Attempt, Common};
use directory::Directory;
pub use directory::NodeInfo;
pub(crate) use farewells::{Farewell, Farewells};
pub use grant::{Acquired, Grant};
pub use holder::{HeldSession, Holder};
pub use status::NodeStatus;
use waiting::Place;

/// How often a request is repeated if a node that became full, or could not reach its server, refuses it.
const TRIES: usize = 3;

/// How many nodes are asked because of a key, before any node is.
const PREFERRED: usize = 2;

/// How often a waiting client renews its place in the queues of the nodes.
pub(crate) const RENEWAL: Duration = Duration::from_secs(1);

/// How long a client waits for what it has to tell nodes, when it ends.
const FLUSH: Duration = Duration::from_secs(1);

/// How a client connects to a fleet.
///
/// ```
/// use std::time::Duration;
///
/// let options = taskfork_nats::FleetOptions::new()
///     .name("orders")
///     .heartbeat(Duration::from_secs(1));
/// ```
#[derive(Debug)]
pub struct FleetOptions {
    nats: ConnectOptions,
    name: String,
    window: Option<u32>,
    heartbeat: Duration,
    answer_timeout: Duration,
}

impl FleetOptions {
    /// The defaults.
    pub fn new() -> Self {
        Self {
            nats: ConnectOptions::new(),
            name: String::new(),
            window: None,
            heartbeat: Duration::from_secs(2),
            answer_timeout: Duration::from_secs(5),
        }
    }

    /// Credentials, TLS and reconnecting, as async-nats has them. By default there are no credentials.
    /// The `subscription_capacity` of these options has no effect.
    pub fn nats(self, nats: ConnectOptions) -> Self {
        Self { nats, ..self }
    }

    /// The client's name in the logs of nodes. Defaults to an empty one. 256 bytes of it are used.
    pub fn name(self, name: impl Into<String>) -> Self {
        Self { name: name.into(), ..self }
    }

    /// How many bytes of a session may have come and be unread before the node waits. Values below 16 KiB
    /// or above 8 MiB are taken as these. By default the window begins with 1 MiB, and grows up to 8 MiB while the
    /// session moves much and all windows of the connection have at most 16 MiB together. One that is set does not grow.
    pub fn window(self, bytes: u32) -> Self {
        Self { window: Some(bytes), ..self }
    }

    /// How often each side of a session tells the other that it is there. A side that is silent for two
    /// intervals is lost. Defaults to 2 seconds; values below 50 milliseconds or above 60
    /// seconds are taken as these. The shorter one of both sides holds.
    pub fn heartbeat(self, interval: Duration) -> Self {
        Self { heartbeat: interval, ..self }
    }

    /// How long to wait for the answer of a node that was asked for a session. Defaults to 5 seconds.
    pub fn answer_timeout(self, timeout: Duration) -> Self {
        Self { answer_timeout: timeout, ..self }
    }
}

impl Default for FleetOptions {
    fn default() -> Self {
        Self::new()
    }
}

/// The nodes of a service, as a client sees them. Clones share one connection to NATS.
///
/// ```
/// # async fn example() -> Result<(), taskfork_nats::Error> {
/// use taskfork_nats::{Fleet, FleetOptions};
///
/// let fleet = Fleet::connect("nats://localhost:4222", "resize", FleetOptions::new()).await?;
/// let session = fleet.acquire(&["gpu=a100".parse()?], None).await?;
/// println!("a session with {}", session.peer());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Fleet {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    common: Common,
    service: Name,
    subjects: Subjects,
    name: String,
    heartbeat: Duration,
    answer_timeout: Duration,
    directory: Directory,
    /// Of sessions that nobody else holds.
    holder: Holder,
}

impl Fleet {
    /// Connects to NATS. Nodes need not run yet.
    ///
    /// `url` is `nats://HOST:PORT` or `tls://HOST:PORT`, or several of them with commas. `USER:PASSWORD@` or
    /// `TOKEN@` in front of the first host is used for all, instead of those of the options.
    ///
    /// # Errors
    ///
    /// If the address or the name of the service is wrong, no server answers, it refuses the credentials, or
    /// its `max_payload` is below 1 KiB.
    pub async fn connect(url: &str, service: &str, options: FleetOptions) -> Result<Self, Error> {
        let service = Name::service(service)?;
        let client = connect(url, options.nats).await?;
        let subjects = Subjects::new(service.clone());
        Ok(Self {
            inner: Arc::new(Inner {
                directory: Directory::new(client.clone(), subjects.clone()),
                common: Common::new(client, options.window),
                service,
                subjects,
                name: options.name,
                heartbeat: options.heartbeat,
                answer_timeout: options.answer_timeout,
                holder: Holder::new(),
            }),
        })
    }

    /// A session with a node that has room and all of these labels.
    ///
    /// With a key, the node is asked first to which the key belongs: by rendezvous hashing, so that
    /// all clients choose the same one, and another node's end or start moves few keys. If it has no
    /// room, the next one is asked, and then any.
    ///
    /// Cancelling this leaves nothing behind: a node that has accepted meanwhile, or accepts later, is told that the session
    /// is not wanted.
    ///
    /// # Errors
    ///
    /// [`Error::NoRoom`] if no node has room now; the others say what failed.
    pub async fn acquire(&self, labels: &[Label], key: Option<&str>) -> Result<Session, Error> {
        let holder = &self.inner.holder;
        Ok(self.acquire_by(holder, labels, key, None, Route::Relayed).await?.into_session())
    }

    /// Like [`Fleet::acquire`], but waits for room for this long at most.
    ///
    /// Clients that wait get sessions before all clients that do not, in the order in which they began to wait; a client
    /// without sessions may pass those that have some. A node without room takes sessions from clients with many for those
    /// that have none.
    ///
    /// # Errors
    ///
    /// As for [`Fleet::acquire`]; [`Error::NoRoom`] if the time has passed.
    pub async fn acquire_within(
        &self,
        labels: &[Label],
        key: Option<&str>,
        wait: Duration,
    ) -> Result<Session, Error> {
        let (holder, wait) = (&self.inner.holder, Some(wait));
        Ok(self.acquire_by(holder, labels, key, wait, Route::Relayed).await?.into_session())
    }

    /// Like [`Fleet::acquire`], or [`Fleet::acquire_within`] with a time to wait, for this holder and with this route: a
    /// node that offers direct connections answers with a [`Grant`] unless the route is [`Route::Relayed`].
    ///
    /// # Errors
    ///
    /// As for [`Fleet::acquire`]; [`Error::Refused`] if the route is [`Route::Direct`] and a node offers no
    /// direct connections.
    pub async fn acquire_by(
        &self,
        holder: &Holder,
        labels: &[Label],
        key: Option<&str>,
        wait: Option<Duration>,
        route: Route,
    ) -> Result<Acquired, Error> {
        let labels = Labels::new(labels)?;
        let mut attempt = self.attempt(route, holder).await?;
        let began = Instant::now();
        let request = self.request(holder, Vec::new(), Duration::ZERO, route)?;
        let error = match self.ask(&mut attempt, &labels, key, &request).await? {
            Ok(answer) => return Ok(attempt.acquired(answer)),
            Err(error) => error,
        };
        let Some(wait) = wait.filter(|_| error.is_temporary()) else { return Err(error) };
        let request = || self.request(holder, labels.texts(), began.elapsed(), route);
        let Inner { common, subjects, .. } = &*self.inner;
        let place = Place::new(common, subjects, &labels, attempt.queued_inbox(), request()?);
        while let Some(left) = wait.checked_sub(began.elapsed()) {
            check_connected(&common.client)?;
            place.renew(&request()?).await?;
            let renewed = Instant::now();
            // The rest of the time passes also if nobody is there, or a node refuses. Otherwise clients of a service without
            // nodes would ask as fast as NATS answers.
            while let Some(time) = left.min(RENEWAL).checked_sub(renewed.elapsed()) {
                match attempt.answer(time).await? {
                    Answer::Accepted(accepted) => return Ok(attempt.acquired(accepted)),
                    Answer::NoResponders | Answer::Refused { .. } => {}
                    Answer::None => break,
                }
            }
        }
        Err(error)
    }

    /// Says that no direct connection to this address can be made. For a minute [`Fleet::acquire_by`] takes sessions
    /// through NATS of nodes with this address, unless the route is [`Route::Direct`]. Of a fleet and its clones, 64
    /// addresses are remembered.
    ///
    /// Returns whether the address is new among them, so that a program can warn of it once. A node that has just ended
    /// cannot be reached either. So it is best to say this when the same node is reached through NATS.
    ///
    /// ```
    /// # fn example(fleet: &taskfork_nats::Fleet, address: &str) {
    /// if fleet.avoid(address) {
    ///     eprintln!("{address} cannot be reached: is TCP blocked?");
    /// }
    /// # }
    /// ```
    pub fn avoid(&self, address: &str) -> bool {
        self.inner.common.avoided().add(Instant::now(), address)
    }

    /// The nodes that answer within a second. A service without nodes has none.
    ///
    /// # Errors
    ///
    /// If there is no connection to the NATS server.
    pub async fn nodes(&self) -> Result<Vec<NodeInfo>, Error> {
        check_connected(&self.inner.common.client)?;
        self.inner.directory.ask().await
    }

    /// Whether the service has nodes, full ones too. False only if NATS says that nobody listens to `$SRV.INFO` of the service.
    /// Silence counts as true: the nodes may hang, or the user of NATS may not publish to `$SRV.INFO`. That some answered is
    /// remembered for 5 seconds. It takes a round trip through NATS, and at most a second.
    ///
    /// Cancelling this has no effect.
    ///
    /// # Errors
    ///
    /// If there is no connection to the NATS server.
    ///
    /// ```
    /// # async fn example(fleet: taskfork_nats::Fleet) -> Result<(), taskfork_nats::Error> {
    /// if !fleet.has_nodes().await? {
    ///     println!("nobody has started a node yet");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn has_nodes(&self) -> Result<bool, Error> {
        check_connected(&self.inner.common.client)?;
        self.inner.directory.has_nodes().await
    }

    /// Waits until nodes have been told of sessions, grants and requests that were dropped: until that is written to the
    /// socket of the NATS server, and for a second at most. A runtime that ends before forgets what is not written, and the
    /// nodes keep the places for two intervals of heartbeats. Without a connection this returns at once.
    ///
    /// Cancelling this has no effect.
    ///
    /// ```
    /// # async fn example(fleet: taskfork_nats::Fleet) -> Result<(), taskfork_nats::Error> {
    /// let session = fleet.acquire(&[], None).await?;
    /// drop(session);
    /// fleet.flush().await;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn flush(&self) {
        let Common { client, farewells, .. } = &self.inner.common;
        if check_connected(client).is_ok() {
            let _ = timeout(FLUSH, farewells.told()).await;
        }
    }

    async fn attempt(&self, route: Route, holder: &Holder) -> Result<Attempt, Error> {
        let common = self.inner.common.clone();
        check_connected(&common.client)?;
        Attempt::new(common, self.offer()?, route, holder).await
    }

    /// Asks the nodes that the key prefers, and then any. The outer error ends waiting too.
    async fn ask(
        &self,
        attempt: &mut Attempt,
        labels: &Labels,
        key: Option<&str>,
        request: &Request,
    ) -> Result<Result<attempt::Accepted, Error>, Error> {
        let Inner { subjects, directory, answer_timeout, service, .. } = &*self.inner;
        if let Some(key) = key {
            for node in directory.preferred(key, labels).await?.into_iter().take(PREFERRED) {
                attempt.ask(subjects.acquire_from(&node), request).await?;
                // A node that hangs must not use up the time of the others.
                if let Answer::Accepted(accepted) = attempt.answer(RENEWAL).await? {
                    return Ok(Ok(accepted));
                }
            }
        }
        let subject = subjects.acquire(labels);
        let began = Instant::now();
        let mut tries = 0;
        let no_room = || Error::NoRoom {
            service: service.to_string(),
            wanted: if labels.is_empty() {
                String::new()
            } else {
                format!(" with {}", labels.texts().join(", "))
            },
        };
        let mut error = no_room();
        while let Some(left) = answer_timeout.checked_sub(began.elapsed())
            && tries < TRIES
        {
            attempt.ask(subject.clone(), request).await?;
            match attempt.answer(left.min(RENEWAL)).await? {
                Answer::Accepted(accepted) => return Ok(Ok(accepted)),
                // A node that could not reach its server has left the group meanwhile.
                Answer::NoResponders if matches!(error, Error::Refused { .. }) => break,
                Answer::NoResponders => return Ok(Err(no_room())),
                Answer::Refused { node, full, text } => {
                    tries += 1;
                    if !full {
                        error = Error::Refused { node, text };
                    }
                }
                // The node has hung, or has left the group just now. Another one gets the next request.
                Answer::None => {
                    let service = service.to_string();
                    let waited = began.elapsed();
                    error = Error::NoAnswer { service, waited, subject: subject.clone() };
                }
            }
        }
        if let Error::NoAnswer { .. } = error
            && let Err(no_inbox) = inbox::check(&self.inner.common.client).await
        {
            error = no_inbox;
        }
        Ok(Err(error))
    }

    fn offer(&self) -> Result<Offer, Error> {
        let payload = check_payload(&self.inner.common.client)?;
        Ok(Offer::new(self.inner.common.windows.first(), payload, self.inner.heartbeat))
    }

    fn request(
        &self,
        holder: &Holder,
        labels: Vec<String>,
        waited: Duration,
        route: Route,
    ) -> Result<Request, Error> {
        let Common { client, .. } = &self.inner.common;
        let avoid = match route {
            Route::Auto => {
                let payload = check_payload(client)?;
                self.inner.common.avoided().for_request(Instant::now(), payload)
            }
            Route::Direct | Route::Relayed => Vec::new(),
        };
        Ok(Request {
            version: VERSION,
            client: crate::wire::shortened(&self.inner.name),
            number: holder.number(),
            sessions: holder.sessions(),
            offer: self.offer()?,
            labels,
            waited_ms: u64::try_from(waited.as_millis()).unwrap_or(u64::MAX),
            cancel: false,
            route,
            avoid,
        })
    }
}
