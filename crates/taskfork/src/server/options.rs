//! The options of a server, with their defaults.

use std::fmt;
use std::time::Duration;

use taskfork_sandbox::{Level, Sandbox};

use super::access::Access;
use super::control::ControlChannel;
use super::error::ServerError;
use super::handshakes::HandshakeLimits;
use super::limits::{Recycling, WorkerLimits, default_max_workers};
use super::parent::Parent;
use super::privileges::Privileges;
use super::scratch::ScratchOptions;
use super::status_socket::StatusSocket;
use super::stderr::Stderr;
use crate::address::{Address, AddressError, AddressKind};
use crate::busy_poll::BusyPoll;
use crate::error::Failure;
use crate::shm_pool::DEFAULT_SHARED_MEMORY;
use crate::time_limit::TimeLimit;
use crate::wire::frame::{DEFAULT_MAX_BLOB, DEFAULT_MAX_FRAME};
use crate::wire::hello::MIN_FRAME;
use crate::worker::ReplaceAfter;

/// Loads and keeps the value of [`preload`](crate::ServerBuilder::preload).
pub(super) type PreloadFn = Box<dyn FnOnce() -> Result<(), Failure>>;

#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) address: Option<Result<Address, AddressError>>,
    pub(crate) name: String,
    /// What the interface knows of its methods.
    pub(crate) methods: Vec<String>,
    pub(crate) hung_worker_timeout: TimeLimit,
    pub(crate) shutdown_grace: TimeLimit,
    pub(crate) socket_mode: u32,
    pub(crate) max_frame: usize,
    pub(crate) max_blob: usize,
    pub(crate) shared_memory: usize,
    pub(crate) stall_timeout: TimeLimit,
    pub(crate) busy_poll: BusyPoll,
    pub(crate) huge_pages: bool,
    pub(crate) stderr: Stderr,
    pub(crate) status: StatusSocket,
    pub(crate) max_workers: usize,
    pub(crate) spare_workers: usize,
    pub(crate) limits: WorkerLimits,
    pub(crate) privileges: Privileges,
    pub(crate) sandbox: Sandbox,
    pub(crate) scratch: ScratchOptions,
    pub(crate) recycling: Recycling,
    /// After which errors a worker is replaced. `None` if its interface decides.
    pub(crate) replace_after: Option<ReplaceAfter>,
    pub(crate) access: Access,
    pub(crate) handshakes: HandshakeLimits,
    /// Whether SIGHUP restarts the server. `None` means that it does without a controlling
    /// terminal.
    pub(crate) restart_on_hangup: Option<bool>,
    /// Whether a parent process keeps the process id over restarts.
    pub(crate) keep_pid: bool,
    /// That parent process, or another one that forwards signals to this server.
    pub(crate) parent: Option<Parent>,
    /// The control channel to the program that started this server.
    pub(crate) control: Option<ControlChannel>,
    pub(crate) spawn_data: SpawnData,
    /// Workers are programs that may serve their connections themselves.
    pub(crate) programs_may_take_over: bool,
}

/// What the program that started this server has passed to it.
#[derive(Default)]
pub(crate) struct SpawnData {
    pub(crate) config: Option<Vec<u8>>,
    /// The address of the server that this one replaces.
    pub(crate) previous: Option<String>,
}

/// The configuration is left out because it may contain secrets.
impl fmt::Debug for SpawnData {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.config.as_ref().map(Vec::len);
        out.debug_struct("SpawnData")
            .field("config_bytes", &bytes)
            .field("previous", &self.previous)
            .finish()
    }
}

impl SpawnData {
    /// The address to listen at. Port 0 becomes the port that the kernel chose for the server that
    /// this one replaces.
    pub(crate) fn resolve_port(&self, address: Address) -> Address {
        let previous = self.previous.as_ref().and_then(|text| text.parse::<Address>().ok());
        match (&address.0, previous) {
            (
                AddressKind::Tcp { host, port: 0 },
                Some(Address(AddressKind::Tcp { host: known, port })),
            ) if *host == known => Address::tcp(known, port),
            _ => address,
        }
    }
}

impl Options {
    /// Rejects values with which the server could not serve anything.
    pub(crate) fn check(&self) -> Result<(), ServerError> {
        let wrong = |option, reason: String| Err(ServerError::option(option, reason));
        self.limits.check()?;
        self.recycling.check()?;
        self.handshakes.check()?;
        self.scratch.check()?;
        if self.sandbox.level() != Level::Off && !self.privileges.no_new_privs {
            return wrong("no_new_privs", "a sandbox needs it: leave it set to true".to_owned());
        }
        if self.max_workers == 0 {
            return wrong(
                "max_workers",
                "with 0, no client could be served: set 1 or more".to_owned(),
            );
        }
        if self.max_frame < MIN_FRAME {
            let reason = format!(
                "{} bytes are too few for messages: set {MIN_FRAME} or more",
                self.max_frame
            );
            return wrong("max_frame", reason);
        }
        if self.hung_worker_timeout.is_zero() {
            let reason =
                "with 0, every call would be killed: set a longer time, or `None` for no limit";
            return wrong("hung_worker_timeout", reason.to_owned());
        }
        if self.stall_timeout.is_zero() {
            let reason = "with 0, a client whose message comes in two pieces would be disconnected";
            return wrong("stall_timeout", reason.to_owned());
        }
        Ok(())
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            address: None,
            name: "taskfork".to_owned(),
            methods: Vec::new(),
            hung_worker_timeout: TimeLimit::new(Duration::from_secs(300)),
            shutdown_grace: TimeLimit::new(Duration::from_secs(30)),
            socket_mode: 0o600,
            max_frame: DEFAULT_MAX_FRAME,
            max_blob: DEFAULT_MAX_BLOB,
            shared_memory: DEFAULT_SHARED_MEMORY,
            stall_timeout: TimeLimit::new(Duration::from_secs(30)),
            busy_poll: BusyPoll::default(),
            huge_pages: true,
            stderr: Stderr::Capture,
            status: StatusSocket::default(),
            max_workers: default_max_workers(),
            spare_workers: 0,
            limits: WorkerLimits::default(),
            privileges: Privileges::default(),
            sandbox: Sandbox::off(),
            scratch: ScratchOptions::default(),
            replace_after: None,
            recycling: Recycling::default(),
            access: Access::default(),
            handshakes: HandshakeLimits::default(),
            restart_on_hangup: None,
            keep_pid: false,
            parent: None,
            control: None,
            spawn_data: SpawnData::default(),
            programs_may_take_over: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replacement_listens_at_the_port_that_the_kernel_chose() {
        let given = SpawnData { previous: Some("tcp:[::1]:81".to_owned()), ..SpawnData::default() };
        assert_eq!(given.resolve_port(Address::tcp("::1", 0)).to_string(), "tcp:[::1]:81");
        assert_eq!(given.resolve_port(Address::tcp("::1", 5)).to_string(), "tcp:[::1]:5");
        assert_eq!(given.resolve_port(Address::tcp("::2", 0)).to_string(), "tcp:[::2]:0");
        let first = SpawnData::default();
        assert_eq!(first.resolve_port(Address::tcp("::1", 0)).to_string(), "tcp:[::1]:0");
    }
}
