//! How many connections each client has.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Who a client is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Client {
    /// It has a certificate with these names.
    Names(Box<[String]>),
    Host(IpAddr),
}

/// The clients with relayed connections, of which each may have so many.
#[derive(Debug)]
pub(crate) struct Clients {
    limit: usize,
    connections: Mutex<HashMap<Client, usize>>,
}

/// One connection of a client. Dropping it makes room for another.
#[derive(Debug)]
pub(crate) struct ClientConnection {
    clients: Arc<Clients>,
    client: Client,
}

impl Clients {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, connections: Mutex::default() })
    }

    /// Counts a connection of the client with these names, or without any at this address. `None` if the client has too many.
    pub(crate) fn admit(
        self: &Arc<Self>,
        names: &[String],
        address: SocketAddr,
    ) -> Option<ClientConnection> {
        let client = match names {
            [] => Client::Host(host(address.ip())),
            names => Client::Names(names.into()),
        };
        let mut connections = self.lock();
        let count = connections.entry(client.clone()).or_default();
        if *count >= self.limit {
            return None;
        }
        *count += 1;
        Some(ClientConnection { clients: self.clone(), client })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Client, usize>> {
        // Each count is right even after a panic.
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ClientConnection {
    fn drop(&mut self) {
        let mut connections = self.clients.lock();
        if let Some(count) = connections.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                connections.remove(&self.client);
            }
        }
    }
}

/// What stands for a client without a certificate. A host with IPv6 usually has a network of 64 bits to itself.
fn host(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)))
        }
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn each_client_has_its_own_limit() {
        let clients = Clients::new(2);
        let admit =
            |list: &[&str], address: &str| clients.admit(&names(list), address.parse().unwrap());
        let held = [admit(&["a", "b"], "10.0.0.1:1"), admit(&["a", "b"], "10.0.0.2:1")];
        assert!(held.iter().all(Option::is_some));
        assert!(admit(&["a", "b"], "10.0.0.3:1").is_none(), "wherever it connects from");
        let others = [admit(&["a"], "10.0.0.1:1"), admit(&[], "10.0.0.1:1")];
        assert!(others.iter().all(Option::is_some));
        drop(held);
        assert!(admit(&["a", "b"], "10.0.0.1:1").is_some());
        drop(others);
        assert!(clients.lock().is_empty());
    }

    #[test]
    fn a_network_of_64_bits_is_one_client() {
        let clients = Clients::new(1);
        let admit = |address: &str| clients.admit(&[], address.parse().unwrap());
        let held = [admit("[2001:db8::1]:1"), admit("[2001:db8:0:1::1]:1"), admit("10.0.0.1:1")];
        assert!(held.iter().all(Option::is_some));
        assert!(admit("[2001:db8::2]:7").is_none() && admit("[::ffff:10.0.0.1]:7").is_none());
        assert!(admit("[::ffff:10.0.0.2]:7").is_some());
    }
}
