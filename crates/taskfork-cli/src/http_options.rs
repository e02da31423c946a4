//! The options of a pool that make its gateway serve a page about the server, and their checks.

use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::path::{Path, PathBuf};

use taskfork_gateway::GatewayBuilder;
use taskfork_gateway::taskfork_dashboard::DashboardError;

use crate::config::PoolOptions;
use crate::error::CommandError;
use crate::gateway_options::folder;
use crate::page_access::{OptionNames, PageAccess, listen_error, name_of};
use crate::replacement::Replacement;
use crate::serve::OptionSource;

/// What a gateway needs to know for its page.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct HttpOptions {
    /// `HOST:PORT`.
    pub(crate) listen: String,
    status_socket: PathBuf,
    /// The name of the server's socket.
    name: String,
    access: PageAccess,
    samples_stacks: bool,
}

impl PoolOptions {
    /// The options of the page of the pool's gateway. `None` if it has none.
    pub(crate) fn http_page(
        &self,
        source: &OptionSource,
    ) -> Result<Option<HttpOptions>, CommandError> {
        let name = |option: &str| source.option_name(option);
        let Some(listen) = self.http.clone() else {
            let Some(option) = self.http_option() else { return Ok(None) };
            let what = format!("{} has no effect without {}", name(option), name("http"));
            return Err(CommandError::usage(what).hint(format!(
                "set {} to the HOST:PORT of the page, such as 127.0.0.1:9180",
                name("http")
            )));
        };
        for (option, is_set, needed, is_there) in [
            ("http_cert", self.http_cert.is_some(), "http_key", self.http_key.is_some()),
            ("http_key", self.http_key.is_some(), "http_cert", self.http_cert.is_some()),
            (
                "http_client_ca",
                self.http_client_ca.is_some(),
                "http_cert",
                self.http_cert.is_some(),
            ),
        ] {
            if is_set && !is_there {
                let what = format!("{} needs {}", name(option), name(needed));
                return Err(CommandError::usage(what).hint(
                    "give the files of the page's certificate and of its private key, both in PEM",
                ));
            }
        }
        if self.http_allow_actions && self.http_token_file.is_none() {
            let (option, needed) = (name("http_allow_actions"), name("http_token_file"));
            return Err(CommandError::usage(format!("{option} needs {needed}"))
                .hint("only those who know a token can be allowed to end workers"));
        }
        let Some(server) = self.listen.as_ref().and_then(|address| address.socket_path()) else {
            return Err(CommandError::usage(format!(
                "{} needs a server at a unix socket",
                name("http")
            ))
            .hint(format!("set {} to unix:PATH; the gateway stands beside it", name("listen"))));
        };
        if let Some(user) = &self.gateway_user {
            let what = format!(
                "{}: the user `{user}` may not read the status of the server ({})",
                name("http"),
                name("gateway_user")
            );
            return Err(CommandError::usage(what).hint(
                "only the server's own user may: run `taskfork dashboard` as that user instead",
            ));
        }
        let status_socket = match &self.status_socket {
            Some(path) if path == Path::new("none") => {
                let what = format!("{} needs the server's status socket", name("http"));
                return Err(CommandError::usage(what)
                    .hint(format!("leave {} out, or set it to a path", name("status_socket"))));
            }
            Some(path) => path.clone(),
            None => {
                let mut path = server.clone().into_os_string();
                path.push(".status");
                path.into()
            }
        };
        Ok(Some(HttpOptions {
            listen,
            status_socket,
            name: name_of(&server),
            access: PageAccess {
                token_file: self.http_token_file.clone(),
                allow_actions: self.http_allow_actions,
                allowed_hosts: self.http_allow_host.clone(),
                identity: self.http_cert.clone().zip(self.http_key.clone()),
                client_ca: self.http_client_ca.clone(),
            },
            samples_stacks: !self.http_no_stacks,
        }))
    }

    fn http_option(&self) -> Option<&'static str> {
        let options = [
            ("http_token_file", self.http_token_file.is_some()),
            ("http_allow_actions", self.http_allow_actions),
            ("http_allow_host", !self.http_allow_host.is_empty()),
            ("http_cert", self.http_cert.is_some()),
            ("http_key", self.http_key.is_some()),
            ("http_client_ca", self.http_client_ca.is_some()),
            ("http_no_stacks", self.http_no_stacks),
        ];
        options.into_iter().find(|(_, is_set)| *is_set).map(|(option, _)| option)
    }
}

fn names(source: &OptionSource) -> OptionNames {
    OptionNames {
        listen: source.option_name("http"),
        token_file: source.option_name("http_token_file"),
        certificate: source.option_name("http_cert"),
        key: source.option_name("http_key"),
        client_ca: source.option_name("http_client_ca"),
    }
}

impl HttpOptions {
    /// Listens at the first address of the host that works. A gateway that is checked listens at another port if only the
    /// one that it is to replace is in the way.
    pub(crate) fn bind(
        &self,
        source: &OptionSource,
        replacement: Option<Replacement>,
    ) -> Result<TcpListener, CommandError> {
        let failed =
            |error: &io::Error| listen_error(&self.listen, error, &source.option_name("http"));
        let addresses = self.listen.to_socket_addrs().map_err(|error| failed(&error))?;
        let mut last = None;
        for mut address in addresses {
            let mut bound = TcpListener::bind(address);
            if bound.is_err()
                && replacement.is_some_and(|replacement| replacement.listens_at(address))
            {
                address.set_port(0);
                bound = TcpListener::bind(address);
            }
            match bound.and_then(|listener| listener.set_nonblocking(true).map(|()| listener)) {
                Ok(listener) => return Ok(listener),
                Err(error) => last = Some(error),
            }
        }
        Err(failed(&last.unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into())))
    }

    /// Has the gateway serve the page. For a runtime.
    pub(crate) fn add_to(
        &self,
        builder: GatewayBuilder,
        listener: &TcpListener,
        source: &OptionSource,
    ) -> Result<GatewayBuilder, CommandError> {
        let page = self.access.builder(&names(source))?;
        let page = page.server(&self.name, &self.status_socket).sample_stacks(self.samples_stacks);
        let listener = tokio::net::TcpListener::from_std(listener.try_clone()?)?;
        Ok(builder.dashboard(listener, page))
    }

    /// The error of the page in terms of the command's options.
    pub(crate) fn command_error(
        &self,
        error: DashboardError,
        source: &OptionSource,
    ) -> CommandError {
        self.access.command_error(error, &names(source))
    }

    /// Where the page is.
    pub(crate) fn url(&self, address: SocketAddr) -> String {
        format!("{}://{address}/", self.access.scheme())
    }

    /// The folders of the files that are read again, with those that links lead to.
    pub(crate) fn folders(&self) -> Vec<PathBuf> {
        let own = self.access.identity.iter().flat_map(|(certificate, key)| [certificate, key]);
        let files = own.chain(&self.access.client_ca);
        let with_links = |file: &PathBuf| {
            let linked = std::fs::canonicalize(file).map(|file| folder(&file));
            [Some(folder(file)), linked.ok()].into_iter().flatten()
        };
        files.flat_map(with_links).collect()
    }

    /// The folder of the server's status socket.
    pub(crate) fn status_folder(&self) -> PathBuf {
        folder(&self.status_socket)
    }
}
