//! How long things may take.

use std::time::Duration;

use super::ClientBuilder;
use crate::busy_poll::BusyPoll;

impl ClientBuilder {
    /// Sets the time limit of each call, from when it is made to when its answer arrives. The wait for a
    /// worker counts, and the decoding of the answer does not (see [`max_frame`](Self::max_frame)).
    /// `None` means no limit, and so does a limit of 100 years or more.
    ///
    /// Defaults to 30 seconds. 0 is an error of [`build`](Self::build). [`Checkout::timeout`](crate::Checkout::timeout) sets
    /// another limit for one checkout.
    ///
    /// At the deadline the worker is told, and killed after [`grace`](Self::grace). The call fails
    /// with [`FatalError::TimedOut`](crate::error::FatalError::TimedOut), and its checkout is over.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let client = taskfork::Client::builder().timeout(Duration::from_secs(5));
    /// # let _ = client;
    /// ```
    pub fn timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.timeout = timeout.into().into();
        self
    }

    /// Sets the time limit of each call, from when it begins to run to when its answer arrives. `None` means no
    /// limit, and so does a limit of 100 years or more. The [`timeout`](Self::timeout) holds as well: what is over
    /// first ends the call, and the error names it.
    ///
    /// Defaults to `None`. 0 is an error of [`build`](Self::build).
    /// [`Checkout::run_timeout`](crate::Checkout::run_timeout) and
    /// [`Client::with_run_timeout`](crate::Client::with_run_timeout) set another limit for some calls.
    ///
    /// A call begins to run when the worker begins it. The wait for a worker does not count, nor does the
    /// worker's `setup`, nor the calls that were made before on the same checkout. So a client can make hundreds of
    /// calls at once, each of which has its own time.
    ///
    /// The worker and its server keep the time, as they do for `timeout`: at the limit the worker is told, and
    /// killed after [`grace`](Self::grace). If the server has not killed it 2 seconds later, the client ends the call. The
    /// client counts from when the worker has all of the call and has answered the calls before it. It does not end the
    /// first call of a checkout in this way, because it does not learn when `setup`, or `checkout_done` of the checkout
    /// before, has ended. There it relies on `timeout`. A server in Perl keeps no time. There the client ends
    /// each call at the limit.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let client = taskfork::Client::builder()
    ///     .timeout(Duration::from_secs(600))
    ///     .run_timeout(Duration::from_secs(2));
    /// # let _ = client;
    /// ```
    pub fn run_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.run_timeout = timeout.into().into();
        self
    }

    /// Sets how long a call may go on after its deadline before its worker is killed.
    ///
    /// Defaults to 100 milliseconds. 0 kills the worker at the deadline. 100 years or more mean no
    /// limit.
    ///
    /// At the deadline the worker gets SIGALRM, and [`context`](crate::worker::context) says that
    /// the call is cancelled. An answer within the grace period counts, whether it is a result or
    /// an error. After it the error says where the worker was.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let builder = taskfork::Client::builder().grace(Duration::from_secs(1));
    /// # let _ = builder;
    /// ```
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace.into();
        self
    }

    /// Sets the time limit of one attempt to connect, the handshake included.
    ///
    /// Defaults to 5 seconds. 0 is an error of [`build`](Self::build), and 100 years or more mean
    /// no limit. The client repeats attempts as long as a checkout waits.
    ///
    /// With one address, an attempt may take longer while the server says that it has no free
    /// worker.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let builder = taskfork::Client::builder().connect_timeout(Duration::from_secs(1));
    /// # let _ = builder;
    /// ```
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout.into();
        self
    }

    /// Sets whether a task polls for the answer of its call for a moment before it yields to the
    /// runtime. Polling saves the time that it takes to wake a sleeping CPU.
    ///
    /// Defaults to [`BusyPoll::Adaptive`]. A task yields after 128 calls that were answered at
    /// once, whatever the mode is, because each call counts against tokio's budget.
    ///
    /// ```
    /// use taskfork::client::BusyPoll;
    ///
    /// let builder = taskfork::Client::builder().busy_poll(BusyPoll::Off);
    /// # let _ = builder;
    /// ```
    pub fn busy_poll(mut self, mode: BusyPoll) -> Self {
        self.busy_poll = mode;
        self
    }
}
