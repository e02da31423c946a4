//! Clients for programs without async, whose workers are threads of this process.

use std::sync::mpsc;
use std::time::Duration;

use taskfork::blocking::{Call, Client, StreamCall};
use taskfork::error::FatalError;
use taskfork::{Emitter, Error};

#[taskfork::interface]
trait Numbers {
    fn square(&mut self, x: u64) -> u64;
    fn below(&mut self, count: u64, out: &mut Emitter<u64>) -> u64;
    /// Does not return before the test lets it.
    fn hang(&mut self);
}

struct State(mpsc::Receiver<()>);

impl Numbers for State {
    fn square(&mut self, x: u64) -> u64 {
        x * x
    }

    fn below(&mut self, count: u64, out: &mut Emitter<u64>) -> u64 {
        (0..count).take_while(|number| out.send(number).is_ok()).count() as u64
    }

    fn hang(&mut self) {
        let _ = self.0.recv();
    }
}

/// A client, and what lets its threads return when it is dropped.
fn start() -> (Client, impl Sized) {
    let held = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let senders = held.clone();
    let make = move || {
        let (sender, receiver) = mpsc::channel();
        senders.lock().unwrap().push(sender);
        (NumbersInterface, State(receiver))
    };
    struct Release(std::sync::Arc<std::sync::Mutex<Vec<mpsc::Sender<()>>>>);
    impl Drop for Release {
        fn drop(&mut self) {
            self.0.lock().unwrap().clear();
        }
    }
    let client = Client::builder().in_process(make).grace(Duration::ZERO).build_blocking();
    (client.unwrap(), Release(held))
}

#[test]
fn a_call_outlives_its_client() {
    let (client, _release) = start();
    let checkout = client.checkout();
    let (first, second): (Call<u64>, Call<u64>) =
        (checkout.queue("square", (3,)), checkout.queue("square", (4,)));
    // Their worker is not connected yet.
    drop((checkout, client));
    assert_eq!((first.wait().unwrap(), second.wait().unwrap()), (9, 16));
}

#[test]
fn a_call_whose_client_is_dropped_ends_in_time() {
    let (client, _release) = start();
    let call: Call<()> = client.checkout().timeout(Duration::from_millis(50)).queue("hang", ());
    drop(client);
    let error = call.wait().unwrap_err();
    assert!(matches!(error, Error::Fatal { cause: FatalError::TimedOut { .. }, .. }), "{error:?}");
}

#[test]
fn a_stream_outlives_its_client() {
    let (client, _release) = start();
    let mut numbers: StreamCall<u64, u64> = client.stream("below", (20_000,));
    drop(client);
    assert!(numbers.by_ref().map(Result::unwrap).eq(0..20_000));
    assert_eq!(numbers.finish().unwrap(), 20_000);

    let (client, _release) = start();
    let mut numbers = NumbersBlockingClient::from(client).below(3);
    assert!(numbers.by_ref().map(Result::unwrap).eq(0..3));
    assert_eq!(numbers.finish().unwrap(), 3);
}

/// The items and the result come from the test.
struct Mock;

impl NumbersBlockingCalls for Mock {
    fn square(&self, x: u64) -> Result<u64, Error> {
        Ok(x)
    }

    fn below(&self, count: u64) -> StreamCall<u64, u64> {
        StreamCall::ready(0..count, Ok(count))
    }

    fn hang(&self) -> Result<(), Error> {
        Ok(())
    }
}

#[test]
fn a_type_of_a_test_takes_the_place_of_workers() {
    assert!(Mock.below(3).map(Result::unwrap).eq(0..3));
    assert_eq!(Mock.below(3).finish().unwrap(), 3);
    assert_eq!(Mock.below(3).progress().latest(), None);
}
