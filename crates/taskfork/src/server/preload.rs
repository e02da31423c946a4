//! What a server loads once, before it forks, for all of its workers.

use std::cell::OnceCell;
use std::fmt;
use std::rc::Rc;
use std::time::Instant;

use super::builder::{ServerBuilder, failure};
use super::log;
use crate::display::seconds;
use crate::error::Failure;
use crate::sys::{self, Collapsed};
use crate::worker::interface::BoxError;

/// Loads, and keeps what it has loaded.
pub(super) type PreloadFn = Box<dyn FnOnce() -> Result<(), Failure>>;

/// A server that loads something for all of its workers, before it is known what each makes of it:
/// [`setup`](Self::setup) says that.
#[must_use = "a server does nothing before `setup`, `interface` and `run`"]
pub struct Preloaded<P: 'static> {
    builder: ServerBuilder,
    loaded: Rc<OnceCell<&'static P>>,
}

impl ServerBuilder {
    /// Loads something in the server, before the first worker is forked. All workers share its
    /// memory copy-on-write, so that a big table or a model takes its room once; what a worker
    /// writes to, it has its own copy of. It lives as long as the process.
    ///
    /// It runs when the server is [run](crate::Server::run), which fails if it does, and must not
    /// leave a thread running.
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

/// Makes forks of a large server cheap, and says what came of it.
pub(super) fn use_huge_pages() {
    let start = Instant::now();
    let Collapsed { large, huge } = sys::collapse_huge_pages();
    if large > 0 {
        let (large, huge, time) = (large >> 20, huge >> 20, seconds(start.elapsed()));
        log::info!(
            "{huge} of {large} MiB that workers share are in huge pages now, in {time}: a fork \
             copies an entry for each page"
        );
    }
}

impl<S> ServerBuilder<S> {
    /// Whether what the process has loaded is put into huge pages before the first fork: it is
    /// unless this is set to false. A fork copies an entry for each page, so that one of a large
    /// process takes a thirtieth of the time then. It takes up to two seconds for each gibibyte
    /// when the server starts. Where the kernel has no huge pages, nothing changes.
    ///
    /// ```
    /// let server = taskfork::Server::builder().huge_pages(false);
    /// # let _ = server;
    /// ```
    pub fn huge_pages(mut self, wanted: bool) -> Self {
        self.options.huge_pages = wanted;
        self
    }
}

impl<P: 'static> Preloaded<P> {
    /// Makes the state of each new worker from what has been loaded, as
    /// [`ServerBuilder::setup`] does without it.
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
