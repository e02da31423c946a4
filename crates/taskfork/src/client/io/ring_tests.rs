//! Tests of connections with rings.

use std::future::poll_fn;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::task::Poll;

use bytes::BytesMut;

use super::connection::Connection;
use super::driver_queue::DriverQueue;
use super::spin::ReplySpin;
use super::transport::Unix;
use super::waker::ConnectionWaker;
use crate::busy_poll::BusyPoll;
use crate::client::now::Now;
use crate::client::proto::connection::{self as proto, ConnectionConfig};
use crate::client::proto::disconnect::Disconnect;
use crate::client::proto::handshake::PeerLimits;
use crate::client::proto::io_types::Event;
use crate::ring::tests::frame;
use crate::ring::{DOORBELL, Put, Rings};
use crate::wire::Protocol;

/// A connection with rings, and the worker's side of them.
fn connect(socket: UnixStream) -> (Connection, Rings) {
    socket.set_nonblocking(true).unwrap();
    let limits = PeerLimits {
        max_send: 1000,
        max_blob: 1000,
        pipeline_window: 0,
        files: 16,
        accepts_single_calls: false,
        sends_items: true,
        takes_input: true,
    };
    let mut proto = proto::Connection::new(ConnectionConfig {
        protocol: Protocol::Native,
        inbox: BytesMut::new(),
        pid: 1,
        limits,
        max_receive: 1000,
        max_blob: 1000,
        max_files: 0,
        max_shared: 0,
        copy_shared_memory: false,
        can_lose_answers: false,
        announces_setup: false,
    });
    let (rings, file) = Rings::offer().unwrap();
    proto.activate_rings(rings);
    let notifier = ConnectionWaker::new(Arc::new(DriverQueue::default()));
    let stream = Box::new(Unix::new(socket.into()).unwrap());
    let mut connection = Connection::new(stream, proto, notifier, ReplySpin::new(BusyPoll::Off, 2));
    connection.link.set_spinning(&mut connection.proto);
    let mut worker = Rings::accept(&file).unwrap();
    worker.activate(0);
    worker.set_awake();
    (connection, worker)
}

fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(test)
}

async fn next_event(connection: &mut Connection) -> Event {
    poll_fn(|context| {
        connection.link.notifier.set_task(Some(context.waker()), false);
        connection.poll_event(&Now::read_by(super::time::now))
    })
    .await
}

#[test]
fn a_message_behind_a_doorbell_waits_for_those_in_the_ring() {
    run(async {
        let (here, mut there) = UnixStream::pair().unwrap();
        let (mut connection, mut worker) = connect(here);
        worker.record_sent(DOORBELL.len());
        assert_eq!(worker.put(&frame(b"first")), Put::Done);
        there.write_all(&[&DOORBELL[..], &frame(b"second")].concat()).unwrap();
        for expected in ["first", "second"] {
            let received = next_event(&mut connection).await;
            assert!(matches!(&received, Event::Message(body) if body == expected), "{received:?}");
        }
    });
}

#[test]
fn unread_bytes_at_the_end_are_found_while_another_process_has_the_socket() {
    run(async {
        for reads in [true, false] {
            let (here, there) = UnixStream::pair().unwrap();
            let (mut connection, _worker) = connect(here);
            connection.link.clear_spinning();
            connection.proto.put_socket_call(b"call");
            connection.flush().unwrap();
            if reads {
                (&there).read_exact(&mut [0; 4]).unwrap();
            }
            let _holder = there.try_clone().unwrap();
            there.shutdown(std::net::Shutdown::Both).unwrap();
            drop(there);
            let ended = next_event(&mut connection).await;
            let is_unread = matches!(ended, Event::Ended(Disconnect::Unread));
            assert_eq!(is_unread, !reads, "{ended:?}");
        }
    });
}

#[test]
fn a_message_in_the_ring_leaves_an_unfinished_frame_alone() {
    run(async {
        let (here, _there) = UnixStream::pair().unwrap();
        let (mut connection, mut worker) = connect(here);
        let proto = &mut connection.proto;
        proto.inbox().extend_from_slice(&[255; 900]);
        proto.inbox()[..4].copy_from_slice(&900_u32.to_le_bytes());
        proto.handle_input(900);
        let before = proto.inbox().as_ptr();
        for _ in 0..100 {
            assert_eq!(worker.put(&frame(b"more")), Put::Done);
            let event = proto.poll_event(&Now::read_by(super::time::now));
            assert!(matches!(&event, Some(Event::Message(body)) if body == "more"), "{event:?}");
        }
        assert_eq!((proto.inbox().as_ptr(), proto.inbox().len()), (before, 900));
    });
}

#[test]
fn messages_without_end_are_read_in_turns() {
    let taken = run(async {
        let (here, _there) = UnixStream::pair().unwrap();
        let (mut connection, mut worker) = connect(here);
        let message = frame(b"more");
        poll_fn(|_| {
            for taken in 0..10_000 {
                assert_eq!(worker.put(&message), Put::Done);
                if connection.poll_event(&Now::read_by(super::time::now)).is_pending() {
                    return Poll::Ready(taken);
                }
            }
            panic!("other tasks never run");
        })
        .await
    });
    assert!(taken > 0);
}

/// Whether nothing has come.
async fn is_pending(connection: &mut Connection) -> bool {
    poll_fn(|_| Poll::Ready(connection.poll_event(&Now::read_by(super::time::now)).is_pending()))
        .await
}

#[test]
fn a_connection_at_which_an_event_loop_looks_announces_no_sleep() {
    run(async {
        let (here, _there) = UnixStream::pair().unwrap();
        let (mut connection, mut worker) = connect(here);
        connection.link.clear_spinning();
        assert!(!connection.link.look(&mut connection.proto, false));
        assert!(is_pending(&mut connection).await);
        assert_eq!(worker.put(&frame(b"answer")), Put::Done);
        assert!(connection.link.look(&mut connection.proto, false));
        let event = next_event(&mut connection).await;
        assert!(matches!(&event, Event::Message(body) if body == "answer"), "{event:?}");
        assert!(connection.link.notifier.set_watched(false));
        assert!(is_pending(&mut connection).await);
        assert_eq!(worker.put(&frame(b"late")), Put::Refused);
    });
}
