//! Bytes through sessions.

use std::io::{self, IoSlice};
use std::time::Duration;

use taskfork_nats::{Fleet, FleetOptions};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, Interest};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::backend::{Backend, HEARTBEAT, LONG, assert_echoes, fleet};
use crate::server::NatsServer;

/// Bytes that show when one is missing, twice there or at another place.
fn pattern(length: usize) -> Vec<u8> {
    let mut state = 1u32;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as u8
        })
        .collect()
}

async fn there_and_back(server: &NatsServer, total: usize) {
    let backend = Backend::echo();
    let node = backend.node("s", "n", 1).start(&server.url()).await.unwrap();
    let session = fleet(server, "s").await.acquire(&[], None).await.unwrap();
    let (mut reader, mut writer) = session.into_split();
    let data = pattern(1024 * 1024);
    let sent = data.clone();
    let sender = tokio::spawn(async move {
        let mut left = total;
        while left > 0 {
            let part = left.min(sent.len());
            writer.write_all(&sent[..part]).await?;
            left -= part;
        }
        writer.shutdown().await
    });

    let mut buffer = vec![0; data.len()];
    let mut left = total;
    while left > 0 {
        let part = left.min(data.len());
        timeout(LONG, reader.read_exact(&mut buffer[..part])).await.unwrap().unwrap();
        assert!(buffer[..part] == data[..part], "other bytes, {left} before the end");
        left -= part;
    }

    assert_eq!(timeout(LONG, reader.read(&mut buffer)).await.unwrap().unwrap(), 0);
    sender.await.unwrap().unwrap();
    drop(reader);
    node.wait_for_free(1).await;
    backend.wait_until_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_mebibytes_arrive_in_order() {
    there_and_back(&NatsServer::start(), 100 * 1024 * 1024).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_limit_of_one_kibibyte_suffices() {
    there_and_back(&NatsServer::with_config("max_payload: 1024"), 4 * 1024 * 1024).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_makes_the_sender_wait_and_loses_nothing() {
    let server = NatsServer::start();
    let total = 8 * 1024 * 1024;
    let backend = Backend::new(move |mut stream| async move {
        let data = pattern(total);
        stream.write_all(&data).await?;
        stream.shutdown().await?;
        stream.read(&mut [0]).await.map(drop)
    });
    let _node = backend.node("s", "n", 1).start(&server.url()).await.unwrap();
    let options = FleetOptions::new().heartbeat(HEARTBEAT).window(64 * 1024);
    let fleet = Fleet::connect(&server.url(), "s", options).await.unwrap();
    let mut session = fleet.acquire(&[], None).await.unwrap();

    // Longer than two heartbeats without a read: the session lives, and no more than a window has come.
    tokio::time::sleep(3 * HEARTBEAT).await;
    let mut all = Vec::new();
    let mut buffer = vec![0; 100_000];
    loop {
        let length = timeout(LONG, session.read(&mut buffer)).await.unwrap().unwrap();
        if length == 0 {
            break;
        }
        all.extend_from_slice(&buffer[..length]);
    }

    assert!(all == pattern(total));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_waits_for_a_server_that_does_not_read() {
    let server = NatsServer::start();
    let (read, wait) = oneshot::channel::<()>();
    let wait = std::sync::Mutex::new(Some(wait));
    let backend = Backend::new(move |mut stream| {
        let wait = wait.lock().unwrap().take();
        async move {
            if let Some(wait) = wait {
                let _ = wait.await;
            }
            let mut all = Vec::new();
            stream.read_to_end(&mut all).await?;
            stream.write_all(&all.len().to_le_bytes()).await
        }
    });
    let _node = backend.node("s", "n", 1).window(64 * 1024).start(&server.url()).await.unwrap();
    let mut session = fleet(&server, "s").await.acquire(&[], None).await.unwrap();

    // Until nothing more is taken: the window, and what the sockets on the way hold.
    let piece = vec![7; 10_000];
    let mut sent = 0;
    while let Ok(length) = timeout(Duration::from_secs(1), session.write(&piece)).await {
        sent += length.unwrap();
        assert!(sent < 4 * 1024 * 1024, "the sender never waits");
    }
    read.send(()).unwrap();
    session.shutdown().await.unwrap();

    let mut answer = [0; 8];
    timeout(LONG, session.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(usize::from_le_bytes(answer), sent);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_window_of_a_session_that_moves_much_grows() {
    // A part may take longer than the time in which a window grows, if the machine is busy; not every one of them.
    const MOVED: usize = 64 << 20;
    let server = NatsServer::start();
    let (end, wait) = oneshot::channel::<()>();
    let wait = std::sync::Mutex::new(Some(wait));
    let backend = Backend::new(move |mut stream| {
        let wait = wait.lock().unwrap().take();
        async move {
            let mut buffer = vec![0; 256 << 10];
            let mut read = 0;
            while read < MOVED {
                let room = buffer.len().min(MOVED - read);
                read += stream.read(&mut buffer[..room]).await?;
            }
            stream.write_all(b"!").await?;
            if let Some(wait) = wait {
                let _ = wait.await;
            }
            Ok(())
        }
    });
    let _node = backend.node("s", "n", 1).start(&server.url()).await.unwrap();
    let mut session = fleet(&server, "s").await.acquire(&[], None).await.unwrap();
    let piece = vec![7; 64 << 10];
    for _ in 0..MOVED / piece.len() {
        timeout(LONG, session.write_all(&piece)).await.unwrap().unwrap();
    }
    timeout(LONG, session.read_exact(&mut [0])).await.unwrap().unwrap();

    // The server reads no more.
    let mut sent = 0;
    while let Ok(length) = timeout(Duration::from_secs(1), session.write(&piece)).await {
        sent += length.unwrap();
    }

    // The sockets on the way hold some hundred KiB.
    assert!((3 << 19..10 << 20).contains(&sent), "{sent} bytes");
    end.send(()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_session_ends_though_its_server_takes_nothing() {
    let server = NatsServer::start();
    let backend = Backend::new(|stream| async move {
        while !stream.ready(Interest::READABLE).await?.is_read_closed() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    });
    let heartbeat = Duration::from_secs(30);
    let node = backend.node("s", "n", 1).window(64 * 1024).heartbeat(heartbeat);
    let node = node.start(&server.url()).await.unwrap();
    let options = FleetOptions::new().heartbeat(heartbeat);
    let fleet = Fleet::connect(&server.url(), "s", options).await.unwrap();
    let mut session = fleet.acquire(&[], None).await.unwrap();
    let piece = vec![7; 10_000];
    while let Ok(length) = timeout(Duration::from_secs(1), session.write(&piece)).await {
        length.unwrap();
    }

    drop(session);

    timeout(heartbeat / 2, node.wait_for_free(1)).await.unwrap();
    backend.wait_until_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_short_writes_arrive() {
    let server = NatsServer::start();
    let backend = Backend::echo();
    let _node = backend.node("s", "n", 1).start(&server.url()).await.unwrap();
    let session = fleet(&server, "s").await.acquire(&[], None).await.unwrap();
    let (mut reader, mut writer) = session.into_split();
    let data = pattern(20_000);
    let sent = data.clone();
    let sender = tokio::spawn(async move {
        for byte in sent {
            writer.write_all(&[byte]).await?;
        }
        writer.shutdown().await
    });

    let mut all = Vec::new();
    timeout(LONG, reader.read_to_end(&mut all)).await.unwrap().unwrap();

    assert!(all == data);
    sender.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_a_session_is_told_at_once() {
    let server = NatsServer::start();
    let backend = Backend::echo();
    // With such heartbeats the end would be noticed after a minute.
    let heartbeat = Duration::from_secs(30);
    let node = backend.node("s", "n", 1).heartbeat(heartbeat).start(&server.url()).await.unwrap();
    let options = FleetOptions::new().heartbeat(heartbeat);
    let fleet = Fleet::connect(&server.url(), "s", options).await.unwrap();
    let mut session = fleet.acquire(&[], None).await.unwrap();
    assert_echoes(&mut session).await;

    drop(session);

    timeout(heartbeat, node.wait_for_free(1)).await.unwrap();
    timeout(heartbeat, backend.wait_until_idle()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_server_has_written_is_read_before_its_end() {
    let server = NatsServer::start();
    let backend = Backend::new(|mut stream| async move {
        stream.read_exact(&mut [0; 2]).await?;
        stream.write_all(&pattern(500_000)).await
    });
    let node = backend.node("s", "n", 1).start(&server.url()).await.unwrap();
    let mut session = fleet(&server, "s").await.acquire(&[], None).await.unwrap();

    session.write_all(b"go").await.unwrap();
    let mut all = Vec::new();
    timeout(LONG, session.read_to_end(&mut all)).await.unwrap().unwrap();

    assert!(all == pattern(500_000));
    // The node does not wait for the client.
    node.wait_for_free(1).await;
    let written = timeout(LONG, async {
        loop {
            if let Err(error) = session.write_all(b"more").await {
                break error;
            }
            tokio::task::yield_now().await;
        }
    });
    assert_eq!(written.await.unwrap().kind(), io::ErrorKind::BrokenPipe);
    assert_eq!(session.error(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_session_lives() {
    let server = NatsServer::start();
    let backend = Backend::echo();
    let _node = backend.node("s", "n", 1).start(&server.url()).await.unwrap();
    let mut session = fleet(&server, "s").await.acquire(&[], None).await.unwrap();

    tokio::time::sleep(5 * HEARTBEAT).await;

    assert_echoes(&mut session).await;
}

#[tokio::test]
async fn slices_are_written_as_one_and_read_without_waiting() {
    let server = NatsServer::start();
    let backend = Backend::echo();
    let _node = backend.node("s", "n", 1).start(&server.url()).await.unwrap();
    let mut session = fleet(&server, "s").await.acquire(&[], None).await.unwrap();
    let nothing = session.try_fill_buf().map(<[u8]>::len).map_err(|error| error.kind());
    assert_eq!(nothing, Err(io::ErrorKind::WouldBlock));

    let slices = [b"he".as_slice(), b"", b"llo"].map(IoSlice::new);
    assert_eq!(session.write_vectored(&slices).await.unwrap(), 5);
    let arrived = timeout(LONG, session.fill_buf()).await.unwrap().unwrap().len();
    session.consume(arrived - 1);

    // What was not consumed is there, and the rest of it at once.
    assert_eq!(session.try_fill_buf().unwrap(), b"o");
    assert_eq!(arrived, 5, "two pieces");
    assert!(!session.is_read_to_end());
    session.shutdown().await.unwrap();
    session.consume(1);
    assert_eq!(timeout(LONG, session.fill_buf()).await.unwrap().unwrap(), b"");
    assert_eq!(session.try_fill_buf().unwrap(), b"");
    assert!(session.is_read_to_end());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_server_has_said_before_it_closed_arrives_though_it_takes_no_more() {
    let server = NatsServer::start();
    let connect = |_| async {
        let (node, mut backend) = tokio::net::UnixStream::pair()?;
        backend.write_all(b"why").await?;
        Ok(node)
    };
    let node = taskfork_nats::Node::builder("s", "n", connect);
    let _node = node.start(&server.url()).await.unwrap();
    let fleet = Fleet::connect(&server.url(), "s", FleetOptions::new()).await.unwrap();
    for _ in 0..50 {
        let mut session = fleet.acquire(&[], None).await.unwrap();
        // The node may have closed the session already, which keeps nothing from being read.
        let _ = session.write_all(b"a question").await;
        let mut said = Vec::new();
        session.read_to_end(&mut said).await.unwrap();
        assert_eq!(said, b"why");
    }
}
