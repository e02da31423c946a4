//! Clients of other machines, whose connections a gateway relays to the unix socket: who may be a gateway, and what
//! its clients get. The gateway is played here.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use taskfork::client::Value;
use taskfork::worker::Peer;

use crate::support::access_control::{Guarded, as_user};
use crate::support::raw::{Raw, frame, map, text};
use crate::support::{address_in, programs, trial, until};

const GATEWAY: u32 = 54_322;
const STRANGER: u32 = 54_321;

/// How long the server may take to answer, or to close a connection.
const PATIENCE: Duration = Duration::from_secs(20);

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn tls(name: &str) -> Value {
    let names = Value::Array(vec![text(name), text("10.1.2.3")]);
    map(&[("kind", text("tls")), ("names", names), ("address", text("10.1.2.3:40"))])
}

/// What the server or the worker says first to a client with this peer in its hello, or without one.
fn first_answer(path: &PathBuf, peer: Option<Value>) -> Value {
    let mut raw = Raw(UnixStream::connect(path).unwrap());
    raw.0.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut hello = vec![("versions", Value::Array(vec![1.into()])), ("name", text("raw"))];
    hello.extend(peer.map(|peer| ("peer", peer)));
    // One write, so that it has arrived when the server looks.
    // The server may have refused the user and closed already.
    let _ = raw.0.write_all(&[&b"taskfork"[..], &frame(vec![0.into(), map(&hello)])].concat());
    raw.0.read_exact(&mut [0; 8]).unwrap();
    raw.receive().unwrap()
}

/// The value of a key in the map of a message.
fn value_of<'a>(message: &'a Value, key: &str) -> Option<&'a Value> {
    let fields = message.as_array().unwrap()[1].as_map().unwrap();
    fields.iter().find(|(name, _)| *name == text(key)).map(|(_, value)| value)
}

fn assert_served(answer: &Value) {
    assert!(value_of(answer, "worker").is_some(), "{answer}");
}

fn assert_refused(answer: &Value, why: &str) {
    assert!(answer.to_string().contains("\"refused\""), "{answer}");
    assert!(answer.to_string().contains(why), "{answer}");
}

/// Calls a method without arguments, and waits for its answer.
fn call(raw: &mut Raw, method: &str) -> Value {
    raw.call(method, vec![]);
    raw.receive().unwrap()
}

async fn relayed(server: &Guarded, peer: Value) -> (Raw, Value) {
    Raw::greeted_with(&server.path(), &[("peer", peer)]).await
}

trial!(a_worker_knows_the_client_of_a_gateway, async || {
    for options in [&[][..], &["spare_workers=1"]] {
        let server = Guarded::start(options).await;
        let (mut raw, _) = relayed(&server, tls("a.example")).await;
        let answer = call(&mut raw, "peer").to_string();
        assert!(answer.contains(r#""kind": "tls""#) && answer.contains("a.example"), "{answer}");
        // The last value is the address of the connection.
        assert!(answer.ends_with(r#""10.1.2.3"]]"#), "{answer}");

        let nats = map(&[("kind", text("nats")), ("name", text("jobs"))]);
        let (mut raw, _) = relayed(&server, nats).await;
        let answer = call(&mut raw, "peer").to_string();
        assert!(answer.contains(r#""kind": "nats""#) && answer.contains("jobs"), "{answer}");
    }
});

trial!(status_and_log_show_the_client_of_a_gateway, async || {
    let server = Guarded::start(&[]).await;
    let (mut raw, _) = relayed(&server, tls("a.example\u{1b}[2J")).await;
    call(&mut raw, "nothing");
    let workers = server.status().workers;
    let [worker] = &workers[..] else { panic!("{workers:?}") };
    let Some(Peer::Tls { names, address, .. }) = &worker.peer else { panic!("{worker:?}") };
    assert_eq!((names[0].as_str(), names[1].as_str()), ("a.example\u{1b}[2J", "10.1.2.3"));
    assert_eq!(address.as_deref(), Some("10.1.2.3:40"));

    raw.call("abort", vec![]);
    raw.drain();
    let shown = r"TLS client `a.example\\x1b[2J` and 1 more name at 10.1.2.3:40";
    until("the death in the log", || server.log().contains("SIGABRT")).await;
    let log = server.log();
    let death = log.lines().find(|line| line.contains("SIGABRT")).unwrap();
    assert!(death.contains(shown) && !death.contains("client="), "{death}");
});

trial!(the_client_of_a_gateway_gets_no_details_files_or_memory, async || {
    let server = Guarded::start(&[]).await;
    let hello = [("peer", tls("a")), ("files", 16.into()), ("lent", (1 << 20).into())];
    let (mut raw, answer) = Raw::greeted_with(&server.path(), &hello).await;
    assert_eq!(value_of(&answer, "files"), None, "{answer}");
    raw.call("nothing", vec![]);
    assert_eq!(raw.receive_agreed(), None);
    raw.call("panic", vec![text("no luck")]);
    let panic = raw.receive().unwrap().to_string();
    assert!(panic.contains("no luck") && !panic.contains("servers.rs"), "{panic}");
    raw.call("complain_and_abort", vec![text("secret words\n")]);
    let death = String::from_utf8_lossy(&raw.drain()).into_owned();
    assert!(death.contains("signal") && !death.contains("secret words"), "{death}");

    // Without a gateway, the same user gets them.
    let (mut raw, answer) = Raw::greeted_with(&server.path(), &hello[1..]).await;
    assert!(value_of(&answer, "files").is_some(), "{answer}");
    raw.call("complain_and_abort", vec![text("secret words\n")]);
    let death = String::from_utf8_lossy(&raw.drain()).into_owned();
    assert!(death.contains("secret words"), "{death}");

    let server = Guarded::start(&["share_details=true"]).await;
    let (mut raw, _) = relayed(&server, tls("a")).await;
    raw.call("complain_and_abort", vec![text("secret words\n")]);
    let death = String::from_utf8_lossy(&raw.drain()).into_owned();
    assert!(death.contains("secret words"), "{death}");
});

trial!(the_client_of_a_gateway_needs_the_native_protocol, async || {
    let server = Guarded::start(&["protocols=json"]).await;
    let answer = first_answer(&server.path(), Some(tls("a")));
    assert_refused(&answer, "does not take the native protocol here");
    server.assert_untouched();
});

trial!(only_the_server_s_own_user_may_name_a_peer, async || {
    if !is_root() {
        return;
    }
    let server = Guarded::start(&["mode=666"]).await;
    for peer in [tls("a"), map(&[("kind", text("nats"))]), Value::Nil, map(&[])] {
        let path = server.path();
        let answer =
            as_user(STRANGER, STRANGER, &[], move || first_answer(&path, Some(peer))).await;
        assert_refused(&answer, "as only a gateway may");
    }
    server.assert_untouched();
    let log = server.log();
    assert!(log.contains("names a peer") && log.contains("uid=54321"), "{log}");
    assert_served(&first_answer(&server.path(), Some(tls("a"))));
});

trial!(nobody_on_tcp_may_name_a_peer, async || {
    let (server, port) = Guarded::start_tcp(&[]).await;
    let mut socket = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let hello = [("versions", Value::Array(vec![1.into()])), ("peer", tls("a"))];
    socket.write_all(&[&b"taskfork"[..], &frame(vec![0.into(), map(&hello)])].concat()).unwrap();
    let mut said = Vec::new();
    socket.read_to_end(&mut said).unwrap();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(said.contains("refused") && said.contains("as only a gateway may"), "{said}");
    server.assert_untouched();
});

trial!(a_gateway_has_a_user_of_its_own_which_can_do_nothing_else, async || {
    if !is_root() {
        return;
    }
    let server = Guarded::start(&["mode=666", "allow_users=0", "gateway_user=54322"]).await;
    let from = async |user: u32, peer: Option<Value>| {
        let path = server.path();
        as_user(user, user, &[], move || first_answer(&path, peer)).await
    };
    assert_refused(&from(GATEWAY, None).await, "its first message names none (`peer`)");
    assert_refused(
        &from(GATEWAY, Some(Value::Nil)).await,
        "the `peer` of its first message is wrong",
    );
    assert_refused(&from(STRANGER, Some(tls("a"))).await, "may not use this server (allow_users");
    let path = server.path();
    let said = as_user(GATEWAY, GATEWAY, &[], move || {
        let mut socket = UnixStream::connect(path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.write_all(b"[\"do\",{},\"add\",1,2]").unwrap();
        let mut said = String::new();
        socket.read_to_string(&mut said).unwrap();
        said
    });
    let said = said.await;
    assert!(said.starts_with("[\"er\"") && said.contains("may only relay clients"), "{said}");
    server.assert_untouched();

    assert_served(&from(GATEWAY, Some(tls("a"))).await);
    // The server's own user may do both.
    assert_served(&first_answer(&server.path(), None));
    assert_served(&first_answer(&server.path(), Some(tls("a"))));
});

trial!(a_server_refuses_to_start_with_a_wrong_gateway_user, async || {
    let folder = tempfile::tempdir().unwrap();
    let own = rustix::process::geteuid().as_raw();
    for (user, why) in [
        ("no-such-user".to_owned(), "there is no user `no-such-user`"),
        (own.to_string(), "is the server's own user"),
    ] {
        let option = format!("gateway_user={user}");
        let said = programs::output(&["serve_guarded", &address_in(&folder), &option]);
        assert!(said.contains("gateway_user") && said.contains(why), "{said}");
    }
    let said = programs::output(&["serve_guarded", "tcp:127.0.0.1:0", "gateway_user=54322"]);
    assert!(said.contains("gateway_user") && said.contains("no unix socket"), "{said}");
});

trial!(clients_of_one_gateway_make_room_for_each_other, async || {
    let server = Guarded::start(&["max_workers=2"]).await;
    let (mut first, _) = relayed(&server, tls("greedy")).await;
    let (mut second, _) = relayed(&server, tls("greedy")).await;
    for raw in [&mut first, &mut second] {
        call(raw, "nothing");
        raw.send_message(vec![2.into(), map(&[])]);
    }
    // All connections are of this process, and have the same client number.
    let (mut third, told) = relayed(&server, tls("modest")).await;
    assert_eq!(told.as_array().unwrap()[0], 9.into(), "{told}");
    assert_served(&third.receive().unwrap());
    assert_eq!(server.status().deaths.get("made_room"), Some(&1));
});
