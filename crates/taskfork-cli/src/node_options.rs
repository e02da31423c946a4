//! The options of a pool that make its gateway a node of a service at NATS, and their checks.

use std::path::{Path, PathBuf};

use taskfork_gateway::NatsOptions;
use taskfork_gateway::taskfork_nats::async_nats::ServerAddr;
use taskfork_gateway::taskfork_nats::{Label, check_service_name};

use crate::config::PoolOptions;
use crate::error::CommandError;
use crate::gateway_options::folder;
use crate::name_servers::{self, NameServers};
use crate::nats_options::NatsFiles;
use crate::serve::OptionSource;

/// The port of name servers.
const DNS: u16 = 53;

/// The other files that looking up a name needs, beside those of the system's library.
const RESOLVER_FILES: [&str; 4] =
    ["/etc/hosts", "/etc/nsswitch.conf", "/etc/host.conf", "/etc/gai.conf"];

/// Where systems have the authorities that they trust.
const SYSTEM_AUTHORITIES: [&str; 4] =
    ["/etc/ssl", "/etc/pki", "/usr/share/ca-certificates", "/usr/local/share/ca-certificates"];

/// What a gateway needs to know to be a node.
#[derive(Clone, PartialEq)]
pub(crate) struct NodeOptions {
    url: String,
    service: String,
    node: String,
    labels: Vec<Label>,
    version: Option<String>,
    methods: Vec<String>,
    direct: Option<String>,
    files: NatsFiles,
    /// These are the server's too.
    status_socket: Option<PathBuf>,
    max_workers: Option<usize>,
}

/// Without the address, which may have a password.
impl std::fmt::Debug for NodeOptions {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("NodeOptions")
            .field("service", &self.service)
            .field("node", &self.node)
            .field("labels", &self.labels)
            .finish_non_exhaustive()
    }
}

impl PoolOptions {
    /// The options of the pool's node. `None` if it has none.
    pub(crate) fn node(&self, source: &OptionSource) -> Result<Option<NodeOptions>, CommandError> {
        let name = |option: &str| source.option_name(option);
        let Some(url) = self.nats.clone() else {
            let Some(option) = self.node_option() else { return Ok(None) };
            let what = format!("{} has no effect without {}", name(option), name("nats"));
            return Err(
                CommandError::usage(what).hint(format!("set {} to nats://HOST:PORT", name("nats")))
            );
        };
        let Some(service) = self.service.clone() else {
            let what = format!("{} needs {}", name("nats"), name("service"));
            return Err(CommandError::usage(what)
                .hint("clients find the server by the name of its service"));
        };
        let wrong = |option: &str, error: &dyn std::fmt::Display| {
            CommandError::usage(format!("{}: {error}", name(option)))
        };
        check_service_name(&service).map_err(|error| wrong("service", &error))?;
        let labels = self.label.iter().map(|label| label.parse()).collect::<Result<_, _>>();
        let labels: Vec<Label> = labels.map_err(|error| wrong("label", &error))?;
        let is_method = |name: &&String| {
            !name.is_empty()
                && !name.contains(|letter: char| letter.is_whitespace() || letter == ',')
        };
        if let Some(method) = self.method.iter().find(|name| !is_method(name)) {
            let what = format!(
                "{method:?} cannot be the name of a method: it is empty, or has blanks or commas"
            );
            return Err(wrong("method", &what).hint("for several methods, give it again"));
        }
        for (one, other) in [
            (("nats_cert", &self.nats_cert), ("nats_key", &self.nats_key)),
            (("nats_key", &self.nats_key), ("nats_cert", &self.nats_cert)),
        ] {
            if one.1.is_some() && other.1.is_none() {
                let what = format!("{} needs {}", name(one.0), name(other.0));
                return Err(CommandError::usage(what).hint(
                    "give the files of the certificate and of its private key, both in PEM",
                ));
            }
        }
        Ok(Some(NodeOptions {
            url,
            service,
            node: self.node.clone().unwrap_or_else(host_name),
            labels,
            version: self.service_version.clone(),
            methods: self.method.clone(),
            direct: self.direct.clone(),
            files: NatsFiles {
                creds: self.creds.clone(),
                nats_ca: self.nats_ca.clone(),
                nats_cert: self.nats_cert.clone(),
                nats_key: self.nats_key.clone(),
            },
            status_socket: self.status_socket.clone(),
            max_workers: self.max_workers,
        }))
    }

    fn node_option(&self) -> Option<&'static str> {
        let options = [
            ("service", self.service.is_some()),
            ("node", self.node.is_some()),
            ("label", !self.label.is_empty()),
            ("service_version", self.service_version.is_some()),
            ("method", !self.method.is_empty()),
            ("direct", self.direct.is_some()),
            ("creds", self.creds.is_some()),
            ("nats_ca", self.nats_ca.is_some()),
            ("nats_cert", self.nats_cert.is_some()),
            ("nats_key", self.nats_key.is_some()),
        ];
        options.into_iter().find(|(_, is_set)| *is_set).map(|(option, _)| option)
    }
}

impl NodeOptions {
    /// The options of the gateway. Reads the credentials.
    pub(crate) fn options(&self) -> Result<NatsOptions, CommandError> {
        let Self { url, service, node, labels, .. } = self;
        let mut options = NatsOptions::new(url, service, node)
            .labels(labels)
            .methods(&self.methods)
            .connect_options(self.files.connect_options()?.name(node));
        if let Some(version) = &self.version {
            options = options.version(version);
        }
        match self.direct.as_deref() {
            Some("off") => options = options.no_direct(),
            Some(address) => options = options.direct(address),
            None => {}
        }
        match self.status_socket.as_deref() {
            // Without it, the node cannot ask for the number of workers.
            Some(path) if path == Path::new("none") => {
                options = options.sessions(self.max_workers.unwrap_or(64));
            }
            Some(path) => options = options.status_socket(path),
            None => {}
        }
        Ok(options)
    }

    /// The TCP ports to which the node connects: those of the NATS servers, and that of name servers if there are
    /// names to look up. Addresses that are wrong are told when the node connects.
    pub(crate) fn ports(&self) -> Vec<u16> {
        let addresses = self.servers();
        let is_name = |address: &ServerAddr| {
            let host = address.host().trim_matches(['[', ']']);
            host.parse::<std::net::IpAddr>().is_err()
        };
        let dns = addresses.iter().any(is_name).then_some(DNS);
        addresses.iter().map(ServerAddr::port).chain(dns).collect()
    }

    /// Whether the NATS servers have names to look up.
    pub(crate) fn looks_names_up(&self) -> bool {
        self.ports().contains(&DNS)
    }

    /// Whether this node has all NATS servers of another one. An address that is wrong is none of its own.
    pub(crate) fn has_servers_of(&self, other: &Self) -> bool {
        other.servers().iter().all(|server| self.has_server(server))
    }

    /// Whether this node has the name of another one, in the same service at the same NATS.
    pub(crate) fn has_name_of(&self, other: &Self) -> bool {
        (&self.service, &self.node) == (&other.service, &other.node)
            && other.servers().iter().any(|server| self.has_server(server))
    }

    fn has_server(&self, server: &ServerAddr) -> bool {
        let place = |server: &ServerAddr| (server.host().to_owned(), server.port());
        self.servers().iter().any(|own| place(own) == place(server))
    }

    /// The NATS servers. Those whose addresses are wrong are left out.
    fn servers(&self) -> Vec<ServerAddr> {
        self.url.split(',').filter_map(|url| url.trim().parse().ok()).collect()
    }

    /// The files and folders that the node reads while it runs.
    pub(crate) fn readable(&self) -> Vec<PathBuf> {
        let files = [&self.files.nats_ca, &self.files.nats_cert, &self.files.nats_key];
        let mut paths: Vec<PathBuf> = Vec::new();
        for file in files.into_iter().flatten() {
            paths.push(folder(file));
            paths.extend(std::fs::canonicalize(file).map(|file| folder(&file)));
        }
        let mut system: Vec<PathBuf> = Vec::new();
        if self.files.nats_ca.is_none() {
            let variables = ["SSL_CERT_FILE", "SSL_CERT_DIR"].into_iter();
            system.extend(variables.filter_map(std::env::var_os).map(PathBuf::from));
            system.extend(SYSTEM_AUTHORITIES.map(PathBuf::from));
        }
        if self.looks_names_up() {
            system.extend(RESOLVER_FILES.map(PathBuf::from));
            let name_servers = NameServers::of(Path::new(name_servers::FILE));
            system.extend(name_servers.map(|it| it.path().to_owned()));
        }
        // Often links. What is not there cannot be opened.
        let system = system.into_iter().filter(|path| path.exists());
        for path in system {
            paths.extend(std::fs::canonicalize(&path));
            paths.push(path);
        }
        paths
    }

    /// The folder of the server's status socket, if it is not beside the server's own socket.
    pub(crate) fn status_folder(&self) -> Option<PathBuf> {
        let path = self.status_socket.as_deref().filter(|path| *path != Path::new("none"))?;
        Some(folder(path))
    }
}

/// The name of this host as the name of a node.
fn host_name() -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let valid = |c: char| if c.is_ascii_alphanumeric() || "-_".contains(c) { c } else { '-' };
    let name: String = host.chars().map(valid).take(64).collect();
    if name.is_empty() { "node".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(text: &str) -> Result<Option<NodeOptions>, String> {
        let pool: PoolOptions = toml::from_str(text).unwrap();
        pool.node(&OptionSource::File).map_err(|error| error.message().to_owned())
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        for (text, expected) in [
            ("service = \"s\"", "`service` has no effect without `nats`"),
            ("label = [\"a=b\"]", "`label` has no effect without `nats`"),
            ("method = [\"add\"]", "`method` has no effect without `nats`"),
            ("nats = \"nats://h\"", "`nats` needs `service`"),
            (
                "nats = \"nats://h\"\nservice = \"s\"\nnats_key = \"k\"",
                "`nats_key` needs `nats_cert`",
            ),
        ] {
            assert_eq!(node(text).unwrap_err(), expected, "{text}");
        }
        let service = |name: &str| node(&format!("nats = \"nats://h\"\nservice = \"{name}\""));
        for name in ["a.b", "a b", "", "ä"] {
            let error = service(name).unwrap_err();
            assert!(error.starts_with("`service`: "), "{error}");
        }
        let method = |name: &str| {
            node(&format!("nats = \"nats://h\"\nservice = \"s\"\nmethod = [\"{name}\"]"))
        };
        for name in ["", "a b", "a,b"] {
            assert!(method(name).unwrap_err().contains("cannot be the name of a method"), "{name}");
        }
        assert!(method("add").is_ok());
        let label = node("nats = \"nats://h\"\nservice = \"s\"\nlabel = [\"gpu\"]").unwrap_err();
        assert!(label.starts_with("`label`: ") && label.contains("KEY=VALUE"), "{label}");
        assert_eq!(service("s").unwrap().unwrap().node, host_name());
    }

    #[test]
    fn names_of_hosts_need_the_port_of_name_servers() {
        let ports = |url: &str| {
            let node = node(&format!("nats = \"{url}\"\nservice = \"s\"")).unwrap().unwrap();
            (node.ports(), node.readable().contains(&"/etc/hosts".into()))
        };
        assert_eq!(ports("nats://127.0.0.1:4000,nats://[::1]:4001"), (vec![4000, 4001], false));
        let (ports, reads_hosts) = ports("nats://u:p@nats.example,tls://127.0.0.1:4001");
        assert_eq!(ports, [4222, 4001, 53]);
        assert_eq!(reads_hosts, Path::new("/etc/hosts").exists());
    }
}
