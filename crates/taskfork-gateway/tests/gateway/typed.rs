//! Clients of a typed interface through a gateway.

use futures_util::stream;
use taskfork::error::FatalError;
use taskfork::{Blob, BoxError, Emitter, Error, Receiver, ServerBuilder, ServerError};

use crate::support::{Served, trial};

#[taskfork::interface]
trait Adder {
    fn add(&mut self, a: i64, b: i64) -> i64;
    /// Sends the sum of the numbers so far behind each of them.
    fn sums(
        &mut self,
        numbers: &mut Receiver<i64>,
        out: &mut Emitter<i64>,
    ) -> Result<u64, BoxError>;
    /// The lengths of byte strings.
    fn lengths(&mut self, blobs: &mut Receiver<Blob>) -> Result<Vec<usize>, BoxError>;
}

/// An interface of the same name that the server does not have.
mod other {
    #[taskfork::interface]
    pub(crate) trait Adder {
        fn add(&mut self, a: f64, b: f64) -> f64;
    }
}

struct Adding;

impl Adder for Adding {
    fn add(&mut self, a: i64, b: i64) -> i64 {
        a + b
    }

    fn sums(
        &mut self,
        numbers: &mut Receiver<i64>,
        out: &mut Emitter<i64>,
    ) -> Result<u64, BoxError> {
        let (mut count, mut sum) = (0, 0);
        while let Some(number) = numbers.next()? {
            (count, sum) = (count + 1, sum + number);
            out.send(&sum)?;
        }
        Ok(count)
    }

    fn lengths(&mut self, blobs: &mut Receiver<Blob>) -> Result<Vec<usize>, BoxError> {
        Ok(blobs.map(|blob| blob.map(|blob| blob.len())).collect::<Result<_, _>>()?)
    }
}

/// Serves at the address that is its configuration.
pub(crate) fn serve(server: ServerBuilder) -> Result<(), ServerError> {
    let address: String = server.config()?;
    server.listen(address).setup(|| Ok::<_, BoxError>(Adding)).interface(AdderInterface).run()
}

trial!(a_gateway_passes_on_what_a_client_requires, async || {
    let served = Served::start_entry("typed", |gateway, _| gateway).await;
    let adder: AdderClient = served.client_builder().build_as().unwrap();
    assert_eq!(adder.add(2, 3).await.unwrap(), 5);

    let other: other::AdderClient = served.client_builder().timeout(None).build_as().unwrap();
    let error = other.add(2.0, 3.0).await.unwrap_err();
    let Error::Fatal { cause: FatalError::WrongInterface { difference, .. }, .. } = &error else {
        panic!("{error}")
    };
    let expected =
        "method `add`: the server takes (a: i64, b: i64), this client gives (a: f64, b: f64)";
    assert!(difference.ends_with(expected), "{difference}");
});

trial!(inputs_and_streams_pass, async || {
    let served = Served::start_entry("typed", |gateway, _| gateway).await;
    let adder: AdderClient = served.client_builder().build_as().unwrap();
    let checkout = adder.checkout();
    let mut sums = checkout.sums(stream::iter(1..=5000));
    let mut expected = 0;
    for number in 1..=5000 {
        expected += number;
        assert_eq!(sums.next().await.unwrap(), Some(expected));
    }
    assert_eq!(sums.finish().await.unwrap(), 5000);
    let lengths = [1, 5 << 20, 0, 300_000, 3 << 20];
    let blobs = lengths.map(|length| Blob::from(vec![7; length]));
    assert_eq!(checkout.lengths(stream::iter(blobs)).await.unwrap(), lengths);
    assert_eq!(checkout.add(2, 3).await.unwrap(), 5);
});
