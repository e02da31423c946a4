//! Handles of one client whose checkouts have different options.

use std::time::Duration;

use super::Client;

impl Client {
    /// Returns a handle of the same client whose calls have this time limit, counted from when they are made. See
    /// [`crate::Client::with_timeout`].
    ///
    /// ```no_run
    /// # fn example(client: taskfork::blocking::Client) -> Result<(), taskfork::Error> {
    /// use std::time::Duration;
    ///
    /// let page: String = client.with_timeout(Duration::from_millis(200)).call("render", ("page",))?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn with_timeout(&self, timeout: impl Into<Option<Duration>>) -> Self {
        self.with_inner(self.inner.with_timeout(timeout))
    }

    /// Returns a handle of the same client whose calls have this time limit, counted from when they begin to run. See
    /// [`crate::Client::with_run_timeout`].
    ///
    /// ```no_run
    /// # fn example(client: taskfork::blocking::Client) -> Result<(), taskfork::Error> {
    /// use std::time::Duration;
    ///
    /// let page: String = client.with_run_timeout(Duration::from_secs(1)).call("render", ("page",))?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn with_run_timeout(&self, timeout: impl Into<Option<Duration>>) -> Self {
        self.with_inner(self.inner.with_run_timeout(timeout))
    }

    /// Returns a handle of the same client whose checkouts have this priority while they wait for a worker. See
    /// [`crate::Client::with_priority`].
    ///
    /// ```no_run
    /// # fn example(client: taskfork::blocking::Client) -> Result<(), taskfork::Error> {
    /// let page: String = client.with_priority(5).call("render", ("page",))?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn with_priority(&self, priority: i8) -> Self {
        self.with_inner(self.inner.with_priority(priority))
    }
}
