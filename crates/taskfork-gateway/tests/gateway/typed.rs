//! Clients of a typed interface through a gateway.

use taskfork::error::FatalError;
use taskfork::{BoxError, Error, ServerBuilder, ServerError};

use crate::support::{Served, trial};

#[taskfork::interface]
trait Adder {
    fn add(&mut self, a: i64, b: i64) -> i64;
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
