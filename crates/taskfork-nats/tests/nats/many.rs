//! Many nodes, of which some die under load. The benchmark `nodes` does the same with a thousand.

use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::timeout;

use crate::backend::{Backend, HEARTBEAT, LONG, assert_echoes, fleet};
use crate::server::NatsServer;
use crate::simulated::Plan;

#[tokio::test(flavor = "multi_thread")]
async fn sessions_of_many_nodes_have_their_own_answers_while_some_die() {
    let server = NatsServer::start();
    let plan = Plan {
        seed: 1,
        nodes: 60,
        killed: 6,
        room: 8,
        clients: 100,
        connections: 4,
        acquisitions: 3000,
        hold: Duration::from_millis(10),
        heartbeat: HEARTBEAT,
    };

    let outcome = plan.run(&server).await;

    assert!(outcome.wrong.is_empty(), "{:?}", outcome.wrong);
    assert_eq!(outcome.right + outcome.lost, 3000);
    let (mean, [least, ..]) = outcome.loads();
    assert!(mean > 0.0 && least > 0.0, "a node has had no session: {:?}", outcome.load);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_more_load_than_others_passes_requests_on() {
    let server = NatsServer::start();
    let backend = Backend::echo();
    let node = backend.node("s", "n", 8).start(&server.url()).await.unwrap();
    let fleet = fleet(&server, "s").await;
    let _first = fleet.acquire(&[], None).await.unwrap();
    node.wait_for_free(7).await;
    let observer = server.client().await;
    let mut requests = observer.subscribe("s.acquire.any").await.unwrap();
    // As if another node had none. The answer to a ping comes behind that.
    observer.publish("s.load", "{\"load\":0,\"id\":\"another\"}".into()).await.unwrap();
    observer.request(format!("$SRV.PING.s.{}", node.id()), "".into()).await.unwrap();

    // There is no other node, so it gets the request again until it accepts.
    let mut second = fleet.acquire(&[], None).await.unwrap();
    assert_echoes(&mut second).await;

    for passed in [None, Some("1"), Some("2")] {
        let request = timeout(LONG, requests.next()).await.unwrap().unwrap();
        let headers = request.headers.unwrap_or_default();
        assert_eq!(headers.get("Taskfork-Passed").map(|value| value.as_str()), passed);
    }
    node.wait_for_free(6).await;
}
