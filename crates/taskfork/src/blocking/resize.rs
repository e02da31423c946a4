//! More or fewer workers while the client is in use.

use super::Client;
use crate::client::ConfigError;

impl Client {
    /// Changes how many workers the client has. Returns at once. See [`crate::Client::resize`].
    ///
    /// # Errors
    /// As for [`crate::Client::resize`].
    ///
    /// ```no_run
    /// # fn example(client: taskfork::blocking::Client) -> Result<(), taskfork::BoxError> {
    /// client.resize(4, 16)?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn resize(&self, min_workers: usize, max_workers: usize) -> Result<(), ConfigError> {
        self.inner.resize(min_workers, max_workers)
    }
}
