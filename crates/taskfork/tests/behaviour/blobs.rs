//! Long byte strings that are not copied on their way.

use serde::{Deserialize, Serialize};
use taskfork::client::Value;
use taskfork::{Blob, BoxError, Error, Methods, ServerBuilder, ServerError};

use crate::support::{start, start_with, trial};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Page {
    name: String,
    image: Blob,
    thumbnail: Option<Blob>,
    layers: Vec<Blob>,
    number: u32,
}

pub(crate) fn server(server: ServerBuilder) -> Result<(), ServerError> {
    let methods = Methods::new()
        .function("echo", |blob: Blob| Ok(blob))
        .function("page", |page: Page| Ok(page))
        .method("keep", |kept: &mut Vec<Blob>, blob: Blob| {
            kept.push(blob);
            Ok(kept.len())
        })
        .method("kept", |kept: &mut Vec<Blob>| Ok(kept.clone()))
        .function("double", |blob: Blob| Ok(Blob::from([&blob[..], &blob[..]].concat())))
        .function("log", |blob: Blob| {
            taskfork::worker::logger().info("a blob is here");
            Ok(blob)
        });
    server.setup(|| Ok::<_, BoxError>(Vec::new())).max_frame(8 << 20).interface(methods).run()
}

/// Bytes that differ from place to place and from one to the other.
fn pattern(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|place| (place / 251 + place) as u8 ^ seed).collect()
}

trial!(blobs_of_all_sizes_come_back_as_they_were, async || {
    let (_server, client) = start("blobs");
    let checkout = client.checkout();
    for length in [0, 1, 4000, 4096, 16_383, 16_384, 16_385, 65_536, 1_000_000, 8_000_000, 10] {
        let blob = Blob::from(pattern(length, 3));
        assert_eq!(checkout.call::<Blob>("echo", (&blob,)).await.unwrap(), blob);
    }
});

trial!(several_blobs_in_one_value_keep_their_order, async || {
    let (_server, client) = start("blobs");
    let checkout = client.checkout();
    for length in [10, 20_000, 300_000] {
        let blob = |seed| Blob::from(pattern(length + usize::from(seed), seed));
        let page = Page {
            name: "front".to_owned(),
            image: blob(1),
            thumbnail: Some(blob(2)),
            layers: (3..20).map(blob).collect(),
            number: 7,
        };
        assert_eq!(checkout.call::<Page>("page", (&page,)).await.unwrap(), page);
    }
});

trial!(blobs_and_other_bytes_are_equal_on_the_wire, async || {
    let (_server, client) = start("blobs");
    let bytes = pattern(100_000, 9);
    let value = Value::Binary(bytes.clone());
    assert_eq!(client.call::<Value>("echo", (Blob::from(bytes.clone()),)).await.unwrap(), value);
    assert_eq!(*client.call::<Blob>("echo", (value,)).await.unwrap(), bytes);
    assert_eq!(*client.call::<Blob>("echo", ("text",)).await.unwrap(), *b"text");
    assert_eq!(*client.call::<Blob>("echo", ([1, 2, 255],)).await.unwrap(), [1, 2, 255]);
    let error = client.call::<Blob>("echo", ([1, 256],)).await.unwrap_err();
    let expected =
        "argument 1 of `echo`: element 2: expected an integer of the type u8, got the integer 256";
    assert!(error.to_string().contains(expected), "{error}");
});

trial!(a_sealed_blob_that_a_worker_keeps_does_not_change, async || {
    let (_server, client) = start("blobs");
    let checkout = client.checkout();
    for seed in 0..20 {
        let blob = Blob::from(pattern(100_000, seed));
        checkout.call::<usize>("keep", (blob,)).await.unwrap();
        checkout.call::<Blob>("echo", (Blob::from(pattern(200_000, 77)),)).await.unwrap();
    }
    let kept: Vec<Blob> = checkout.call("kept", ()).await.unwrap();
    for (seed, blob) in (0..20).zip(kept) {
        assert_eq!(*blob, pattern(100_000, seed));
    }
});

trial!(a_sealed_blob_that_a_client_keeps_does_not_change, async || {
    let (_server, client) = start("blobs");
    let checkout = client.checkout();
    let mut kept: Vec<Blob> = Vec::new();
    for seed in 0..20 {
        kept.push(checkout.call("echo", (Blob::from(pattern(100_000, seed)),)).await.unwrap());
        checkout.call::<Blob>("echo", (Blob::from(pattern(200_000, 77)),)).await.unwrap();
    }
    for (seed, blob) in (0..20).zip(kept) {
        assert_eq!(*blob, pattern(100_000, seed));
    }
});

trial!(a_blob_over_the_limit_is_refused_before_it_is_sent, async || {
    let (_server, client) = start("blobs");
    let checkout = client.checkout();
    let error = checkout.call::<Blob>("echo", (Blob::from(vec![0; 9 << 20]),)).await.unwrap_err();
    assert!(!error.is_fatal() && !error.may_have_run(), "{error}");
    assert!(error.to_string().contains("the limit of a message is 8388608"), "{error}");
    assert!(checkout.call::<Blob>("echo", (Blob::default(),)).await.unwrap().is_empty());
});

trial!(an_answer_over_the_limit_is_an_error_of_the_call, async || {
    let (_server, client) = start("blobs");
    let checkout = client.checkout();
    let error = checkout.call::<Blob>("double", (Blob::from(vec![0; 5 << 20]),)).await.unwrap_err();
    assert!(matches!(&error, Error::Call { .. }), "{error}");
    assert!(error.to_string().contains("over the limit of 8388608 (max_frame): "), "{error}");
    assert!(error.to_string().contains("of both client and server"), "{error}");
    let (_server, client) = start_with("blobs", |client| client.max_frame(1 << 20));
    let error = client.call::<Blob>("echo", ("x".repeat(2 << 20),)).await.unwrap_err();
    assert!(error.to_string().contains("over the limit of 1048576 (max_frame): "), "{error}");
    assert!(checkout.call::<Blob>("echo", (Blob::default(),)).await.unwrap().is_empty());
});

trial!(a_log_arrives_with_sealed_blobs, async || {
    let (_server, client) = start("blobs");
    let (send, messages) = std::sync::mpsc::channel();
    let log = log_defer::Log::new(move |message| send.send(message).unwrap());
    let blob = Blob::from(pattern(100_000, 5));
    let checkout = client.checkout().log(&log);
    assert_eq!(checkout.call::<Blob>("log", (&blob,)).await.unwrap(), blob);
    drop((checkout, log));
    assert_eq!(messages.recv().unwrap().logs.len(), 1);
});

trial!(blobs_work_over_tcp, async || {
    let (_server, client) = start("blobs_tcp");
    for length in [100, 5_000_000] {
        let blob = Blob::from(pattern(length, 8));
        assert_eq!(client.call::<Blob>("echo", (&blob,)).await.unwrap(), blob);
    }
});
