//! Frames and messages of the native protocol. A message that can be decoded is encoded and decoded again; the result
//! must be the same.

use std::error::Error as _;
use std::panic::Location;

use bytes::BytesMut;

use super::Input;
use crate::error::{Death, Failure};
use crate::report::CallSite;
use crate::wire::WireError;
use crate::wire::frame::{self, DEFAULT_MAX_FRAME, HEADER_LEN};
use crate::wire::native::{self, FromClient, FromWorker};
use crate::wire::{perl, relay};

/// The frames of a stream do not depend on how it is fragmented. A length field alone reserves little memory.
pub fn frames(data: &[u8]) {
    let mut input = Input(data);
    let piece = 1 + usize::from(input.short());
    let limit = if input.byte() % 2 == 0 { 1000 } else { DEFAULT_MAX_FRAME };
    let stream = input.0;

    let mut inbox = BytesMut::from(stream);
    let mut whole = Vec::new();
    let end = take_all(&mut inbox, limit, &mut whole);
    assert!(
        whole.iter().map(|body: &bytes::Bytes| body.len() + HEADER_LEN).sum::<usize>()
            <= stream.len()
    );

    let (mut inbox, mut cut) = (BytesMut::new(), Vec::new());
    let mut cut_end = Ok(());
    for piece in stream.chunks(piece) {
        inbox.extend_from_slice(piece);
        cut_end = take_all(&mut inbox, limit, &mut cut);
        assert!(frame::room_for_next_read(&inbox) <= inbox.len().max(64 << 10));
        if cut_end.is_err() {
            break;
        }
    }
    assert_eq!((whole, end), (cut, cut_end));
}

fn take_all(
    inbox: &mut BytesMut,
    limit: usize,
    found: &mut Vec<bytes::Bytes>,
) -> Result<(), WireError> {
    while let Some(body) = frame::take(inbox, limit)? {
        assert!(body.len() <= limit);
        found.push(body);
    }
    Ok(())
}

/// Decodes a preamble and a hello, as one from either side.
pub fn hellos(data: &[u8]) {
    let mut inbox = BytesMut::from(data);
    if frame::take_preamble(&mut inbox) != Ok(true) {
        return;
    }
    let Ok(Some(body)) = frame::take(&mut inbox, DEFAULT_MAX_FRAME) else { return };
    if let Ok(FromClient::Hello(hello)) = FromClient::decode(&body) {
        let mut out = Vec::new();
        hello.put(&mut out);
        let Ok(FromClient::Hello(again)) = FromClient::decode(&out) else {
            panic!("an encoded client's hello cannot be decoded");
        };
        assert_eq!(again, hello);
        if let Ok(Some(peer)) = hello.relayed_peer() {
            // An escaped character takes at most ten bytes in the place of one.
            assert!(peer.to_string().len() <= 100 + 10 * data.len());
        }
    }
    if let Ok(FromWorker::Hello(hello)) = FromWorker::decode(&body) {
        // This crate's own workers never encode `wants_alarm`.
        let hello = crate::wire::hello::WorkerHello { wants_alarm: false, ..hello };
        let mut out = Vec::new();
        hello.put(&mut out);
        let Ok(FromWorker::Hello(again)) = FromWorker::decode(&out) else {
            panic!("an encoded worker's hello cannot be decoded");
        };
        assert_eq!(again, hello);
    }
}

/// Decodes a message from a client.
pub fn from_client(data: &[u8]) {
    inspect_undecoded(data);
    let Ok(message) = FromClient::decode(data) else { return };
    let mut out = Vec::new();
    match message {
        FromClient::Hello(_) => return,
        FromClient::Call { mode, method, args, meta } => {
            native::put_call(&mut out, method, meta);
            native::put_argument_count(&mut out, args.len());
            out.extend_from_slice(args.encoded());
            native::set_call_mode(&mut out, mode);
            let Ok(FromClient::Call { mode: again, method: name, args: same, meta: more }) =
                FromClient::decode(&out)
            else {
                panic!("an encoded call cannot be decoded");
            };
            assert_eq!((again, name, more), (mode, method, meta));
            assert_eq!((same.len(), same.encoded()), (args.len(), args.encoded()));
            return;
        }
        FromClient::Done => native::put_done(&mut out),
        FromClient::QueueLength(count) => native::put_queue_length(&mut out, count),
        FromClient::Cancel(call) => {
            native::put_cancel(&mut out, call);
            assert_eq!(native::cancelled_call(&out), Some(call));
        }
        FromClient::Credit { call, credit } => native::put_credit(&mut out, call, credit),
        FromClient::Item(item) => {
            let Some(call) = item.call else { return };
            put_item(&mut out, call, item.cost, item.value);
        }
        FromClient::InputEnd(end) => end.put(&mut out),
        FromClient::Files(count) => {
            assert!(count <= isize::MAX as usize);
            return;
        }
        FromClient::Shm(ref sent) => {
            let mut frame = Vec::new();
            sent.put(&mut frame);
            let Ok(FromClient::Shm(again)) = FromClient::decode(&frame[HEADER_LEN..]) else {
                panic!("an encoded message cannot be decoded");
            };
            assert_eq!(&again, sent);
            return;
        }
        FromClient::Rings => native::put_rings(&mut out),
    }
    let again = FromClient::decode(&out).unwrap();
    assert_eq!(format!("{again:?}"), format!("{message:?}"));
}

fn put_item(out: &mut Vec<u8>, call: u64, cost: u64, value: &[u8]) {
    native::put_item(out);
    native::set_item_call(out, call);
    native::set_item_cost(out, cost);
    out.extend_from_slice(value);
}

/// Decodes a message from a worker.
pub fn from_worker(data: &[u8]) {
    inspect_undecoded(data);
    let Ok(message) = FromWorker::decode(data) else { return };
    let mut out = Vec::new();
    match &message {
        FromWorker::Ok { call, format, value } => {
            native::put_ok(&mut out, *call, *format);
            out.extend_from_slice(value);
        }
        FromWorker::Error { call, body } => native::put_error(&mut out, *call, body),
        FromWorker::Item(item) => {
            let Some(call) = item.call else { return };
            put_item(&mut out, call, item.cost, item.value);
        }
        FromWorker::Credit { call, credit } => native::put_credit(&mut out, *call, *credit),
        FromWorker::Death(notice) => notice.put(&mut out),
        FromWorker::Skipped { call } => native::put_skipped(&mut out, *call),
        FromWorker::Rings => native::put_rings(&mut out),
        FromWorker::SetUp => native::put_set_up(&mut out),
        FromWorker::Queued(reason) => native::put_queued(&mut out, reason),
        FromWorker::Shm(sent) => {
            let mut frame = Vec::new();
            sent.put(&mut frame);
            out.extend_from_slice(&frame[HEADER_LEN..]);
        }
        FromWorker::End(end) => {
            let frame = relay::end_message(end.passed, end.is_unread);
            out.extend_from_slice(&frame[HEADER_LEN..]);
        }
        FromWorker::Hello(_) | FromWorker::Files(_) | FromWorker::Telemetry(_) => return,
    }
    let again = FromWorker::decode(&out).unwrap();
    // Compared as text, because NaN does not equal itself.
    assert_eq!(format!("{again:?}"), format!("{message:?}"));
}

/// The functions that inspect a message without decoding it accept any bytes.
fn inspect_undecoded(data: &[u8]) {
    let mut copy = data.to_vec();
    native::set_timeout(&mut copy, 1);
    native::set_item_cost(&mut copy, 1);
    native::set_item_call(&mut copy, 1);
    if let Some(mode) = native::call_mode(data) {
        native::set_call_mode(&mut copy, mode);
    }
    assert!(!(native::skipped_call(data).is_some() && native::is_transport_message(data)));
    let _ = native::cancelled_call(data);
}

/// The texts and reports of a call's error and of a worker's death are bounded by the input.
pub fn errors(data: &[u8]) {
    let site = || CallSite::new("fuzz", Some("method"), Location::caller());
    match FromWorker::decode(data) {
        Ok(FromWorker::Error { body, .. }) => {
            let text = perl::error_text(body.clone(), Some("method"));
            // The text consists of parts of the input, each at most twice.
            assert!(text.len() <= 1000 + 4 * data.len());
            let error = body.clone().into_error::<Failure>(site());
            let mut cause = error.source();
            let mut causes = 0;
            while let Some(next) = cause {
                causes += 1;
                cause = next.source();
            }
            assert!(causes <= data.len());
            let report = error.report().to_string();
            assert!(report.len() <= 1000 + 8 * data.len());
        }
        Ok(FromWorker::Death(notice)) => {
            let death = Death {
                pid: notice.pid,
                program: notice.program,
                end: notice.end,
                reason: notice.reason,
                during: notice.during,
                stderr: notice.stderr,
                hung: None,
            };
            assert!(death.to_string().len() <= 1000 + data.len());
        }
        _ => {}
    }
}
