//! What a gateway reads from strangers, and from the workers of its server.

use super::Input;
use crate::wire::first_message;
use crate::wire::frame::{HEADER_LEN, PREAMBLE};
use crate::wire::native::FromClient;
use crate::wire::relay::{self, RelayedPeer, Streams};

/// A hello that a gateway rewrites is one for a server, and names the peer of the gateway and no other.
pub fn relayed_hellos(data: &[u8]) {
    let mut input = Input(data);
    let names = vec!["client.example".to_owned(); usize::from(input.byte() % 3)];
    let peer = match input.byte() % 2 {
        0 => RelayedPeer::Tls { names: &names, address: "192.0.2.1:5000" },
        _ => RelayedPeer::Nats { name: "client", address: None },
    };
    let received = input.0;
    let Ok(Some(length)) = relay::hello_length(received) else { return };
    assert!(length <= received.len() && length <= relay::most_hello_bytes());
    let Ok(rewritten) = relay::rewrite_hello(&received[..length], &peer) else { return };
    assert_eq!(relay::hello_length(&rewritten), Ok(Some(rewritten.len())));
    let again = relay::rewrite_hello(&rewritten, &peer);
    assert_eq!(again.as_ref(), Ok(&rewritten), "a second gateway changes nothing");

    // Also if the server cannot read the rest.
    let named = first_message::introduction(&rewritten).relayed_peer.unwrap().unwrap().to_string();
    let expected = match (&peer, names.is_empty()) {
        (RelayedPeer::Nats { .. }, _) => "client",
        (_, true) => "192.0.2.1",
        (_, false) => "client.example",
    };
    assert!(named.contains(expected), "{named}");
    if let Ok(FromClient::Hello(hello)) =
        FromClient::decode(&rewritten[PREAMBLE.len() + HEADER_LEN..])
    {
        assert_eq!((hello.max_files, hello.shared_memory), (0, 0));
    }
}

/// Both directions of a stream are followed in the same way, however they are fragmented.
pub fn relayed_streams(data: &[u8]) {
    let (mut whole, mut cut) = (Streams::default(), Streams::default());
    let mut input = Input(data);
    while !input.is_empty() {
        let (is_client, length) = (input.byte() % 2 == 0, usize::from(input.short()));
        let piece = 1 + usize::from(input.byte());
        let bytes = input.take(length);
        let follow = |streams: &mut Streams, bytes: &[u8]| match is_client {
            true => streams.handle_client(bytes),
            false => streams.handle_worker(bytes),
        };
        follow(&mut whole, bytes);
        bytes.chunks(piece).for_each(|bytes| follow(&mut cut, bytes));
        let state = |streams: &Streams| (streams.is_idle(), streams.is_worker_between_frames());
        assert_eq!(state(&whole), state(&cut));
    }
}
