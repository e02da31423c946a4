//! Who may ask: by the name of the host, the token, and for POST the origin.

use std::net::{IpAddr, Ipv6Addr};

use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, ORIGIN};
use axum::http::{HeaderMap, HeaderName, StatusCode};
use subtle::ConstantTimeEq;

use crate::state::Options;

/// Why a request is refused: the status, and what to do.
#[derive(Debug, PartialEq)]
pub(super) struct Refusal(pub(super) StatusCode, pub(super) &'static str);

/// Checks the host that a request is for. A page of another site can have its own name resolved to this address, and its
/// scripts could then read everything (DNS rebinding). They cannot change the header `Host`, which has that name.
pub(super) fn check_host(headers: &HeaderMap, options: &Options) -> Result<(), Refusal> {
    let host = single(headers, &HOST).and_then(host_name);
    let is_known = host.is_some_and(|host| {
        is_address(host)
            || host.eq_ignore_ascii_case("localhost")
            || options.hosts.iter().any(|known| known.eq_ignore_ascii_case(host))
    });
    let what = "this host name is not known to the dashboard: use its IP address, or start it with the name as an allowed host\n";
    if is_known { Ok(()) } else { Err(Refusal(StatusCode::MISDIRECTED_REQUEST, what)) }
}

/// Checks the token, if there is one.
pub(super) fn check_token(headers: &HeaderMap, options: &Options) -> Result<(), Refusal> {
    let Some(token) = &options.token else { return Ok(()) };
    let given = single(headers, &AUTHORIZATION)
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, given)| given);
    match given {
        Some(given) if bool::from(given.as_bytes().ct_eq(token.as_bytes())) => Ok(()),
        Some(_) => Err(Refusal(
            StatusCode::UNAUTHORIZED,
            "this token is wrong: use the one that the dashboard was started with\n",
        )),
        None => Err(Refusal(
            StatusCode::UNAUTHORIZED,
            "this needs a token: send the header `Authorization: Bearer TOKEN`\n",
        )),
    }
}

/// Checks a request that changes something: it comes from the page itself or from a program, and not from another site.
pub(super) fn check_change(headers: &HeaderMap) -> Result<(), Refusal> {
    let type_is_json = single(headers, &CONTENT_TYPE)
        .is_some_and(|it| it.split(';').next().is_some_and(|it| it.trim() == "application/json"));
    if !type_is_json {
        let what = "an action is sent with the header `Content-Type: application/json`\n";
        return Err(Refusal(StatusCode::UNSUPPORTED_MEDIA_TYPE, what));
    }
    if !headers.contains_key(ORIGIN) {
        // Browsers send it with each POST.
        return Ok(());
    }
    let origin = single(headers, &ORIGIN).and_then(|origin| origin.split_once("://"));
    let host = single(headers, &HOST);
    match origin.zip(host) {
        Some(((_, origin), host)) if origin.eq_ignore_ascii_case(host) => Ok(()),
        _ if has_other_host(headers) => {
            let what = "a proxy in front of the dashboard has changed the header `Host`: let it pass on that of the browser, and \
                        start the dashboard with that name as an allowed host\n";
            Err(Refusal(StatusCode::FORBIDDEN, what))
        }
        _ => Err(Refusal(StatusCode::FORBIDDEN, "this request comes from another site\n")),
    }
}

/// Whether a proxy has changed the header `Host`: it says so itself, or the browser says that the request comes from the page,
/// though their origins differ. Scripts cannot set these headers for requests to other sites without asking.
pub(super) fn has_other_host(headers: &HeaderMap) -> bool {
    let Some(host) = single(headers, &HOST) else { return false };
    let forwarded = single(headers, &HeaderName::from_static("x-forwarded-host"));
    let says_so = forwarded.is_some_and(|it| {
        it.split(',').next().is_some_and(|it| !it.trim().eq_ignore_ascii_case(host))
    });
    let is_own = single(headers, &HeaderName::from_static("sec-fetch-site")) == Some("same-origin");
    let origin = single(headers, &ORIGIN).and_then(|origin| origin.split_once("://"));
    says_so || is_own && origin.is_some_and(|(_, it)| !it.eq_ignore_ascii_case(host))
}

/// The value of a header that is there once and is text.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

/// The name of a host without its port.
fn host_name(host: &str) -> Option<&str> {
    let end = match host.starts_with('[') {
        true => host.find(']')? + 1,
        false => host.find(':').unwrap_or(host.len()),
    };
    let (name, port) = host.split_at(end);
    let is_port = |port: &str| port.len() <= 5 && port.bytes().all(|it| it.is_ascii_digit());
    (port.is_empty() || port.strip_prefix(':').is_some_and(is_port)).then_some(name)
}

fn is_address(name: &str) -> bool {
    match name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(inner) => inner.parse::<Ipv6Addr>().is_ok(),
        None => name.parse::<IpAddr>().is_ok_and(|address| address.is_ipv4()),
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn options(token: Option<&str>) -> Options {
        Options {
            token: token.map(str::to_owned),
            hosts: vec!["pools.example".to_owned()],
            ..Options::default()
        }
    }

    fn headers(list: &[(HeaderName, &str)]) -> HeaderMap {
        let pairs = list.iter().map(|(name, value)| {
            (name.clone(), HeaderValue::from_bytes(value.as_bytes()).unwrap())
        });
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(name, value);
        }
        headers
    }

    #[test]
    fn refusals_name_no_option_because_each_command_has_its_own() {
        let options = options(Some("the token of a test"));
        let by_proxy = [
            (HOST, "127.0.0.1:9180"),
            (CONTENT_TYPE, "application/json"),
            (ORIGIN, "https://pools.example"),
            (HeaderName::from_static("x-forwarded-host"), "pools.example"),
        ];
        let refused = [
            check_host(&headers(&[(HOST, "evil.example")]), &options),
            check_token(&headers(&[(AUTHORIZATION, "Bearer another")]), &options),
            check_token(&headers(&[]), &options),
            check_change(&headers(&by_proxy)),
        ];
        for refusal in refused {
            let Refusal(_, what) = refusal.unwrap_err();
            assert!(!what.contains("--"), "{what}");
        }
    }

    #[test]
    fn only_known_hosts_are_served() {
        let is_served =
            |list: &[(HeaderName, &str)]| check_host(&headers(list), &options(None)).is_ok();
        for host in [
            "localhost",
            "LOCALHOST:80",
            "127.0.0.1:9180",
            "[::1]:9180",
            "[::1]",
            "10.0.0.7",
            "Pools.example:1",
        ] {
            assert!(is_served(&[(HOST, host)]), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "127.0.0.1:80@evil.example",
            "[::1",
            "::1",
            "[localhost]",
            "localhost:port",
            "localhost:",
            "0x7f.1",
            "evil.example:9180",
            "ä",
        ] {
            // A port may be empty in an address.
            assert_eq!(is_served(&[(HOST, host)]), host == "localhost:", "{host}");
        }
        assert!(!is_served(&[]));
        assert!(!is_served(&[(HOST, "localhost"), (HOST, "evil.example")]));
    }

    #[test]
    fn a_token_is_compared_whole() {
        let right = "0123456789abcdef";
        let is_served = |list: &[(HeaderName, &str)]| {
            check_token(&headers(list), &options(Some(right))).is_ok()
        };
        assert!(is_served(&[(AUTHORIZATION, "Bearer 0123456789abcdef")]));
        // RFC 9110 has schemes in any case.
        assert!(is_served(&[(AUTHORIZATION, "bearer 0123456789abcdef")]));
        for value in [
            "",
            "Bearer ",
            "Bearer 0123456789abcde",
            "Bearer 0123456789abcdef0",
            "Basic 0123456789abcdef",
            "0123456789abcdef",
        ] {
            assert!(!is_served(&[(AUTHORIZATION, value)]), "{value}");
        }
        assert!(!is_served(&[]));
        assert!(check_token(&headers(&[]), &options(None)).is_ok());
    }

    #[test]
    fn other_sites_change_nothing() {
        let json = (CONTENT_TYPE, "application/json");
        let is_served = |list: &[(HeaderName, &str)]| check_change(&headers(list)).is_ok();
        let host = (HOST, "localhost:9180");
        assert!(is_served(&[host.clone(), json.clone()]));
        assert!(is_served(&[host.clone(), json.clone(), (ORIGIN, "http://localhost:9180")]));
        for origin in [
            "http://evil.example",
            "null",
            "http://localhost:9181",
            "http://localhost:9180.evil.example",
            "",
        ] {
            assert!(!is_served(&[host.clone(), json.clone(), (ORIGIN, origin)]), "{origin}");
        }
        for kind in ["text/plain", "application/x-www-form-urlencoded", "application/jsonp"] {
            assert!(!is_served(&[host.clone(), (CONTENT_TYPE, kind)]), "{kind}");
        }
        assert!(!is_served(&[host]));
    }

    #[test]
    fn a_proxy_that_changes_the_host_is_told_from_another_site() {
        let site = HeaderName::from_static("sec-fetch-site");
        let forwarded = HeaderName::from_static("x-forwarded-host");
        let (host, origin) = ((HOST, "127.0.0.1:9180"), (ORIGIN, "https://pools.example"));
        let json = (CONTENT_TYPE, "application/json");
        let said = |list: &[(HeaderName, &str)]| check_change(&headers(list)).unwrap_err().1;
        for by_proxy in [(site.clone(), "same-origin"), (forwarded.clone(), "pools.example")] {
            let list = [host.clone(), json.clone(), origin.clone(), by_proxy];
            assert!(said(&list).contains("a proxy"), "{list:?}");
        }
        let other = [host.clone(), json, origin, (site, "cross-site")];
        assert!(said(&other).contains("another site"));
        let is_same = [host, (forwarded, "127.0.0.1:9180, 10.0.0.1")];
        assert!(!has_other_host(&headers(&is_same)));
    }
}
