//! What went wrong with TLS, as texts that say what to do.

use std::io;

use tokio_rustls::rustls::{AlertDescription, CertificateError, Error};

/// The error of a handshake with a gateway that must prove to be `name`.
pub(super) fn of_handshake(error: io::Error, name: &str) -> io::Error {
    if let Some(cause) = error.get_ref().and_then(|cause| cause.downcast_ref::<Error>()) {
        return with_text(match cause {
            Error::InvalidCertificate(reason) => certificate(reason, name),
            Error::InvalidMessage(_) => {
                "the server at this port does not speak TLS: connect to the port of a gateway, or to \
                 tcp:HOST:PORT without TLS"
                    .to_owned()
            }
            other => stream(other),
        });
    }
    match error.kind() {
        io::ErrorKind::UnexpectedEof => {
            with_text("the server closed the connection during the TLS handshake".to_owned())
        }
        _ => error,
    }
}

/// The error of a stream behind the handshake. A gateway judges the client's certificate only there.
pub(super) fn of_stream(error: &Error) -> io::Error {
    with_text(stream(error))
}

/// The error of a peer that is no gateway.
pub(super) fn no_gateway() -> io::Error {
    with_text(
        "the server at this port speaks TLS, but is no gateway of taskfork: check host and port"
            .to_owned(),
    )
}

fn with_text(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

fn certificate(reason: &CertificateError, name: &str) -> String {
    let subject = "the certificate of the gateway";
    match reason {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            format!("{subject} has expired: renew it there, or set the clock of this machine")
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            format!(
                "{subject} is not valid yet: set the clock of this machine, or replace it there"
            )
        }
        CertificateError::NotValidForNameContext { presented, .. } if !presented.is_empty() => {
            let presented: Vec<_> = presented.iter().map(|name| plain_name(name)).collect();
            let presented = presented.join(", ");
            format!(
                "{subject} is not for `{name}` but for {presented}: connect to one of these names, \
                 or set the name with `tls_name`"
            )
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            format!("{subject} is not for `{name}`: set the name that it has with `tls_name`")
        }
        CertificateError::ApplicationVerificationFailure => format!(
            "{subject} is not the one that its node has named: it was replaced meanwhile, or \
             another server listens at this address"
        ),
        CertificateError::UnknownIssuer => format!(
            "{subject} is from an unknown issuer: set the file with the certificate of its authority \
             with `tls_ca`"
        ),
        CertificateError::BadSignature => format!(
            "{subject} is not signed by the authority that has the name of its issuer, or the gateway does not \
             have its key: set the file with the certificate of the authority that signs now with `tls_ca`"
        ),
        other => format!("{subject} cannot be used: {other}"),
    }
}

/// The name itself: rustls writes names of certificates as `DnsName("adder.example")`.
fn plain_name(name: &str) -> &str {
    let quoted = name.split_once("(\"").and_then(|(_, rest)| rest.strip_suffix("\")"));
    quoted.unwrap_or(name)
}

fn stream(error: &Error) -> String {
    let refused = "the gateway does not accept the certificate of this client";
    match error {
        Error::AlertReceived(AlertDescription::CertificateRequired) => {
            "the gateway wants a certificate of this client: set it and its key with `tls_identity`"
                .to_owned()
        }
        Error::AlertReceived(AlertDescription::UnknownCA) => {
            format!(
                "{refused}: its issuer is unknown there, so use a certificate of another authority"
            )
        }
        Error::AlertReceived(AlertDescription::CertificateExpired) => {
            format!("{refused}: it has expired or is not valid yet, so renew it")
        }
        Error::AlertReceived(
            alert @ (AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateUnknown
            | AlertDescription::DecryptError
            | AlertDescription::AccessDenied),
        ) => format!("{refused}: {alert:?}"),
        Error::AlertReceived(AlertDescription::NoApplicationProtocol) => no_gateway().to_string(),
        Error::AlertReceived(AlertDescription::ProtocolVersion) | Error::PeerIncompatible(_) => {
            format!("the server at this port speaks another version of TLS than 1.3: {error}")
        }
        error => format!("TLS failed: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_a_certificate_are_shown_as_they_are() {
        let names = [r#"DnsName("adder.example")"#, "IpAddress(127.0.0.1)"].map(plain_name);
        assert_eq!(names, ["adder.example", "IpAddress(127.0.0.1)"]);
    }
}
