//! Values and errors that are too deep, too long or too many, in both directions and both protocols.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use taskfork::client::{Protocol, Value};
use taskfork::error::CallError;
use taskfork::{BoxError, Client, Error, Methods, ServerBuilder, ServerError};

use crate::bad_peers::Logged;
use crate::support::raw::{Raw, fake, frame, greet, map};
use crate::support::{address_in, start, trial};

const TOO_DEEP: &str = "nested deeper than 128 levels";

pub(crate) fn server(server: ServerBuilder) -> Result<(), ServerError> {
    let methods = Methods::new()
        .function("echo", |value: Value| Ok(value))
        .function("nested", |levels: usize| Ok(nested(levels)))
        .function("fail", |causes: usize| -> Result<(), BoxError> { Err(chain(causes).into()) });
    server.interface(methods).run()
}

fn nested(levels: usize) -> Value {
    (0..levels).fold(Value::Nil, |inside, level| match level % 2 {
        0 => Value::Array(vec![inside]),
        _ => map(&[("a", inside)]),
    })
}

/// The same as bytes, of arrays only.
fn nested_bytes(levels: usize) -> Vec<u8> {
    let mut bytes = vec![0x91; levels];
    bytes.push(0xc0);
    bytes
}

fn framed(body: Vec<u8>) -> Vec<u8> {
    [&(body.len() as u32).to_le_bytes()[..], &body].concat()
}

fn json_nested(levels: usize) -> String {
    format!("{}1{}", "[".repeat(levels), "]".repeat(levels))
}

#[derive(Debug)]
struct Chain(usize, Option<Box<Chain>>);

impl std::fmt::Display for Chain {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "cause {}", self.0)
    }
}

impl std::error::Error for Chain {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.1.as_deref().map(|cause| cause as _)
    }
}

fn chain(causes: usize) -> Chain {
    (0..causes).rev().fold(Chain(causes, None), |cause, number| Chain(number, Some(cause.into())))
}

trial!(values_nest_to_128_levels_in_both_directions, async || {
    let (_server, client) = start("bounds");
    let checkout = client.checkout();
    assert_eq!(checkout.call::<Value>("echo", (nested(128),)).await.unwrap(), nested(128));
    let error = checkout.call::<Value>("echo", (nested(129),)).await.unwrap_err();
    assert!(matches!(&error, Error::Call { error: CallError::Arguments { .. }, .. }), "{error}");
    assert!(error.to_string().contains(TOO_DEEP), "{error}");
    let checkout = client.checkout();
    assert_eq!(checkout.call::<Value>("nested", (128,)).await.unwrap(), nested(128));
    let error = checkout.call::<Value>("nested", (129,)).await.unwrap_err();
    assert!(matches!(&error, Error::Call { error: CallError::Result { .. }, .. }), "{error}");
    assert!(error.to_string().contains(TOO_DEEP), "{error}");
    assert_eq!(checkout.call::<Value>("nested", (1,)).await.unwrap(), nested(1));
});

trial!(a_worker_answers_arguments_that_nest_deeper_and_goes_on, async || {
    let server = Logged::start();
    let (mut raw, _) = Raw::greeted(&server.path()).await;
    for (levels, is_refused) in [(128, false), (129, true), (100_000, true), (1, false)] {
        let mut call = b"\x94\x01\x80\xa4echo\x91".to_vec();
        call.extend(nested_bytes(levels));
        raw.send(&framed(call));
        let answer = raw.receive().unwrap();
        let answer = answer.as_array().unwrap();
        assert_eq!(answer[0], if is_refused { 2 } else { 1 }.into(), "{levels}");
        if is_refused {
            let said = answer[2].to_string();
            assert!(said.contains("arguments") && said.contains(TOO_DEEP), "{said}");
        }
    }
});

trial!(a_client_refuses_results_that_nest_deeper_and_goes_on, async || {
    let folder = tempfile::tempdir().unwrap();
    let client = fake(&folder, |mut raw| {
        greet(&mut raw, 0);
        for (call, levels) in [(1, 128), (2, 129), (3, 100_000), (4, 1)] {
            if raw.receive().is_none() {
                return;
            }
            let mut answer = b"\x93\x01\x81\xa4call".to_vec();
            answer.push(call);
            answer.extend(nested_bytes(levels));
            raw.send(&framed(answer));
        }
        raw.drain();
    });
    let checkout = client.checkout();
    checkout.call::<Value>("x", ()).await.unwrap();
    for _ in 0..2 {
        let error = checkout.call::<Value>("x", ()).await.unwrap_err();
        assert!(matches!(&error, Error::Call { error: CallError::Decode { .. }, .. }), "{error}");
        assert!(error.to_string().contains(TOO_DEEP), "{error}");
    }
    let one = checkout.call::<Value>("x", ()).await.unwrap();
    assert_eq!(one, Value::Array(vec![Value::Nil]));
});

trial!(json_nests_to_128_levels_and_a_worker_goes_on, async || {
    let server = Logged::start();
    // Until it listens.
    Raw::connect(&server.path()).await;
    let mut socket = UnixStream::connect(server.path()).unwrap();
    for (levels, is_refused) in [(128, false), (129, true), (100_000, true), (1, false)] {
        let value = json_nested(levels);
        socket.write_all(format!("[\"do\",{{}},\"echo\",{value}]").as_bytes()).unwrap();
        let expected = match is_refused {
            true => format!("[\"er\",{{}},\"bad arguments: it is {TOO_DEEP}\"]"),
            false => format!("[\"ok\",{{}},{value}]"),
        };
        let mut answer = vec![0; expected.len()];
        socket.read_exact(&mut answer).unwrap();
        assert_eq!(String::from_utf8(answer).unwrap(), expected);
    }
});

trial!(a_client_refuses_json_that_nests_deeper_and_goes_on, async || {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("s")).unwrap();
    let thread = std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        for levels in [128, 129, 100_000, 1] {
            crate::perl::message(&mut socket).unwrap();
            socket.write_all(format!("[\"ok\",{{}},{}]", json_nested(levels)).as_bytes()).unwrap();
        }
        // It is closed by the other side.
        let _ = socket.read(&mut [0; 8]);
    });
    let client = Client::builder().address(address_in(&folder)).protocol(Protocol::Perl);
    let client = client.min_workers(0).max_workers(1).build().unwrap();
    let checkout = client.checkout();
    checkout.call::<Value>("x", ()).await.unwrap();
    for _ in 0..2 {
        let error = checkout.call::<Value>("x", ()).await.unwrap_err();
        assert!(matches!(&error, Error::Call { error: CallError::Result { .. }, .. }), "{error}");
        assert!(error.to_string().contains(TOO_DEEP), "{error}");
    }
    checkout.call::<Value>("x", ()).await.unwrap();
    let error = checkout.call::<Value>("x", (nested(129),)).await.unwrap_err();
    assert!(matches!(&error, Error::Call { error: CallError::Arguments { .. }, .. }), "{error}");
    assert!(error.to_string().contains(TOO_DEEP), "{error}");
    drop((checkout, client));
    tokio::task::spawn_blocking(|| thread.join().unwrap()).await.unwrap();
});

trial!(a_long_chain_of_causes_arrives_as_its_beginning, async || {
    let (_server, client) = start("bounds");
    let checkout = client.checkout();
    let error = checkout.call::<()>("fail", (1000,)).await.unwrap_err();
    let Error::Call { error: CallError::Interface(failure), .. } = &error else {
        panic!("{error:?}");
    };
    let causes: Vec<_> = failure.causes().collect();
    assert_eq!((failure.message(), causes.len(), causes[63]), ("cause 0", 65, "cause 64"));
    assert_eq!(causes[64], "936 more causes are left out");
    assert!(error.report().to_string().contains("caused by: 936 more causes are left out"));
});

trial!(a_million_causes_of_a_peer_are_one_error, async || {
    let folder = tempfile::tempdir().unwrap();
    let client = fake(&folder, |mut raw| {
        greet(&mut raw, 1);
        let mut error =
            b"\x93\x02\x81\xa4call\x01\x83\xa4kind\xa9interface\xa7message\xa3top\xa6causes\xdd"
                .to_vec();
        error.extend(1_000_000_u32.to_be_bytes());
        error.resize(error.len() + 1_000_000, 0xa0);
        raw.send(&framed(error));
        raw.drain();
    });
    let checkout = client.checkout().timeout(None);
    let error = checkout.call::<()>("x", ()).await.unwrap_err();
    assert!(error.report().to_string().contains("999936 more causes are left out"));
});

trial!(values_of_too_many_elements_are_errors_of_their_call, async || {
    let server = Logged::start();
    let (mut raw, _) = Raw::greeted(&server.path()).await;
    let list = |elements: u32| {
        let mut call = b"\x94\x01\x80\xa4echo\x91\xdd".to_vec();
        call.extend(elements.to_be_bytes());
        call.resize(call.len() + elements as usize, 0xc0);
        framed(call)
    };
    // An eighth of 64 MiB.
    raw.send(&list((8 << 20) + 1));
    let answer = raw.receive().unwrap().to_string();
    assert!(answer.contains("more than 8388608 elements"), "{answer}");
    raw.call("echo", vec![7.into()]);
    assert_eq!(raw.receive().unwrap().as_array().unwrap()[2], 7.into());
});

trial!(lists_that_are_too_long_break_the_connection_with_their_name, async || {
    let server = Logged::start();
    let ids = Value::Array(vec![1.into(); 1025]);
    for key in ["gone", "unwanted", "new"] {
        let lending = frame(vec![7.into(), map(&[(key, ids.clone())])]);
        let expected = format!("the list `{key}` has 1025 items, and the limit is 1024");
        server.reject(true, &lending, false, &expected).await;
    }
    let many: Vec<_> = (0..300).map(|key: u32| (key.to_string(), Value::Nil)).collect();
    let many: Vec<_> = many.iter().map(|(key, value)| (key.as_str(), value.clone())).collect();
    let done = frame(vec![2.into(), map(&many)]);
    server.reject(true, &done, false, "a map has 300 entries, and the limit is 256").await;
});
