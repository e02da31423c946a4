//! Addresses of services at NATS: `nats://[USER:PASSWORD@]HOST[:PORT][,…]/SERVICE`.

use std::fmt;

use taskfork_nats::async_nats::ServerAddr;

/// The scheme of a connection to a NATS server without TLS, and with TLS. `tls:` alone is a gateway's.
const PLAIN: &str = "nats://";
const TLS: &str = "nats+tls://";

/// A service, and the NATS servers where it is found.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct NatsAddress {
    pub(crate) has_tls: bool,
    /// Each as it was written, without a scheme.
    servers: Vec<String>,
    pub(crate) service: String,
}

impl NatsAddress {
    /// Parses an address. `Err` says what is wrong with it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let (has_tls, rest) = match (text.strip_prefix(PLAIN), text.strip_prefix(TLS)) {
            (Some(rest), _) => (false, rest),
            (_, Some(rest)) => (true, rest),
            (None, None) => return Err("it has another scheme".to_owned()),
        };
        let (servers, service) =
            rest.rsplit_once('/').ok_or("the name of the service is missing")?;
        // The part of a password must not be shown as the name of a service.
        if service.contains('@') {
            return Err("the name of the service is missing".to_owned());
        }
        taskfork_nats::check_service_name(service).map_err(|error| error.to_string())?;
        let servers: Vec<String> = servers.split(',').map(str::to_owned).collect();
        // Otherwise the beginning of a password with a comma would be taken for a server, and shown.
        if !servers.is_sorted_by_key(|server| !server.contains('@')) {
            return Err(
                "a server without a user stands in front of one with a user: write users in \
                        front of the first servers, and a comma in a password as %2C"
                    .to_owned(),
            );
        }
        let address = Self { has_tls, servers, service: service.to_owned() };
        for url in address.urls() {
            let server: ServerAddr = url.parse().map_err(|_| "a host or a port is wrong")?;
            if server.host().is_empty() {
                return Err("a host is missing".to_owned());
            }
            if !matches!(server.into_inner().path(), "" | "/") {
                return Err(
                    "one slash and the name of the service follow the last server".to_owned()
                );
            }
        }
        Ok(address)
    }

    /// The NATS servers, as a NATS client wants them.
    pub(crate) fn urls(&self) -> impl Iterator<Item = String> {
        let scheme = if self.has_tls { "tls" } else { "nats" };
        self.servers.iter().map(move |server| format!("{scheme}://{server}"))
    }
}

/// The text of a wrong address for errors, which are logged. The name of the service stands behind the last slash.
pub(super) fn shown(text: &str) -> String {
    let (scheme, rest) = text.split_once("://").unwrap_or(("nats", text));
    let (servers, service) = rest.rsplit_once('/').map_or((rest, None), |(a, b)| (a, Some(b)));
    let servers = taskfork_nats::shown_addresses(&format!("{scheme}://{servers}"));
    match service {
        // The part of a password is not the name of a service.
        Some(service) if !service.contains(['@', ':', '%', ',']) => format!("{servers}/{service}"),
        _ => servers,
    }
}

/// Writes no user and no password, because errors and logs show addresses.
impl fmt::Display for NatsAddress {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(if self.has_tls { TLS } else { PLAIN })?;
        for (number, server) in self.servers.iter().enumerate() {
            if number > 0 {
                out.write_str(",")?;
            }
            out.write_str(&taskfork_nats::shown_addresses(server))?;
        }
        write!(out, "/{}", self.service)
    }
}

impl fmt::Debug for NatsAddress {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "NatsAddress({self})")
    }
}

#[cfg(test)]
mod tests {
    use crate::address::Address;

    fn error_of(text: &str) -> String {
        text.parse::<Address>().unwrap_err().to_string()
    }

    #[test]
    fn every_form_is_displayed_as_it_was_parsed() {
        for text in [
            "nats://localhost/resize",
            "nats://localhost:4222/resize",
            "nats://a:4222,b:4223/re-size_2",
            "nats+tls://nats.example/resize",
            "nats://[::1]:4222/resize",
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_wrong_address_says_what_is_wrong_and_what_is_right() {
        for (text, why) in [
            ("nats://localhost", "the name of the service is missing"),
            ("nats://localhost/", "it is empty"),
            ("nats://localhost/a.b", "letters, digits, '-' and '_'"),
            ("nats://localhost/a b", "letters, digits, '-' and '_'"),
            ("nats:///resize", "host"),
            ("nats://localhost:port/resize", "a host or a port is wrong"),
            ("nats://a b/resize", "a host or a port is wrong"),
            ("nats://a,,b/resize", "host"),
            ("nats://a/resize/x", "one slash and the name of the service"),
            ("nats://a/resize,b/resize", "one slash and the name of the service"),
        ] {
            let error = error_of(text);
            assert!(error.contains(why), "{error}");
            assert!(error.contains("write nats://HOST:PORT/SERVICE"), "{error}");
        }
    }

    #[test]
    fn passwords_are_not_shown() {
        let address: Address = "nats://me:p@ss@a:4222,you:pass@b/s".parse().unwrap();
        assert_eq!(address.to_string(), "nats://a:4222,b/s");
        assert!(!error_of("nats://me:p@ss@a/b.c").contains("p@ss"));
        assert!(!error_of("nats://me:pass@a").contains("pass"));
        for text in [
            "nats://me:zq,xv@a",
            "nats://me:zq,xv@a/b.c",
            "nats://me:zq/xv@a",
            "nats://a,me:zq,xv@b:port/s",
            "nats://me:123,zqxv@a/s",
            "mats://me:zq,xv@a/s",
        ] {
            let error = error_of(text);
            assert!(!error.contains("zq") && !error.contains("xv"), "{error}");
        }
    }
}
