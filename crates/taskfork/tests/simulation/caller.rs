//! A task that carries out the steps of one caller.

use std::collections::VecDeque;
use std::fs::File;
use std::future::{Future, poll_fn};
use std::io::Write;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;
use taskfork::blob::OpenFile;
use taskfork::client::{Input, IntoArguments};
use taskfork::{Blob, Call, Checkout, Client, Error, StreamCall};
use tokio::task::JoinHandle;
use tokio::time::{Sleep, sleep, timeout};

use super::monitor::Monitor;
use super::plan::{CallerPlan, Step};
use super::record::Made;

/// A call whose outcome was not taken.
enum Pending {
    Number(Call<u64>),
    /// A call whose result are bytes, each of which has this value.
    Bytes(Call<Blob>, u64, u8),
    File(Call<OpenFile>),
    /// A call that streams so many items. It is `None` once its result was taken.
    Stream(Option<StreamCall<(u64, Blob), u64>>, Received),
    /// A call with an input. A task polls it, so that it goes on while its caller waits for others.
    Task(Task),
}

/// The items of a call that have been received, and what each of them has.
#[derive(Clone, Copy)]
struct Received {
    count: u64,
    length: u64,
    fill: u8,
}

/// The task ends when this is dropped.
struct Task(JoinHandle<Result<u64, Error>>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Takes the items of a stream, and then its result. That is another call's if an item is wrong.
async fn result_of(
    stream: &mut Option<StreamCall<(u64, Blob), u64>>,
    received: &mut Received,
) -> Result<u64, Error> {
    while let Some(items) = stream {
        match items.next().await? {
            Some((place, bytes)) => {
                let is_right = place == received.count
                    && bytes.len() as u64 == received.length
                    && has_only(&bytes, received.fill);
                received.count = if is_right { received.count + 1 } else { u64::MAX };
            }
            None => break,
        }
    }
    match stream.take() {
        Some(stream) if received.count < u64::MAX => stream.finish().await,
        _ => Ok(u64::MAX),
    }
}

/// The items of an input: some come one at a time.
struct Items {
    next: u64,
    count: u64,
    length: u64,
    fill: u8,
    pause: Option<Pin<Box<Sleep>>>,
}

impl Stream for Items {
    type Item = (u64, Blob);

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(pause) = &mut self.pause {
            std::task::ready!(pause.as_mut().poll(context));
            self.pause = None;
        }
        let place = self.next;
        if place == self.count {
            return Poll::Ready(None);
        }
        self.next += 1;
        if place % 7 == 3 {
            self.pause = Some(Box::pin(sleep(milliseconds(1))));
        }
        Poll::Ready(Some((place, vec![self.fill; self.length as usize].into())))
    }
}

impl Pending {
    async fn outcome(&mut self, call: u64) -> Result<u64, Error> {
        match self {
            Self::Stream(stream, received) => return result_of(stream, received).await,
            Self::Task(task) => {
                return (&mut task.0).await.unwrap_or_else(|error| panic!("{error}"));
            }
            _ => {}
        }
        poll_fn(|context| match self {
            Self::Stream(..) | Self::Task(_) => Poll::Pending,
            Self::Number(future) => Pin::new(future).poll(context),
            Self::Bytes(future, length, fill) => {
                let bytes = std::task::ready!(Pin::new(future).poll(context))?;
                let is_right = bytes.len() as u64 == *length && has_only(&bytes, *fill);
                Poll::Ready(Ok(if is_right { call } else { u64::MAX }))
            }
            Self::File(future) => {
                let file = std::task::ready!(Pin::new(future).poll(context))?;
                write_fill(file, call);
                Poll::Ready(Ok(call))
            }
        })
        .await
    }
}

/// A caller in the middle of its steps.
pub(crate) struct Caller {
    number: u64,
    client: Client,
    client_number: usize,
    client_timeout: Duration,
    monitor: Monitor,
    checkout: Option<(Checkout, Duration, Option<Duration>)>,
    checkouts: u64,
    calls: u64,
    pending: VecDeque<(u64, Pending)>,
}

/// A byte that differs between calls.
pub(crate) fn fill(call: u64) -> u8 {
    (call % 251) as u8
}

/// Whether all bytes are this one. In a test's build, a comparison of slices takes far less time than a loop.
pub(crate) fn has_only(bytes: &[u8], byte: u8) -> bool {
    let block = [byte; 256];
    bytes.chunks(block.len()).all(|chunk| chunk == &block[..chunk.len()])
}

/// Writes the byte of a call to a file that was passed for it.
pub(crate) fn write_fill(file: OpenFile, call: u64) {
    if let Ok(file) = file.try_into_owned() {
        // What did not arrive is missed at the end.
        let _ = File::from(file).write_all(&[fill(call)]);
    }
}

/// What makes a call.
enum Maker<'a> {
    Checkout(&'a Checkout),
    Client(&'a Client),
}

impl Maker<'_> {
    fn call<T>(&self, method: &str, args: impl IntoArguments) -> Call<T> {
        match self {
            Self::Checkout(checkout) => checkout.call(method, args),
            Self::Client(client) => client.call(method, args),
        }
    }

    fn stream(&self, args: impl IntoArguments) -> StreamCall<(u64, Blob), u64> {
        match self {
            Self::Checkout(checkout) => checkout.stream("stream", args),
            Self::Client(client) => client.stream("stream", args),
        }
    }

    /// Makes a call with an input, and starts its task.
    fn task(
        &self,
        args: impl IntoArguments,
        items: Items,
        sends: u64,
    ) -> JoinHandle<Result<u64, Error>> {
        let mut received = Received { count: 0, length: items.length, fill: items.fill };
        let input = Input::new(items);
        if sends == 0 {
            let call: Call<u64> = match self {
                Self::Checkout(checkout) => checkout.call_with_input("stream", args, input),
                Self::Client(client) => client.call_with_input("stream", args, input),
            };
            return tokio::spawn(call);
        }
        let call = match self {
            Self::Checkout(checkout) => checkout.stream_with_input("stream", args, input),
            Self::Client(client) => client.stream_with_input("stream", args, input),
        };
        tokio::spawn(async move { result_of(&mut Some(call), &mut received).await })
    }
}

impl Caller {
    /// `client_timeout` is the time limit of the client's calls.
    pub(crate) fn new(
        number: u64,
        client: Client,
        client_number: usize,
        client_timeout: Duration,
        monitor: Monitor,
    ) -> Self {
        Self {
            number,
            client,
            client_number,
            client_timeout,
            monitor,
            checkout: None,
            checkouts: 0,
            calls: 0,
            pending: VecDeque::new(),
        }
    }

    /// Carries out all steps, and takes the outcomes that are left.
    pub(crate) async fn run(mut self, plan: CallerPlan) {
        for step in plan.steps {
            self.step(step).await;
        }
        self.checkout = None;
        while let Some((call, pending)) = self.pending.pop_front() {
            self.take(call, pending).await;
        }
        self.monitor.step(|| format!("caller {} has ended", self.number));
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::Checkout { timeout } => {
                self.checkout = None;
                self.begin(timeout);
            }
            Step::Take {} => {
                if let Some((call, pending)) = self.pending.pop_front() {
                    self.take(call, pending).await;
                }
            }
            Step::TakeNewest {} => {
                if let Some((call, pending)) = self.pending.pop_back() {
                    self.take(call, pending).await;
                }
            }
            Step::TakeBoth {} => {
                let (first, second) = (self.pending.pop_front(), self.pending.pop_front());
                match (first, second) {
                    (Some(first), Some(second)) => self.take_both([second, first]).await,
                    (Some((call, pending)), None) => self.take(call, pending).await,
                    _ => {}
                }
            }
            Step::TakeWithin { time } => {
                if let Some((call, mut pending)) = self.pending.pop_front() {
                    self.monitor.awaited(call);
                    match timeout(milliseconds(time), pending.outcome(call)).await {
                        Ok(result) => self.monitor.ended(call, &result),
                        Err(_) => self.drop_call(call, pending),
                    }
                }
            }
            Step::Drop { place } => {
                if let Some((call, pending)) = self.pending.remove(place as usize) {
                    self.drop_call(call, pending);
                }
            }
            Step::Release {} => {
                self.monitor.step(|| format!("caller {} drops its checkout", self.number));
                self.checkout = None;
            }
            Step::Abort {} => {
                if let Some((checkout, ..)) = &self.checkout {
                    self.monitor.aborted((self.number, self.checkouts));
                    checkout.abort("aborted by a step");
                }
            }
            Step::Limit { timeout } => {
                if let Some((checkout, _, run_limit)) = self.checkout.take() {
                    let limit = milliseconds(timeout);
                    self.checkout = Some((checkout.timeout(limit), limit, run_limit));
                }
            }
            Step::RunLimit { timeout } => {
                if let Some((checkout, limit, _)) = self.checkout.take() {
                    let run_limit = milliseconds(timeout);
                    self.checkout = Some((checkout.run_timeout(run_limit), limit, Some(run_limit)));
                }
            }
            Step::Pause { time } => sleep(milliseconds(time)).await,
            Step::Close {} => {
                self.monitor.closed(self.client_number);
                // It ends when all workers are gone, so the checkout of this caller must not wait for it.
                drop(tokio::spawn(self.client.close()));
            }
            call => self.call(call),
        }
    }

    fn begin(&mut self, timeout: u64) {
        self.checkouts += 1;
        self.monitor.begins((self.number, self.checkouts));
        let mut checkout = self.client.checkout();
        let mut limit = self.client_timeout;
        if timeout > 0 {
            limit = milliseconds(timeout);
            checkout = checkout.timeout(limit);
        }
        self.checkout = Some((checkout, limit, None));
    }

    fn call(&mut self, step: Step) {
        let makes_checkout = self.checkout.is_none() && self.number.is_multiple_of(2);
        if makes_checkout {
            self.begin(0);
        } else if self.checkout.is_none() {
            // The client makes a checkout for the call.
            self.checkouts += 1;
            self.monitor.begins((self.number, self.checkouts));
        }
        let (maker, timeout, run_timeout) = match &self.checkout {
            Some((checkout, timeout, run_timeout)) => {
                (Maker::Checkout(checkout), *timeout, *run_timeout)
            }
            None => (Maker::Client(&self.client), self.client_timeout, None),
        };
        self.calls += 1;
        let call = (self.number + 1) * 1000 + self.calls;
        self.monitor.made(Made {
            call,
            checkout: (self.number, self.checkouts),
            client: self.client_number,
            step,
            timeout,
            run_timeout,
        });
        let pending = match step {
            Step::Send { length } => {
                let bytes = Blob::from(vec![fill(call); length as usize]);
                Pending::Number(maker.call("send", (call, bytes)))
            }
            Step::Get { length } => {
                Pending::Bytes(maker.call("get", (call, length)), length, fill(call))
            }
            Step::Pass {} => match self.monitor.pipe(call) {
                Some(file) => Pending::Number(maker.call("pass", (call, file))),
                None => Pending::Number(maker.call("echo", (call,))),
            },
            Step::Open {} => Pending::File(maker.call("open", (call,))),
            Step::Sleep { time } => Pending::Number(maker.call("sleep", (call, time))),
            Step::Stream { sends, items, takes, length } => {
                let (args, fill) = ((call, sends, takes, length), fill(call));
                match items {
                    0 => {
                        let received = Received { count: 0, length, fill };
                        Pending::Stream(Some(maker.stream(args)), received)
                    }
                    count => {
                        let items = Items { next: 0, count, length, fill, pause: None };
                        Pending::Task(Task(maker.task(args, items, sends)))
                    }
                }
            }
            Step::Fail {} => Pending::Number(maker.call("fail", (call,))),
            Step::Hang {} => Pending::Number(maker.call("hang", (call,))),
            Step::Die {} => Pending::Number(maker.call("die", (call,))),
            _ => Pending::Number(maker.call("echo", (call,))),
        };
        self.pending.push_back((call, pending));
    }

    /// Waits for two calls in one task. The newer one is polled first, so that it may end while the other is polled.
    async fn take_both(&self, mut calls: [(u64, Pending); 2]) {
        calls.iter().for_each(|(call, _)| self.monitor.awaited(*call));
        let mut results = [None, None];
        poll_fn(|context| {
            for ((call, pending), result) in calls.iter_mut().zip(&mut results) {
                if result.is_none()
                    && let Poll::Ready(outcome) = pin!(pending.outcome(*call)).poll(context)
                {
                    self.monitor.ended(*call, &outcome);
                    *result = Some(());
                }
            }
            match results.iter().all(Option::is_some) {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        })
        .await;
    }

    async fn take(&self, call: u64, mut pending: Pending) {
        self.monitor.awaited(call);
        let result = pending.outcome(call).await;
        self.monitor.ended(call, &result);
    }

    fn drop_call(&self, call: u64, pending: Pending) {
        // The order matters to nobody else: dropping it runs no other task.
        self.monitor.dropped(call);
        drop(pending);
    }
}

fn milliseconds(count: u64) -> Duration {
    Duration::from_millis(count)
}
