//! Loading data once in the server, for all of its workers.

use std::cell::OnceCell;
use std::fmt;
use std::rc::Rc;

use super::{ServerBuilder, failure};
use crate::error::BoxError;

/// A builder whose server loads a value before it forks workers. [`setup`](Self::setup) receives the
/// value. [`ServerBuilder::preload`] makes it.
///
/// ```
/// use taskfork::server::Preloaded;
/// use taskfork::{BoxError, Server};
///
/// let preloaded: Preloaded<Vec<u64>> =
///     Server::builder().preload(|| Ok::<_, BoxError>((0..1_000_000).collect()));
/// let builder = preloaded.setup(|table| Ok::<_, BoxError>(table.len()));
/// # let _ = builder;
/// ```
#[must_use = "a server does nothing before `setup`, `interface` and `run`"]
pub struct Preloaded<P: 'static> {
    builder: ServerBuilder,
    loaded: Rc<OnceCell<&'static P>>,
}

impl ServerBuilder {
    /// Loads a value in the server, before the first worker is forked. All workers share its memory
    /// copy-on-write: a large table or model takes its memory once, and a worker gets its own copy of
    /// a page only when it writes to it. The value lives as long as the process. Defaults to none.
    ///
    /// `load` runs when [`Server::run`](crate::Server::run) is called. It must not leave a thread
    /// running, because a process with threads cannot fork workers.
    ///
    /// An error that `load` returns makes `run` fail with
    /// [`ServerError::Preload`](crate::ServerError::Preload).
    ///
    /// ```
    /// use taskfork::{BoxError, Methods, Server};
    ///
    /// struct Worker {
    ///     table: &'static Vec<u64>,
    /// }
    ///
    /// let server = Server::builder()
    ///     .preload(|| Ok::<_, BoxError>((0..1_000_000).collect::<Vec<u64>>()))
    ///     .setup(|table| Ok::<_, BoxError>(Worker { table }))
    ///     .interface(Methods::new().method("get", |worker: &mut Worker, index: usize| {
    ///         Ok(worker.table.get(index).copied())
    ///     }));
    /// # let _ = server;
    /// ```
    pub fn preload<P: 'static, E: Into<BoxError>>(
        mut self,
        load: impl FnOnce() -> Result<P, E> + 'static,
    ) -> Preloaded<P> {
        let loaded = Rc::new(OnceCell::new());
        let kept = loaded.clone();
        self.preload = Some(Box::new(move || {
            let value: &'static P = Box::leak(Box::new(load().map_err(failure)?));
            kept.get_or_init(|| value);
            Ok(())
        }));
        Preloaded { builder: self, loaded }
    }
}

impl<P: 'static> Preloaded<P> {
    /// Sets the function that makes the state of a worker from the loaded value. Errors and panics
    /// are handled as in [`ServerBuilder::setup`].
    ///
    /// ```
    /// use taskfork::{BoxError, Methods, Server};
    ///
    /// let server = Server::builder()
    ///     .preload(|| Ok::<_, BoxError>("a large model".to_owned()))
    ///     .setup(|model: &'static String| Ok::<_, BoxError>(model.len()))
    ///     .interface(Methods::new().method("size", |size: &mut usize| Ok(*size)));
    /// # let _ = server;
    /// ```
    pub fn setup<S: 'static, E: Into<BoxError>>(
        self,
        setup: impl Fn(&'static P) -> Result<S, E> + 'static,
    ) -> ServerBuilder<S> {
        let loaded = self.loaded;
        self.builder.setup(move || match loaded.get() {
            Some(loaded) => setup(loaded).map_err(Into::into),
            None => Err(BoxError::from("nothing has been loaded")),
        })
    }
}

impl<P> fmt::Debug for Preloaded<P> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Preloaded").finish_non_exhaustive()
    }
}
