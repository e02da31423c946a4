//! Whether the options of a client fit together.

use super::ClientBuilder;
use crate::address::{Address, AddressKind};
use crate::client::api::config_error::{ConfigError, check_workers};
#[cfg(feature = "nats")]
use crate::client::api::nats_options::WrongNatsOption;
#[cfg(feature = "tls")]
use crate::client::api::tls_options::WrongOption;
use crate::client::config::Config;
use crate::client::io::transport::Connector;
use crate::client::pool::PoolLimits;
use crate::client::required::RequiredInterfaces;
use crate::client::session::TimeKeeper;
use crate::client::spawned_server::SpawnedServer;
use crate::sys;
use crate::wire::Protocol;
use crate::wire::hello::MIN_FRAME;

impl ClientBuilder {
    /// The options as the client uses them.
    ///
    /// # Errors
    /// Which option is wrong, and why.
    pub(super) fn check(self) -> Result<Config, ConfigError> {
        let addresses = self.addresses.into_iter().collect::<Result<Vec<_>, _>>()?;
        if addresses.is_empty() {
            return Err(ConfigError::NoAddress);
        }
        let is_inherited = |address: &&Address| matches!(address.0, AddressKind::Inherited(_));
        if let Some(address) = addresses.iter().find(is_inherited) {
            return Err(ConfigError::NotConnectable { address: address.to_string() });
        }
        let max_workers = self.max_workers;
        let min_workers = self.min_workers.unwrap_or(2.min(max_workers));
        check_workers(min_workers, max_workers)?;
        if self.max_checkouts == Some(0) {
            return Err(ConfigError::NoCheckouts);
        }
        let wrong = |option, reason: String| Err(ConfigError::Option { option, reason });
        if self.timeout.is_zero() {
            let reason =
                "with 0, every call would be late: set a longer time, or `None` for no limit";
            return wrong("timeout", reason.to_owned());
        }
        if self.run_timeout.is_zero() {
            let reason =
                "with 0, every call would be late: set a longer time, or `None` for no limit";
            return wrong("run_timeout", reason.to_owned());
        }
        if self.connect_timeout.is_zero() {
            let reason = "with 0, no server could answer in time: set a longer time";
            return wrong("connect_timeout", reason.to_owned());
        }
        if self.max_frame < MIN_FRAME {
            let reason = format!(
                "{} bytes are too few for messages: set {MIN_FRAME} or more",
                self.max_frame
            );
            return wrong("max_frame", reason);
        }
        let is_in_process = addresses.iter().any(|address| address.0.is_in_process());
        let time_keeper = match self.protocol {
            Protocol::Perl if is_in_process => {
                let reason = "workers on threads of this process speak the native protocol only";
                return wrong("protocol", reason.to_owned());
            }
            Protocol::Perl => TimeKeeper::Client,
            Protocol::Native if is_in_process => TimeKeeper::ClientAfterGrace,
            Protocol::Native => TimeKeeper::Server,
        };
        let connector = Connector {
            #[cfg(feature = "tls")]
            tls: self
                .tls
                .check(&addresses)
                .map_err(|WrongOption { option, reason }| ConfigError::Option { option, reason })?,
            #[cfg(feature = "nats")]
            nats: self
                .nats
                .check(&addresses, &self.name, self.connect_timeout, self.protocol)
                .map_err(|WrongNatsOption { option, reason }| ConfigError::Option {
                    option,
                    reason: reason.to_owned(),
                })?,
        };
        let links: Vec<_> = addresses.iter().map(SpawnedServer::find).collect();
        // This watches servers in threads: from here on the program cannot fork.
        links.iter().flatten().for_each(SpawnedServer::watch);
        Ok(Config {
            addresses,
            connector,
            links,
            name: self.name,
            limits: PoolLimits {
                min_workers,
                max_workers,
                max_checkouts: self.max_checkouts,
                max_queue: self.max_queue,
                overload: self.overload,
                aging: self.aging,
            },
            timeout: self.timeout,
            run_timeout: self.run_timeout,
            grace: self.grace,
            time_keeper,
            busy_poll: self.busy_poll,
            cores: sys::available_cores(),
            connect_timeout: self.connect_timeout,
            reuse_after_error: self.reuse_after_error,
            max_frame: self.max_frame,
            max_blob: self.max_blob,
            protocol: self.protocol,
            pass_descriptors: self.pass_descriptors,
            shared_memory: self.shared_memory,
            copy_shared_memory: self.copy_shared_memory,
            peer: self.peer,
            required: RequiredInterfaces::new(self.required, self.required_names),
        })
    }
}
