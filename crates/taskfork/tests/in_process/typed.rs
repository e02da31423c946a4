//! What typed clients and checkouts have beside the methods of their interface.

use std::time::Duration;

use futures_core::Stream;
use taskfork::client::{ConfigError, TypedClient};
use taskfork::error::{FatalError, TimeoutOption};
use taskfork::trace_context::TraceContext;
use taskfork::worker::{context, logger};
use taskfork::{Client, Error, blocking, log_defer};

#[taskfork::interface]
trait Numbers {
    fn square(&mut self, x: u64) -> u64;
    /// Logs a line, and returns how many calls there were.
    fn next(&mut self) -> u64;
    /// Does not return in time.
    fn wait(&mut self);
}

struct State(u64);

impl Numbers for State {
    fn square(&mut self, x: u64) -> u64 {
        x * x
    }

    fn next(&mut self) -> u64 {
        self.0 += 1;
        logger().info("a line");
        self.0
    }

    fn wait(&mut self) {
        while !context().is_cancelled() {
            std::thread::yield_now();
        }
        // The client has a new thread meanwhile.
        std::thread::sleep(Duration::from_secs(20));
    }
}

fn builder() -> taskfork::client::ClientBuilder {
    let builder = Client::builder().in_process(|| (NumbersInterface, State(0)));
    builder.max_workers(1).grace(Duration::ZERO)
}

/// Which time limit has ended a call.
fn limit<T: std::fmt::Debug>(result: Result<T, Error>) -> TimeoutOption {
    match result {
        Err(Error::Fatal { cause: FatalError::TimedOut { limit, .. }, .. }) => limit,
        other => panic!("{other:?}"),
    }
}

const SHORT: Duration = Duration::from_millis(20);

#[tokio::test]
async fn options_of_a_typed_client_give_typed_clients() {
    let client: NumbersClient = builder().build_as().unwrap();
    assert_eq!(limit(client.with_timeout(SHORT).wait().await), TimeoutOption::Timeout);
    let patient = client.with_timeout(None).with_run_timeout(SHORT);
    assert_eq!(limit(patient.wait().await), TimeoutOption::RunTimeout);
    assert_eq!(limit(patient.checkout().wait().await), TimeoutOption::RunTimeout);
    assert_eq!(client.retry(2).square(3).await.unwrap(), 9);

    // The urgent one overtakes.
    let held = client.checkout();
    held.ready().await.unwrap();
    assert!(client.try_checkout().is_none());
    let (ordinary, urgent) = (client.next(), client.with_priority(9).next());
    assert_eq!(client.stats().queued, 2);
    assert_eq!(held.next().await.unwrap(), 1);
    drop(held);
    assert_eq!((urgent.await.unwrap(), ordinary.await.unwrap()), (2, 3));

    // More workers, for all handles.
    client.resize(0, 2).unwrap();
    let held = [client.checkout(), client.checkout()];
    for checkout in &held {
        checkout.ready().await.unwrap();
    }
    assert!(matches!(client.resize(3, 2), Err(ConfigError::MaxBelowMin { .. })));
    drop(held);
    assert!(!client.is_closed());
    client.close().await;
    assert!(client.is_closed());
}

#[tokio::test]
async fn options_of_a_typed_checkout() {
    let client: NumbersClient = builder().build_as().unwrap();
    let checkout = client.checkout().timeout(SHORT);
    assert_eq!(limit(checkout.wait().await), TimeoutOption::Timeout);
    let checkout = client.checkout().timeout(None).run_timeout(SHORT);
    assert_eq!(limit(checkout.wait().await), TimeoutOption::RunTimeout);

    let (sender, messages) = std::sync::mpsc::channel();
    let log = log_defer::Log::builder()
        .verbosity(log_defer::Level::INFO)
        .start(move |message| sender.send(message).unwrap());
    let trace = TraceContext::new("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    let checkout = client.checkout().log(&log).trace_context(trace.unwrap());
    assert_eq!(checkout.next().await.unwrap(), 1);
    assert_eq!(checkout.untyped().call::<u64>("next", ()).await.unwrap(), 2);
    assert_eq!(checkout.alloc_blob(10).unwrap().len(), 10);
    checkout.throw_fatal_error("the user pressed stop");
    assert_eq!(checkout.next().await.unwrap_err().to_string(), "the user pressed stop");
    drop((checkout, log));
    assert_eq!(messages.recv().unwrap().logs.len(), 2);
}

/// The numbers below a bound.
struct Below(u64, u64);

impl Stream for Below {
    type Item = u64;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<u64>> {
        let next = self.0;
        self.0 += 1;
        std::task::Poll::Ready((next < self.1).then_some(next))
    }
}

#[tokio::test]
async fn many_calls_of_a_typed_client() {
    let client: NumbersClient = builder().build_as().unwrap();
    let mut squares = client.map(0..50, |client, x| client.square(x)).concurrency(3);
    for x in 0..50 {
        assert_eq!(squares.next().await.unwrap().unwrap(), x * x);
    }
    assert!(squares.next().await.is_none());
    let mut sum = 0;
    let mut squares = client.map_stream(Below(0, 10), |client, x| client.square(x)).unordered();
    while let Some(square) = squares.next().await {
        sum += square.unwrap();
    }
    assert_eq!(sum, 285);
}

/// Code that is generic over its interface uses the same methods.
async fn close_both<C: TypedClient>(client: C) {
    let urgent: C = client.with_priority(1);
    let checkout: C::Checkout = urgent.checkout();
    checkout.ready().await.unwrap();
    drop(checkout);
    client.close().await;
    assert!(urgent.is_closed());
}

#[tokio::test]
async fn generic_code_takes_any_typed_client() {
    close_both::<NumbersClient>(builder().build_as().unwrap()).await;
}

#[cfg(feature = "nats")]
#[tokio::test]
async fn a_typed_client_without_nodes_says_so() {
    let client: NumbersClient = builder().build_as().unwrap();
    let errors = [client.with_labels(["gpu=a100"]).err(), client.by_key("tenant-7").err()];
    for error in errors {
        assert!(error.unwrap().to_string().contains("has no nodes to choose from"));
    }
}

#[test]
fn blocking_clients_have_them_too() {
    let client: NumbersBlockingClient = builder().build_blocking_as().unwrap();
    assert_eq!(limit(client.with_timeout(SHORT).wait()), TimeoutOption::Timeout);
    let patient = client.with_timeout(None).with_run_timeout(SHORT);
    assert_eq!(limit(patient.wait()), TimeoutOption::RunTimeout);
    let checkout = client.checkout().timeout(None).run_timeout(SHORT);
    assert_eq!(limit(checkout.wait()), TimeoutOption::RunTimeout);
    drop(checkout);
    assert_eq!(client.retry(1).with_priority(3).square(4).unwrap(), 16);
    client.resize(0, 2).unwrap();
    let squares = client.map(0..10, |client, x| client.square(x)).concurrency(2);
    assert_eq!(squares.map(Result::unwrap).sum::<u64>(), 285);
    let held = [client.checkout(), client.checkout()];
    for checkout in &held {
        checkout.ready().unwrap();
    }
    assert!(client.try_checkout().is_none());
    assert_eq!(client.stats().busy, 2);
    assert_eq!(held[0].untyped().call::<u64>("square", (5,)).unwrap(), 25);
    assert_eq!(held[0].alloc_blob(10).unwrap().len(), 10);
    held[0].abort("enough");
    assert_eq!(held[0].next().unwrap_err().to_string(), "enough");
    drop(held);
    client.close();
    assert!(client.untyped().is_closed());
    let _: blocking::Client = client.untyped().clone();
}
