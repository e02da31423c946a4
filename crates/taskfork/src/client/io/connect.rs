//! Making a connection: connecting to the server, and the handshake with the new worker.

use std::future::poll_fn;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use bytes::BytesMut;

use super::transport::{self, Connected, OnWait, Transport};
use crate::address::Address;
use crate::client::config::Config;
use crate::client::proto::connection::ConnectionConfig;
use crate::client::proto::handshake::{
    HandshakeError, HandshakeReader, PeerLimits, client_hello, handshake_timeout,
};
use crate::error::ConnectionError;
use crate::wire::Protocol;
use crate::wire::frame;
use crate::wire::hello::WorkerHello;

/// A stream to a worker whose handshake is complete.
#[derive(Debug)]
pub(crate) struct NewConnection {
    pub(crate) stream: Box<dyn Transport>,
    pub(crate) config: ConnectionConfig,
}

/// Connects one worker without waiting, for the client with this number. Also returns the hello, which the caller
/// sends with the first call. Returns `None` on any failure: [`connect`] finds the reason again.
pub(crate) fn connect_without_waiting(
    config: &Config,
    client: u64,
) -> Option<(Box<dyn Transport>, Vec<u8>)> {
    let [address] = &config.addresses[..] else { return None };
    if config.protocol != Protocol::Native {
        return None;
    }
    let files = config.max_files();
    let hello = client_hello(config, files, config.max_shared(files), client).ok()?;
    Some((transport::connect_now(address)?.ok()?, hello))
}

/// Connects one worker, for the client with this number. If the server has no free worker yet, this calls
/// `on_wait` with the server's reason. Then the attempt has no time limit, unless there are other addresses.
///
/// # Errors
/// Returns the reason at each address, for the error of a call whose time runs out.
pub(crate) async fn connect(
    config: &Config,
    client: u64,
    on_wait: &(dyn Fn(String) + Sync),
) -> Result<NewConnection, ConnectionError> {
    let limit = config.connect_timeout;
    let mut reasons = Vec::new();
    for (address, others) in config.addresses.iter().zip((0..config.addresses.len()).rev()) {
        let waits = AtomicBool::new(false);
        let wait = |reason| {
            waits.store(true, Ordering::Relaxed);
            on_wait(reason);
        };
        let on_wait: Option<OnWait<'_>> = if others == 0 { Some(&wait) } else { None };
        let until = limit.get().and_then(|limit| Instant::now().checked_add(limit));
        let attempt = connect_and_handshake(address, config, client, until, on_wait);
        let mut attempt = std::pin::pin!(attempt);
        let reached = match limit.get() {
            Some(time) => match tokio::time::timeout(time, &mut attempt).await {
                Err(_) if waits.load(Ordering::Relaxed) && config.addresses.len() == 1 => {
                    Ok(attempt.await)
                }
                reached => reached,
            },
            None => Ok(attempt.await),
        };
        match reached.unwrap_or_else(|_| Err(handshake_timeout(limit))) {
            Ok(parts) => return Ok(parts),
            Err(reason) if config.addresses.len() == 1 => return Err(reason),
            Err(reason) => reasons.push((address.to_string(), reason)),
        }
    }
    Err(ConnectionError::of_addresses(reasons))
}

async fn connect_and_handshake(
    address: &Address,
    config: &Config,
    client: u64,
    until: Option<Instant>,
    on_wait: Option<OnWait<'_>>,
) -> Result<NewConnection, ConnectionError> {
    if config.protocol == Protocol::Perl {
        // This protocol has no handshake.
        let connected = config
            .connector
            .connect(address, &[], until, None)
            .await
            .map_err(ConnectionError::system)?;
        let stream = connected.stream;
        let config = ConnectionConfig {
            protocol: Protocol::Perl,
            inbox: BytesMut::new(),
            pid: 0,
            limits: PeerLimits {
                max_send: config.max_frame,
                max_blob: 0,
                pipeline_window: 0,
                files: 0,
                accepts_single_calls: false,
                sends_items: false,
                takes_input: false,
            },
            max_receive: config.max_frame,
            max_blob: config.max_blob,
            max_files: 0,
            max_shared: 0,
            copy_shared_memory: false,
            can_lose_answers: stream.can_lose_answers(),
            announces_setup: false,
        };
        return Ok(NewConnection { stream, config });
    }
    let files = if address.0.carries_files() { config.max_files() } else { 0 };
    let max_shared = config.max_shared(files);
    let hello = client_hello(config, files, max_shared, client).map_err(HandshakeError::from)?;
    let mut connected = config
        .connector
        .connect(address, &hello, until, on_wait)
        .await
        .map_err(ConnectionError::system)?;
    let (stream, can_lose_answers, hello, inbox) = loop {
        let Connected { mut stream, sent, other_way } = connected;
        // Asked now: the end of the stream may come with the hello, and a message of a gateway before it.
        let can_lose_answers = stream.can_lose_answers();
        match (handshake(&mut *stream, &hello[sent..], on_wait).await, other_way) {
            (Ok((hello, inbox)), other_way) => {
                if let Some(other_way) = other_way {
                    other_way.leave(&mut *stream);
                }
                break (stream, can_lose_answers, hello, inbox);
            }
            (Err(error), None) => return Err(error.into()),
            (Err(error), Some(other_way)) => {
                drop(stream);
                connected = other_way.take(error, on_wait).await?;
            }
        }
    };
    let config = ConnectionConfig {
        protocol: Protocol::Native,
        inbox,
        pid: hello.pid,
        limits: PeerLimits::of(&hello, config.max_frame, files),
        max_receive: config.max_frame,
        max_blob: config.max_blob,
        max_files: files,
        max_shared,
        copy_shared_memory: config.copy_shared_memory,
        can_lose_answers,
        announces_setup: hello.announces_setup,
    };
    Ok(NewConnection { stream, config })
}

/// Sends the rest of the client's hello, and receives the worker's. Returns it with the bytes behind it.
async fn handshake(
    stream: &mut dyn Transport,
    rest: &[u8],
    on_wait: Option<OnWait<'_>>,
) -> Result<(WorkerHello, BytesMut), HandshakeError> {
    // If the server refuses, the write may fail, but the reason can still be read.
    let written = transport::write_all(stream, rest).await;

    let (mut inbox, mut reader) = (BytesMut::new(), HandshakeReader::default());
    // A hello has no files. Any that come are closed at the end, and too many are an error.
    let mut files = Vec::new();
    loop {
        match (reader.read(&mut inbox), on_wait) {
            (Err(HandshakeError::ServerBusy(reason)), Some(on_wait)) => {
                on_wait(reason);
                continue;
            }
            (read, _) => {
                if let Some(hello) = read? {
                    return Ok((hello, inbox));
                }
            }
        }
        if let Err(error) = read_more(stream, &mut inbox, &mut files).await {
            written?;
            return Err(error);
        }
    }
}

async fn read_more(
    stream: &mut dyn Transport,
    inbox: &mut BytesMut,
    files: &mut Vec<OwnedFd>,
) -> Result<(), HandshakeError> {
    let room = frame::room_for_next_read(inbox);
    match poll_fn(|context| stream.poll_read(context, inbox, room, files)).await {
        Ok(0) => Err(HandshakeError::Closed),
        Ok(_) => Ok(()),
        Err(error) => Err(HandshakeError::of(error)),
    }
}
