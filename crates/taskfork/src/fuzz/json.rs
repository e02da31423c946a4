//! The messages of AnyEvent::Task's protocol.

use rmpv::Value;

use super::Input;
use crate::wire::arguments::Arguments;
use crate::wire::frame::DEFAULT_MAX_FRAME;
use crate::wire::native::FromWorker;
use crate::wire::perl::{self, FromClient, Scanner};

/// The ends of messages do not depend on how the stream is fragmented.
pub fn json_scan(data: &[u8]) {
    let mut input = Input(data);
    let piece = 1 + usize::from(input.short());
    let limit = if input.byte() % 2 == 0 { 1000 } else { usize::MAX };
    let stream = input.0;

    let (mut scanner, mut rest, mut whole) = (Scanner::default(), stream, Vec::new());
    let end = loop {
        match scanner.find(rest, limit) {
            Ok(Some(place)) => {
                whole.push(&rest[place.clone()]);
                rest = &rest[place.end..];
            }
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        }
    };

    let (mut scanner, mut inbox) = (Scanner::default(), Vec::new());
    let (mut cut, mut cut_end) = (Vec::new(), Ok(()));
    'pieces: for piece in stream.chunks(piece) {
        inbox.extend_from_slice(piece);
        loop {
            match scanner.find(&inbox, limit) {
                Ok(Some(place)) => {
                    cut.push(inbox[place.clone()].to_vec());
                    inbox.drain(..place.end);
                }
                Ok(None) => break,
                Err(error) => {
                    cut_end = Err(error);
                    break 'pieces;
                }
            }
        }
        let blanks = scanner.skip_blanks();
        inbox.drain(..blanks);
    }
    assert_eq!(whole, cut);
    // The errors may differ: they show as much of a message as has been received.
    assert_eq!(end.is_ok(), cut_end.is_ok());
}

/// Decodes a message as one from either side; encodes it and decodes it again.
pub fn json(data: &[u8]) {
    let Ok(Some(place)) = Scanner::default().find(data, usize::MAX) else { return };
    let data = &data[place];
    if let Ok(FromClient::Call(values)) = perl::from_client(data, DEFAULT_MAX_FRAME) {
        let encoded = encode(&values);
        if let Ok(again) = perl::encode_call(None, Arguments::new(values.len(), &encoded)) {
            let Ok(FromClient::Call(again)) = perl::from_client(&again, DEFAULT_MAX_FRAME) else {
                panic!("an encoded call cannot be decoded");
            };
            assert_eq!(encode(&again), encoded);
        }
    }
    if let Ok((telemetry, answer)) = perl::from_worker(data, DEFAULT_MAX_FRAME) {
        assert!(telemetry.is_none_or(|message| {
            let decoded = FromWorker::decode(&message);
            matches!(decoded, Ok(FromWorker::Telemetry(telemetry)) if telemetry.log.is_some())
        }));
        let mut out = Vec::new();
        match FromWorker::decode(&answer) {
            Ok(FromWorker::Ok { value, .. }) => match perl::put_result(&mut out, None, value) {
                Ok(()) => assert!(
                    perl::from_worker(&out, DEFAULT_MAX_FRAME)
                        .is_ok_and(|(_, again)| again == answer)
                ),
                Err(_) => assert!(out.is_empty()),
            },
            Ok(FromWorker::Error { body, .. }) => {
                perl::put_error(&mut out, None, body.message);
                assert!(perl::from_worker(&out, DEFAULT_MAX_FRAME).is_ok());
            }
            _ => panic!("it is not an answer"),
        }
    }
}

fn encode(values: &[Value]) -> Vec<u8> {
    let mut out = Vec::new();
    values.iter().for_each(|value| rmpv::encode::write_value(&mut out, value).unwrap());
    out
}
