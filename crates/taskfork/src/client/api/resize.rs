//! More or fewer workers while the client is in use.

use super::config_error::{ConfigError, check_workers};
use super::handle::Client;

impl Client {
    /// Changes [`min_workers`](crate::client::ClientBuilder::min_workers) and
    /// [`max_workers`](crate::client::ClientBuilder::max_workers), for all handles of the client. Returns at once.
    ///
    /// No call fails for it. Workers that are missing are connected. If there are more than `max_workers`, idle ones are
    /// closed at once, those first that have not been used for longest; others are closed when their checkouts end.
    /// A lower `min_workers` closes none.
    ///
    /// # Errors
    /// [`ConfigError::NoWorkers`] if `max_workers` is 0, and [`ConfigError::MaxBelowMin`] if it is below `min_workers`.
    /// Then nothing changes.
    ///
    /// ```no_run
    /// # async fn example(client: taskfork::Client) -> Result<(), taskfork::BoxError> {
    /// client.resize(4, 16)?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn resize(&self, min_workers: usize, max_workers: usize) -> Result<(), ConfigError> {
        check_workers(min_workers, max_workers)?;
        self.core().resize(min_workers, max_workers);
        Ok(())
    }
}
