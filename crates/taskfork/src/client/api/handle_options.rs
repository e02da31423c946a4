//! Handles of one client whose checkouts have different options.

use std::time::Duration;

use super::handle::Client;

impl Client {
    /// Returns a handle of the same client whose calls have this time limit, counted from when they are made. `None`
    /// means no limit. With 0, a call succeeds only if its answer is there at once.
    ///
    /// The handle shares workers and queue with this one, which stays as it is. The limit holds for calls of the
    /// handle itself and on its checkouts, unless [`Checkout::timeout`](crate::Checkout::timeout) sets another.
    ///
    /// ```no_run
    /// use std::time::Duration;
    /// # async fn example(client: taskfork::Client) -> Result<(), taskfork::Error> {
    /// let quick = client.with_timeout(Duration::from_millis(200));
    /// let page: String = quick.call("render", ("page",)).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn with_timeout(&self, timeout: impl Into<Option<Duration>>) -> Self {
        let timeout = timeout.into().into();
        self.with_options(|options| options.timeout = timeout)
    }

    /// Returns a handle of the same client whose calls have this time limit, counted from when they begin to run. See
    /// [`ClientBuilder::run_timeout`](crate::client::ClientBuilder::run_timeout), and for the handle
    /// [`with_timeout`](Self::with_timeout).
    ///
    /// ```no_run
    /// use std::time::Duration;
    /// # async fn example(client: taskfork::Client) -> Result<(), taskfork::Error> {
    /// let patient = client.with_timeout(None).with_run_timeout(Duration::from_secs(1));
    /// let page: String = patient.call("render", ("page",)).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn with_run_timeout(&self, timeout: impl Into<Option<Duration>>) -> Self {
        let timeout = timeout.into().into();
        self.with_options(|options| options.run_timeout = timeout)
    }

    /// Returns a handle of the same client whose checkouts have this priority while they wait for a worker. The default
    /// is 0, and a higher one is served first.
    ///
    /// Waiting makes up for a lower priority: each level is worth one second (see
    /// [`priority_aging`](crate::client::ClientBuilder::priority_aging)). A checkout of priority 5 is served before
    /// those of priority 0 that were made up to 5 seconds earlier, and after those that have waited longer. So no
    /// checkout waits for ever: those of priority `q` overtake one of priority `p` only if they are made within
    /// `q - p` seconds behind it. Within one priority the first made is the first served.
    ///
    /// Calls that run are not interrupted, and other clients of the same server are not concerned.
    ///
    /// ```no_run
    /// # async fn example(client: taskfork::Client) -> Result<(), taskfork::Error> {
    /// let urgent = client.with_priority(5);
    /// let page: String = urgent.call("render", ("page",)).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn with_priority(&self, priority: i8) -> Self {
        self.with_options(|options| options.priority = priority)
    }
}
