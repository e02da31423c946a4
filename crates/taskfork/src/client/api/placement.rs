//! Clients whose workers belong to certain nodes of a service.

use taskfork_nats::Holder;

use super::config_error::ConfigError;
use super::handle::Client;
use crate::address::AddressKind;
use crate::client::config::Config;
use crate::client::io::transport::nats::Placement;

impl Client {
    /// Returns a client whose workers belong to nodes that have all of these labels, such as `gpu=a100`. Its
    /// checkouts wait until such a node has room. Labels of the client itself count too.
    ///
    /// The new client has the options of this one and shares its connection to NATS, but has workers and a queue of
    /// its own: [`max_workers`](crate::client::ClientBuilder::max_workers) applies to each, and none is connected
    /// before a checkout needs it. Keep it as long as its workers may be used again; they end with its last
    /// clone. Closing one of the clients does not close the other.
    ///
    /// # Errors
    /// [`ConfigError::Option`] if an address is not `nats://HOST:PORT/SERVICE`, a label is not
    /// `KEY=VALUE` with letters, digits, `-` or `_`, or there are more than 5 of them.
    ///
    /// ```no_run
    /// # async fn example(client: taskfork::Client) -> Result<(), taskfork::BoxError> {
    /// let gpus = client.with_labels(["gpu=a100"])?;
    /// let image: Vec<u8> = gpus.call("render", ("scene",)).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn with_labels<L: AsRef<str>>(
        &self,
        labels: impl IntoIterator<Item = L>,
    ) -> Result<Self, ConfigError> {
        let wrong = |error: taskfork_nats::Error| ConfigError::Option {
            option: "with_labels",
            reason: error.to_string(),
        };
        let mut wanted = Vec::new();
        for label in labels {
            wanted.push(label.as_ref().parse().map_err(wrong)?);
        }
        let config = self.placed("with_labels", |placement| placement.labels.extend(wanted))?;
        if let Some(nats) = &config.connector.nats {
            taskfork_nats::check_labels(&nats.placement.labels).map_err(wrong)?;
        }
        Ok(self.sibling(config))
    }

    /// Returns a client that prefers the node to which this key belongs. All clients choose the same one, by
    /// rendezvous hashing over the nodes that they know. So calls with the same key reach the node that has
    /// served the key last, with what it has in its caches. If that node has no room, the next
    /// one is asked, and then any.
    ///
    /// The new client has workers and a queue of its own, as with [`with_labels`](Self::with_labels), whose labels it
    /// keeps.
    ///
    /// # Errors
    /// [`ConfigError::Option`] if an address is not `nats://HOST:PORT/SERVICE`.
    ///
    /// ```no_run
    /// # async fn example(client: taskfork::Client) -> Result<(), taskfork::BoxError> {
    /// let tenant = client.by_key("tenant-7")?;
    /// let total: u64 = tenant.call("total", ()).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn by_key(&self, key: impl Into<String>) -> Result<Self, ConfigError> {
        let key = key.into();
        let config = self.placed("by_key", |placement| placement.key = Some(key))?;
        Ok(self.sibling(config))
    }

    /// The options of a client with a changed placement.
    fn placed(
        &self,
        option: &'static str,
        change: impl FnOnce(&mut Placement),
    ) -> Result<Config, ConfigError> {
        let mut config = self.core().config.clone();
        let others = |address: &&crate::client::Address| !matches!(address.0, AddressKind::Nats(_));
        match (config.addresses.iter().find(others), &mut config.connector.nats) {
            (None, Some(nats)) => {
                nats.placement.holder = Holder::new();
                change(&mut nats.placement);
            }
            (Some(address), _) => {
                let reason = format!(
                    "the server at {address} has no nodes to choose from: only a client with an address \
                     nats://HOST:PORT/SERVICE can do that"
                );
                return Err(ConfigError::Option { option, reason });
            }
            (None, None) => return Err(ConfigError::NoAddress),
        }
        config.limits.min_workers = 0;
        config.required = config.required.copy();
        Ok(config)
    }
}
