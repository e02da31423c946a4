//! Addresses of NATS servers as errors and logs show them: without users, passwords and tokens.

/// What stands for a part that may be a password.
const HIDDEN: &str = "…";

/// A list of addresses of NATS servers, which may be wrong, without what may be a user, a password or a token.
///
/// What stands in front of an `@`, also of one written as `%40`, is left out, and so is what is no `HOST` or `HOST:PORT`
/// behind it. A password may have a comma, although it should be written in another way. So what stands before a part with
/// an `@` and without a scheme may belong to a password, and is left out as well.
///
/// ```
/// use taskfork_nats::shown_addresses;
///
/// assert_eq!(shown_addresses("nats://me:secret@a:4222,tls://b"), "nats://a:4222,tls://b");
/// assert_eq!(shown_addresses("nats://me:secret%40a"), "nats://a");
/// assert_eq!(shown_addresses("nats://me:secret"), "nats://…");
/// ```
pub fn shown_addresses(text: &str) -> String {
    let mut addresses: Vec<String> = Vec::new();
    // Whether the part to the right begins within a password.
    let mut is_cut = false;
    for part in text.split(',').rev() {
        let (scheme, rest) = match part.split_once("://") {
            Some((scheme, rest)) if is_scheme(scheme) => (Some(scheme), rest),
            _ => (None, part),
        };
        let (has_user, host) = match behind_user(rest) {
            Some(host) => (true, host),
            None => (false, rest),
        };
        let host = match is_cut {
            true => addresses.pop().unwrap_or_default(),
            false if is_host(host) => host.to_owned(),
            false => HIDDEN.to_owned(),
        };
        is_cut = scheme.is_none() && (is_cut || has_user);
        addresses.push(match scheme {
            Some(scheme) => format!("{scheme}://{host}"),
            None => host,
        });
    }
    addresses.reverse();
    addresses.join(",")
}

/// What stands behind the last `@`, also if that is written as `%40`.
fn behind_user(text: &str) -> Option<&str> {
    ["@", "%40"]
        .into_iter()
        .filter_map(|at| Some(text.rsplit_once(at)?.1))
        .min_by_key(|it| it.len())
}

fn is_scheme(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'+')
}

/// Whether this is a host, which may have a port. With anything else behind the colon it may be a user and a password.
fn is_host(text: &str) -> bool {
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, port)) => {
            let is_address = host.parse::<std::net::Ipv6Addr>().is_ok();
            return is_address && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port));
        }
        None => text.split_once(':').unwrap_or((text, "")),
    };
    is_port(port) && host.chars().all(|c| c.is_alphanumeric() || "-_.".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_not_shown() {
        for (text, expected) in [
            ("nats://me:p@ss@host:1,tls://other", "nats://host:1,tls://other"),
            ("me:pass@host", "host"),
            ("nats://a:1,tls://me:pass@b,nats://c", "nats://a:1,tls://b,nats://c"),
            ("nats://me:pa,ss@host:1", "nats://host:1"),
            ("nats://me:pa,s@s,word@host,nats://other", "nats://host,nats://other"),
            ("nats://first,nats://me:,pa,ss@host", "nats://first,nats://host"),
            ("nats://me:pa@a,ss@host", "nats://host"),
            ("me:pa,ss@host", "host"),
            ("nats://pa/ss,word@host", "nats://host"),
            // The sign is written in another way, or is missing.
            ("nats://me:pass%40host:1", "nats://host:1"),
            ("nats://me:pass%40host:1,nats://b", "nats://host:1,nats://b"),
            ("nats://me:pa,ss%40host", "nats://host"),
            ("nats://me:p%40ss@host", "nats://host"),
            ("nats://me:pass@ho%40st", "nats://st"),
            ("nats://me:pass", "nats://…"),
            ("nats://me:pass%2540host", "nats://…"),
            // Schemes that are none.
            ("nats:me:pass@host", "host"),
            ("nats:/me:pass", "…"),
            ("nats:me:pass", "…"),
            ("me:pass://host", "…"),
            ("nats://nats://me:pass", "nats://…"),
        ] {
            assert_eq!(shown_addresses(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_an_address_is_shown() {
        for text in [
            "nats://localhost",
            "tls://nats.example:4222,10.0.0.1:4222",
            "nats://[::1]:4222,[::1]",
            "http://my_host-2",
            "",
        ] {
            assert_eq!(shown_addresses(text), text);
        }
    }
}
