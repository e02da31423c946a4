//! The errors of calls and connections as errors of the command, with what the user can do.

use std::error::Error as _;
use std::io;

use taskfork::error::ConnectionError;
use taskfork_gateway::taskfork_nats::Error as NatsError;

use crate::error::{CommandError, nearest};
use crate::{nats_options, option_names};

/// What the error of a line says that is text, but no JSON.
pub(crate) const NO_JSON: &str = " is no JSON value";

/// What the system's text of a host that cannot be looked up begins with.
const NO_HOST: &str = "failed to lookup address information";

impl CommandError {
    /// With the names of the command's options.
    pub(crate) fn in_own_terms(self) -> Self {
        let message = option_names::in_text(self.message()).into_owned();
        self.with_message(message)
    }

    /// The error of a call, with a hint for its kind.
    pub(crate) fn of(error: &taskfork::Error) -> Self {
        use taskfork::Error;
        use taskfork::error::{CallError, FatalError};

        let command_error = match error {
            Error::Call { error, .. } => {
                let command_error = match error {
                    CallError::Input(_) => Self::usage(error),
                    _ => Self::call(error),
                };
                match error {
                    CallError::Input(failure) if failure.message().contains(NO_JSON) => {
                        command_error.hint(
                            "each line of standard input is one JSON value, such as 7 or \"text\"",
                        )
                    }
                    CallError::UnknownMethod { known, .. } if !known.is_empty() => {
                        let method = error_method(error);
                        match nearest(&method, known.iter().map(String::as_str)) {
                            Some(near) => command_error.hint(format!("did you mean `{near}`?")),
                            None => command_error.hint("call one of these"),
                        }
                    }
                    CallError::Arguments { .. } => {
                        command_error.hint("arguments are JSON; a bare word is a string")
                    }
                    CallError::Setup { .. } => {
                        command_error.hint("the server's own setup failed: see its log")
                    }
                    _ => command_error,
                }
            }
            Error::Fatal { cause, .. } => {
                let command_error = Self::fatal(option_names::in_text(&cause.to_string()));
                match cause {
                    FatalError::CannotConnect { reason, .. } => match connection_hint(reason) {
                        Some(hint) => command_error.hint(hint),
                        None => command_error,
                    },
                    FatalError::TimedOut { .. } => command_error
                        .hint("give it more time with --timeout, or none with --timeout 0"),
                    FatalError::WorkerDied(death) => match &death.stderr {
                        Some(stderr) => command_error
                            .hint(format!("its last words were:\n{}", stderr.trim_end())),
                        None => command_error.hint("the server's log says more"),
                    },
                    FatalError::NodeLost { .. } => {
                        command_error.hint("`taskfork status` of the service shows its nodes")
                    }
                    FatalError::Protocol { .. } => command_error
                        .hint("is this a server of taskfork? --protocol sets another protocol"),
                    _ => command_error,
                }
            }
            _ => Self::fatal(error),
        };
        let report = error.report().to_string();
        command_error.with_report(option_names::in_text(&report))
    }
}

/// What to do about a connection that could not be made. `None` if the reason itself says it, as the reasons of TLS, of NATS
/// and of servers that refuse do.
fn connection_hint(reason: &ConnectionError) -> Option<&'static str> {
    use std::io::ErrorKind;

    let cause = reason.source()?.downcast_ref::<io::Error>()?;
    if let Some(nats) = cause.get_ref().and_then(|cause| cause.downcast_ref::<NatsError>()) {
        return nats_options::hint(nats);
    }
    match cause.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
            Some("start the server, or check the address")
        }
        ErrorKind::PermissionDenied => Some("check who may use the socket and its folder"),
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable | ErrorKind::TimedOut => {
            Some("check the address, and what is between here and there, such as a firewall")
        }
        _ if reason.to_string().contains(NO_HOST) => Some("check the host in the address"),
        _ => None,
    }
}

fn error_method(error: &taskfork::error::CallError) -> String {
    match error {
        taskfork::error::CallError::UnknownMethod { method: Some(method), .. } => method.clone(),
        _ => String::new(),
    }
}
