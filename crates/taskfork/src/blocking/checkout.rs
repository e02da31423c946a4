//! The handle of a checkout.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::runtime::{RuntimeThread, block_on};
use super::{Call, StreamCall};
use crate::blob::BlobMut;
use crate::error::Error;
use crate::wire::arguments::IntoArguments;

/// Holds one worker exclusively, for threads that may block. See [`crate::Checkout`].
///
/// ```no_run
/// # fn example(client: taskfork::blocking::Client) -> Result<(), taskfork::BoxError> {
/// let checkout = client.checkout();
/// checkout.call::<()>("begin", ())?;
/// checkout.call::<()>("commit", ())?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "a checkout is released when it is dropped"]
pub struct Checkout {
    pub(super) inner: crate::Checkout,
    pub(super) thread: Arc<RuntimeThread>,
}

impl Checkout {
    pub(super) fn new(inner: crate::Checkout, thread: Arc<RuntimeThread>) -> Self {
        Self { inner, thread }
    }

    /// Sets the time limit of each call that is made from now on. `None` means no limit. Defaults
    /// to the client's timeout.
    ///
    /// See [`crate::Checkout::timeout`].
    ///
    /// ```no_run
    /// # fn example(client: taskfork::blocking::Client) -> Result<(), taskfork::BoxError> {
    /// use std::time::Duration;
    ///
    /// let checkout = client.checkout().timeout(Duration::from_secs(2));
    /// checkout.call::<()>("begin", ())?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use = "it returns the checkout, which is released when it is dropped"]
    pub fn timeout(self, timeout: impl Into<Option<Duration>>) -> Self {
        Self { inner: self.inner.timeout(timeout), ..self }
    }

    /// Sets the time limit of each call that is made from now on, counted from when the call begins to run. See
    /// [`crate::Checkout::run_timeout`].
    ///
    /// ```no_run
    /// # fn example(client: taskfork::blocking::Client) -> Result<(), taskfork::BoxError> {
    /// use std::time::Duration;
    ///
    /// let checkout = client.checkout().timeout(None).run_timeout(Duration::from_secs(2));
    /// checkout.call::<()>("begin", ())?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use = "it returns the checkout, which is released when it is dropped"]
    pub fn run_timeout(self, timeout: impl Into<Option<Duration>>) -> Self {
        Self { inner: self.inner.run_timeout(timeout), ..self }
    }

    /// Records each call that is made from now on in `log`. See [`crate::Checkout::log`].
    ///
    /// ```no_run
    /// # fn example(client: taskfork::blocking::Client) -> Result<(), taskfork::BoxError> {
    /// let log = log_defer::Log::new(|message| println!("{} lines", message.logs.len()));
    /// client.checkout().log(&log).call::<()>("work", ())?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use = "it returns the checkout, which is released when it is dropped"]
    pub fn log(self, log: &log_defer::Log) -> Self {
        Self { inner: self.inner.log(log), ..self }
    }

    /// Sets the trace that each call made from now on belongs to. See
    /// [`crate::Checkout::trace_context`].
    ///
    /// ```no_run
    /// # fn example(client: taskfork::blocking::Client) -> Result<(), taskfork::BoxError> {
    /// use taskfork::trace_context::TraceContext;
    ///
    /// let context = TraceContext::new("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    /// let context = context.ok_or("a header that is no trace")?;
    /// client.checkout().trace_context(context).call::<()>("work", ())?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use = "it returns the checkout, which is released when it is dropped"]
    pub fn trace_context(self, context: crate::trace_context::TraceContext) -> Self {
        Self { inner: self.inner.trace_context(context), ..self }
    }

    /// Calls a method of an untyped interface and waits for its result.
    ///
    /// ```no_run
    /// # fn example(client: taskfork::blocking::Client) -> Result<(), taskfork::Error> {
    /// let checkout = client.checkout();
    /// checkout.call::<()>("begin", ())?;
    /// checkout.call::<()>("commit", ())?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As for [`crate::Checkout::call`].
    #[track_caller]
    pub fn call<T: DeserializeOwned>(
        &self,
        method: &str,
        args: impl IntoArguments,
    ) -> Result<T, Error> {
        self.queue(method, args).wait()
    }

    /// Calls an interface that is one function, and waits for the result. The call names no method.
    ///
    /// ```no_run
    /// # fn example(client: taskfork::blocking::Client) -> Result<(), taskfork::Error> {
    /// let sum: i64 = client.checkout().invoke((2, 3))?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As for [`crate::Checkout::call`].
    #[track_caller]
    pub fn invoke<T: DeserializeOwned>(&self, args: impl IntoArguments) -> Result<T, Error> {
        block_on(self.inner.invoke(args))
    }

    /// Begins a call of a method of an untyped interface, and returns at once. [`Call::wait`] returns its
    /// result.
    ///
    /// ```no_run
    /// # fn example(client: taskfork::blocking::Client) -> Result<(), taskfork::Error> {
    /// let checkout = client.checkout();
    /// let first = checkout.queue::<i64>("add", (1, 1));
    /// let second = checkout.queue::<i64>("add", (2, 2));
    /// assert_eq!((first.wait()?, second.wait()?), (2, 4));
    /// # Ok(())
    /// # }
    /// ```
    #[track_caller]
    pub fn queue<T>(&self, method: &str, args: impl IntoArguments) -> Call<T> {
        Call::new(self.inner.call(method, args), self.thread.clone())
    }

    /// Calls a method that streams items of the type `I`, and returns a result of the type `T` at the end. See
    /// [`crate::Checkout::stream`].
    ///
    /// ```no_run
    /// # fn example(client: taskfork::blocking::Client) -> Result<(), taskfork::Error> {
    /// let checkout = client.checkout();
    /// let mut lines = checkout.stream::<String, u64>("lines", ("words.txt",));
    /// for line in &mut lines {
    ///     println!("{}", line?);
    /// }
    /// println!("{} lines", lines.finish()?);
    /// # Ok(())
    /// # }
    /// ```
    #[track_caller]
    pub fn stream<I, T>(&self, method: &str, args: impl IntoArguments) -> StreamCall<I, T> {
        StreamCall::new(self.inner.stream(method, args), self.thread.clone())
    }

    /// Waits until the checkout has a worker and the calls made before are over. It runs nothing in
    /// the worker.
    ///
    /// ```no_run
    /// # fn example(client: taskfork::blocking::Client) -> Result<(), taskfork::Error> {
    /// let checkout = client.checkout();
    /// checkout.ready()?;
    /// println!("a worker is assigned");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// A fatal error if the time runs out first, or if the checkout is over already.
    #[track_caller]
    pub fn ready(&self) -> Result<(), Error> {
        block_on(self.inner.ready())
    }

    /// Allocates memory for an argument, to be filled in place. See
    /// [`crate::Checkout::alloc_blob`].
    ///
    /// # Errors
    /// If the system has no memory or descriptor left.
    ///
    /// ```no_run
    /// # fn example(client: taskfork::blocking::Client) -> Result<(), taskfork::BoxError> {
    /// let checkout = client.checkout();
    /// let mut image = checkout.alloc_blob(8 << 20)?;
    /// image.fill(7);
    /// let sum: u64 = checkout.call("sum", (image.freeze()?,))?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn alloc_blob(&self, length: usize) -> io::Result<BlobMut> {
        self.inner.alloc_blob(length)
    }

    /// Ends the checkout: all its calls fail with `message`, those made later included. Call it
    /// from another thread to end a call that blocks. See [`crate::Checkout::abort`].
    ///
    /// ```no_run
    /// # fn example(client: taskfork::blocking::Client) {
    /// let checkout = client.checkout();
    /// std::thread::scope(|scope| {
    ///     let call = scope.spawn(|| checkout.call::<()>("hang", ()));
    ///     checkout.abort("the user pressed stop");
    ///     assert!(call.join().is_ok_and(|result| result.is_err()));
    /// });
    /// # }
    /// ```
    pub fn abort(&self, message: impl Into<String>) {
        self.inner.abort(message);
    }

    /// The same as [`abort`](Self::abort), under the name that AnyEvent::Task gives it.
    ///
    /// ```no_run
    /// # fn example(client: taskfork::blocking::Client) {
    /// client.checkout().throw_fatal_error("the user pressed stop");
    /// # }
    /// ```
    pub fn throw_fatal_error(&self, message: impl Into<String>) {
        self.abort(message);
    }
}
