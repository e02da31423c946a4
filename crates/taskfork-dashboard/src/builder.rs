//! The options of a dashboard.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::http::{self, Encryption};
use crate::poll;
use crate::state::{MAX_POOLS, Options, State};
#[cfg(feature = "tls")]
use crate::tls::{self, Files, Tls};

/// The least bytes of a token.
const MIN_TOKEN: usize = 16;
/// The most bytes of one.
const MAX_TOKEN: usize = 4096;

/// Why there is no dashboard.
///
/// ```
/// let error = taskfork_dashboard::Dashboard::builder().build().unwrap_err();
/// assert_eq!(error.to_string(), "there is nothing to show: add a server or a service");
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DashboardError {
    /// There is neither a server nor a service.
    #[error("there is nothing to show: add a server or a service")]
    Nothing,
    /// There are too many servers.
    #[error("{count} servers are too many: one dashboard shows at most {MAX_POOLS}")]
    TooMany {
        /// How many there are.
        count: usize,
    },
    /// Two servers have the same name.
    #[error("two servers have the name {name:?}: give one of them another name")]
    SameName {
        /// The name.
        name: String,
    },
    /// The token cannot be used.
    #[error(
        "the token cannot be used: it must have {MIN_TOKEN} to {MAX_TOKEN} visible ASCII characters"
    )]
    Token,
    /// Workers can be killed only by those who know a token.
    #[error("without a token nobody can be allowed to dismiss or kill workers: set a token")]
    ActionsWithoutToken,
    /// Others than this machine's users could read everything.
    #[error(
        "the dashboard does not serve {address} without a token or certificates of clients, because other machines can reach that: set one of them, or listen at a loopback address such as 127.0.0.1"
    )]
    NotLoopback {
        /// The address.
        address: SocketAddr,
    },
    /// A file of certificates, or of a key, cannot be used.
    #[cfg(feature = "tls")]
    #[error(transparent)]
    File(#[from] taskfork_certificates::FileError),
    /// `client_ca` was set without `tls`.
    #[cfg(feature = "tls")]
    #[error(
        "clients can show certificates only by TLS: set the dashboard's own certificate and its key with `tls`"
    )]
    AuthorityWithoutTls,
    /// The listener cannot be used.
    #[error("the listener cannot be used: {0}")]
    Listener(#[source] io::Error),
}

/// Reads servers and serves a page about them. See the [crate](crate).
///
/// ```
/// use taskfork_dashboard::Dashboard;
///
/// let dashboard = Dashboard::builder().server("adder", "/run/adder.sock.status").build()?;
/// # Ok::<(), taskfork_dashboard::DashboardError>(())
/// ```
#[derive(Debug)]
pub struct Dashboard {
    state: Arc<State>,
    sources: Vec<Source>,
    #[cfg(feature = "tls")]
    tls: Option<Tls>,
}

enum Source {
    Server(String, PathBuf),
    #[cfg(feature = "nats")]
    Fleet(String, taskfork_nats::Fleet),
}

impl Source {
    fn name(&self) -> &str {
        match self {
            Self::Server(name, _) => name,
            #[cfg(feature = "nats")]
            Self::Fleet(name, _) => name,
        }
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name().fmt(out)
    }
}

/// Options of a [`Dashboard`].
///
/// ```
/// let builder = taskfork_dashboard::Dashboard::builder().allow_host("pools.example");
/// # let _ = builder;
/// ```
#[derive(Debug)]
pub struct DashboardBuilder {
    sources: Vec<Source>,
    options: Options,
    #[cfg(feature = "tls")]
    files: Files,
}

impl DashboardBuilder {
    /// Shows the server with this status socket, under this name. It need not exist yet.
    ///
    /// ```
    /// # use taskfork_dashboard::Dashboard;
    /// let builder = Dashboard::builder().server("adder", "/run/adder.sock.status");
    /// # let _ = builder;
    /// ```
    pub fn server(mut self, name: impl Into<String>, status_socket: impl Into<PathBuf>) -> Self {
        self.sources.push(Source::Server(name.into(), status_socket.into()));
        self
    }

    /// Shows the nodes of a service at NATS. Needs the feature `nats`.
    #[cfg(feature = "nats")]
    pub fn fleet(mut self, service: impl Into<String>, fleet: taskfork_nats::Fleet) -> Self {
        self.sources.push(Source::Fleet(service.into(), fleet));
        self
    }

    /// The token that requests need, except those for the page's own files and for health. By default there is none, and
    /// only loopback addresses are served.
    ///
    /// ```
    /// # use taskfork_dashboard::Dashboard;
    /// let builder = Dashboard::builder().token("a long and random text");
    /// # let _ = builder;
    /// ```
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.options.token = Some(token.into());
        self
    }

    /// Serves HTTPS, by TLS 1.3, with a certificate and its private key, both files in PEM. Defaults to HTTP. The files are
    /// read again when they change, see [`Reloader::reload`](crate::Reloader::reload). Needs the feature `tls`.
    ///
    /// Files that cannot be used are errors of [`build`](Self::build).
    ///
    /// ```
    /// # use taskfork_dashboard::Dashboard;
    /// let builder = Dashboard::builder().tls("cert.pem", "key.pem");
    /// # let _ = builder;
    /// ```
    #[cfg(feature = "tls")]
    pub fn tls(mut self, certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.files.own = Some((certificate.into(), key.into()));
        self
    }

    /// Serves only clients with a certificate of one of the authorities in this file, in PEM. Then addresses that other
    /// machines can reach need no token. Probes need a certificate too. Defaults to none. Needs [`tls`](Self::tls).
    ///
    /// ```
    /// # use taskfork_dashboard::Dashboard;
    /// let builder = Dashboard::builder().tls("cert.pem", "key.pem").client_ca("on-call.pem");
    /// # let _ = builder;
    /// ```
    #[cfg(feature = "tls")]
    pub fn client_ca(mut self, file: impl Into<PathBuf>) -> Self {
        self.files.client_ca = Some(file.into());
        self
    }

    /// Lets those who know the token dismiss and kill workers. Defaults to `false`.
    ///
    /// ```
    /// # use taskfork_dashboard::Dashboard;
    /// let builder = Dashboard::builder().token("a long and random text").allow_actions(true);
    /// # let _ = builder;
    /// ```
    pub fn allow_actions(mut self, allow: bool) -> Self {
        self.options.actions = allow;
        self
    }

    /// Serves requests for this host name too, for example that of a proxy. IP addresses and `localhost` are always served.
    ///
    /// ```
    /// # use taskfork_dashboard::Dashboard;
    /// let builder = Dashboard::builder().allow_host("pools.example");
    /// # let _ = builder;
    /// ```
    pub fn allow_host(mut self, name: impl Into<String>) -> Self {
        self.options.hosts.push(name.into());
        self
    }

    /// How long a call may run before it is shown as slow. Defaults to 1 second.
    ///
    /// ```
    /// # use taskfork_dashboard::Dashboard;
    /// let builder = Dashboard::builder().slow_after(std::time::Duration::from_secs(10));
    /// # let _ = builder;
    /// ```
    pub fn slow_after(mut self, time: Duration) -> Self {
        self.options.slow = time;
        self
    }

    /// Whether workers are asked for their stacks, as
    /// [`ServerStatus::read_details`](taskfork::server::ServerStatus::read_details) says, once for each call that runs five
    /// times as long as a [slow](Self::slow_after) one. Defaults to `true`.
    ///
    /// ```
    /// # use taskfork_dashboard::Dashboard;
    /// let builder = Dashboard::builder().sample_stacks(false);
    /// # let _ = builder;
    /// ```
    pub fn sample_stacks(mut self, sample: bool) -> Self {
        self.options.samples = sample;
        self
    }

    /// Whether it has something to show.
    ///
    /// ```
    /// # use taskfork_dashboard::Dashboard;
    /// assert!(!Dashboard::builder().has_sources());
    /// ```
    pub fn has_sources(&self) -> bool {
        !self.sources.is_empty()
    }

    /// Checks the options, and reads the files of certificates, if there are any.
    ///
    /// # Errors
    ///
    /// If there is nothing to show, two servers have the same name, the token is too short, or a file cannot be used.
    ///
    /// ```
    /// # use taskfork_dashboard::Dashboard;
    /// assert!(Dashboard::builder().server("a", "/a").token("short").build().is_err());
    /// ```
    pub fn build(self) -> Result<Dashboard, DashboardError> {
        let Self { sources, options, .. } = self;
        if sources.is_empty() {
            return Err(DashboardError::Nothing);
        }
        if sources.len() > MAX_POOLS {
            return Err(DashboardError::TooMany { count: sources.len() });
        }
        let mut names: Vec<_> = sources.iter().map(Source::name).collect();
        names.sort_unstable();
        if let Some(same) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(DashboardError::SameName { name: same[0].to_owned() });
        }
        match &options.token {
            Some(token)
                if !(MIN_TOKEN..=MAX_TOKEN).contains(&token.len())
                    || !token.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ') =>
            {
                return Err(DashboardError::Token);
            }
            None if options.actions => return Err(DashboardError::ActionsWithoutToken),
            _ => {}
        }
        let fleets = sources.iter().filter(|source| !matches!(source, Source::Server(..)));
        let fleets = fleets.map(|source| source.name().to_owned()).collect();
        Ok(Dashboard {
            #[cfg(feature = "tls")]
            tls: self.files.load()?,
            state: Arc::new(State::new(options, fleets)),
            sources,
        })
    }
}

impl Dashboard {
    /// Options with their defaults.
    ///
    /// ```
    /// let builder = taskfork_dashboard::Dashboard::builder();
    /// # let _ = builder;
    /// ```
    pub fn builder() -> DashboardBuilder {
        DashboardBuilder {
            sources: Vec::new(),
            options: Options::default(),
            #[cfg(feature = "tls")]
            files: Files::default(),
        }
    }

    /// Checks that the dashboard may be served at this address: with a token or certificates of clients anywhere, otherwise at
    /// loopback addresses only.
    ///
    /// # Errors
    ///
    /// [`DashboardError::NotLoopback`].
    ///
    /// ```
    /// # use taskfork_dashboard::Dashboard;
    /// let dashboard = Dashboard::builder().server("adder", "/run/adder.sock.status").build()?;
    /// assert!(dashboard.check_address("127.0.0.1:9180".parse().unwrap()).is_ok());
    /// assert!(dashboard.check_address("0.0.0.0:9180".parse().unwrap()).is_err());
    /// # Ok::<(), taskfork_dashboard::DashboardError>(())
    /// ```
    pub fn check_address(&self, address: SocketAddr) -> Result<(), DashboardError> {
        #[cfg(feature = "tls")]
        let knows_clients = self.tls.as_ref().is_some_and(|tls| tls.wants_those_of_clients());
        #[cfg(not(feature = "tls"))]
        let knows_clients = false;
        let is_protected = self.state.options.token.is_some() || knows_clients;
        match is_protected || address.ip().to_canonical().is_loopback() {
            true => Ok(()),
            false => Err(DashboardError::NotLoopback { address }),
        }
    }

    /// Returns what makes this dashboard read its certificates again. Needs the feature `tls`.
    ///
    /// ```no_run
    /// # fn example(dashboard: taskfork_dashboard::Dashboard) {
    /// let reloader = dashboard.reloader();
    /// # let _ = reloader;
    /// # }
    /// ```
    #[cfg(feature = "tls")]
    pub fn reloader(&self) -> crate::Reloader {
        crate::Reloader(self.tls.clone())
    }

    /// Reads the servers and serves the page. Returns only if the listener cannot be used. Dropping this ends everything.
    ///
    /// # Errors
    ///
    /// If there is neither a token nor certificates of clients, and the listener's address is not a loopback address.
    ///
    /// ```no_run
    /// # async fn example(dashboard: taskfork_dashboard::Dashboard) -> Result<(), Box<dyn std::error::Error>> {
    /// dashboard.serve(tokio::net::TcpListener::bind("127.0.0.1:9180").await?).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn serve(self, listener: TcpListener) -> Result<(), DashboardError> {
        self.serve_until(listener, std::future::pending()).await
    }

    /// Serves as [`serve`](Self::serve) does, and closes the listener once `closing` is ready, so that another process can
    /// listen there. Connections that exist go on until this is dropped.
    ///
    /// # Errors
    ///
    /// Those of [`serve`](Self::serve).
    ///
    /// ```no_run
    /// # async fn example(dashboard: taskfork_dashboard::Dashboard) -> Result<(), Box<dyn std::error::Error>> {
    /// let listener = tokio::net::TcpListener::bind("127.0.0.1:9180").await?;
    /// let closing = async { drop(tokio::signal::ctrl_c().await) };
    /// dashboard.serve_until(listener, closing).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn serve_until(
        self,
        listener: TcpListener,
        closing: impl Future<Output = ()>,
    ) -> Result<(), DashboardError> {
        let address = listener.local_addr().map_err(DashboardError::Listener)?;
        self.check_address(address)?;
        let mut tasks = JoinSet::new();
        for source in self.sources {
            let state = Arc::clone(&self.state);
            match source {
                Source::Server(name, path) => {
                    self.state.with_pool(&name, None, |pool| pool.set_socket(path.clone()));
                    tasks.spawn(poll::server(state, name, path));
                }
                #[cfg(feature = "nats")]
                Source::Fleet(name, fleet) => {
                    tasks.spawn(poll::fleet(state, name, fleet));
                }
            }
        }
        let state = Arc::clone(&self.state);
        tasks.spawn(async move { state.send_updates().await });
        #[cfg(not(feature = "tls"))]
        let encryption = Encryption::None;
        #[cfg(feature = "tls")]
        let encryption = match self.tls {
            Some(tls) => {
                tasks.spawn(tls::follow_files(tls.clone()));
                Encryption::Tls(tls)
            }
            None => Encryption::None,
        };
        http::serve(listener, encryption, self.state, closing).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server() -> DashboardBuilder {
        Dashboard::builder().server("a", "/none")
    }

    #[test]
    fn mistakes_are_named() {
        let text = |builder: DashboardBuilder| builder.build().unwrap_err().to_string();
        assert!(text(server().server("a", "/other")).contains("the name \"a\""));
        for token in ["short", &"x".repeat(5000), "sixteen characters\n", "sechzehn Zeichen äöü"]
        {
            assert!(text(server().token(token)).contains("token"), "{token}");
        }
        assert!(text(server().allow_actions(true)).contains("set a token"));
        let many = (0..300).fold(Dashboard::builder(), |all, at| all.server(at.to_string(), "/a"));
        assert!(text(many).contains("at most 256"));
    }

    #[tokio::test]
    async fn without_a_token_only_loopback_addresses_are_served() {
        let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
        let error = server().build().unwrap().serve(listener).await.unwrap_err();
        assert!(error.to_string().contains("set one of them"), "{error}");
    }

    #[cfg(feature = "tls")]
    #[test]
    fn certificates_of_clients_stand_for_a_token_and_those_of_the_dashboard_do_not() {
        let key = rcgen::KeyPair::generate().unwrap();
        let own = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
        let own = own.self_signed(&key).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let [cert, key_file] = ["cert", "key"].map(|name| folder.path().join(name));
        std::fs::write(&cert, own.pem()).unwrap();
        std::fs::write(&key_file, key.serialize_pem()).unwrap();
        let everywhere: SocketAddr = "0.0.0.0:9180".parse().unwrap();
        let is_served =
            |builder: DashboardBuilder| builder.build().unwrap().check_address(everywhere).is_ok();
        assert!(!is_served(server().tls(&cert, &key_file)));
        assert!(is_served(server().tls(&cert, &key_file).client_ca(&cert)));
        assert!(is_served(server().token("0123456789abcdef")));
        let text = |builder: DashboardBuilder| builder.build().unwrap_err().to_string();
        assert!(text(server().client_ca(&cert)).contains("with `tls`"));
        let wrong = text(server().tls(&cert, "/none"));
        assert!(wrong.contains("/none of the certificate's private key"), "{wrong}");
    }
}
