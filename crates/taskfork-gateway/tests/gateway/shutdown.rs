//! The end of a gateway.

use std::time::Duration;

use crate::support::{Served, is_gone, trial, until};

trial!(a_gateway_that_ends_lets_checkouts_end, async || {
    let mut served =
        Served::start_with(|gateway, _| gateway.shutdown_grace(Duration::from_secs(1000))).await;
    let client = served.client();
    let (busy, idle) = (client.checkout(), client.checkout());
    let pids: [u32; 2] = [busy.call("pid", ()).await.unwrap(), idle.call("pid", ()).await.unwrap()];
    drop(idle);
    until("an idle worker", || client.stats().idle == 1).await;
    served.gateway.stop();
    until("the end of an unused connection", || is_gone(pids[1])).await;
    assert_eq!(busy.call::<u32>("pid", ()).await.unwrap(), pids[0]);
    assert!(!served.gateway.task.is_finished());
    drop(busy);
    (&mut served.gateway.task).await.unwrap();
    until("the end of the other connection", || is_gone(pids[0])).await;
    assert_eq!(client.stats().idle, 0);
});

trial!(a_gateway_ends_after_its_grace, async || {
    let mut served =
        Served::start_with(|gateway, _| gateway.shutdown_grace(Duration::from_millis(10))).await;
    let checkout = served.client().checkout();
    let pid: u32 = checkout.call("pid", ()).await.unwrap();
    let call = tokio::spawn(checkout.call::<()>("hang", ()));
    served.gateway.stop();
    (&mut served.gateway.task).await.unwrap();
    assert!(call.await.unwrap().unwrap_err().is_fatal());
    until("the worker's end", || is_gone(pid)).await;
});

trial!(nothing_is_accepted_any_more, async || {
    let mut served = Served::start().await;
    let checkout = served.client().checkout();
    checkout.ready().await.unwrap();
    served.gateway.stop();
    drop(checkout);
    (&mut served.gateway.task).await.unwrap();
    let connected = tokio::net::TcpStream::connect(served.gateway.address).await;
    assert!(connected.is_err());
});
