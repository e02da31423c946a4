//! A call that has been made and not waited for.

use std::sync::Arc;

use serde::de::DeserializeOwned;

use super::runtime::{RuntimeThread, block_on};
use crate::client::ProgressUpdates;
use crate::error::{Error, Failure};
use crate::wire::call_error::InterfaceError;

/// A call that has been made and not waited for. See [`crate::Call`], also for what dropping it
/// does.
///
/// ```no_run
/// # fn example(client: taskfork::blocking::Client) -> Result<(), taskfork::BoxError> {
/// let checkout = client.checkout();
/// let (one, two) = (checkout.queue::<i64>("add", (1, 1)), checkout.queue::<i64>("add", (2, 2)));
/// println!("{} and {}", one.wait()?, two.wait()?);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "a call that is dropped at once is taken back"]
pub struct Call<T, E = Failure> {
    inner: crate::Call<T, E>,
    // Dropped behind the call. Without the thread nobody would connect its worker or end it in time.
    _thread: Arc<RuntimeThread>,
}

impl<T, E> Call<T, E> {
    pub(super) fn new(inner: crate::Call<T, E>, thread: Arc<RuntimeThread>) -> Self {
        Self { inner, _thread: thread }
    }

    /// The reports of how far the call has got; [`latest`](ProgressUpdates::latest) returns the last one that has come.
    /// See [`crate::Call::progress`].
    ///
    /// ```no_run
    /// # fn example(client: taskfork::blocking::Client) -> Result<(), taskfork::Error> {
    /// let checkout = client.checkout();
    /// let call = checkout.queue::<u64>("import", ("orders.csv",));
    /// let progress = call.progress();
    /// std::thread::scope(|scope| {
    ///     scope.spawn(|| println!("{:?}", progress.latest()));
    ///     call.wait()
    /// })?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn progress(&self) -> ProgressUpdates {
        self.inner.progress()
    }
}

impl<T: DeserializeOwned, E: InterfaceError> Call<T, E> {
    /// Waits for the result.
    ///
    /// # Errors
    /// As for [`crate::Checkout::call`].
    ///
    /// ```no_run
    /// # fn example(client: taskfork::blocking::Client) -> Result<(), taskfork::BoxError> {
    /// let call = client.checkout().queue::<i64>("add", (1, 1));
    /// // Something else can happen here meanwhile.
    /// println!("{}", call.wait()?);
    /// # Ok(())
    /// # }
    /// ```
    pub fn wait(self) -> Result<T, Error<E>> {
        block_on(self.inner)
    }
}
