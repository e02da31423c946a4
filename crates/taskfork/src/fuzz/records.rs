//! The telemetry of workers: logs, spans and events.

use std::sync::Once;

use bytes::Bytes;
use log_defer::{Log, Message, Style, chrome_trace, timeline};

use super::Input;
use crate::client::fuzz::{Replay, merge};
use crate::wire::native::FromWorker;
use crate::wire::{log, trace};

/// Decodes records of spans and events, encodes them again, and replays them in one or more pieces.
pub fn traces(data: &[u8]) {
    static SUBSCRIBER: Once = Once::new();
    SUBSCRIBER.call_once(|| {
        let registry = tracing_subscriber::registry();
        tracing::subscriber::set_global_default(registry).unwrap();
    });
    let mut input = Input(data);
    let times = 1 + input.byte() % 8;
    let encoded = input.0;
    if let Ok(records) = trace::records(encoded) {
        for record in records {
            if let trace::Record::Site { site, .. } = record {
                let _ = trace::Site::read(site);
            }
            if matches!(record, trace::Record::Unknown) {
                continue;
            }
            let mut out = vec![0x91];
            record.write(&mut out);
            let again = trace::records(&out).unwrap().next().unwrap();
            assert_eq!(format!("{again:?}"), format!("{record:?}"));
        }
    }
    let Some((_, replay)) = Replay::for_caller() else { panic!("there is no subscriber") };
    for _ in 0..times {
        replay.push(7, Bytes::copy_from_slice(encoded));
        replay.play();
    }
}

/// Decodes a message of telemetry, and merges its log into an empty one. All of it arrives there, or a line says
/// that something does not.
pub fn telemetry(data: &[u8]) {
    let Ok(FromWorker::Telemetry(telemetry)) = FromWorker::decode(data) else { return };
    let Some(encoded) = telemetry.log else { return };
    let into = Log::new(drop);
    merge(&into, encoded);
    let merged = into.take();
    let Ok(message) = log::read(encoded) else {
        return assert_eq!(merged.logs.len(), 1, "a warning");
    };
    assert_eq!(merged.left_out, message.left_out);
    if merged.logs.len() == message.logs.len() {
        let stopped = message.timers.iter().filter(|timer| timer.to.is_some()).count();
        assert_eq!((merged.data.len(), merged.timers.len()), (message.data.len(), stopped));
    } else {
        let last = merged.logs.last().map(|line| format!("{:?}", line.items));
        assert!(last.is_some_and(|last| last.contains("were left out")));
    }
}

/// Decodes a message of Log::Defer as MessagePack and as JSON, draws it and encodes it again.
pub fn log_messages(data: &[u8]) {
    let read = [log::read(data).ok(), serde_json::from_slice::<Message>(data).ok()];
    for message in read.into_iter().flatten() {
        let written = serde_json::to_string(&message).unwrap();
        let again: Message = serde_json::from_str(&written).unwrap();
        assert_eq!(serde_json::to_string(&again).unwrap(), written);
        for line in timeline(&message, Style { width: 80, color: false }).lines() {
            assert!(!line.chars().any(char::is_control));
        }
        let _ = chrome_trace(std::slice::from_ref(&message));
        let log = Log::new(drop);
        log.merge(message);
        drop(log.take());
    }
}
