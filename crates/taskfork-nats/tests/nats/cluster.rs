//! Three servers that are connected with each other.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::backend::{Backend, LONG, assert_echoes, fleet};
use crate::server::NatsServer;

#[tokio::test(flavor = "multi_thread")]
async fn nodes_and_clients_of_different_servers_find_each_other() {
    let servers = NatsServer::cluster();
    let backend = Backend::echo();
    let mut nodes = Vec::new();
    for (server, name) in servers.iter().zip(["a", "b", "c"]) {
        nodes.push(backend.node("s", name, 2).start(&server.url()).await.unwrap());
    }
    for server in &servers {
        let fleet = fleet(server, "s").await;
        // A route may still be on its way.
        timeout(LONG, async { while fleet.nodes().await.unwrap().len() < 3 {} }).await.unwrap();
    }

    let client = fleet(&servers[0], "s").await;
    let mut sessions = Vec::new();
    for _ in 0..6 {
        let mut session = client.acquire_within(&[], None, LONG).await.unwrap();
        assert_echoes(&mut session).await;
        sessions.push(session);
    }
    let mut names: Vec<&str> = sessions.iter().map(|session| session.peer()).collect();
    names.sort_unstable();
    assert_eq!(names, ["a", "a", "b", "b", "c", "c"]);

    let far = sessions.iter_mut().find(|session| session.peer() == "c").unwrap();
    let data = vec![9; 3 * 1024 * 1024];
    let (mut reader, mut writer) = tokio::io::split(far);
    let mut back = vec![0; data.len()];
    let both = async { tokio::try_join!(writer.write_all(&data), reader.read_exact(&mut back)) };
    timeout(LONG, both).await.unwrap().unwrap();
    assert!(back == data);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_node_with_the_same_name_at_another_server_does_not_start() {
    let servers = NatsServer::cluster();
    let backend = Backend::echo();
    let _first = backend.node("s", "n", 1).start(&servers[0].url()).await.unwrap();
    let fleet = fleet(&servers[2], "s").await;
    timeout(LONG, async { while fleet.nodes().await.unwrap().is_empty() {} }).await.unwrap();

    let second = backend.node("s", "n", 1).start(&servers[2].url()).await;

    assert!(matches!(second, Err(taskfork_nats::Error::NodeNameInUse { .. })), "{second:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_a_killed_server_go_on_at_another_one() {
    let mut servers = NatsServer::cluster();
    let backend = Backend::echo();
    let node = backend.node("s", "n", 2).start(&servers[0].url()).await.unwrap();
    // Routes between all three, before the client learns of the others.
    for server in &servers {
        let fleet = fleet(server, "s").await;
        timeout(LONG, async { while fleet.nodes().await.unwrap().is_empty() {} }).await.unwrap();
    }
    let urls = [servers[1].url(), servers[2].url()].join(",");
    let options = taskfork_nats::FleetOptions::new()
        .heartbeat(crate::backend::HEARTBEAT)
        .nats(async_nats::ConnectOptions::new().retain_servers_order());
    let client = taskfork_nats::Fleet::connect(&urls, "s", options).await.unwrap();
    let mut session = client.acquire(&[], None).await.unwrap();
    assert_echoes(&mut session).await;

    servers[1].kill();

    let again = timeout(LONG, async {
        loop {
            match client.acquire_within(&[], None, LONG).await {
                Ok(session) => break session,
                Err(error) => assert!(error.is_temporary(), "{error}"),
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    });
    assert_echoes(&mut again.await.unwrap()).await;
    // The first session goes on, or has an error if messages were lost: never other bytes.
    let _ = session.write_all(b"pong").await;
    let mut answer = [0; 4];
    match timeout(LONG, session.read_exact(&mut answer)).await.unwrap() {
        Ok(_) => assert_eq!(&answer, b"pong"),
        Err(error) => assert!(session.error().is_some(), "{error}"),
    }
    drop(session);
    timeout(LONG, node.wait_for_free(2)).await.unwrap();
}
