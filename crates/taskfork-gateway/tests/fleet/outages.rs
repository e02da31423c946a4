//! NATS servers that are not there, or are started again.

use std::time::Duration;

use crate::fixture::{Fleet, reason};
use crate::support::{trial, until};

trial!(a_nats_server_that_is_not_there_yet_is_waited_for, async || {
    let mut fleet = Fleet::start();
    fleet.nats.kill();
    let client = fleet.client();
    let text = reason(&client).await;
    assert!(text.contains("no NATS server answers at nats://127.0.0.1"), "{text}");
    assert!(text.contains("start one, or correct the address"), "{text}");

    let call = tokio::spawn(client.call::<i64>("add", (1, 2)));
    fleet.nats.start_again();
    let _node = fleet.node("one", 1).start(&fleet.nats.url()).await.unwrap();
    assert_eq!(call.await.unwrap().unwrap(), 3);
});

trial!(a_client_works_after_the_nats_server_was_started_again, async || {
    let (mut fleet, _node) = Fleet::with_node().await;
    let client = fleet.client();
    assert_eq!(client.call::<i64>("add", (1, 2)).await.unwrap(), 3);
    let checkout = client.checkout();
    checkout.ready().await.unwrap();
    fleet.nats.kill();
    // Heartbeats are missing now.
    until("the loss", || client.stats().deaths.contains_key("node_lost")).await;
    drop(checkout);
    fleet.nats.start_again();
    assert_eq!(client.call::<i64>("add", (1, 2)).await.unwrap(), 3);
});

trial!(a_client_that_is_dropped_while_it_waits_leaves_nothing, async || {
    let fleet = Fleet::start();
    let node = fleet.node("one", 1).start(&fleet.nats.url()).await.unwrap();
    for milliseconds in [0, 1, 2, 5, 10] {
        let client = fleet.client();
        let call = tokio::spawn(client.call::<i64>("add", (1, 2)));
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
        call.abort();
        drop(client);
    }
    // A node gives up what nobody wants.
    node.wait_for_free(1).await;
    assert_eq!(fleet.client().call::<i64>("add", (1, 2)).await.unwrap(), 3);
});
