//! Many calls: one for each item, a bounded number of them at a time.

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_core::Stream;

use super::handle::Client;
use super::items::Items;
use super::map_futures::Futures;

impl Client {
    /// Makes a call for each item, a bounded number of them at a time, and returns a stream of their results.
    ///
    /// `make` begins the call of an item. It may return any future, such as an `async` block with several calls on
    /// a checkout; for that, clone the client. The results come in the order of the items unless
    /// [`unordered`](MapCalls::unordered) is set. An error is an item like another, and the stream goes on behind it.
    ///
    /// The stream does nothing until it is polled, and spawns no task. Whenever it is polled, it takes as many items as it
    /// may begin. [`concurrency`](MapCalls::concurrency) bounds how many calls run or have results that were
    /// not taken.
    ///
    /// # Cancellation
    /// Dropping the stream drops the calls that run, as [`call`](Self::call) says: their workers are killed. Items that
    /// it has not taken stay in the iterator.
    ///
    /// ```no_run
    /// # async fn example(client: taskfork::Client) -> Result<(), taskfork::Error> {
    /// let pages = ["a.html", "b.html", "c.html"];
    /// let mut titles = client.map(pages, |client, page| client.call::<String>("title", (page,)));
    /// while let Some(title) = titles.next().await {
    ///     println!("{}", title?);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn map<I, F, Fut>(&self, items: I, make: F) -> MapCalls<Items<I::IntoIter>, F, Fut>
    where
        I: IntoIterator,
        F: FnMut(&Client, I::Item) -> Fut,
        Fut: Future,
    {
        self.map_stream(Items::new(items), make)
    }

    /// The same as [`map`](Self::map) for the items of a stream. A stream that is not `Unpin` is passed as
    /// `Box::pin(stream)`.
    ///
    /// ```no_run
    /// # async fn example(client: taskfork::Client, uploads: impl futures_core::Stream<Item = Vec<u8>> + Unpin) {
    /// let mut sizes = client.map_stream(uploads, |client, upload| client.call::<u64>("store", (upload,)));
    /// while let Some(size) = sizes.next().await {
    ///     println!("{size:?}");
    /// }
    /// # }
    /// ```
    pub fn map_stream<S, F, Fut>(&self, items: S, make: F) -> MapCalls<S, F, Fut>
    where
        S: Stream + Unpin,
        F: FnMut(&Client, S::Item) -> Fut,
        Fut: Future,
    {
        MapCalls::new(self, self.clone(), items, make)
    }
}

/// A stream of results, one for each item. Returned by [`Client::map`].
///
/// It is a `Stream` of the crate `futures`. [`next`](Self::next) needs no other crate. `C` is the client that makes the
/// calls, which may be a typed one.
#[must_use = "it makes no call before it is polled"]
pub struct MapCalls<S, F, Fut: Future, C = Client> {
    client: Client,
    /// The same one, as it makes the calls.
    caller: C,
    /// `None` when there are no more.
    items: Option<S>,
    make: F,
    concurrency: Option<usize>,
    is_ordered: bool,
    futures: Futures<Fut>,
    /// What has not been taken. In order, it has a place for each item that has begun, and the first is that of
    /// the item with the number `first`.
    results: VecDeque<Option<Fut::Output>>,
    first: u64,
}

// Nothing is pinned in place: futures are on the heap.
impl<S: Unpin, F, Fut: Future, C> Unpin for MapCalls<S, F, Fut, C> {}

impl<S, F, Fut, C> MapCalls<S, F, Fut, C>
where
    S: Stream + Unpin,
    F: FnMut(&C, S::Item) -> Fut,
    Fut: Future,
{
    pub(super) fn new(client: &Client, caller: C, items: S, make: F) -> Self {
        Self {
            client: client.clone(),
            caller,
            items: Some(items),
            make,
            concurrency: None,
            is_ordered: true,
            futures: Futures::default(),
            results: VecDeque::new(),
            first: 0,
        }
    }

    /// Sets how many items may have begun without their results being taken. 0 counts as 1.
    ///
    /// Defaults to the client's `max_workers`, also after [`resize`](Client::resize). More makes calls wait in the
    /// client's queue, where their [`timeout`](crate::client::ClientBuilder::timeout) runs. In order, it can still be of
    /// use if calls differ much in length: results that wait for an earlier one count too.
    ///
    /// ```no_run
    /// # fn example(client: taskfork::Client) {
    /// let squares = client.map(0..1000, |client, x| client.call::<i64>("square", (x,))).concurrency(4);
    /// # let _ = squares;
    /// # }
    /// ```
    pub fn concurrency(mut self, calls: usize) -> Self {
        self.concurrency = Some(calls.max(1));
        self
    }

    /// Returns each result as soon as it is there, and not in the order of the items. Set it before the first item is
    /// taken.
    ///
    /// ```no_run
    /// # async fn example(client: taskfork::Client) {
    /// let make = |client: &taskfork::Client, x: i64| client.call::<i64>("square", (x,));
    /// let mut squares = client.map(0..1000, make).unordered();
    /// let first = squares.next().await;
    /// # let _ = first;
    /// # }
    /// ```
    pub fn unordered(mut self) -> Self {
        self.is_ordered = false;
        self
    }

    /// Returns the next result, or `None` after the last one.
    ///
    /// # Cancellation
    /// Dropping the future loses nothing. The calls go on, and the next future returns their results.
    ///
    /// ```no_run
    /// # async fn example(client: taskfork::Client) {
    /// let mut squares = client.map(0..9, |client, x| client.call::<i64>("square", (x,)));
    /// while let Some(square) = squares.next().await {
    ///     println!("{square:?}");
    /// }
    /// # }
    /// ```
    pub async fn next(&mut self) -> Option<Fut::Output> {
        poll_fn(|context| Pin::new(&mut *self).poll_next(context)).await
    }

    /// Begins as many items as may begin.
    fn begin(&mut self, context: &mut Context<'_>) {
        let most = match self.concurrency {
            Some(most) => most,
            None => self.client.core().pool().max_workers(),
        };
        while self.begun() < most
            && let Some(items) = &mut self.items
        {
            match Pin::new(items).poll_next(context) {
                Poll::Ready(Some(item)) => {
                    let future = (self.make)(&self.caller, item);
                    let number = self.first + self.results.len() as u64;
                    self.futures.push(number, future);
                    if self.is_ordered {
                        self.results.push_back(None);
                    }
                }
                Poll::Ready(None) => self.items = None,
                Poll::Pending => return,
            }
        }
    }

    /// How many items have begun without their results being taken.
    fn begun(&self) -> usize {
        match self.is_ordered {
            true => self.results.len(),
            false => self.futures.len() + self.results.len(),
        }
    }

    fn take_result(&mut self) -> Option<Fut::Output> {
        let result = self.results.front_mut()?.take()?;
        self.results.pop_front();
        self.first += 1;
        Some(result)
    }
}

impl<S, F, Fut, C> Stream for MapCalls<S, F, Fut, C>
where
    S: Stream + Unpin,
    F: FnMut(&C, S::Item) -> Fut,
    Fut: Future,
{
    type Item = Fut::Output;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        this.begin(context);
        let MapCalls { futures, results, first, is_ordered, .. } = this;
        futures.poll(context, |number, result| match *is_ordered {
            true => results[(number - *first) as usize] = Some(result),
            false => results.push_back(Some(result)),
        });
        match this.take_result() {
            Some(result) => Poll::Ready(Some(result)),
            None if this.items.is_none() && this.futures.len() == 0 => Poll::Ready(None),
            None => Poll::Pending,
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let (least, most) = self.items.as_ref().map_or((0, Some(0)), Stream::size_hint);
        let begun = self.begun();
        (least.saturating_add(begun), most.and_then(|most| most.checked_add(begun)))
    }
}

impl<S, F, Fut: Future, C> fmt::Debug for MapCalls<S, F, Fut, C> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("MapCalls")
            .field("client", &self.client)
            .field("concurrency", &self.concurrency)
            .field("is_ordered", &self.is_ordered)
            .field("running", &self.futures.len())
            .field("has_more_items", &self.items.is_some())
            .finish_non_exhaustive()
    }
}
