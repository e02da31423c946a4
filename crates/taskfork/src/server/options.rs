//! What can be set on a server, with its defaults.

use std::time::Duration;

use super::access::Access;
use super::control::Control;
use super::error::ServerError;
use super::handshake::HandshakeLimits;
use super::limits::{Recycling, WorkerLimits, default_max_workers};
use super::status::StatusSocket;
use super::stderr::Stderr;
use crate::address::{Address, AddressError};
use crate::busy_poll::BusyPoll;
use crate::loans::DEFAULT_LENT;
use crate::time_limit::TimeLimit;
use crate::wire::frame::{DEFAULT_BLOB, DEFAULT_LIMIT};
use crate::wire::hello::LEAST_FRAME;

#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) address: Option<Result<Address, AddressError>>,
    pub(crate) name: String,
    pub(crate) hung_worker_timeout: TimeLimit,
    pub(crate) shutdown_grace: TimeLimit,
    pub(crate) socket_mode: u32,
    pub(crate) max_frame: usize,
    pub(crate) max_blob: usize,
    pub(crate) lent_memory: usize,
    pub(crate) stall_timeout: TimeLimit,
    pub(crate) busy_poll: BusyPoll,
    pub(crate) huge_pages: bool,
    pub(crate) stderr: Stderr,
    pub(crate) status: StatusSocket,
    pub(crate) max_workers: usize,
    pub(crate) spare_workers: usize,
    pub(crate) limits: WorkerLimits,
    pub(crate) recycling: Recycling,
    pub(crate) access: Access,
    pub(crate) handshakes: HandshakeLimits,
    /// The line to the program that started this server.
    pub(crate) control: Option<Control>,
}

impl Options {
    /// Refuses values with which nothing could be served.
    pub(crate) fn check(&self) -> Result<(), ServerError> {
        let wrong = |option, reason: String| Err(ServerError::Option { option, reason });
        self.limits.check()?;
        self.recycling.check()?;
        self.handshakes.check()?;
        if self.max_workers == 0 {
            return wrong(
                "max_workers",
                "with 0, no client could be served: set 1 or more".to_owned(),
            );
        }
        if self.max_frame < LEAST_FRAME {
            let reason = format!(
                "{} bytes are too few for messages: set {LEAST_FRAME} or more",
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
            hung_worker_timeout: TimeLimit::new(Duration::from_secs(300)),
            shutdown_grace: TimeLimit::new(Duration::from_secs(30)),
            socket_mode: 0o600,
            max_frame: DEFAULT_LIMIT,
            max_blob: DEFAULT_BLOB,
            lent_memory: DEFAULT_LENT,
            stall_timeout: TimeLimit::new(Duration::from_secs(30)),
            busy_poll: BusyPoll::default(),
            huge_pages: true,
            stderr: Stderr::Capture,
            status: StatusSocket::default(),
            max_workers: default_max_workers(),
            spare_workers: 0,
            limits: WorkerLimits::default(),
            recycling: Recycling::default(),
            access: Access::default(),
            handshakes: HandshakeLimits::default(),
            control: None,
        }
    }
}
