//! What a client still has to tell nodes, so that a program can wait for it before its runtime ends.

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::watch;

/// Counts what is still to be told. Clones share the count.
#[derive(Clone, Debug)]
pub(crate) struct Farewells(Arc<watch::Sender<usize>>);

/// Something that is still to be told. Dropping it says that it was told, or never will be.
#[derive(Debug)]
pub(crate) struct Farewell(Farewells);

impl Farewells {
    pub(super) fn new() -> Self {
        Self(Arc::new(watch::channel(0).0))
    }

    pub(crate) fn begin(&self) -> Farewell {
        self.0.send_modify(|count| *count += 1);
        Farewell(self.clone())
    }

    /// Tells something in a task of its own. Without a runtime the nodes find it out by themselves.
    pub(super) fn spawn(&self, telling: impl Future<Output = ()> + Send + 'static) {
        if let Ok(runtime) = Handle::try_current() {
            let farewell = self.begin();
            runtime.spawn(async move {
                telling.await;
                drop(farewell);
            });
        }
    }

    /// Waits until nothing is left to be told.
    pub(super) async fn told(&self) {
        // The sender lives as long as this.
        let _ = self.0.subscribe().wait_for(|count| *count == 0).await;
    }
}

impl Drop for Farewell {
    fn drop(&mut self) {
        self.0.0.send_modify(|count| *count -= 1);
    }
}
