//! The thread behind a client, and the wait for futures.

use std::panic::{RefUnwindSafe, UnwindSafe};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::BuildError;
use crate::client::ConfigError;

/// The thread that runs a client's task. It ends when the client and all its checkouts are dropped.
#[derive(Debug)]
pub struct RuntimeThread {
    stop: Option<oneshot::Sender<()>>,
    /// Set if it must be awaited: before the program ends, nodes have to be told that sessions have ended.
    thread: Option<thread::JoinHandle<()>>,
}

impl RuntimeThread {
    /// Builds a client on a new runtime, and starts the thread that runs it.
    pub(super) fn run(
        build: impl FnOnce(&Handle) -> Result<crate::Client, ConfigError>,
    ) -> Result<(crate::Client, Self), BuildError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let inner = build(runtime.handle())?;
        #[cfg(feature = "nats")]
        let flush = inner.flush_nats();
        #[cfg(feature = "nats")]
        let is_awaited = flush.is_some();
        #[cfg(not(feature = "nats"))]
        let is_awaited = false;
        let (stop, stopped) = oneshot::channel();
        let thread =
            thread::Builder::new().name("taskfork-client".to_owned()).spawn(move || {
                runtime.block_on(async {
                    // The sender is only ever dropped: an error is the signal to stop.
                    let _ = stopped.await;
                    #[cfg(feature = "nats")]
                    if let Some(flush) = flush {
                        flush.await;
                    }
                });
            })?;
        let thread = is_awaited.then_some(thread);
        Ok((inner, Self { stop: Some(stop), thread }))
    }
}

impl Drop for RuntimeThread {
    fn drop(&mut self) {
        self.stop = None;
        // A log's callback may drop the last handle in that thread.
        let thread = self.thread.take();
        if let Some(thread) = thread.filter(|thread| thread.thread().id() != thread::current().id())
        {
            // A panic in it was printed.
            let _ = thread.join();
        }
    }
}

// The sender is only ever dropped, so a panic cannot leave it half changed.
impl UnwindSafe for RuntimeThread {}
impl RefUnwindSafe for RuntimeThread {}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits for a future in this thread.
pub(super) fn block_on<F: Future>(future: F) -> F::Output {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}
