//! Reading ahead, while a call streams.

use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use super::*;
use crate::busy_poll::BusyPoll;
use crate::wire::frame::HEADER_LEN;
use crate::worker::scoreboard::Scoreboard;

/// A client's socket, and the worker's side of it.
fn pair() -> (UnixStream, Connection) {
    let (client, worker) = UnixStream::pair().unwrap();
    // A worker's socket stays open until its process ends.
    let worker: &'static UnixStream = Box::leak(Box::new(worker));
    let mut board = Scoreboard::new(false).unwrap();
    let server = board.allocate().unwrap();
    let limits = WorkerConfig {
        max_frame: 1 << 20,
        max_blob: 1 << 20,
        shared_memory: 0,
        stall_timeout: TimeLimit::NEVER,
        busy_poll: BusyPoll::Off,
        cores: 1,
        max_result: 1 << 20,
        max_calls: None,
        max_memory: None,
        replace_after: None,
        share_details: false,
        server_user: None,
    };
    (client, Connection::new(worker.as_fd(), Vec::new(), &limits, board.worker_slot(&server)))
}

fn frame_of(length: usize) -> Vec<u8> {
    [&u32::try_from(length).unwrap().to_le_bytes()[..], &vec![7; length]].concat()
}

#[test]
fn the_buffer_does_not_grow_where_no_read_ends_at_a_frame() {
    let (mut client, mut connection) = pair();
    let frame = frame_of(100);
    client.write_all(&frame[..10]).unwrap();
    for _ in 0..1000 {
        client.write_all(&frame[10..]).unwrap();
        client.write_all(&frame[..10]).unwrap();
        connection.read_ahead(1 << 10);
        let read = connection.take_frame().unwrap().unwrap();
        assert_eq!(connection.body(&read), &frame[HEADER_LEN..]);
        assert!(connection.take_frame().unwrap().is_none());
        assert_eq!(connection.inbox.len(), frame.len() + 10);
    }
}

#[test]
fn a_frame_arrives_that_is_longer_than_what_is_read_at_a_time() {
    let (mut client, mut connection) = pair();
    let frame = frame_of(50_000);
    client.write_all(&frame).unwrap();
    let mut reads = 0;
    let read = loop {
        assert!(reads < 100);
        connection.read_ahead(1 << 10);
        reads += 1;
        if let Some(read) = connection.take_frame().unwrap() {
            break read;
        }
    };
    assert!(reads > 1);
    assert_eq!(connection.body(&read), &frame[HEADER_LEN..]);
}
