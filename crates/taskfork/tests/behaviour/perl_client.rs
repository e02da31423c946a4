//! The protocol of AnyEvent::Task: recorded sessions, replayed against our client.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use log_defer::Log;
use serde_json::{Value, json};
use taskfork::client::Protocol;
use taskfork::{Client, Error};

use crate::perl::{Recorded, recorded};
use crate::support::{address_in, trial, until};

/// A server that plays what workers of the original have sent, and what it was sent.
struct Played {
    folder: tempfile::TempDir,
    thread: std::thread::JoinHandle<()>,
    /// How many pieces of the recording have come from the client.
    received: Arc<AtomicUsize>,
}

impl Played {
    /// Connections that said nothing are left out. What comes must be byte by byte what was recorded.
    fn start(scenario: &'static str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("s")).unwrap();
        let reads = recorded(scenario);
        let mut connections = BTreeMap::<u64, Vec<Recorded>>::new();
        for read in reads {
            connections.entry(read.connection).or_default().push(read);
        }
        connections
            .retain(|_, reads| reads.iter().any(|read| read.from_client && read.bytes.is_some()));
        let received = Arc::<AtomicUsize>::default();
        let count = Arc::clone(&received);
        let thread = std::thread::spawn(move || {
            let plays: Vec<_> = connections
                .into_values()
                .map(|reads| {
                    let (socket, _) = listener.accept().unwrap();
                    let count = Arc::clone(&count);
                    std::thread::spawn(move || play_worker(scenario, socket, reads, &count))
                })
                .collect();
            drop(listener);
            plays.into_iter().for_each(|play| play.join().unwrap());
        });
        Self { folder, thread, received }
    }

    fn client(
        &self,
        options: impl FnOnce(taskfork::client::ClientBuilder) -> taskfork::client::ClientBuilder,
    ) -> Client {
        let client = Client::builder().address(address_in(&self.folder)).protocol(Protocol::Perl);
        options(client.min_workers(0).max_workers(1)).build().unwrap()
    }

    async fn end(self) {
        tokio::task::spawn_blocking(|| self.thread.join().unwrap()).await.unwrap();
    }
}

fn play_worker(
    scenario: &str,
    mut socket: UnixStream,
    reads: Vec<Recorded>,
    received: &AtomicUsize,
) {
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    for read in reads {
        match (read.from_client, read.bytes) {
            (true, Some(expected)) => {
                let mut bytes = vec![0; expected.len()];
                socket.read_exact(&mut bytes).unwrap();
                let [bytes, expected] = [bytes, expected].map(|b| String::from_utf8(b).unwrap());
                assert_eq!(bytes, expected, "{scenario}");
                received.fetch_add(1, Ordering::Relaxed);
            }
            (true, None) => {
                let mut rest = String::new();
                socket.read_to_string(&mut rest).unwrap();
                assert_eq!(rest, "", "{scenario}");
            }
            // In pieces, as a stream may be cut anywhere.
            (false, Some(bytes)) => {
                bytes.chunks(7).for_each(|piece| socket.write_all(piece).unwrap())
            }
            (false, None) => drop(socket.shutdown(std::net::Shutdown::Both)),
        }
    }
}

trial!(the_client_handles_recorded_calls, async || {
    let server = Played::start("calls");
    let client = server.client(|client| client);
    let checkout = client.checkout();
    let calls = [
        checkout.call::<Value>("echo", ("hello",)),
        checkout.call("args", (1, "two", [3], json!({"four": 4}), (), 1.5, true)),
        checkout.call("count", ()),
        checkout.call("add", (2, 3)),
        checkout.call("nothing", ()),
        checkout.call("unicode", ("é😀",)),
        checkout.call("echo", (json!({"deep": [[[]]]}),)),
    ];
    let expected = [
        json!("hello"),
        json!([1, "two", [3], {"four": 4}, null, 1.5, true]),
        json!(0),
        json!(5),
        json!(null),
        json!("café 😀 2"),
        json!({"deep": [[[]]]}),
    ];
    for (call, expected) in calls.into_iter().zip(expected) {
        assert_eq!(call.await.unwrap(), expected);
    }
    drop((checkout, client));
    server.end().await;
});

trial!(the_client_handles_recorded_coderef, async || {
    let server = Played::start("coderef");
    let client = server.client(|client| client);
    let checkout = client.checkout();
    let n = async |call: taskfork::Call<Value>| call.await.unwrap()["n"].clone();
    assert_eq!(n(checkout.invoke(())).await, "0");
    assert_eq!(n(checkout.invoke(("a", 1))).await, 2);
    assert_eq!(n(checkout.call("meth", ("x",))).await, 2);
    drop((checkout, client));
    server.end().await;
});

trial!(the_client_handles_recorded_errors, async || {
    let server = Played::start("errors");
    let client = server.client(|client| client);
    let said = [
        ("boom", "ouch"),
        ("object", "interface returned object: Foo=(Foo=HASH(0x557167e8d808))"),
        ("code", "error JSON encoding interface output: encountered CODE(0x557168290ac8)"),
        ("missing_method", "Can't use an undefined value as a subroutine reference"),
        ("logboom", "dead"),
    ];
    for (method, expected) in said {
        let error = client.call::<()>(method, ()).await.unwrap_err();
        assert!(matches!(error, Error::Call { .. }) && error.may_have_run());
        let said = error.to_string();
        assert!(said.starts_with(expected) && said.lines().count() == 1, "{said:?}");
        assert!(!said.ends_with('\n'), "{said:?}");
    }
    drop(client);
    server.end().await;
});

trial!(the_client_handles_recorded_queue_cleared, async || {
    let server = Played::start("queue_cleared");
    let client = server.client(|client| client);
    let checkout = client.checkout();
    let calls = [
        checkout.call::<i64>("echo", (1,)),
        checkout.call("boom", ()),
        checkout.call("echo", (3,)),
        checkout.call("echo", (4,)),
    ];
    let mut said = Vec::new();
    for call in calls {
        said.push(call.await.map_err(|error| error.to_string()));
    }
    let dropped = Err("not run because the call of `boom` failed before it".to_owned());
    assert_eq!(said, [Ok(1), Err("ouch".to_owned()), dropped.clone(), dropped]);
    assert_eq!(checkout.call::<String>("echo", ("after",)).await.unwrap(), "after");
    drop((checkout, client));
    server.end().await;
});

trial!(the_client_handles_recorded_log, async || {
    let server = Played::start("log");
    let client = server.client(|client| client);
    let log = Log::new(drop);
    log.info("going");
    let checkout = client.checkout().log(&log);
    assert_eq!(checkout.call::<String>("log", ()).await.unwrap(), "logged");
    let message = log.message();
    let names: Vec<_> = message.timers.iter().map(|timer| timer.name.as_str()).collect();
    // The worker's clock was another one.
    assert_eq!(message.logs.len(), 3);
    assert!(names.contains(&"log") && names.contains(&"computing some operation"), "{names:?}");
    assert_eq!(message.data["k"], "v");
    drop((checkout, client));
    server.end().await;
});

trial!(the_client_handles_recorded_died, async || {
    let server = Played::start("died");
    let client = server.client(|client| client);
    let checkout = client.checkout();
    for _ in 0..2 {
        let error = checkout.call::<()>("exit_now", ()).await.unwrap_err();
        assert!(error.is_fatal());
        let said = "worker connection suddenly died: the worker closed its connection";
        assert_eq!(error.to_string(), said);
    }
    let again: String = client.call("echo", ("new worker",)).await.unwrap();
    assert_eq!(again, "new worker");
    drop((checkout, client));
    server.end().await;
});

trial!(the_client_handles_recorded_hung, async || {
    let server = Played::start("hung");
    let client = server.client(|client| client);
    let error = client.call::<()>("hang", ()).await.unwrap_err();
    assert!(error.to_string().starts_with("worker connection suddenly died"), "{error}");
    drop(client);
    server.end().await;
});

trial!(the_client_handles_recorded_timeout, async || {
    let server = Played::start("timeout");
    let client = server.client(|client| client);
    let checkout = client.checkout().timeout(Duration::from_millis(300));
    let error = checkout.call::<()>("hang", ()).await.unwrap_err();
    assert!(error.to_string().starts_with("timed out after 0.3 seconds"), "{error}");
    server.end().await;
});

trial!(the_client_handles_recorded_max_checkouts, async || {
    let server = Played::start("max_checkouts");
    let client = server.client(|client| client.max_checkouts(2));
    for number in (0..5).rev() {
        assert_eq!(client.call::<i64>("echo", (number,)).await.unwrap(), number);
    }
    drop(client);
    server.end().await;
});

trial!(the_client_handles_recorded_setup, async || {
    let server = Played::start("setup");
    let client = server.client(|client| client);
    let checkout = client.checkout();
    let error = checkout.call::<i64>("echo", (1,)).await.unwrap_err();
    assert_eq!(error.to_string(), "setup exception: no database");
    assert!(!error.may_have_run());
    let text = "same worker, setup retried";
    assert_eq!(checkout.call::<String>("echo", (text,)).await.unwrap(), text);
    drop((checkout, client));
    server.end().await;
});

trial!(the_client_handles_recorded_standby, async || {
    let server = Played::start("standby");
    let client = server.client(|client| client.max_workers(2));
    let first = client.checkout();
    first.ready().await.unwrap();
    let checkouts = [first, client.checkout()];
    let calls =
        [checkouts[0].call::<String>("echo", ("on 2",)), checkouts[1].call("echo", ("on 1",))];
    for (call, expected) in calls.into_iter().zip(["on 2", "on 1"]) {
        assert_eq!(call.await.unwrap(), expected);
    }
    drop((checkouts, client));
    server.end().await;
});

trial!(the_client_handles_recorded_abort, async || {
    let server = Played::start("abort");
    let client = server.client(|client| client);
    let checkout = client.checkout();
    let call = checkout.call::<()>("hang", ());
    until("the call", || server.received.load(Ordering::Relaxed) == 1).await;
    checkout.abort("manual abort");
    assert_eq!(call.await.unwrap_err().to_string(), "manual abort");
    server.end().await;
});
