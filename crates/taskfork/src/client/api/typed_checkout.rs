//! Checkouts that have the methods of one interface.

use std::io;

use super::call::Call;
use super::checkout::Checkout;
use crate::blob::BlobMut;

/// What every typed checkout has beside the methods of its interface and `timeout`, `run_timeout`, `log` and
/// `trace_context`.
///
/// The type `…Checkout` that the attribute [`interface`](macro@crate::interface) makes of a trait dereferences to this, so
/// these are methods of its values. Each does what the method of [`Checkout`] with its name does.
///
/// ```no_run
/// #[taskfork::interface]
/// trait Thumbnails {
///     fn shrink(&mut self, image: taskfork::Blob) -> Vec<u8>;
/// }
///
/// # async fn example(client: ThumbnailsClient) -> Result<(), taskfork::BoxError> {
/// let checkout = client.checkout();
/// checkout.ready().await?;
/// let mut image = checkout.alloc_blob(8 << 20)?;
/// image.fill(7);
/// let small = checkout.shrink(image.freeze()?).await?;
/// # let _ = small;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "a checkout is released when it is dropped"]
pub struct TypedCheckout(Checkout);

impl TypedCheckout {
    pub(crate) fn new(checkout: Checkout) -> Self {
        Self(checkout)
    }

    /// The same checkout with other options.
    #[doc(hidden)]
    pub fn with(self, change: impl FnOnce(Checkout) -> Checkout) -> Self {
        Self(change(self.0))
    }

    /// Waits until the checkout has a worker and the calls made before are over. It runs nothing in the worker. See
    /// [`Checkout::ready`].
    #[track_caller]
    pub fn ready(&self) -> Call<()> {
        self.0.ready()
    }

    /// Allocates memory of `length` bytes for an argument, to be filled in place. See [`Checkout::alloc_blob`].
    ///
    /// # Errors
    /// If the system has no memory or descriptor left.
    pub fn alloc_blob(&self, length: usize) -> io::Result<BlobMut> {
        self.0.alloc_blob(length)
    }

    /// Ends the checkout: all its calls fail with `message`, those made later included. See [`Checkout::abort`].
    pub fn abort(&self, message: impl Into<String>) {
        self.0.abort(message);
    }

    /// The same as [`abort`](Self::abort), under the name that AnyEvent::Task gives it.
    pub fn throw_fatal_error(&self, message: impl Into<String>) {
        self.0.abort(message);
    }

    /// The same checkout without the methods of an interface.
    pub fn untyped(&self) -> &Checkout {
        &self.0
    }
}
