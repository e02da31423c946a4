//! Clients that send something else than a client of the library.

use taskfork::server::ServerStatus;
use taskfork::worker::Peer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::fixture::NodeServed;
use crate::support::{trial, until};

/// A preamble and a hello with this map, in MessagePack.
fn hello(map: &[u8]) -> Vec<u8> {
    let body = [&[0x92, 0x00][..], map].concat();
    [b"taskfork", &(body.len() as u32).to_le_bytes()[..], &body].concat()
}

trial!(json_is_refused, async || {
    let served = NodeServed::start().await;
    let mut session = served.session().await;
    session.write_all(br#"["do", {}, "pid"]"#).await.unwrap();
    let mut answer = String::new();
    session.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with(r#"["er""#) && answer.contains("native protocol only"), "{answer}");
});

trial!(bytes_that_are_no_hello_are_refused, async || {
    let served = NodeServed::start().await;
    let mut session = served.session().await;
    session.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    session.read_to_end(&mut answer).await.unwrap();
    let text = String::from_utf8_lossy(&answer);
    assert!(text.contains("refused") && text.contains("GET / HT"), "{text}");
    assert_eq!(served.server.status().unwrap().forked, 0);
});

trial!(a_client_cannot_say_who_it_is, async || {
    let served = NodeServed::start().await;
    let mut session = served.session().await;
    // {"versions": [1], "name": "x", "peer": {"kind": "tls", "names": ["root"]}}
    let mut map = b"\x83\xa8versions\x91\x01\xa4name\xa1x\xa4peer".to_vec();
    map.extend_from_slice(b"\x82\xa4kind\xa3tls\xa5names\x91\xa4root");
    session.write_all(&hello(&map)).await.unwrap();
    let mut preamble = [0; 8];
    session.read_exact(&mut preamble).await.unwrap();
    let peer = |status: ServerStatus| status.workers.first().and_then(|it| it.peer.clone());
    until("a worker", || peer(served.server.status().unwrap()).is_some()).await;
    let peer = peer(served.server.status().unwrap());
    let Some(Peer::Nats { name, address, .. }) = peer else { panic!("{peer:?}") };
    assert_eq!((name.as_deref(), address), (Some("stranger"), None));
});
