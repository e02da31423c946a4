//! Everything that works for a local client works through NATS.

use std::time::Duration;

use taskfork::blob::OpenFile;
use taskfork::error::{FatalError, Stage};
use taskfork::{BoxError, Error, Server, ServerBuilder, ServerError};

use crate::any_client;
use crate::fixture::{Fleet, node};
use crate::support::{address_in, assert_a_late_setup_shows, is_gone, trial, until};

#[taskfork::interface]
trait Adder {
    fn add(&mut self, a: i64, b: i64) -> i64;
    fn divide(&mut self, a: i64, b: i64) -> Result<i64, DivisionByZero>;
}

#[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize, thiserror::Error)]
#[error("division by zero")]
struct DivisionByZero;

struct Adding;

impl Adder for Adding {
    fn add(&mut self, a: i64, b: i64) -> i64 {
        a + b
    }

    fn divide(&mut self, a: i64, b: i64) -> Result<i64, DivisionByZero> {
        a.checked_div(b).ok_or(DivisionByZero)
    }
}

/// Serves the typed interface at the address that is its configuration.
pub(crate) fn serve_typed(server: ServerBuilder) -> Result<(), ServerError> {
    let address: String = server.config()?;
    server.listen(address).setup(|| Ok::<_, BoxError>(Adding)).interface(AdderInterface).run()
}

trial!(a_call_is_answered, async || {
    let (fleet, _node) = Fleet::with_node().await;
    let client = fleet.client();
    assert_eq!(client.call::<i64>("add", (2, 3)).await.unwrap(), 5);
    let error = client.call::<()>("fail", ()).await.unwrap_err();
    assert!(!error.is_fatal() && error.to_string().contains("it failed"), "{error}");
    assert_eq!(client.call::<i64>("add", (2, 3)).await.unwrap(), 5);
});

trial!(a_call_whose_time_ends_during_setup_has_not_run, async || {
    let fleet = Fleet::start_with("slow", "");
    let _node = fleet.node("one", 8).start(&fleet.nats.url()).await.unwrap();
    assert_a_late_setup_shows(&fleet.client(), fleet.folder.path()).await;
});

trial!(typed_calls_are_answered, async || {
    let fleet = Fleet::start_with("typed", "");
    let _node = fleet.node("one", 8).start(&fleet.nats.url()).await.unwrap();
    let client = fleet.client();
    assert_eq!(client.add(2, 3).await.unwrap(), 5);
    let error = client.divide(1, 0).await.unwrap_err();
    assert_eq!(error.to_string(), "division by zero");
});

/// An interface of the same name, of another version.
mod other {
    #[taskfork::interface]
    pub(crate) trait Adder {
        fn subtract(&mut self, a: i64, b: i64) -> i64;
    }

    impl Adder for super::Adding {
        fn subtract(&mut self, a: i64, b: i64) -> i64 {
            a - b
        }
    }
}

/// Serves the other interface at the address that is its configuration.
pub(crate) fn serve_other(server: ServerBuilder) -> Result<(), ServerError> {
    let address: String = server.config()?;
    server
        .listen(address)
        .setup(|| Ok::<_, BoxError>(Adding))
        .interface(other::AdderInterface)
        .run()
}

trial!(nodes_compare_what_a_client_requires, async || {
    let fleet = Fleet::start_with("typed", "");
    let _node = fleet.node("one", 8).start(&fleet.nats.url()).await.unwrap();
    let adder: AdderClient = fleet.client_builder().build_as().unwrap();
    assert_eq!(adder.add(2, 3).await.unwrap(), 5);
    let by_key = AdderClient::from(adder.untyped().by_key("a").unwrap());
    assert_eq!(by_key.add(2, 3).await.unwrap(), 5);

    let other: other::AdderClient = fleet.client_builder().timeout(None).build_as().unwrap();
    let error = other.subtract(2, 3).await.unwrap_err();
    let cause = match &error {
        Error::Fatal { cause, .. } => cause,
        other => panic!("{other}"),
    };
    assert!(matches!(cause, FatalError::WrongInterface { .. }), "{error}");
    assert!(
        error.to_string().contains("method `subtract`: the server does not have it"),
        "{error}"
    );
});

trial!(a_node_of_another_version_does_not_fail_what_a_node_can_serve, async || {
    let fleet = Fleet::start_with("typed", "");
    let folder = tempfile::tempdir().unwrap();
    let server = Server::spawn_with("typed_new", &address_in(&folder)).unwrap();
    let socket = server.address().path().unwrap().to_str().unwrap().to_owned();

    let old = fleet.node("old", 8).start(&fleet.nats.url()).await.unwrap();
    let adder: other::AdderClient = fleet.client_builder().timeout(None).build_as().unwrap();
    let waiting = tokio::spawn({
        let adder = adder.clone();
        async move { adder.subtract(5, 3).await }
    });
    until("the refusal", || adder.untyped().stats().unreachable.is_some()).await;
    let _new = node("new", socket, 8).start(&fleet.nats.url()).await.unwrap();
    old.drain(Duration::ZERO).await;
    assert_eq!(waiting.await.unwrap().unwrap(), 2);
});

trial!(a_client_without_a_runtime_calls_too, async || {
    let (fleet, _node) = Fleet::with_node().await;
    let builder = fleet.client_builder();
    let call = move || {
        // One client after the other, each with a runtime of its own.
        for _ in 0..2 {
            let client = builder.clone().build_blocking().unwrap();
            assert_eq!(client.call::<i64>("add", (2, 3)).unwrap(), 5);
            let checkout = client.checkout();
            assert_eq!(checkout.call::<i64>("add", (2, 3)).unwrap(), 5);
        }
    };
    tokio::task::spawn_blocking(call).await.unwrap();
});

trial!(builders_are_used_in_several_runtimes, async || {
    let (fleet, _node) = Fleet::with_node().await;
    let builder = fleet.client_builder();
    for _ in 0..3 {
        let builder = builder.clone();
        let run = move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let client = builder.build().unwrap();
                client.call::<i64>("add", (2, 3)).await.unwrap()
            })
        };
        assert_eq!(std::thread::spawn(run).join().unwrap(), 5);
    }
});

trial!(calls_are_sent_ahead_and_answered_in_order, async || {
    let (fleet, _node) = Fleet::with_node().await;
    any_client::assert_calls_are_answered_in_order(&fleet.client()).await;
});

trial!(many_tasks_call_at_the_same_time, async || {
    let (fleet, _node) = Fleet::with_node().await;
    any_client::assert_many_tasks_call(&fleet.client()).await;
});

trial!(long_arguments_and_results_pass, async || {
    let (fleet, _node) = Fleet::with_node().await;
    any_client::assert_long_arguments_and_results_pass(&fleet.client()).await;
});

trial!(a_workers_log_arrives, async || {
    let (fleet, _node) = Fleet::with_node().await;
    any_client::assert_a_workers_log_arrives(&fleet.client()).await;
});

trial!(a_deadline_ends_the_call_and_kills_the_worker, async || {
    let (fleet, _node) = Fleet::with_node().await;
    let checkout = fleet.client().checkout();
    let worker: u32 = checkout.call("pid", ()).await.unwrap();
    let checkout = checkout.timeout(Duration::from_millis(300));
    let error = checkout.call::<()>("hang", ()).await.unwrap_err();
    let Error::Fatal { cause: FatalError::TimedOut { stage, .. }, .. } = error else {
        panic!("{error:?}")
    };
    assert_eq!(stage, Stage::Running);
    until("the worker's end", || is_gone(worker)).await;
});

trial!(a_cancelled_call_kills_its_worker, async || {
    let (fleet, _node) = Fleet::with_node().await;
    let checkout = fleet.client().checkout();
    let worker: u32 = checkout.call("pid", ()).await.unwrap();
    let marker = fleet.folder.path().join("runs");
    let call = tokio::spawn(checkout.call::<()>("hang_after", (&marker,)));
    drop(checkout);
    until("the call", || marker.exists()).await;
    call.abort();
    until("the worker's end", || is_gone(worker)).await;
});

trial!(open_files_are_an_error_that_says_why, async || {
    let (fleet, _node) = Fleet::with_node().await;
    let client = fleet.client();
    let file = fleet.folder.path().join("file");
    std::fs::write(&file, "text").unwrap();
    let open = OpenFile::from(std::fs::File::open(&file).unwrap());
    let error = client.call::<u64>("length", (open,)).await.unwrap_err();
    assert!(!error.is_fatal() && error.to_string().contains("unix sockets only"), "{error}");
    let error = client.call::<OpenFile>("open", (&file,)).await.unwrap_err();
    assert!(!error.is_fatal() && error.to_string().contains("unix sockets only"), "{error}");
});
