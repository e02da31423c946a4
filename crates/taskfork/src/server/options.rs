//! What can be set on a server, with its defaults.

use std::time::Duration;

use super::access::Access;
use super::control::Control;
use super::handshake::HandshakeLimits;
use super::limits::{Recycling, WorkerLimits, default_max_workers};
use super::status::StatusSocket;
use super::stderr::Stderr;
use crate::address::{Address, AddressError};
use crate::busy_poll::BusyPoll;
use crate::loans::DEFAULT_LENT;
use crate::wire::frame::{DEFAULT_BLOB, DEFAULT_LIMIT};

#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) address: Option<Result<Address, AddressError>>,
    pub(crate) name: String,
    pub(crate) hung_worker_timeout: Option<Duration>,
    pub(crate) shutdown_grace: Duration,
    pub(crate) socket_mode: u32,
    pub(crate) max_frame: usize,
    pub(crate) max_blob: usize,
    pub(crate) lent_memory: usize,
    pub(crate) stall_timeout: Duration,
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

impl Default for Options {
    fn default() -> Self {
        Self {
            address: None,
            name: "taskfork".to_owned(),
            hung_worker_timeout: Some(Duration::from_secs(300)),
            shutdown_grace: Duration::from_secs(30),
            socket_mode: 0o600,
            max_frame: DEFAULT_LIMIT,
            max_blob: DEFAULT_BLOB,
            lent_memory: DEFAULT_LENT,
            stall_timeout: Duration::from_secs(30),
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
