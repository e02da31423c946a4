//! The options of connections: where a server listens, which clients it serves, how long it waits
//! for them, and how large their messages may be.

use std::time::Duration;

use super::ServerBuilder;
use crate::address::{Address, AddressError};
use crate::wire::Protocol;

impl<S> ServerBuilder<S> {
    /// Sets the address to listen at: `unix:PATH`, `tcp:HOST:PORT` or `fd:NUMBER`. Defaults to the
    /// first socket that a service manager passes. Without that, `run` fails with
    /// [`ServerError::NoAddress`](crate::ServerError::NoAddress).
    ///
    /// A server that [`Server::spawn`](crate::Server::spawn) or
    /// [`Server::fork`](crate::Server::fork) started needs no address. Without one, clients reach it
    /// through its handle only.
    ///
    /// A file `PATH.lock` exists beside a unix socket while a server starts or stops.
    ///
    /// An invalid address is an error of [`run`](crate::Server::run). So is an address that other
    /// machines can reach, unless
    /// [`allow_unauthenticated_network`](Self::allow_unauthenticated_network) is set.
    ///
    /// ```
    /// let server = taskfork::Server::builder().listen("unix:/run/adder.sock");
    /// # let _ = server;
    /// ```
    pub fn listen<A>(mut self, address: A) -> Self
    where
        A: TryInto<Address>,
        A::Error: Into<AddressError>,
    {
        self.options.address = Some(address.try_into().map_err(Into::into));
        self
    }

    /// Sets the permissions of the unix socket's file. Defaults to 0600. A client needs permission to
    /// write.
    ///
    /// Only the permission bits count. The file has no further permissions at any time, even while
    /// the server starts. [`allow_users`](Self::allow_users) and
    /// [`allow_groups`](Self::allow_groups) restrict clients further.
    ///
    /// ```
    /// let server = taskfork::Server::builder().socket_mode(0o660);
    /// # let _ = server;
    /// ```
    pub fn socket_mode(mut self, mode: u32) -> Self {
        self.options.socket_mode = mode;
        self
    }

    /// Sets the users that may connect to the unix socket, by name or number. A client is served if
    /// its user is listed, or if one of its groups is in [`allow_groups`](Self::allow_groups).
    /// Defaults to all users that [`socket_mode`](Self::socket_mode) admits, if neither list is set.
    /// The server's own user is always served.
    ///
    /// The kernel reports the user of a client, see
    /// [`Context::peer`](crate::worker::Context::peer). A client that is refused gets an error, and
    /// no worker is forked for it. The permissions of the socket apply as well: set a mode that
    /// admits these users.
    ///
    /// An unknown name, and a listener that is not a unix socket, are errors of
    /// [`run`](crate::Server::run).
    ///
    /// ```
    /// let server = taskfork::Server::builder()
    ///     .listen("unix:/run/adder.sock")
    ///     .socket_mode(0o666)
    ///     .allow_users(["www-data", "1000"])
    ///     .allow_groups(["adm"]);
    /// # let _ = server;
    /// ```
    pub fn allow_users(mut self, users: impl IntoIterator<Item: ToString>) -> Self {
        let users = users.into_iter().map(|user| user.to_string());
        self.options.access.users = Some(users.collect());
        self
    }

    /// Sets the groups that may connect to the unix socket, by name or number. Both the primary and
    /// the supplementary groups of a client count. Defaults and errors are those of
    /// [`allow_users`](Self::allow_users).
    ///
    /// ```
    /// let server = taskfork::Server::builder().allow_groups([100, 2000]);
    /// # let _ = server;
    /// ```
    pub fn allow_groups(mut self, groups: impl IntoIterator<Item: ToString>) -> Self {
        let groups = groups.into_iter().map(|group| group.to_string());
        self.options.access.groups = Some(groups.collect());
        self
    }

    /// Sets the user whose processes are gateways, by name or number. A gateway relays clients of other machines
    /// to the unix socket, and says in the first message of each connection whom it relays: see
    /// [`Context::peer`](crate::worker::Context::peer). Defaults to none: only processes of the server's own
    /// user may say so.
    ///
    /// A process of this user is served without being in [`allow_users`](Self::allow_users), but only as a
    /// gateway: a connection that names no client is refused. The permissions of the socket apply as well: set a
    /// [`socket_mode`](Self::socket_mode) that admits this user.
    ///
    /// A client of a gateway has the rights of a client on TCP. It speaks
    /// [`Protocol::Native`] only, gets details of failures only with [`share_details`](Self::share_details),
    /// and passes neither files nor shared memory. The server shares its workers fairly among the clients of a
    /// gateway, as among processes of this machine.
    ///
    /// An unknown name, the server's own user, and a listener that is not a unix socket are errors of
    /// [`run`](crate::Server::run).
    ///
    /// ```
    /// let server = taskfork::Server::builder()
    ///     .listen("unix:/run/adder.sock")
    ///     .socket_mode(0o666)
    ///     .allow_users(["www-data"])
    ///     .gateway_user("taskfork-gateway");
    /// # let _ = server;
    /// ```
    pub fn gateway_user(mut self, user: impl ToString) -> Self {
        self.options.access.gateway_user = Some(user.to_string());
        self
    }

    /// Sets the protocols that clients may speak. Defaults to both protocols on unix sockets, and to
    /// [`Protocol::Native`] on TCP. A client that speaks another protocol gets an error in its own
    /// protocol, and no worker is forked for it.
    ///
    /// An empty list is an error of [`run`](crate::Server::run).
    ///
    /// ```
    /// use taskfork::Server;
    /// use taskfork::client::Protocol;
    ///
    /// let server = Server::builder()
    ///     .listen("tcp:127.0.0.1:7000")
    ///     .protocols([Protocol::Native, Protocol::Perl]);
    /// # let _ = server;
    /// ```
    pub fn protocols(mut self, protocols: impl IntoIterator<Item = Protocol>) -> Self {
        self.options.access.protocols = Some(protocols.into_iter().collect());
        self
    }

    /// Allows an address that other machines can reach. Defaults to false: a listener that is neither
    /// a unix socket nor bound to a loopback address is an error of [`run`](crate::Server::run).
    ///
    /// Connections are neither encrypted nor authenticated. Anyone who can reach the address can call
    /// every method.
    ///
    /// ```
    /// let server = taskfork::Server::builder()
    ///     .listen("tcp:0.0.0.0:7000")
    ///     .allow_unauthenticated_network(true);
    /// # let _ = server;
    /// ```
    pub fn allow_unauthenticated_network(mut self, allow: bool) -> Self {
        self.options.access.network = allow;
        self
    }

    /// Sends all clients the details of failures: the standard error of a dead worker, stacks, source
    /// files and the reason of a failed `setup`. Defaults to false: only clients on unix sockets that
    /// run as the server's own user get them. All others learn how a worker ended, and the errors
    /// that methods return.
    ///
    /// ```
    /// let server = taskfork::Server::builder().share_details(true);
    /// # let _ = server;
    /// ```
    pub fn share_details(mut self, share: bool) -> Self {
        self.options.access.details = share;
        self
    }

    /// Sets how long a client may take to send its complete first message. Then the server closes the
    /// connection. Defaults to 10 seconds from the moment when the connection is accepted. Single
    /// bytes do not extend it. No worker is forked before the first message is complete.
    ///
    /// The default has an exception for processes of the server's own user on unix sockets that allow
    /// JSON, see [`protocols`](Self::protocols): for them the time starts at the first byte. Clients
    /// of AnyEvent::Task connect before their first call and send nothing until then. Their next call
    /// would fail if the connection had been closed meanwhile. Such a connection costs a descriptor,
    /// and [`max_handshakes`](Self::max_handshakes) limits their number.
    ///
    /// 100 years and more mean no limit. 0 is an error of [`run`](crate::Server::run).
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let server = taskfork::Server::builder().handshake_timeout(Duration::from_secs(2));
    /// # let _ = server;
    /// ```
    pub fn handshake_timeout(mut self, timeout: Duration) -> Self {
        self.options.handshakes.timeout = Some(timeout.into());
        self
    }

    /// Sets the maximum number of connections whose first message is not complete. Defaults to 1000,
    /// or to a quarter of the descriptors that the process may open (`ulimit -Hn`) if that is less.
    ///
    /// The next connection displaces the oldest one, so a client that sends its first message at once
    /// is always served. 0 is an error of [`run`](crate::Server::run).
    ///
    /// ```
    /// let server = taskfork::Server::builder().max_handshakes(100);
    /// # let _ = server;
    /// ```
    pub fn max_handshakes(mut self, connections: usize) -> Self {
        self.options.handshakes.limit = Some(connections);
        self
    }

    /// Sets how long a client may pause in the middle of a message before its connection is closed.
    /// Defaults to 30 seconds. 100 years and more mean no limit. 0 is an error of
    /// [`run`](crate::Server::run).
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let server = taskfork::Server::builder().stall_timeout(Duration::from_secs(5));
    /// # let _ = server;
    /// ```
    pub fn stall_timeout(mut self, timeout: Duration) -> Self {
        self.options.stall_timeout = timeout.into();
        self
    }

    /// Sets the maximum size of a message in either direction, in bytes. Defaults to 64 MiB. Less
    /// than 256 is an error of [`run`](crate::Server::run).
    ///
    /// ```
    /// let server = taskfork::Server::builder().max_frame(1 << 20);
    /// # let _ = server;
    /// ```
    pub fn max_frame(mut self, bytes: usize) -> Self {
        self.options.max_frame = bytes;
        self
    }

    /// Sets the maximum size, in bytes, of one [`Blob`](crate::Blob) that a client passes as shared
    /// memory in an argument. Defaults to 256 MiB, four times the default of
    /// [`max_frame`](Self::max_frame), because no buffer has to hold it.
    ///
    /// The server tells the limit to its clients. A call with a larger blob fails with
    /// [`CallError::Arguments`](crate::error::CallError::Arguments), unless the blob fits a message.
    /// A client that passes a larger blob nevertheless is disconnected.
    ///
    /// Mapping a blob takes only addresses. But each page that the worker reads becomes its memory,
    /// even a page that the client has never written to. So this limits the memory that one blob of a
    /// client can take in a worker.
    ///
    /// ```
    /// let server = taskfork::Server::builder().max_blob(2 << 30);
    /// # let _ = server;
    /// ```
    pub fn max_blob(mut self, bytes: usize) -> Self {
        self.options.max_blob = bytes;
        self
    }

    /// Sets how much memory, in bytes, each side of a connection shares with the other for long
    /// [`Blob`](crate::Blob)s. Defaults to 64 MiB. The smaller of this and the client's setting
    /// applies. 0 turns off all shared memory, including that for short messages. See
    /// [`ClientBuilder::shared_memory`](crate::client::ClientBuilder::shared_memory).
    ///
    /// Memory is shared only with clients of the server's own user, because the owner of shared
    /// memory can still write to it.
    ///
    /// ```
    /// let server = taskfork::Server::builder().shared_memory(256 << 20);
    /// # let _ = server;
    /// ```
    pub fn shared_memory(mut self, bytes: usize) -> Self {
        self.options.shared_memory = bytes;
        self
    }
}
