//! Access control: which clients are served, in which protocol, and at which addresses a server may
//! listen.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;

use rustix::net::AddressFamily;
use rustix::net::sockopt::socket_domain;
use rustix::process::geteuid;

use super::error::ServerError;
use crate::sys::{self, Credentials};
use crate::wire::Protocol;

/// The options of access control, before names are looked up.
#[derive(Debug, Default)]
pub(crate) struct Access {
    pub(super) users: Option<Vec<String>>,
    pub(super) groups: Option<Vec<String>>,
    pub(super) protocols: Option<Vec<Protocol>>,
    pub(super) network: bool,
    pub(super) gateway_user: Option<String>,
    pub(crate) details: bool,
}

/// The kind of socket through which a client has connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A unix socket, or a socket pair from the program that started this server.
    Local,
    Network,
}

impl Origin {
    pub(crate) fn of(socket: &impl AsFd) -> Self {
        match socket_domain(socket) {
            Ok(AddressFamily::UNIX) => Self::Local,
            // An unknown kind gets the stricter rules.
            _ => Self::Network,
        }
    }
}

/// The rules of a running server.
#[derive(Debug)]
pub(crate) struct Rules {
    /// The server's own user. `None` if its id can stand for others as well, who must not pass for it.
    own: Option<u32>,
    /// The user whose processes relay clients of other machines, and nothing else.
    gateway: Option<u32>,
    /// `None` if every client that can connect is served.
    allowed: Option<Allowed>,
    protocols: Option<Vec<Protocol>>,
}

#[derive(Debug)]
struct Allowed {
    users: Vec<u32>,
    groups: Vec<u32>,
}

impl Access {
    /// Resolves the names of users and groups to ids.
    pub(crate) fn rules(&self) -> Result<Rules, ServerError> {
        let allowed = match (&self.users, &self.groups) {
            (None, None) => None,
            (users, groups) => {
                let (users, groups) = (users.as_deref(), groups.as_deref());
                let users = ids("allow_users", "user", users, sys::user_id_of)?;
                let groups = ids("allow_groups", "group", groups, sys::group_id_of)?;
                check_unique("allow_users", "user", &users, sys::is_unique_user)?;
                check_unique("allow_groups", "group", &groups, sys::is_unique_group)?;
                Some(Allowed { users, groups })
            }
        };
        if self.protocols.as_ref().is_some_and(Vec::is_empty) {
            let reason = "with none, no client could be served";
            return Err(ServerError::option("protocols", reason));
        }
        let own = geteuid().as_raw();
        let own = sys::is_unique_user(own).then_some(own);
        let gateway = self.gateway(own)?;
        Ok(Rules { own, gateway, allowed, protocols: self.protocols.clone() })
    }

    /// The id of the gateway's user.
    fn gateway(&self, own: Option<u32>) -> Result<Option<u32>, ServerError> {
        let Some(name) = &self.gateway_user else { return Ok(None) };
        let user = id("gateway_user", "user", name, sys::user_id_of)?;
        check_unique("gateway_user", "user", &[user], sys::is_unique_user)?;
        if Some(user) == own {
            let reason = format!(
                "`{name}` is the server's own user, whose processes may relay clients in any case: leave it out, \
                 or give the gateway a user of its own"
            );
            return Err(ServerError::option("gateway_user", reason));
        }
        Ok(Some(user))
    }

    /// Checks whether the server may listen at this address. `called` names it in an error.
    pub(crate) fn check_address(
        &self,
        address: SocketAddr,
        called: &dyn std::fmt::Display,
    ) -> Result<(), ServerError> {
        if self.network || is_loopback(address.ip()) {
            return Ok(());
        }
        Err(ServerError::Network { address: called.to_string() })
    }

    /// Checks whether the server may use this listening socket. `called` names it in an error.
    pub(crate) fn check_listener(
        &self,
        socket: &impl AsFd,
        called: &dyn std::fmt::Display,
    ) -> Result<(), ServerError> {
        if Origin::of(socket) == Origin::Local {
            return Ok(());
        }
        let needs_users = [
            ("allow_users", self.users.is_some()),
            ("allow_groups", self.groups.is_some()),
            ("gateway_user", self.gateway_user.is_some()),
        ];
        if let Some((option, _)) = needs_users.into_iter().find(|(_, is_set)| *is_set) {
            let reason = format!(
                "{called} is no unix socket, and only a unix socket tells the users of its clients"
            );
            return Err(ServerError::option(option, reason));
        }
        let name = rustix::net::getsockname(socket)
            .map_err(ServerError::system("cannot read the listener's own address"))?;
        match SocketAddr::try_from(name) {
            Ok(address) => self.check_address(address, called),
            Err(_) if self.network => Ok(()),
            Err(_) => Err(ServerError::Network { address: called.to_string() }),
        }
    }
}

impl Rules {
    /// The reason to refuse the peer of this connection, if there is one.
    pub(crate) fn refusal(&self, connection: &impl AsFd) -> Option<String> {
        let allowed = self.allowed.as_ref()?;
        let Some(peer) = sys::peer_credentials(connection) else {
            return Some("the user of the client is not known (allow_users, allow_groups)".into());
        };
        let groups = || sys::peer_groups(connection);
        let is_named = [self.own, self.gateway].contains(&Some(peer.uid));
        if is_named || allowed.has(peer, groups) {
            return None;
        }
        let Credentials { uid, .. } = peer;
        Some(format!("the user {uid} may not use this server (allow_users, allow_groups)"))
    }

    /// The reason to refuse a connection because of whom it speaks for, if there is one. `names_peer` says whether
    /// its first message names the client of a gateway.
    pub(crate) fn relay_refusal(&self, connection: &impl AsFd, names_peer: bool) -> Option<String> {
        if !names_peer && self.gateway.is_none() {
            return None;
        }
        let uid = sys::peer_credentials(connection).map(|peer| peer.uid);
        let is_gateway = uid.is_some() && uid == self.gateway;
        let is_own = uid.is_some() && uid == self.own;
        match names_peer {
            true if is_gateway || is_own => None,
            true => Some(
                "its first message names a peer, as only a gateway may: a process of the server's own user, or \
                 of the user that `gateway_user` names"
                    .into(),
            ),
            false if is_gateway => Some(
                "its user may only relay clients (gateway_user), and its first message names none (`peer`)"
                    .into(),
            ),
            false => None,
        }
    }

    /// Whether clients of this origin may speak this protocol.
    pub(crate) fn allows_protocol(&self, protocol: Protocol, origin: Origin) -> bool {
        match &self.protocols {
            Some(protocols) => protocols.contains(&protocol),
            None => protocol == Protocol::Native || origin == Origin::Local,
        }
    }

    /// Whether the peer is a process of the server's own user.
    pub(crate) fn is_own(&self, connection: &impl AsFd) -> bool {
        sys::peer_credentials(connection).is_some_and(|peer| Some(peer.uid) == self.own)
    }

    /// The server's own user, if its id stands for no other.
    pub(crate) fn own(&self) -> Option<u32> {
        self.own
    }
}

impl Allowed {
    fn has(&self, peer: Credentials, groups: impl FnOnce() -> Vec<u32>) -> bool {
        self.users.contains(&peer.uid)
            || self.groups.contains(&peer.gid)
            || !self.groups.is_empty() && groups().iter().any(|group| self.groups.contains(group))
    }
}

fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

/// The ids of users or groups that are given by name or number.
fn ids(
    option: &'static str,
    what: &str,
    names: Option<&[String]>,
    find: impl Fn(&str) -> std::io::Result<Option<u32>>,
) -> Result<Vec<u32>, ServerError> {
    names.unwrap_or_default().iter().map(|name| id(option, what, name, &find)).collect()
}

/// The id of a user or a group that is given by name or number.
pub(super) fn id(
    option: &'static str,
    what: &str,
    name: &str,
    find: impl Fn(&str) -> std::io::Result<Option<u32>>,
) -> Result<u32, ServerError> {
    if let Ok(id) = name.parse() {
        return Ok(id);
    }
    match find(name) {
        Ok(Some(id)) => Ok(id),
        Ok(None) => Err(ServerError::option(option, format!("there is no {what} `{name}`"))),
        Err(source) => {
            let reason = format!("the {what} `{name}` cannot be looked up: {source}");
            Err(ServerError::Option { option, reason, source: Some(source) })
        }
    }
}

/// Fails if one of the ids stands for several users or groups, because then it admits more than it says.
fn check_unique(
    option: &'static str,
    what: &str,
    ids: &[u32],
    is_unique: impl Fn(u32) -> bool,
) -> Result<(), ServerError> {
    let Some(id) = ids.iter().copied().find(|&id| !is_unique(id)) else { return Ok(()) };
    let reason = format!(
        "in this user namespace the {what} {id} stands for every {what} without an id in it"
    );
    Err(ServerError::option(option, reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(users: &[&str], groups: &[&str]) -> Access {
        let owned = |names: &[&str]| Some(names.iter().map(|&name| name.to_owned()).collect());
        Access { users: owned(users), groups: owned(groups), ..Access::default() }
    }

    #[test]
    fn names_and_numbers_of_users_and_groups_are_looked_up() {
        let rules = access(&["root", "4242"], &["root"]).rules().unwrap();
        let allowed = rules.allowed.unwrap();
        assert_eq!((allowed.users, allowed.groups), (vec![0, 4242], vec![0]));
    }

    #[test]
    fn a_name_that_does_not_exist_is_named() {
        let error = access(&["nobody-of-that-name"], &[]).rules().unwrap_err().to_string();
        assert!(
            error.contains("allow_users") && error.contains("`nobody-of-that-name`"),
            "{error}"
        );
        let error = access(&[], &["no-such-group"]).rules().unwrap_err().to_string();
        assert!(error.contains("allow_groups") && error.contains("`no-such-group`"), "{error}");
    }

    #[test]
    fn users_and_all_of_their_groups_count() {
        let allowed = Allowed { users: vec![7], groups: vec![20, 21] };
        let has = |uid, gid, more: Vec<u32>| allowed.has(Credentials { uid, gid, pid: 1 }, || more);
        assert!(has(7, 1, vec![]));
        assert!(has(8, 20, vec![]));
        assert!(has(8, 1, vec![5, 21]));
        assert!(!has(8, 7, vec![5]));
        let no_one = Allowed { users: vec![], groups: vec![] };
        assert!(!no_one.has(Credentials { uid: 7, gid: 1, pid: 1 }, Vec::new));
    }

    #[test]
    fn only_loopback_addresses_are_not_of_the_network() {
        let access = Access::default();
        let check = |text: &str| access.check_address(text.parse().unwrap(), &text);
        for text in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            check(text).unwrap();
        }
        for text in ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "[::ffff:10.0.0.1]:1", "[fe80::1]:1"] {
            let error = check(text).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
            assert!(error.contains("allow_unauthenticated_network"), "{error}");
        }
    }

    #[test]
    fn json_has_to_be_named_on_the_network() {
        let rules = Access::default().rules().unwrap();
        assert!(rules.allows_protocol(Protocol::Perl, Origin::Local));
        assert!(!rules.allows_protocol(Protocol::Perl, Origin::Network));
        assert!(rules.allows_protocol(Protocol::Native, Origin::Network));
        let named = Access { protocols: Some(vec![Protocol::Perl]), ..Access::default() };
        let rules = named.rules().unwrap();
        assert!(rules.allows_protocol(Protocol::Perl, Origin::Network));
        assert!(!rules.allows_protocol(Protocol::Native, Origin::Local));
        let none = Access { protocols: Some(vec![]), ..Access::default() };
        assert!(none.rules().unwrap_err().to_string().contains("protocols"));
    }
}
