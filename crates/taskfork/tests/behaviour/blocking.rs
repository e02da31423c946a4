//! The pool for programs without async.

use taskfork::{Server, blocking};

use crate::support::trial;
use crate::typed::{AdderBlockingCalls, NotANumber};

/// Runs where there is no runtime.
async fn outside(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(test);
    tokio::task::spawn_blocking(|| thread.join()).await.unwrap().unwrap();
}

fn start(entry: &str) -> (taskfork::server::ServerHandle, blocking::Client) {
    let server = Server::spawn(entry).unwrap();
    let options = blocking::Client::builder().address(server.address());
    let client = options.min_workers(0).max_workers(4).build_blocking().unwrap();
    (server, client)
}

trial!(calls_and_checkouts_without_a_runtime, async || {
    outside(|| {
        let (_server, client) = start("general");
        assert_eq!(client.call::<i64>("add", (2, 3)).unwrap(), 5);
        let checkout = client.checkout();
        checkout.ready().unwrap();
        let calls = [checkout.queue::<i64>("add", (1, 1)), checkout.queue("add", (2, 2))];
        assert_eq!(calls.map(|call| call.wait().unwrap()), [2, 4]);
        let error = checkout.call::<()>("boom", ("no",)).unwrap_err();
        assert_eq!(error.to_string(), "no");
        assert_eq!(checkout.invoke::<Vec<u8>>((1, 2)).unwrap(), [1, 2]);
        checkout.abort("enough");
        assert_eq!(checkout.call::<()>("nothing", ()).unwrap_err().to_string(), "enough");
    })
    .await;
});

trial!(typed_calls_without_a_runtime, async || {
    outside(|| {
        let (_server, client) = start("typed");
        let checkout = client.checkout();
        assert_eq!(checkout.add("20").unwrap(), 20);
        assert_eq!(checkout.add("22").unwrap(), 42);
        let error = checkout.add("x").unwrap_err();
        let taskfork::Error::Call { error: taskfork::error::CallError::Interface(own), .. } = error
        else {
            panic!()
        };
        assert_eq!(own, NotANumber { text: "x".into() });
    })
    .await;
});

trial!(many_threads_share_a_client, async || {
    outside(|| {
        let (_server, client) = start("general");
        std::thread::scope(|scope| {
            for number in 0..8 {
                let client = client.clone();
                scope.spawn(move || {
                    for other in 0..20 {
                        assert_eq!(
                            client.call::<i64>("add", (number, other)).unwrap(),
                            number + other
                        );
                    }
                });
            }
        });
    })
    .await;
});

trial!(a_checkout_outlives_its_client, async || {
    outside(|| {
        let (_server, client) = start("general");
        let checkout = client.checkout();
        drop(client);
        assert_eq!(checkout.call::<i64>("add", (2, 3)).unwrap(), 5);
    })
    .await;
});

trial!(closing_waits_for_checkouts_of_other_threads, async || {
    outside(|| {
        let (_server, client) = start("general");
        let checkout = client.checkout();
        checkout.ready().unwrap();
        let closing = std::thread::spawn({
            let client = client.clone();
            move || client.close()
        });
        while !client.is_closed() {
            std::thread::yield_now();
        }
        assert_eq!(checkout.call::<i64>("add", (2, 3)).unwrap(), 5);
        assert!(!closing.is_finished());
        drop(checkout);
        closing.join().unwrap();
        assert!(client.try_checkout().is_none());
    })
    .await;
});
