//! The options of connections through NATS: their values, and what they mean together.

use std::panic::{RefUnwindSafe, UnwindSafe};
use std::time::Duration;

use taskfork_nats::Route;
use taskfork_nats::async_nats::ConnectOptions;

use crate::address::{Address, AddressKind};
use crate::client::io::transport::nats::{NatsContext, NatsOptions};
use crate::time_limit::TimeLimit;
use crate::wire::Protocol;

/// Whether direct connections are possible.
const HAS_TLS: bool = cfg!(feature = "tls");

/// The longest time that a node may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// The options as they were set.
#[derive(Debug, Clone, Default)]
pub(super) struct NatsSettings {
    pub(super) connection: Option<ConnectOptions>,
    pub(super) heartbeat: Option<Duration>,
    pub(super) window: Option<u32>,
    pub(super) route: Option<Route>,
}

// Nothing can be changed through these options. Without these lines a builder would lose the two traits with the feature.
impl UnwindSafe for NatsSettings {}
impl RefUnwindSafe for NatsSettings {}

/// An option that cannot be used, and why.
#[derive(Debug)]
pub(super) struct WrongNatsOption {
    pub(super) option: &'static str,
    pub(super) reason: &'static str,
}

impl NatsSettings {
    /// What a client with these options needs for NATS, if one of its addresses is there.
    pub(super) fn check(
        self,
        addresses: &[Address],
        name: &str,
        connect_timeout: TimeLimit,
        protocol: Protocol,
    ) -> Result<Option<NatsContext>, WrongNatsOption> {
        let wrong = |option, reason| Err(WrongNatsOption { option, reason });
        if !addresses.iter().any(|address| matches!(address.0, AddressKind::Nats(_))) {
            let set = [
                ("nats", self.connection.is_some()),
                ("nats_heartbeat", self.heartbeat.is_some()),
                ("nats_window", self.window.is_some()),
                ("nats_route", self.route.is_some()),
            ];
            return match set.into_iter().find(|(_, is_set)| *is_set) {
                Some((option, _)) => {
                    wrong(option, "the client has no address nats://HOST:PORT/SERVICE")
                }
                None => Ok(None),
            };
        }
        if protocol == Protocol::Perl {
            let reason = "the nodes of a service at NATS speak the native protocol only";
            return wrong("protocol", reason);
        }
        if self.route == Some(Route::Direct) && !HAS_TLS {
            return wrong(
                "nats_route",
                "direct connections need the feature `tls` of the crate taskfork",
            );
        }
        let default = if HAS_TLS { Route::Auto } else { Route::Relayed };
        Ok(Some(NatsContext::new(NatsOptions {
            route: self.route.unwrap_or(default),
            connection: self.connection.unwrap_or_default().name(name),
            client: name.to_owned(),
            heartbeat: self.heartbeat,
            window: self.window,
            // Half of the time of an attempt: so the error of an attempt says who does not answer.
            answer_timeout: connect_timeout.get().map(|limit| (limit / 2).min(ANSWER_TIMEOUT)),
        })))
    }
}
