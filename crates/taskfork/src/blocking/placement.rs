//! Clients whose workers belong to certain nodes of a service.

use super::Client;
use crate::client::ConfigError;

impl Client {
    /// Returns a client whose workers belong to nodes with all of these labels. See
    /// [`crate::Client::with_labels`].
    ///
    /// # Errors
    /// As for [`crate::Client::with_labels`].
    ///
    /// ```no_run
    /// # fn example(client: taskfork::blocking::Client) -> Result<(), taskfork::BoxError> {
    /// let gpus = client.with_labels(["gpu=a100"])?;
    /// gpus.call::<()>("render", ("scene",))?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn with_labels<L: AsRef<str>>(
        &self,
        labels: impl IntoIterator<Item = L>,
    ) -> Result<Self, ConfigError> {
        Ok(self.with_inner(self.inner.with_labels(labels)?))
    }

    /// Returns a client that prefers the node to which this key belongs. See [`crate::Client::by_key`].
    ///
    /// # Errors
    /// As for [`crate::Client::by_key`].
    ///
    /// ```no_run
    /// # fn example(client: taskfork::blocking::Client) -> Result<(), taskfork::BoxError> {
    /// client.by_key("tenant-7")?.call::<()>("work", ())?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn by_key(&self, key: impl Into<String>) -> Result<Self, ConfigError> {
        Ok(self.with_inner(self.inner.by_key(key)?))
    }
}
