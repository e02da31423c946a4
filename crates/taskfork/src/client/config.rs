//! The checked options of a client, and what is known of the servers at its addresses.

use super::io::transport::Connector;
use super::pool::PoolLimits;
use super::required::RequiredInterfaces;
use super::session::{SessionOptions, TimeKeeper};
use crate::address::Address;
use crate::busy_poll::BusyPoll;
use crate::client::spawned_server::SpawnedServer;
use crate::error::FatalError;
use crate::sys;
use crate::time_limit::TimeLimit;
use crate::wire::Protocol;

/// The options of a client after all checks.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// At least one, in order of preference.
    pub(crate) addresses: Vec<Address>,
    pub(crate) connector: Connector,
    /// For each address the server there, if this program has started it.
    pub(crate) links: Vec<Option<SpawnedServer>>,
    pub(crate) name: String,
    pub(crate) limits: PoolLimits,
    pub(crate) timeout: TimeLimit,
    pub(crate) run_timeout: TimeLimit,
    pub(crate) grace: TimeLimit,
    pub(crate) time_keeper: TimeKeeper,
    pub(crate) busy_poll: BusyPoll,
    /// The number of CPUs.
    pub(crate) cores: usize,
    pub(crate) connect_timeout: TimeLimit,
    pub(crate) reuse_after_error: bool,
    pub(crate) max_frame: usize,
    pub(crate) max_blob: usize,
    pub(crate) protocol: Protocol,
    /// Whether descriptors may be passed with messages.
    pub(crate) pass_descriptors: bool,
    /// How much memory each side of a connection shares with the other.
    pub(crate) shared_memory: usize,
    /// Whether bytes that arrive in shared memory are copied.
    pub(crate) copy_shared_memory: bool,
    /// The key `peer` of the hello, from a client in a gateway.
    pub(crate) peer: Option<Vec<u8>>,
    /// What servers must serve.
    pub(crate) required: RequiredInterfaces,
}

/// What the checkouts of a handle of a client have in common. Handles of one client may differ in it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CheckoutOptions {
    /// The time limit of calls, from when they are made.
    pub(crate) timeout: TimeLimit,
    /// The time limit of calls, from when they begin to run.
    pub(crate) run_timeout: TimeLimit,
    pub(crate) priority: i8,
}

impl Config {
    pub(crate) fn checkout_options(&self) -> CheckoutOptions {
        CheckoutOptions { timeout: self.timeout, run_timeout: self.run_timeout, priority: 0 }
    }

    pub(crate) fn session_options(&self, checkout: CheckoutOptions) -> SessionOptions {
        SessionOptions {
            reuse_after_error: self.reuse_after_error,
            timeout: checkout.timeout,
            run_timeout: checkout.run_timeout,
            grace: self.grace,
            connect_timeout: self.connect_timeout,
            time_keeper: self.time_keeper,
        }
    }

    /// The most files that a message through a unix socket may have.
    pub(crate) fn max_files(&self) -> usize {
        if self.pass_descriptors { sys::MAX_FILES } else { 0 }
    }

    /// The most memory of a worker that the client maps, in bytes. `files` is how many files it takes with a message.
    ///
    /// A client whose user id can stand for several users shares nothing: it could not tell another user's memory.
    pub(crate) fn max_shared(&self, files: usize) -> usize {
        let is_unique = || sys::is_unique_user(rustix::process::geteuid().as_raw());
        if files > 0 && self.shared_memory > 0 && is_unique() { self.shared_memory } else { 0 }
    }

    /// Whether any of several servers may take a connection to the same address.
    pub(crate) fn is_service(&self) -> bool {
        self.addresses.iter().any(|address| address.0.is_service())
    }

    /// All addresses as text, for messages.
    pub(crate) fn addresses(&self) -> String {
        let addresses: Vec<_> = self.addresses.iter().map(Address::to_string).collect();
        addresses.join(" or ")
    }

    /// Returns how the first server ended, if this program has started the servers of all
    /// addresses, and all of them have ended for good.
    pub(crate) fn ended(&self) -> Option<FatalError> {
        let links = self.addresses.iter().zip(&self.links);
        let mut ends = links.map(|(address, known)| {
            // The program may have started another server at the same address since.
            SpawnedServer::find(address).as_ref().or(known.as_ref())?.end()
        });
        let first = ends.next()??;
        ends.all(|end| end.is_some()).then(|| first.into())
    }

    /// Returns what is wrong with the server, if there is one address and this program has started
    /// its server.
    pub(crate) fn trouble(&self) -> Option<String> {
        let [address] = &self.addresses[..] else { return None };
        SpawnedServer::find(address)?.trouble()
    }

    /// Returns how the server has just ended, if there is one address and this program has started
    /// its server. For connections that ended without a notice.
    pub(crate) fn recent_end(&self) -> Option<String> {
        let [address] = &self.addresses[..] else { return None };
        let link = SpawnedServer::find(address).or_else(|| self.links.first()?.clone());
        link?.recent_end().map(|end| end.to_string())
    }
}
