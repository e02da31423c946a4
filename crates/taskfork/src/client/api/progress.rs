//! The reports of a call's progress.

use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_core::Stream;

use crate::client::io::shared_session::SharedSession;
use crate::client::observe::progress::{Change, ProgressCell};
use crate::client::session::calls::Seq;
use crate::progress::Progress;

/// The reports of one call's progress. Returned by [`Call::progress`](crate::Call::progress).
///
/// It keeps the latest report and skips older ones. It is also a stream of the reports, which ends with the call.
///
/// ```no_run
/// # async fn example(client: taskfork::Client) -> Result<(), taskfork::Error> {
/// let call = client.call::<u64>("import", ("orders.csv",));
/// let mut progress = call.progress();
/// let shown = tokio::spawn(async move {
///     while let Some(progress) = progress.changed().await {
///         println!("{progress}");
///     }
/// });
/// println!("{} rows", call.await?);
/// # drop(shown);
/// # Ok(())
/// # }
/// ```
#[must_use = "it does nothing unless it is asked"]
pub struct ProgressUpdates {
    session: Option<Arc<SharedSession>>,
    cell: Arc<ProgressCell>,
    watcher: u64,
    /// The number of the last report that was returned.
    seen: u64,
}

impl ProgressUpdates {
    /// The reports in `cell`, which messages of the session's worker change.
    pub(crate) fn new(session: Arc<SharedSession>, cell: Arc<ProgressCell>) -> Self {
        let watcher = cell.add_watcher();
        Self { session: Some(session), cell, watcher, seen: 0 }
    }

    /// Those of a call.
    pub(super) fn of(session: Arc<SharedSession>, seq: Seq) -> Self {
        match session.progress_cell(seq) {
            Some(cell) => Self::new(session, cell),
            None => Self::none(),
        }
    }

    /// For a call that is over, or never runs.
    pub(crate) fn none() -> Self {
        let cell = ProgressCell::default();
        cell.end();
        Self { session: None, cell: Arc::new(cell), watcher: 0, seen: 0 }
    }

    /// The latest report that has been received, or `None` if there is none.
    ///
    /// ```no_run
    /// # fn example(client: taskfork::Client) {
    /// let call = client.call::<u64>("import", ("orders.csv",));
    /// assert_eq!(call.progress().latest(), None);
    /// # }
    /// ```
    pub fn latest(&self) -> Option<Progress> {
        self.cell.latest()
    }

    /// Waits for a report that this has not returned yet, and returns the latest. `None` once the call is over or was
    /// dropped, and no report is left.
    ///
    /// # Cancellation
    /// Dropping the future loses no report.
    ///
    /// ```no_run
    /// # async fn example(client: taskfork::Client) -> Result<(), taskfork::Error> {
    /// let mut call = client.call::<u64>("import", ("orders.csv",));
    /// let mut progress = call.progress();
    /// let rows = loop {
    ///     tokio::select! {
    ///         rows = &mut call => break rows?,
    ///         Some(progress) = progress.changed() => println!("{progress}"),
    ///     }
    /// };
    /// # let _ = rows;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn changed(&mut self) -> Option<Progress> {
        poll_fn(|context| self.poll_changed(context)).await
    }

    fn poll_changed(&mut self, context: &mut Context<'_>) -> Poll<Option<Progress>> {
        let change = match self.cell.poll(self.watcher, self.seen, context.waker()) {
            Change::None => {
                // The connection may have woken this task for the call, which it does not poll now.
                if let Some(session) = &self.session {
                    session.receive_arrived();
                }
                self.cell.poll(self.watcher, self.seen, context.waker())
            }
            change => change,
        };
        match change {
            Change::Report(progress, version) => {
                self.seen = version;
                Poll::Ready(Some(progress))
            }
            Change::None => Poll::Pending,
            Change::Over => Poll::Ready(None),
        }
    }
}

impl Stream for ProgressUpdates {
    type Item = Progress;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Progress>> {
        self.poll_changed(context)
    }
}

impl Drop for ProgressUpdates {
    fn drop(&mut self) {
        self.cell.remove_watcher(self.watcher);
    }
}

impl fmt::Debug for ProgressUpdates {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("ProgressUpdates").field("latest", &self.latest()).finish_non_exhaustive()
    }
}
