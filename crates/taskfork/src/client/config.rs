//! The checked options of a client, and what is known of the servers at its addresses.

use super::pool::PoolLimits;
use crate::address::Address;
use crate::busy_poll::BusyPoll;
use crate::error::FatalError;
use crate::server::SpawnedServer;
use crate::time_limit::TimeLimit;
use crate::wire::Protocol;

/// The options of a client, checked.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// In the order in which they are tried, at least one.
    pub(crate) addresses: Vec<Address>,
    /// For each address the server there, if this program has started it.
    pub(crate) links: Vec<Option<SpawnedServer>>,
    pub(crate) name: String,
    pub(crate) limits: PoolLimits,
    pub(crate) timeout: TimeLimit,
    pub(crate) grace: TimeLimit,
    pub(crate) busy_poll: BusyPoll,
    /// How many cores there are.
    pub(crate) cores: usize,
    pub(crate) connect_timeout: TimeLimit,
    pub(crate) reuse_after_error: bool,
    pub(crate) max_frame: usize,
    pub(crate) max_blob: usize,
    pub(crate) protocol: Protocol,
    /// Whether descriptors may go with messages.
    pub(crate) pass_descriptors: bool,
    /// How much memory each side of a connection keeps for the other.
    pub(crate) shared_memory: usize,
}

impl Config {
    /// All addresses, for messages.
    pub(crate) fn addresses(&self) -> String {
        let addresses: Vec<_> = self.addresses.iter().map(Address::to_string).collect();
        addresses.join(" or ")
    }

    /// How the servers have ended, if this program has started the servers of all addresses, and all have ended and
    /// are not replaced: the first of them.
    pub(crate) fn ended(&self) -> Option<FatalError> {
        let links = self.addresses.iter().zip(&self.links);
        let mut ends = links.map(|(address, known)| {
            // Another may have been started at the same address since.
            SpawnedServer::find(address).as_ref().or(known.as_ref())?.end()
        });
        let first = ends.next()??;
        ends.all(|end| end.is_some()).then(|| first.into())
    }

    /// What is wrong with the server, if it is the only one, was started by this program, and does not run.
    pub(crate) fn trouble(&self) -> Option<String> {
        let [address] = &self.addresses[..] else { return None };
        SpawnedServer::find(address)?.trouble()
    }

    /// How the server ended of a worker whose connection has just ended without a word, if it is the only one and
    /// was started by this program.
    pub(crate) fn recent_end(&self) -> Option<String> {
        let [address] = &self.addresses[..] else { return None };
        let link = SpawnedServer::find(address).or_else(|| self.links.first()?.clone());
        link?.recent_end().map(|end| end.to_string())
    }
}
