//! How many workers a client has, and who waits for them.

use std::time::Duration;

use super::ClientBuilder;
use crate::client::pool::Overload;

impl ClientBuilder {
    /// Sets how many workers stay connected while there is nothing to do.
    ///
    /// Defaults to 2, or to [`max_workers`](Self::max_workers) if that is less. A value above
    /// `max_workers` is an error of [`build`](Self::build).
    ///
    /// ```
    /// let builder = taskfork::Client::builder().min_workers(4);
    /// # let _ = builder;
    /// ```
    pub fn min_workers(mut self, workers: usize) -> Self {
        self.min_workers = Some(workers);
        self
    }

    /// Sets how many workers the client has at most. Checkouts beyond that wait in the queue.
    ///
    /// Defaults to 20. 0 is an error of [`build`](Self::build).
    ///
    /// ```
    /// let builder = taskfork::Client::builder().max_workers(8);
    /// # let _ = builder;
    /// ```
    pub fn max_workers(mut self, workers: usize) -> Self {
        self.max_workers = workers;
        self
    }

    /// Sets after how many checkouts a worker is replaced. `None` means never.
    ///
    /// Defaults to `None`. 0 is an error of [`build`](Self::build).
    ///
    /// ```
    /// let builder = taskfork::Client::builder().max_checkouts(1000);
    /// # let _ = builder;
    /// ```
    pub fn max_checkouts(mut self, checkouts: impl Into<Option<u64>>) -> Self {
        self.max_checkouts = checkouts.into();
        self
    }

    /// Sets how many checkouts may wait for a worker that another one holds. `None` means any number.
    ///
    /// Defaults to `None`. A checkout for which a worker is being connected does not count, up to
    /// [`max_workers`](Self::max_workers), as long as the server takes connections. With the queue full, one checkout fails at once with
    /// [`FatalError::Overloaded`](crate::error::FatalError::Overloaded): which one,
    /// [`overload`](Self::overload) says. With 0 no checkout waits.
    ///
    /// ```
    /// use taskfork::Client;
    /// use taskfork::client::Overload;
    ///
    /// let client = Client::builder().max_queue(100).overload(Overload::DropOldest);
    /// # let _ = client;
    /// ```
    pub fn max_queue(mut self, checkouts: impl Into<Option<usize>>) -> Self {
        self.max_queue = checkouts.into();
        self
    }

    /// Sets which checkout fails when the queue has reached [`max_queue`](Self::max_queue).
    ///
    /// Defaults to [`Overload::RefuseNewest`].
    ///
    /// ```
    /// use taskfork::client::Overload;
    ///
    /// let builder = taskfork::Client::builder().max_queue(100).overload(Overload::DropOldest);
    /// # let _ = builder;
    /// ```
    pub fn overload(mut self, overload: Overload) -> Self {
        self.overload = overload;
        self
    }

    /// Sets how much waiting one level of priority is worth. See
    /// [`Client::with_priority`](crate::Client::with_priority).
    ///
    /// Defaults to 1 second. With 0, priorities have no effect.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let builder = taskfork::Client::builder().priority_aging(Duration::from_millis(100));
    /// # let _ = builder;
    /// ```
    pub fn priority_aging(mut self, level: Duration) -> Self {
        self.aging = level;
        self
    }

    /// Sets whether workers stay in the pool after any error of a call.
    ///
    /// Defaults to false: the server says after which errors a worker is replaced (see
    /// [`ServerBuilder::replace_after`](crate::ServerBuilder::replace_after)). By default a worker of a typed interface
    /// is kept if its method returned the error. Others are replaced, because an error may have left their state half
    /// changed. So are those of servers that do not say, and of [`Protocol::Perl`](crate::client::Protocol::Perl).
    ///
    /// ```
    /// let builder = taskfork::Client::builder().reuse_after_error(true);
    /// # let _ = builder;
    /// ```
    #[doc(alias = "refork")]
    pub fn reuse_after_error(mut self, reuse: bool) -> Self {
        self.reuse_after_error = reuse;
        self
    }

    /// The same as [`reuse_after_error`](Self::reuse_after_error), under the name that
    /// AnyEvent::Task gives it.
    ///
    /// ```
    /// let builder = taskfork::Client::builder().dont_refork_after_error(true);
    /// # let _ = builder;
    /// ```
    pub fn dont_refork_after_error(self, reuse: bool) -> Self {
        self.reuse_after_error(reuse)
    }
}
