//! Each end of a session, and the error that it is for a call.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use taskfork::__private::relay;
use taskfork::Error;
use taskfork::client::NatsConnectOptions;
use taskfork::error::{Death, FatalError};
use taskfork_nats::Node;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

use crate::fixture::{Fleet, SERVICE, SLOW, client_builder};
use crate::program::call_blocking;
use crate::round_trip::round_trip;
use crate::support::{trial, until};

/// A call that runs in its worker until the session ends, and what a stranger sees of the session.
struct RunningCall {
    call: JoinHandle<Result<(), Error>>,
    stranger: async_nats::Client,
    /// Where the client receives.
    inbox: String,
    /// The last message that came there.
    last: Vec<u8>,
}

impl RunningCall {
    async fn start(fleet: &Fleet) -> Self {
        let stranger = fleet.nats.client().await;
        let mut requests = stranger.subscribe(format!("{SERVICE}.acquire.>")).await.unwrap();
        let mut messages = stranger.subscribe("_INBOX.>").await.unwrap();
        round_trip(&stranger).await;
        let checkout = fleet.client().checkout();
        checkout.ready().await.unwrap();
        let inbox = requests.next().await.unwrap().reply.unwrap().to_string();
        let marker = fleet.folder.path().join("runs");
        let call = tokio::spawn(checkout.call::<()>("hang_after", (&marker,)));
        until("the call", || marker.exists()).await;
        // The first message is the node's answer in JSON, and those of the session follow.
        let last = loop {
            let message = messages.next().await.unwrap();
            if *message.subject == *inbox && message.payload.first() != Some(&b'{') {
                break message.payload.to_vec();
            }
        };
        Self { call, stranger, inbox, last }
    }

    /// Sends the client a message that the node has not sent, and returns how the call ends.
    async fn end_by(self, message: impl Into<Vec<u8>>) -> (FatalError, bool) {
        let message: Vec<u8> = message.into();
        self.stranger.publish(self.inbox, message.into()).await.unwrap();
        round_trip(&self.stranger).await;
        fatal(self.call.await.unwrap())
    }
}

/// The end of a checkout, and whether its call may have run.
fn fatal<T: std::fmt::Debug>(outcome: Result<T, Error>) -> (FatalError, bool) {
    match outcome.unwrap_err() {
        Error::Fatal { cause, may_have_run, .. } => (cause, may_have_run),
        other => panic!("{other:?}"),
    }
}

trial!(a_message_that_comes_twice_is_an_error_and_no_answer, async || {
    let (fleet, _node) = Fleet::with_node().await;
    let running = RunningCall::start(&fleet).await;
    let again = running.last.clone();
    let (cause, may_have_run) = running.end_by(again).await;
    let FatalError::Protocol { detail } = cause else { panic!("{cause:?}") };
    assert!(detail.to_string().contains("a message was repeated"), "{detail}");
    assert!(may_have_run);
    assert_eq!(fleet.client().call::<i64>("add", (1, 2)).await.unwrap(), 3);
});

trial!(a_message_that_is_missing_is_an_error_and_no_answer, async || {
    let (fleet, _node) = Fleet::with_node().await;
    let running = RunningCall::start(&fleet).await;
    // A heartbeat with a number that comes much later.
    let mut ahead = vec![3];
    ahead.extend(1_000_000_u64.to_le_bytes());
    let (cause, may_have_run) = running.end_by(ahead).await;
    let FatalError::Protocol { detail } = cause else { panic!("{cause:?}") };
    assert!(detail.to_string().contains("has lost messages on the way"), "{detail}");
    assert!(may_have_run);
});

trial!(a_node_that_breaks_the_protocol_is_an_error_that_says_how, async || {
    let (fleet, _node) = Fleet::with_node().await;
    let (cause, may_have_run) = RunningCall::start(&fleet).await.end_by("nonsense").await;
    let FatalError::Protocol { detail } = cause else { panic!("{cause:?}") };
    assert!(detail.to_string().contains("broke the protocol of sessions"), "{detail}");
    assert!(may_have_run);
});

trial!(an_idle_connection_that_breaks_the_protocol_is_replaced_without_an_error, async || {
    let (fleet, _node) = Fleet::with_node().await;
    let stranger = fleet.nats.client().await;
    let mut requests = stranger.subscribe(format!("{SERVICE}.acquire.>")).await.unwrap();
    round_trip(&stranger).await;
    let client = fleet.client();
    let pid: u32 = client.call("pid", ()).await.unwrap();
    let inbox = requests.next().await.unwrap().reply.unwrap();
    stranger.publish(inbox, "nonsense".into()).await.unwrap();
    round_trip(&stranger).await;
    until("the end of the connection", || client.stats().idle == 0).await;
    assert_ne!(client.call::<u32>("pid", ()).await.unwrap(), pid);
});

trial!(a_nats_client_that_gives_up_is_an_error_that_says_so_and_is_made_again, async || {
    let (mut fleet, node) = Fleet::with_node().await;
    // The loss of the connection shows before that of the node.
    let client = fleet
        .client_builder()
        .nats(NatsConnectOptions::new().max_reconnects(1))
        .nats_heartbeat(Duration::from_secs(60))
        .build()
        .unwrap();
    let checkout = client.checkout();
    let marker = fleet.folder.path().join("runs");
    let call = tokio::spawn(checkout.call::<()>("hang_after", (&marker,)));
    until("the call", || marker.exists()).await;
    fleet.nats.kill();
    let (cause, may_have_run) = fatal(call.await.unwrap());
    match &cause {
        FatalError::WorkerDied(Death { reason: Some(reason), .. }) => {
            assert!(reason.contains("the NATS client of this side has closed"), "{reason}");
        }
        // The node's heartbeats are shorter, and both hold the shorter one.
        FatalError::NodeLost { node, .. } => assert_eq!(node, "one"),
        other => panic!("{other:?}"),
    }
    assert!(may_have_run);

    fleet.nats.start_again();
    drop(node);
    let _node = fleet.node("two", 8).start(&fleet.nats.url()).await.unwrap();
    assert_eq!(client.call::<i64>("add", (1, 2)).await.unwrap(), 3);
});

trial!(an_idle_connection_to_a_node_that_drains_is_replaced_without_an_error, async || {
    let (fleet, node) = Fleet::with_node().await;
    let client = fleet.client();
    let pid: u32 = client.call("pid", ()).await.unwrap();
    let _other = fleet.node("two", 8).start(&fleet.nats.url()).await.unwrap();
    node.drain(Duration::from_millis(50)).await;
    // A call that meets the end on its way is an error: a plain node does not say what was read.
    until("the end of the connection", || client.stats().idle == 0).await;
    assert_ne!(client.call::<u32>("pid", ()).await.unwrap(), pid);
});

/// Runs a program that calls and ends, and waits until its node knows that.
async fn assert_told(program: fn(String)) {
    let fleet = Fleet::start();
    let node = fleet.node("one", 8).heartbeat(SLOW).start(&fleet.nats.url()).await.unwrap();
    let address = fleet.address();
    let thread = std::thread::spawn(move || program(address));
    tokio::task::spawn_blocking(|| thread.join()).await.unwrap().unwrap();
    tokio::time::timeout(SLOW, node.wait_for_free(8)).await.unwrap();
}

trial!(a_client_that_is_closed_has_told_its_node_though_its_runtime_ends, async || {
    assert_told(|address| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let client = client_builder(&address).nats_heartbeat(SLOW).build().unwrap();
            assert_eq!(client.call::<i64>("add", (1, 2)).await.unwrap(), 3);
            client.close().await;
        });
    })
    .await;
});

trial!(a_blocking_client_that_is_dropped_has_told_its_node_though_its_process_ends, async || {
    assert_told(|address| call_blocking(&address)).await;
});

trial!(a_server_that_is_killed_is_a_death_after_which_nothing_more_has_run, async || {
    let (fleet, _node) = Fleet::with_node().await;
    let checkout = fleet.client().checkout();
    let marker = fleet.folder.path().join("runs");
    let first = tokio::spawn(checkout.call::<()>("hang_after", (&marker,)));
    let second = tokio::spawn(checkout.call::<i64>("add", (1, 2)));
    until("the call", || marker.exists()).await;
    crate::support::signal(fleet.server.pid(), rustix::process::Signal::KILL);
    let (cause, first) = fatal(first.await.unwrap());
    assert!(matches!(cause, FatalError::WorkerDied(_)), "{cause:?}");
    let (_, second) = fatal(second.await.unwrap());
    assert_eq!([first, second], [true, false]);
});

/// A connection that ends right behind the worker's hello, as one of a gateway that drains.
async fn ending(socket: String) -> std::io::Result<UnixStream> {
    let (mut node, relayed) = UnixStream::pair()?;
    let mut server = UnixStream::connect(socket).await?;
    tokio::spawn(async move {
        let mut hello = [0; 4096];
        let length = node.read(&mut hello).await?;
        server.write_all(&hello[..length]).await?;
        let mut message = vec![0; 12];
        server.read_exact(&mut message).await?;
        let header = message.last_chunk().copied().unwrap_or_default();
        message.resize(12 + u32::from_le_bytes(header) as usize, 0);
        server.read_exact(&mut message[12..]).await?;
        message.extend(relay::end_message(0, false));
        node.write_all(&message).await
    });
    Ok(relayed)
}

trial!(a_node_that_drains_right_behind_the_hello_is_replaced_without_an_error, async || {
    let fleet = Fleet::start();
    let (socket, ended) = (fleet.socket(), Arc::new(AtomicUsize::new(0)));
    let count = ended.clone();
    let connect = move |_| {
        let (socket, ends) = (socket.clone(), count.fetch_add(1, Ordering::Relaxed) % 2 == 0);
        async move {
            match ends {
                true => ending(socket).await,
                false => UnixStream::connect(socket).await,
            }
        }
    };
    let node = Node::builder(SERVICE, "one", connect).sessions(8);
    let _node = node.start(&fleet.nats.url()).await.unwrap();
    for _ in 0..20 {
        // Each begins with a connection that ends.
        let client = fleet.client_builder().max_workers(1).build().unwrap();
        assert_eq!(client.call::<i64>("add", (1, 2)).await.unwrap(), 3);
        client.close().await;
    }
    assert!(ended.load(Ordering::Relaxed) >= 40, "none has ended");
});
