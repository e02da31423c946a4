//! The options of a pool that say how a gateway serves clients of other machines, and their checks.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::{Gid, Uid, User, getegid, geteuid};

use crate::config::PoolOptions;
use crate::error::CommandError;
use crate::node_options::NodeOptions;
use crate::serve::OptionSource;

/// The permissions of the server's socket for its group and for others.
const GROUP_MAY_CONNECT: u32 = 0o020;
const OTHERS_MAY_CONNECT: u32 = 0o002;

/// The permissions of the socket without the option.
const DEFAULT_SOCKET_MODE: u32 = 0o600;

/// What a gateway needs to know. Two gateways with the same options are the same to their clients.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct GatewayOptions {
    /// The path of the server's socket.
    pub(crate) server: PathBuf,
    /// One of these at least.
    pub(crate) tls: Option<TlsOptions>,
    pub(crate) node: Option<NodeOptions>,
    #[cfg(feature = "dashboard")]
    pub(crate) http: Option<crate::http_options::HttpOptions>,
    /// The user that the gateway runs as, if that is another than the server's.
    pub(crate) user: Option<Account>,
    /// These are the server's too.
    pub(crate) shutdown_grace: Option<Duration>,
    pub(crate) handshake_timeout: Option<Duration>,
    pub(crate) max_handshakes: Option<usize>,
}

/// Where and how clients come by TLS.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TlsOptions {
    /// `HOST:PORT`.
    pub(crate) listen: String,
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) client_ca: Option<PathBuf>,
    pub(crate) allowed_names: Vec<String>,
}

/// A user and its groups.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Account {
    pub(crate) name: String,
    pub(crate) user: Uid,
    pub(crate) group: Gid,
}

impl PoolOptions {
    /// The options of the pool's gateway. `None` if it has no gateway.
    pub(crate) fn gateway(
        &self,
        source: &OptionSource,
    ) -> Result<Option<GatewayOptions>, CommandError> {
        let name = |option: &str| source.option_name(option);
        let (tls, node) = (self.tls_gateway(source)?, self.node(source)?);
        #[cfg(feature = "dashboard")]
        let http = self.http_page(source)?;
        #[cfg(feature = "dashboard")]
        let has_page = http.is_some();
        #[cfg(not(feature = "dashboard"))]
        let has_page = false;
        if tls.is_none() && node.is_none() && !has_page {
            return Ok(None);
        }
        let Some(server) = self.listen.as_ref().and_then(|address| address.socket_path()) else {
            let option = if tls.is_some() { name("tls") } else { name("nats") };
            let what = format!("{option} needs a server at a unix socket");
            return Err(CommandError::usage(what).hint(format!(
                "set {} to unix:PATH; the gateway stands beside it",
                name("listen")
            )));
        };
        let user = match &self.gateway_user {
            Some(user) => Some(self.account(user, source)?),
            None => None,
        };
        Ok(Some(GatewayOptions {
            server,
            tls,
            node,
            #[cfg(feature = "dashboard")]
            http,
            user,
            shutdown_grace: self.shutdown_grace.map(|time| time.0),
            handshake_timeout: self.handshake_timeout.map(|time| time.0),
            max_handshakes: self.max_handshakes,
        }))
    }

    /// The options for clients of TLS.
    fn tls_gateway(&self, source: &OptionSource) -> Result<Option<TlsOptions>, CommandError> {
        let name = |option: &str| source.option_name(option);
        let Some(listen) = self.tls.clone() else {
            return match self.gateway_option_without_tls() {
                Some(option) => {
                    let what = format!("{} has no effect without {}", name(option), name("tls"));
                    Err(CommandError::usage(what).hint(format!(
                        "set {} to the HOST:PORT for clients of other machines",
                        name("tls")
                    )))
                }
                None => Ok(None),
            };
        };
        let needed = |option: &str, value: &Option<PathBuf>| {
            value.clone().ok_or_else(|| {
                CommandError::usage(format!("{} needs {}", name("tls"), name(option))).hint(
                    "give the files of the gateway's certificate and of its private key, both in PEM",
                )
            })
        };
        let certificate = needed("cert", &self.cert)?;
        let key = needed("key", &self.key)?;
        if !self.allow_name.is_empty() && self.client_ca.is_none() {
            let (option, needs) = (name("allow_name"), name("client_ca"));
            return Err(CommandError::usage(format!("{option} needs {needs}"))
                .hint("without it, no client has to prove its name"));
        }
        let (client_ca, allowed_names) = (self.client_ca.clone(), self.allow_name.clone());
        Ok(Some(TlsOptions { listen, certificate, key, client_ca, allowed_names }))
    }

    fn gateway_option_without_tls(&self) -> Option<&'static str> {
        let options = [
            ("cert", self.cert.is_some()),
            ("key", self.key.is_some()),
            ("client_ca", self.client_ca.is_some()),
            ("allow_name", !self.allow_name.is_empty()),
        ];
        options.into_iter().find(|(_, is_set)| *is_set).map(|(option, _)| option)
    }

    /// The account that the gateway changes to. Checks that it can, and that it can connect to the server then.
    fn account(&self, user: &str, source: &OptionSource) -> Result<Account, CommandError> {
        let option = source.option_name("gateway_user");
        let found = match user.parse() {
            Ok(id) => User::from_uid(Uid::from_raw(id)),
            Err(_) => User::from_name(user),
        };
        let found = found.map_err(|errno| {
            CommandError::usage(format!("{option}: the user `{user}` cannot be looked up: {errno}"))
        })?;
        let Some(User { name, uid, gid, .. }) = found else {
            return Err(CommandError::usage(format!("{option}: there is no user `{user}`"))
                .hint("the gateway needs an account: create one, as with `useradd --system`"));
        };
        if !geteuid().is_root() {
            let what = format!("{option}: only root can start a gateway as `{name}`");
            return Err(CommandError::usage(what).hint(format!(
                "start the command as root, or leave {option} out: then the gateway has the server's user"
            )));
        }
        let mode = self.socket_mode.map_or(DEFAULT_SOCKET_MODE, |mode| mode.0);
        let is_admitted =
            mode & OTHERS_MAY_CONNECT != 0 || mode & GROUP_MAY_CONNECT != 0 && gid == getegid();
        if !is_admitted {
            let (mode_option, users) =
                (source.option_name("socket_mode"), source.option_name("allow_users"));
            let what = format!(
                "{option}: `{name}` may not connect to a socket with the mode {mode:o} ({mode_option})"
            );
            return Err(CommandError::usage(what).hint(format!(
                "set {mode_option} to 666, and {users} to the users that may connect besides, such as root"
            )));
        }
        Ok(Account { name, user: uid, group: gid })
    }
}

impl TlsOptions {
    /// The folders of the files that the gateway reads again, with those that links lead to. New files take the
    /// place of old ones there.
    pub(crate) fn folders(&self) -> Vec<PathBuf> {
        let files = [Some(&self.certificate), Some(&self.key), self.client_ca.as_ref()];
        let mut folders: Vec<PathBuf> = Vec::new();
        for file in files.into_iter().flatten() {
            folders.push(folder(file));
            folders.extend(std::fs::canonicalize(file).map(|file| folder(&file)));
        }
        folders
    }
}

/// The folder of a file.
pub(crate) fn folder(file: &Path) -> PathBuf {
    match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        _ => PathBuf::from("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TLS: &str = "listen = \"unix:/run/a\"\ntls = \"[::]:7000\"\ncert = \"c\"\nkey = \"k\"\n";

    fn gateway(text: &str) -> Result<Option<GatewayOptions>, String> {
        let pool: PoolOptions = toml::from_str(text).unwrap();
        pool.gateway(&OptionSource::File).map_err(|error| error.message().to_owned())
    }

    #[test]
    fn the_options_of_a_file_are_those_of_the_gateway() {
        assert_eq!(gateway("listen = \"unix:/run/a\"").unwrap(), None);
        let all = format!("{TLS}client_ca = \"/ca/f\"\nallow_name = [\"a\", \"b\"]");
        let options = gateway(&all).unwrap().unwrap();
        assert_eq!(options.server, Path::new("/run/a"));
        assert_eq!((options.user, options.node), (None, None));
        let tls = options.tls.unwrap();
        assert_eq!((&*tls.listen, tls.allowed_names.len()), ("[::]:7000", 2));
        let folders = tls.folders();
        assert!(folders.contains(&".".into()) && folders.contains(&"/ca".into()), "{folders:?}");
        let node = "listen = \"unix:/run/a\"\nnats = \"nats://h\"\nservice = \"s\"";
        let options = gateway(node).unwrap().unwrap();
        assert!(options.tls.is_none() && options.node.is_some());
    }

    #[test]
    fn what_is_missing_is_named() {
        for (text, expected) in [
            ("cert = \"c\"", "`cert` has no effect without `tls`"),
            ("allow_name = [\"a\"]", "`allow_name` has no effect without `tls`"),
            ("tls = \":1\"", "`tls` needs `cert`"),
            ("tls = \":1\"\ncert = \"c\"", "`tls` needs `key`"),
            (&TLS.replace("unix:/run/a", "tcp:h:1"), "`tls` needs a server at a unix socket"),
            (&TLS.replace("listen =", "name ="), "`tls` needs a server at a unix socket"),
            ("nats = \"nats://h\"\nservice = \"s\"", "`nats` needs a server at a unix socket"),
            (&format!("{TLS}allow_name = [\"a\"]"), "`allow_name` needs `client_ca`"),
            (
                &format!("{TLS}gateway_user = \"no-such-user\""),
                "`gateway_user`: there is no user `no-such-user`",
            ),
        ] {
            assert_eq!(gateway(text).unwrap_err(), expected, "{text}");
        }
    }

    #[test]
    fn the_user_of_a_gateway_must_be_able_to_connect() {
        let other = format!("{TLS}gateway_user = \"nobody\"\n");
        let refused = gateway(&other).unwrap_err();
        if !geteuid().is_root() {
            assert!(refused.contains("only root can start a gateway as `nobody`"), "{refused}");
            return;
        }
        assert!(refused.contains("may not connect to a socket with the mode 600"), "{refused}");
        assert!(gateway(&format!("{other}socket_mode = \"660\"")).is_err());
        let account = gateway(&format!("{other}socket_mode = \"666\"")).unwrap().unwrap().user;
        assert_eq!(account.unwrap().name, "nobody");
    }
}
