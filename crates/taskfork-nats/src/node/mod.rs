//! A node: it serves sessions of a service.

mod balance;
mod calls;
mod direct;
mod group;
mod handler;
mod micro;
mod name;
mod pause;
mod permissions;
mod relay;
mod run;
mod sessions;
mod shares;
mod status;
mod usage;
mod waiters;

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_nats::{ConnectOptions, Event};
use bytes::Bytes;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::connect::connect;
use crate::direct::Direct;
use crate::error::Error;
use crate::names::{Label, Labels, Name, Subjects};
use crate::token;
use crate::wire::Bounds;
pub use calls::CallError;
pub use handler::Accepted;
use permissions::Permissions;
use run::Runner;
pub(crate) use shares::Holder;
pub use usage::SessionUsage;

type Pinned<T> = Pin<Box<dyn Future<Output = T> + Send>>;
pub(crate) type Connector = Arc<dyn Fn(Caller) -> Pinned<io::Result<UnixStream>> + Send + Sync>;
pub(crate) type SessionHandler = Arc<dyn Fn(Accepted) -> Pinned<()> + Send + Sync>;
pub(crate) type StatusHandler =
    Arc<dyn Fn(Bounds) -> Pinned<Result<serde_json::Value, String>> + Send + Sync>;
type EventHandler = Arc<dyn Fn(&Event) + Send + Sync>;
pub(crate) type CallHandler =
    Arc<dyn Fn(String, Bytes) -> Pinned<Result<Bytes, CallError>> + Send + Sync>;

/// Who asks a node for a session.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Caller {
    /// The name that the client has given itself. It proves nothing.
    pub client: String,
}

/// The configuration of a [`Node`].
///
/// A server of taskfork believes what a process of its own user says about the identity of clients, and a node passes on
/// what clients say. So run the node as a user of its own, and name it in the server's `allow_users`.
///
/// ```no_run
/// # async fn example() -> Result<(), taskfork_nats::Error> {
/// use taskfork_nats::Node;
/// use tokio::net::UnixStream;
///
/// let node = Node::builder("resize", "node-1", |_| UnixStream::connect("/run/resize.sock"))
///     .sessions(64)
///     .labels(&["gpu=a100".parse()?])
///     .start("nats://localhost:4222")
///     .await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct NodeBuilder {
    service: String,
    name: String,
    nats: ConnectOptions,
    events: Option<EventHandler>,
    connector: Connector,
    settings: Settings,
    labels: Vec<Label>,
    handler: Option<SessionHandler>,
    status: Option<StatusHandler>,
    calls: Option<CallHandler>,
}

/// What a node's parts need of its configuration.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) sessions: usize,
    pub(crate) workers: Option<usize>,
    pub(crate) methods: Vec<String>,
    pub(crate) version: String,
    pub(crate) window: Option<u32>,
    pub(crate) heartbeat: Duration,
    pub(crate) max_calls: usize,
    pub(crate) max_call_size: usize,
    pub(crate) call_timeout: Duration,
    pub(crate) direct: Option<Direct>,
}

impl fmt::Debug for NodeBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeBuilder")
            .field("service", &self.service)
            .field("name", &self.name)
            .field("settings", &self.settings)
            .field("labels", &self.labels)
            .finish_non_exhaustive()
    }
}

impl NodeBuilder {
    /// Credentials, TLS and reconnecting, as async-nats has them. By default there are no credentials.
    /// The `subscription_capacity` and the `event_callback` of these options have no effect: see
    /// [`nats_events`](Self::nats_events).
    pub fn nats(self, nats: ConnectOptions) -> Self {
        Self { nats, ..self }
    }

    /// Calls this for each event of the connection to NATS, in place of the `event_callback` of async-nats, which the node
    /// itself needs. The callback must not block. By default nothing is called.
    ///
    /// ```no_run
    /// # use taskfork_nats::NodeBuilder;
    /// # fn example(builder: NodeBuilder) -> NodeBuilder {
    /// builder.nats_events(|event| println!("NATS: {event}"))
    /// # }
    /// ```
    pub fn nats_events(mut self, callback: impl Fn(&Event) + Send + Sync + 'static) -> Self {
        self.events = Some(Arc::new(callback));
        self
    }

    /// How many sessions the node has at a time. While it has so many, it is not asked for more.
    /// Defaults to 64.
    pub fn sessions(mut self, sessions: usize) -> Self {
        self.settings.sessions = sessions;
        self
    }

    /// How many workers the node's server has, for its metadata. By default that is not said.
    pub fn workers(mut self, workers: usize) -> Self {
        self.settings.workers = Some(workers);
        self
    }

    /// The methods of the workers, for the node's metadata. By default there are none.
    pub fn methods<M: Into<String>>(mut self, methods: impl IntoIterator<Item = M>) -> Self {
        self.settings.methods = methods.into_iter().map(Into::into).collect();
        self
    }

    /// The version of the service: three numbers, as in `1.2.0`. Defaults to the version of this crate.
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.settings.version = version.into();
        self
    }

    /// Properties of the node that clients can ask for, at most 5. By default there are none.
    pub fn labels(mut self, labels: &[Label]) -> Self {
        self.labels = labels.to_vec();
        self
    }

    /// How many bytes of a session may have come and be unread before the client waits. Values below
    /// 16 KiB or above 8 MiB are taken as these. By default the window begins with 1 MiB, and grows up to 8 MiB while
    /// the session moves much and all windows of the node have at most 16 MiB together. One that is set does not grow.
    pub fn window(mut self, bytes: u32) -> Self {
        self.settings.window = Some(bytes);
        self
    }

    /// How often each side of a session tells the other that it is there. A side that is silent for two
    /// intervals is lost. Defaults to 2 seconds; values below 50 milliseconds or above 60
    /// seconds are taken as these. The shorter one of both sides holds.
    pub fn heartbeat(mut self, interval: Duration) -> Self {
        self.settings.heartbeat = interval;
        self
    }

    /// Lets clients connect directly that want to. By default the node offers no direct connections.
    ///
    /// The node only gives tokens. The connections belong to whoever admits them with the same
    /// [`Direct`], and do not end with the node.
    ///
    /// ```no_run
    /// # use taskfork_nats::{Direct, Error, NodeBuilder};
    /// # fn example(builder: NodeBuilder) -> Result<NodeBuilder, Error> {
    /// let direct = Direct::new("node-1.example:7000")?;
    /// # let builder = builder.direct(direct.clone());
    /// # Ok(builder)
    /// # }
    /// ```
    pub fn direct(mut self, direct: Direct) -> Self {
        self.settings.direct = Some(direct);
        self
    }

    /// Lets a handler carry the bytes between a session and its connection. By default the node does, and
    /// changes none of them.
    ///
    /// The session counts until the future of the handler is ready. When the node ends, or the grace of
    /// [`Node::drain`] is over, the node ends the session and drops that future.
    ///
    /// ```no_run
    /// # use taskfork_nats::NodeBuilder;
    /// # fn example(builder: NodeBuilder) -> NodeBuilder {
    /// builder.relay(|mut accepted| async move {
    ///     let _ = tokio::io::copy_bidirectional(&mut accepted.session, &mut accepted.stream).await;
    /// })
    /// # }
    /// ```
    pub fn relay<H, F>(mut self, handler: H) -> Self
    where
        H: Fn(Accepted) -> F + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        self.handler = Some(Arc::new(move |accepted| Box::pin(handler(accepted))));
        self
    }

    /// Adds details to the node's status, which [`Fleet::status`](crate::Fleet::status) reads: what a handler
    /// returns. An error is told instead of details. By default there are none.
    ///
    /// The handler has the time of [`call_timeout`](Self::call_timeout). Details that are longer than the
    /// bounds say are not sent.
    ///
    /// ```no_run
    /// # use taskfork_nats::NodeBuilder;
    /// # fn example(builder: NodeBuilder) -> NodeBuilder {
    /// builder.status(|_| async { Ok(serde_json::json!({ "temperature": 40 })) })
    /// # }
    /// ```
    pub fn status<H, F>(mut self, handler: H) -> Self
    where
        H: Fn(Bounds) -> F + Send + Sync + 'static,
        F: Future<Output = Result<serde_json::Value, String>> + Send + 'static,
    {
        self.status = Some(Arc::new(move |bounds| Box::pin(handler(bounds))));
        self
    }

    /// Answers calls of any NATS client: a request to `SERVICE.call.METHOD` with a JSON array as payload.
    ///
    /// The handler gets the method and the array, and returns the result as JSON. An error is a reply with
    /// the headers `Nats-Service-Error` and `Nats-Service-Error-Code`. By default there are no such calls.
    ///
    /// ```no_run
    /// # use taskfork_nats::{CallError, NodeBuilder};
    /// # fn example(builder: NodeBuilder) -> NodeBuilder {
    /// builder.calls(|method, arguments| async move {
    ///     match &method[..] {
    ///         "echo" => Ok(arguments),
    ///         _ => Err(CallError::new(404, format!("there is no method {method}"))),
    ///     }
    /// })
    /// # }
    /// ```
    pub fn calls<H, F>(mut self, handler: H) -> Self
    where
        H: Fn(String, Bytes) -> F + Send + Sync + 'static,
        F: Future<Output = Result<Bytes, CallError>> + Send + 'static,
    {
        self.calls = Some(Arc::new(move |method, arguments| Box::pin(handler(method, arguments))));
        self
    }

    /// How many such calls run at a time. While so many run, other nodes get them. Defaults to 64.
    pub fn max_calls(mut self, calls: usize) -> Self {
        self.settings.max_calls = calls.max(1);
        self
    }

    /// The longest arguments of such a call, in bytes. Defaults to 1 MiB.
    pub fn max_call_size(mut self, bytes: usize) -> Self {
        self.settings.max_call_size = bytes;
        self
    }

    /// How long such a call may run. Its handler is dropped then, and the reply has the code 504. Defaults to 30
    /// seconds.
    pub fn call_timeout(mut self, timeout: Duration) -> Self {
        self.settings.call_timeout = timeout;
        self
    }

    /// Connects to NATS and begins to serve, as a task of this runtime.
    ///
    /// `url` is `nats://HOST:PORT` or `tls://HOST:PORT`, or several of them with commas. `USER:PASSWORD@` or
    /// `TOKEN@` in front of the first host is used for all, instead of those of [`nats`](Self::nats).
    ///
    /// # Errors
    ///
    /// If the address or a name is wrong, no server answers, it refuses the credentials, its `max_payload` is
    /// below 1 KiB, another node of the service has the same name, or the server does not permit what the node needs
    /// ([`Error::NotPermitted`]). What it does not permit later is written to the log as a warning.
    pub async fn start(self, url: &str) -> Result<Node, Error> {
        let name = self.name.clone();
        let (commands, received) = mpsc::channel(1);
        let (free, watched) = watch::channel(self.settings.sessions);
        let (id, runner) = self.runner(url, free).await?;
        let runner = runner.join().await?;
        runner.permissions.serve();
        let task = tokio::spawn(runner.run(received));
        Ok(Node { id, name, commands, free: watched, task })
    }

    /// Does what [`start`](Self::start) does, up to where the node would begin to serve, and disconnects.
    ///
    /// # Errors
    ///
    /// As for [`start`](Self::start).
    ///
    /// ```no_run
    /// # async fn example(builder: taskfork_nats::NodeBuilder) -> Result<(), taskfork_nats::Error> {
    /// builder.clone().check("nats://localhost:4222").await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn check(self, url: &str) -> Result<(), Error> {
        let (free, _watched) = watch::channel(self.settings.sessions);
        let (_, mut runner) = self.runner(url, free).await?;
        runner.check_name().await?;
        runner.check_permissions()
    }

    /// Checks the options and connects.
    async fn runner(
        self,
        url: &str,
        free: watch::Sender<usize>,
    ) -> Result<(String, Runner), Error> {
        let service = Name::service(&self.service)?;
        let name = Name::node(&self.name)?;
        let labels = Labels::new(&self.labels)?;
        micro::check_version(&self.settings.version)?;
        if self.settings.sessions == 0 {
            return Err(Error::NoSessions);
        }
        let permissions = Permissions::default();
        let (events, noting) = (self.events, permissions.clone());
        let nats = self.nats.event_callback(move |event| {
            noting.note(&event);
            if let Some(events) = &events {
                events(&event);
            }
            std::future::ready(())
        });
        let client = connect(url, nats).await?;
        let id = token::random()?;
        let runner = Runner::new(run::Parts {
            client,
            permissions,
            subjects: Subjects::new(service.clone()),
            service,
            name,
            id: id.clone(),
            labels,
            settings: self.settings,
            connector: self.connector,
            handler: self.handler,
            status: self.status,
            calls: self.calls,
            free,
        });
        Ok((id, runner))
    }
}

/// A node that serves. Dropping it ends its sessions at once; their clients are told.
#[derive(Debug)]
pub struct Node {
    id: String,
    name: String,
    commands: mpsc::Sender<Drain>,
    free: watch::Receiver<usize>,
    task: JoinHandle<()>,
}

/// The order to drain.
#[derive(Debug)]
pub(crate) struct Drain {
    grace: Duration,
    done: oneshot::Sender<()>,
}

impl Node {
    /// A node of a service. For each session that it accepts, it opens a connection by `connector`, and
    /// relays the bytes.
    pub fn builder<C, F>(service: &str, name: &str, connector: C) -> NodeBuilder
    where
        C: Fn(Caller) -> F + Send + Sync + 'static,
        F: Future<Output = io::Result<UnixStream>> + Send + 'static,
    {
        NodeBuilder {
            service: service.into(),
            name: name.into(),
            nats: ConnectOptions::new(),
            events: None,
            connector: Arc::new(move |caller| Box::pin(connector(caller))),
            settings: Settings {
                sessions: 64,
                workers: None,
                methods: Vec::new(),
                version: env!("CARGO_PKG_VERSION").into(),
                window: None,
                heartbeat: Duration::from_secs(2),
                max_calls: 64,
                max_call_size: 1024 * 1024,
                call_timeout: Duration::from_secs(30),
                direct: None,
            },
            labels: Vec::new(),
            handler: None,
            status: None,
            calls: None,
        }
    }

    /// The id of this instance as a micro service.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The node's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// For how many more sessions there is room now.
    pub fn free(&self) -> usize {
        *self.free.borrow()
    }

    /// Waits until there is room for exactly this many more sessions. Returns at once if the node has
    /// ended.
    pub async fn wait_for_free(&self, sessions: usize) {
        let _ = self.free.clone().wait_for(|free| *free == sessions).await;
    }

    /// Waits until the node ends by itself, because the NATS client has closed for good.
    ///
    /// ```
    /// # async fn example(node: &taskfork_nats::Node) {
    /// node.ended().await;
    /// # }
    /// ```
    pub async fn ended(&self) {
        let mut free = self.free.clone();
        while free.changed().await.is_ok() {}
    }

    /// Whether the node still serves. It ends by itself only if the NATS client has closed for good.
    pub fn is_running(&self) -> bool {
        !self.task.is_finished()
    }

    /// Takes no more sessions and calls, waits until all have ended, and after `grace` ends those that are left.
    ///
    /// If this is cancelled, the node ends at once.
    pub async fn drain(mut self, grace: Duration) {
        let (done, finished) = oneshot::channel();
        if self.commands.send(Drain { grace, done }).await.is_ok() {
            let _ = finished.await;
        }
        let _ = (&mut self.task).await;
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.task.abort();
    }
}
