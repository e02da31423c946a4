//! A session beside what NATS itself does: round trips, and a stream in one direction.
//!
//! Both run in one process with a NATS server of its own, in turn. Figures are ratios of medians.

#![expect(clippy::unwrap_used, reason = "a measurement that fails panics")]

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use taskfork_nats::{Fleet, FleetOptions, Node};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{UnixListener, UnixStream};

#[path = "../tests/nats/server.rs"]
#[expect(dead_code, reason = "for tests")]
mod server;

const ROUNDS: usize = 20;
const CALLS: u32 = 500;
const STREAM: usize = 16 * 1024 * 1024;
const PIECE: usize = 128 * 1024;

#[tokio::main]
async fn main() {
    let nats = server::NatsServer::start();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    // Sends everything back.
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut reader, mut writer) = stream.split();
                let _ = copy(&mut reader, &mut writer).await;
            });
        }
    });
    let connect = move |_| UnixStream::connect(path.clone());
    let _node = Node::builder("bench", "n", connect).start(&nats.url()).await.unwrap();
    let fleet = Fleet::connect(&nats.url(), "bench", FleetOptions::new()).await.unwrap();
    let mut session = fleet.acquire(&[], None).await.unwrap();
    let (responder, client) = (nats.client().await, nats.client().await);
    let mut requests = responder.subscribe("bare").await.unwrap();
    let replies = responder.clone();
    tokio::spawn(async move {
        while let Some(message) = requests.next().await {
            replies.publish(message.reply.unwrap(), message.payload).await.unwrap();
        }
    });
    responder.flush().await.unwrap();

    let (mut bare, mut ours) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let payload = Bytes::from_static(&[7; 64]);
        let began = Instant::now();
        for _ in 0..CALLS {
            client.request("bare", payload.clone()).await.unwrap();
        }
        bare.push(began.elapsed() / CALLS);
        let mut buffer = [0; 64];
        let began = Instant::now();
        for _ in 0..CALLS {
            session.write_all(&payload).await.unwrap();
            session.read_exact(&mut buffer).await.unwrap();
        }
        ours.push(began.elapsed() / CALLS);
    }
    report("round trip of 64 bytes, ours to a unix socket behind the node", &mut bare, &mut ours);

    let (mut bare, mut ours) = (Vec::new(), Vec::new());
    let data = Bytes::from(vec![7; PIECE]);
    let mut pieces = client.subscribe("stream").await.unwrap();
    client.flush().await.unwrap();
    for _ in 0..ROUNDS {
        let began = Instant::now();
        let send = async {
            for _ in 0..STREAM / PIECE {
                responder.publish("stream", data.clone()).await.unwrap();
            }
        };
        let receive = async {
            for _ in 0..STREAM / PIECE {
                pieces.next().await.unwrap();
            }
        };
        tokio::join!(send, receive);
        // There and back, as the echo of the session.
        bare.push(2 * began.elapsed());
        let (mut reader, mut writer) = tokio::io::split(&mut session);
        let mut buffer = vec![0; PIECE];
        let began = Instant::now();
        let send = async {
            for _ in 0..STREAM / PIECE {
                writer.write_all(&data).await.unwrap();
            }
        };
        let receive = async {
            for _ in 0..STREAM / PIECE {
                reader.read_exact(&mut buffer).await.unwrap();
            }
        };
        tokio::join!(send, receive);
        ours.push(began.elapsed());
    }
    report("16 MiB there and back, in pieces of 128 KiB", &mut bare, &mut ours);
}

fn report(what: &str, bare: &mut [Duration], ours: &mut [Duration]) {
    bare.sort_unstable();
    ours.sort_unstable();
    let (bare, ours) = (bare[bare.len() / 2], ours[ours.len() / 2]);
    let ratio = ours.as_secs_f64() / bare.as_secs_f64();
    println!("{what}: NATS {bare:.1?}, session {ours:.1?}, ratio {ratio:.2}");
}
