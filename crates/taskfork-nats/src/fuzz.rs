//! The functions of the fuzz targets in `fuzz/`. This module exists only in builds with `--cfg fuzzing`.
#![allow(clippy::unwrap_used, reason = "a target fails by panicking")]
#![allow(missing_docs, reason = "users do not call these functions")]

use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::direct::Token;
use crate::link::{Link, Received};
use crate::wire::{MIN_PAYLOAD, MIN_WINDOW, Message, Offer, Reply, Request};

/// What can be read is written as it was, or to something that is read as the same.
pub fn session_requests(data: &[u8]) {
    if let Ok(request) = Request::decode(data) {
        assert_eq!(Request::decode(&request.encode()), Ok(request));
    }
    if let Ok(reply) = Reply::decode(data) {
        assert_eq!(Reply::decode(&reply.encode()), Ok(reply));
    }
    if let Some(token) = Token::read(data) {
        assert!(Token::begins(data) && data.starts_with(&token.preamble()));
    }
}

/// The messages of a peer: each has a length of 16 bits in front of it. What the peer has sent beyond its credit is never
/// handed on.
pub fn session_messages(data: &[u8]) {
    let now = Instant::now();
    let offer = Offer::new(MIN_WINDOW, MIN_PAYLOAD, Duration::from_secs(2));
    let mut link = Link::new(offer, offer, now);
    let (mut rest, mut unread) = (Bytes::copy_from_slice(data), 0);
    while rest.len() >= 2 {
        let length = usize::from(u16::from_le_bytes([rest[0], rest[1]])).min(rest.len() - 2);
        let message = rest.split_to(2 + length).slice(2..);
        if let Ok((number, message)) = Message::decode(message.clone()) {
            assert_eq!(Message::decode(message.encode(number)), Ok((number, message)));
        }
        match link.receive(now, message) {
            Ok(Received::Bytes(bytes)) => unread += bytes.len(),
            Ok(Received::Ended(_)) | Err(_) => return,
            Ok(_) => {}
        }
        assert!(unread <= MIN_WINDOW as usize, "{unread} bytes");
    }
}
