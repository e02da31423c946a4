//! Binary data in the protocol of AnyEvent::Task: a string with one character for each byte, read as bytes
//! wherever bytes are wanted.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use serde_json::{Value, json};
use taskfork::client::Protocol;
use taskfork::error::CallError;
use taskfork::{Blob, Client, Error, Methods, ServerBuilder, ServerError};

use crate::perl::message;
use crate::support::{address_in, programs, start, start_with, trial, until};

/// Bytes in every place where arguments can have them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Picture {
    pixels: Blob,
    #[serde(with = "serde_bytes")]
    palette: Vec<u8>,
    thumbnails: Vec<Option<ByteBuf>>,
    title: String,
}

pub(crate) fn server(server: ServerBuilder) -> Result<(), ServerError> {
    let methods = Methods::<()>::new()
        .function("numbers", |bytes: ByteBuf| Ok(bytes.to_vec()))
        .function("numbers_of_blob", |blob: Blob| Ok(blob.to_vec()))
        .variadic("lengths", |_, args| {
            let all = args.parse::<Vec<ByteBuf>>()?;
            Ok(all.iter().map(|bytes| bytes.len()).collect::<Vec<_>>())
        })
        .function("bytes", || Ok(Blob::from(every_byte())))
        .function("picture", |picture: Picture| Ok(picture));
    server.interface(methods).run()
}

fn every_byte() -> Vec<u8> {
    (0..=255).collect()
}

/// As JSON::XS writes them.
fn as_text() -> String {
    every_byte().into_iter().map(char::from).collect()
}

fn picture() -> Picture {
    Picture {
        pixels: every_byte().into(),
        palette: every_byte(),
        thumbnails: vec![None, Some(ByteBuf::from(every_byte()))],
        title: "é Ł".to_owned(),
    }
}

/// A server that gives one answer to each call of one connection.
fn answering(folder: &tempfile::TempDir, answers: Vec<String>) {
    let listener = UnixListener::bind(folder.path().join("s")).unwrap();
    std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        for answer in answers {
            message(&mut socket).unwrap();
            socket.write_all(answer.as_bytes()).unwrap();
        }
        let _ = socket.read(&mut [0; 8]);
    });
}

trial!(a_server_in_perl_gives_bytes, async || {
    let folder = tempfile::tempdir().unwrap();
    let answer = |value: Value| json!(["ok", {}, value]).to_string();
    let list = json!([as_text(), {"key": as_text()}]);
    answering(&folder, vec![answer(json!(as_text())), answer(json!(as_text())), answer(list)]);
    let client = Client::builder().address(address_in(&folder)).protocol(Protocol::Perl);
    let client = client.min_workers(0).max_workers(1).build().unwrap();
    let checkout = client.checkout();
    assert_eq!(checkout.call::<ByteBuf>("any", ()).await.unwrap(), every_byte());
    assert_eq!(checkout.call::<Blob>("any", ()).await.unwrap().to_vec(), every_byte());
    let (blob, map) = checkout
        .call::<(Blob, std::collections::BTreeMap<String, ByteBuf>)>("any", ())
        .await
        .unwrap();
    assert_eq!((blob.to_vec(), map["key"].to_vec()), (every_byte(), every_byte()));
});

trial!(bytes_come_back_as_they_were_sent, async || {
    let (_server, client) = start_with("json_bytes", |client| client.protocol(Protocol::Perl));
    let checkout = client.checkout();
    let bytes = ByteBuf::from(every_byte());
    assert_eq!(checkout.call::<Vec<u8>>("numbers", (&bytes,)).await.unwrap(), every_byte());
    let blob = Blob::from(every_byte());
    assert_eq!(checkout.call::<Vec<u8>>("numbers_of_blob", (&blob,)).await.unwrap(), every_byte());
    let lengths = checkout.call::<Vec<usize>>("lengths", (&bytes, &blob, "é")).await.unwrap();
    assert_eq!(lengths, [256, 256, 1]);
    assert_eq!(checkout.call::<ByteBuf>("bytes", ()).await.unwrap(), bytes);
    assert_eq!(checkout.call::<Picture>("picture", (picture(),)).await.unwrap(), picture());
});

trial!(a_program_that_speaks_json_gives_bytes_to_a_native_client, async || {
    let (_server, client) = start("executable");
    let checkout = client.checkout();
    let bytes = ByteBuf::from(every_byte());
    assert_eq!(checkout.call::<ByteBuf>("echo", (&bytes,)).await.unwrap(), bytes);
    let blob = checkout.call::<Blob>("echo", (&bytes,)).await.unwrap();
    assert_eq!(blob.to_vec(), every_byte());
    assert_eq!(checkout.call::<String>("echo", (&bytes,)).await.unwrap(), as_text());
    assert_eq!(checkout.call::<Picture>("echo", (picture(),)).await.unwrap(), picture());
});

/// A server, which is a test program, and a connection to it.
async fn connect(
    program: &str,
) -> (tempfile::TempDir, crate::support::processes::Program, UnixStream) {
    let folder = tempfile::tempdir().unwrap();
    let program = programs::start(&[program, &address_in(&folder)]);
    let mut socket = None;
    until("the server", || {
        socket = UnixStream::connect(folder.path().join("s")).ok();
        socket.is_some()
    })
    .await;
    let socket = socket.unwrap();
    socket.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
    (folder, program, socket)
}

fn call(socket: &mut UnixStream, args: Value) -> Value {
    let mut call = json!(["do", {}]);
    call.as_array_mut().unwrap().extend(args.as_array().unwrap().iter().cloned());
    socket.write_all(call.to_string().as_bytes()).unwrap();
    serde_json::from_slice(&message(socket).unwrap()).unwrap()
}

trial!(a_client_in_perl_gives_bytes_to_a_worker, async || {
    let (_folder, _program, mut socket) = connect("serve_json_bytes").await;
    for method in ["numbers", "numbers_of_blob"] {
        let answer = call(&mut socket, json!([method, as_text()]));
        assert_eq!(answer, json!(["ok", {}, every_byte()]));
    }
    assert_eq!(call(&mut socket, json!(["lengths", as_text(), ""])), json!(["ok", {}, [256, 0]]));
    assert_eq!(call(&mut socket, json!(["bytes"])), json!(["ok", {}, as_text()]));
    let answer = call(&mut socket, json!(["numbers", "a\u{142}"]));
    let said = answer[2].as_str().unwrap();
    assert!(said.starts_with("bad arguments: argument 1 of `numbers`: "), "{said}");
    assert!(said.contains("character 2 of this string is U+0142"), "{said}");
    let answer = call(&mut socket, json!(["numbers", 7]));
    let said = "bad arguments: argument 1 of `numbers`: expected bytes, got the integer 7";
    assert_eq!(answer[2], said);
    assert_eq!(call(&mut socket, json!(["lengths"])), json!(["ok", {}, []]));
});

trial!(a_client_in_perl_and_a_program_that_speaks_json_pass_strings_on, async || {
    let (_folder, _program, mut socket) = connect("serve_executable").await;
    let text = format!("{} Ł", as_text());
    assert_eq!(call(&mut socket, json!(["echo", text])), json!(["ok", {}, text]));
});

trial!(a_character_that_is_no_byte_is_the_error_of_its_call, async || {
    let (_server, client) = start("executable");
    let checkout = client.checkout();
    let error = checkout.call::<ByteBuf>("echo", ("caf\u{e9} \u{1f600}",)).await.unwrap_err();
    let Error::Call { error: CallError::Decode { message }, .. } = &error else {
        panic!("{error}");
    };
    assert!(message.contains("character 6 of this string is U+1F600"), "{message}");
    assert_eq!(checkout.call::<String>("echo", ("next",)).await.unwrap(), "next");

    let (_server, client) = start_with("json_bytes", |client| client.protocol(Protocol::Perl));
    let checkout = client.checkout();
    let error = checkout.call::<Vec<u8>>("numbers", ("\u{100}",)).await.unwrap_err();
    assert!(error.to_string().contains("U+0100, which is above U+00FF"), "{error}");
    assert!(!error.is_fatal());
    assert_eq!(checkout.call::<Vec<u8>>("numbers", ("\u{ff}",)).await.unwrap(), [255]);
});
