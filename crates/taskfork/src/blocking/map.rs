//! Many calls, for threads that may block.

use std::sync::Arc;

use futures_core::Stream;

use super::Client;
use super::runtime::{RuntimeThread, block_on};
use crate::client::{Items, MapCalls as AsyncMapCalls};

impl Client {
    /// Makes a call for each item, a bounded number of them at a time, and returns an iterator of their results. See
    /// [`crate::Client::map`].
    ///
    /// `make` gets an async client, on which a call begins without waiting for it. Calls go on between two
    /// results, but new ones begin only when the iterator is asked for the next result.
    ///
    /// ```no_run
    /// # fn example(client: taskfork::blocking::Client) -> Result<(), taskfork::Error> {
    /// let numbers = client.map(0..1000, |client, x| client.call::<i64>("square", (x,))).concurrency(4);
    /// let total: i64 = numbers.sum::<Result<_, _>>()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn map<I, F, Fut>(&self, items: I, make: F) -> MapCalls<Items<I::IntoIter>, F, Fut>
    where
        I: IntoIterator,
        F: FnMut(&crate::Client, I::Item) -> Fut,
        Fut: Future,
    {
        MapCalls::new(self.inner.map(items, make), self.thread.clone())
    }
}

/// An iterator of results, one for each item. Returned by [`Client::map`].
///
/// Dropping it drops the calls that run, and their workers are killed.
#[derive(Debug)]
#[must_use = "it makes no call before it is asked for a result"]
pub struct MapCalls<S, F, Fut: Future, C = crate::Client> {
    inner: AsyncMapCalls<S, F, Fut, C>,
    _thread: Arc<RuntimeThread>,
}

impl<S, F, Fut, C> MapCalls<S, F, Fut, C>
where
    S: Stream + Unpin,
    F: FnMut(&C, S::Item) -> Fut,
    Fut: Future,
{
    pub(super) fn new(inner: AsyncMapCalls<S, F, Fut, C>, thread: Arc<RuntimeThread>) -> Self {
        Self { inner, _thread: thread }
    }

    /// Sets how many items may have begun without their results being taken. 0 counts as 1. Defaults to the
    /// client's `max_workers`. See [`crate::client::MapCalls::concurrency`].
    ///
    /// ```no_run
    /// # fn example(client: taskfork::blocking::Client) {
    /// let squares = client.map(0..9, |client, x| client.call::<i64>("square", (x,))).concurrency(2);
    /// # let _ = squares;
    /// # }
    /// ```
    pub fn concurrency(self, calls: usize) -> Self {
        Self { inner: self.inner.concurrency(calls), ..self }
    }

    /// Returns each result as soon as it is there, and not in the order of the items.
    ///
    /// ```no_run
    /// # fn example(client: taskfork::blocking::Client) {
    /// let mut squares = client.map(0..9, |client, x| client.call::<i64>("square", (x,))).unordered();
    /// let first = squares.next();
    /// # let _ = first;
    /// # }
    /// ```
    pub fn unordered(self) -> Self {
        Self { inner: self.inner.unordered(), ..self }
    }
}

impl<S, F, Fut, C> Iterator for MapCalls<S, F, Fut, C>
where
    S: Stream + Unpin,
    F: FnMut(&C, S::Item) -> Fut,
    Fut: Future,
{
    type Item = Fut::Output;

    fn next(&mut self) -> Option<Self::Item> {
        block_on(self.inner.next())
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.inner.size_hint()
    }
}
