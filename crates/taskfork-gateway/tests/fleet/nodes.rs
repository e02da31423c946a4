//! Nodes without room, and services without nodes.

use std::time::Duration;

use taskfork::Error;
use taskfork::error::FatalError;

use crate::fixture::{Fleet, reason};
use crate::support::{trial, until};

trial!(a_checkout_waits_for_room_and_the_statistics_say_so, async || {
    let fleet = Fleet::start();
    let _node = fleet.node("one", 1).start(&fleet.nats.url()).await.unwrap();
    let holder = fleet.client();
    let checkout = holder.checkout();
    checkout.ready().await.unwrap();

    let client = fleet.client();
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.call::<i64>("add", (1, 2)).await }
    });
    until("the reason", || {
        let unreachable = client.stats().unreachable.unwrap_or_default();
        unreachable.contains("no node of the service work has room now")
    })
    .await;
    drop(checkout);
    holder.close().await;
    assert_eq!(waiting.await.unwrap().unwrap(), 3);
    assert_eq!(client.stats().unreachable, None);
});

trial!(clients_get_room_in_turn, async || {
    let fleet = Fleet::start();
    let _node = fleet.node("one", 1).start(&fleet.nats.url()).await.unwrap();
    let holder = fleet.client();
    let checkout = holder.checkout();
    checkout.ready().await.unwrap();

    let (sender, mut order) = tokio::sync::mpsc::unbounded_channel();
    for number in 0..3 {
        let (client, sender) = (fleet.client(), sender.clone());
        let waits = client.clone();
        tokio::spawn(async move {
            let checkout = client.checkout();
            checkout.ready().await.unwrap();
            sender.send(number).unwrap();
            drop(checkout);
            client.close().await;
        });
        until("the wait", || waits.stats().unreachable.is_some()).await;
        // Nodes compare for how long clients have waited, in milliseconds.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drop(checkout);
    holder.close().await;
    for expected in 0..3 {
        assert_eq!(order.recv().await, Some(expected));
    }
});

trial!(the_time_limit_of_a_call_holds_while_it_waits_for_room, async || {
    let fleet = Fleet::start();
    let _node = fleet.node("one", 1).start(&fleet.nats.url()).await.unwrap();
    let holder = fleet.client().checkout();
    holder.ready().await.unwrap();
    let text = reason(&fleet.client()).await;
    assert!(text.contains("no node of the service work has room now"), "{text}");
    assert!(text.contains("start more nodes"), "{text}");
    // Once the client has asked whether there are nodes, it still says so.
    assert!(!text.contains("runs"), "{text}");
});

trial!(a_checkout_that_gives_up_leaves_the_queue_of_nodes, async || {
    let fleet = Fleet::start();
    let node = fleet.node("one", 1).start(&fleet.nats.url()).await.unwrap();
    let holder = fleet.client();
    let checkout = holder.checkout();
    checkout.ready().await.unwrap();
    let client = fleet.client_builder().timeout(Duration::from_millis(300)).build().unwrap();
    client.call::<i64>("add", (1, 2)).await.unwrap_err();
    client.close().await;
    drop(checkout);
    holder.close().await;
    // Nobody else takes the place.
    node.wait_for_free(1).await;
    assert_eq!(fleet.client().call::<i64>("add", (1, 2)).await.unwrap(), 3);
});

trial!(a_service_without_nodes_is_an_error_at_the_deadline_and_waited_for_until_then, async || {
    let fleet = Fleet::start();
    let client = fleet.client();
    let error = client
        .checkout()
        .timeout(Duration::from_millis(700))
        .call::<i64>("add", (1, 2))
        .await
        .unwrap_err();
    let Error::Fatal { cause, may_have_run: false, .. } = &error else { panic!("{error:?}") };
    assert!(matches!(cause, FatalError::CannotConnect { .. }), "{error:?}");
    assert!(error.to_string().contains("no node of the service work runs: start one"), "{error}");

    let call = tokio::spawn(client.call::<i64>("add", (1, 2)));
    until("the reason", || {
        let unreachable = client.stats().unreachable.unwrap_or_default();
        client.stats().queued > 0 && unreachable.contains("no node of the service work runs")
    })
    .await;
    let _node = fleet.node("one", 1).start(&fleet.nats.url()).await.unwrap();
    assert_eq!(call.await.unwrap().unwrap(), 3);
});

trial!(load_goes_to_all_nodes, async || {
    let fleet = Fleet::start();
    let url = fleet.nats.url();
    let nodes = [fleet.node("one", 2), fleet.node("two", 2)].map(|node| node.start(&url));
    let [one, two] = nodes;
    let _nodes = (one.await.unwrap(), two.await.unwrap());
    let client = fleet.client();
    let checkouts: Vec<_> = (0..4).map(|_| client.checkout()).collect();
    for checkout in &checkouts {
        // Four sessions are all that both nodes have together.
        checkout.ready().await.unwrap();
    }
});
