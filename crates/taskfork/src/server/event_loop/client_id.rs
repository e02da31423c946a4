//! Who a client is, for sharing workers fairly among clients.

use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use crate::peer::Peer;
use crate::server::supervisor::{ClientId, PeerId};
use crate::sys;

/// Makes identities of a fixed size. The keys of the hash are random, so that no client can choose names with
/// which it counts as another.
#[derive(Debug, Default)]
pub(super) struct ClientIds {
    keys: RandomState,
}

impl ClientIds {
    /// Who the client of this connection is, with the number from its first message. All connections of a gateway
    /// come from one process, so its clients count by what the gateway says of them.
    pub(super) fn identify(
        &self,
        connection: &OwnedFd,
        number: u64,
        relayed: Option<&Peer>,
    ) -> ClientId {
        let peer = match relayed {
            Some(peer) => self.identify_relayed(peer),
            None => match sys::peer_credentials(connection) {
                Some(peer) if peer.pid != 0 => PeerId::Process(peer.pid),
                Some(peer) => PeerId::User(peer.uid),
                None => sys::peer_address(connection)
                    .map_or(PeerId::Unknown, |address| PeerId::Host(address.ip())),
            },
        };
        ClientId::new(peer, number)
    }

    /// A certificate stands for one client, wherever it connects from. Without one, the host does. The clients of NATS whose host is
    /// not known either are told apart by the names that they have given themselves.
    fn identify_relayed(&self, peer: &Peer) -> PeerId {
        match peer {
            Peer::Tls { names, .. } if !names.is_empty() => {
                PeerId::Relayed(self.keys.hash_one(("tls", names)))
            }
            Peer::Nats { name: Some(name), address: None } => {
                PeerId::Relayed(self.keys.hash_one(("nats", name)))
            }
            _ => match peer.address().map(|address| (address, address.parse::<SocketAddr>())) {
                Some((_, Ok(address))) => PeerId::Host(address.ip()),
                Some((address, Err(_))) => {
                    PeerId::Relayed(self.keys.hash_one(("address", address)))
                }
                None => PeerId::Unknown,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tls(names: &[&str], address: &str) -> Peer {
        let names = names.iter().map(|&name| name.to_owned()).collect();
        Peer::Tls { names, address: Some(address.to_owned()) }
    }

    fn nats(name: &str, address: Option<&str>) -> Peer {
        Peer::Nats { name: Some(name.to_owned()), address: address.map(str::to_owned) }
    }

    #[test]
    fn clients_of_a_gateway_count_by_their_names_and_others_by_their_hosts() {
        let ids = ClientIds::default();
        let id = |peer: &Peer| ids.identify_relayed(peer);
        let one = id(&tls(&["a", "b"], "10.0.0.1:1"));
        assert_eq!(one, id(&tls(&["a", "b"], "10.0.0.2:7")));
        for other in [tls(&["a"], "10.0.0.1:1"), tls(&["ab"], "10.0.0.1:1"), nats("a", None)] {
            assert_ne!(one, id(&other), "{other}");
        }
        // A client with an address cannot choose who it is.
        let direct = |name| id(&nats(name, Some("10.0.0.1:2")));
        assert_eq!((id(&tls(&[], "10.0.0.1:1")), direct("a")), (direct("a"), direct("b")));
        assert_eq!(id(&tls(&[], "10.0.0.1:1")), PeerId::Host([10, 0, 0, 1].into()));
        assert_ne!(id(&tls(&[], "inbox.1")), id(&tls(&[], "inbox.2")));
        assert_eq!(id(&nats("a", None)), id(&nats("a", None)));
        assert_ne!(id(&nats("a", None)), id(&nats("b", None)));
    }
}
