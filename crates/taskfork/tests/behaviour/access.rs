//! Who may connect, in which protocol, and what they learn of the server.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use taskfork::client::Protocol;
use taskfork::error::{CallError, FatalError};
use taskfork::worker::Peer;
use taskfork::{Client, Error};

use crate::perl::message;
use crate::support::access_control::{Guarded, Seen, as_user, block_on};
use crate::support::raw::Raw;
use crate::support::until;
use crate::support::{address_in, programs, trial};

const NOBODY: u32 = 65_534;
const STRANGER: u32 = 54_321;

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn client_of(address: &str) -> Client {
    let client = Client::builder().address(address).min_workers(0).max_workers(1);
    client.build().unwrap()
}

/// What a call says that never got a worker.
async fn reason(client: &Client) -> String {
    let checkout = client.checkout().timeout(Duration::from_secs(2));
    let error = checkout.call::<i64>("add", (1, 2)).await.unwrap_err();
    let Error::Fatal { cause: FatalError::CannotConnect { reason, .. }, .. } = &error else {
        panic!("{error:?}");
    };
    reason.to_string()
}

trial!(allowed_users_are_served_and_others_get_an_error, async || {
    if !is_root() {
        return;
    }
    let server = Guarded::start(&["mode=666", "allow_users=nobody"]).await;
    let call = |address: String| {
        move || block_on(async { client_of(&address).call::<i64>("add", (1, 2)).await.unwrap() })
    };
    assert_eq!(as_user(NOBODY, NOBODY, &[], call(server.address())).await, 3);
    // The server's own user needs no mention.
    assert_eq!(client_of(&server.address()).call::<i64>("add", (1, 2)).await.unwrap(), 3);

    let forked = server.status().forked;
    let address = server.address();
    let refused = move || block_on(async { reason(&client_of(&address)).await });
    let reason = as_user(STRANGER, STRANGER, &[7], refused).await;
    assert!(reason.contains("the user 54321 may not use this server (allow_users"), "{reason}");
    // The client has waited longer after each refusal.
    let refused = server.status().refused;
    assert!(refused < 20, "{refused}");
    let path = server.path();
    let said = as_user(STRANGER, STRANGER, &[], move || {
        loop {
            let mut socket = UnixStream::connect(&path).unwrap();
            // The server may have refused and closed already; then it did not know the protocol.
            drop(socket.write_all(b"[\"do\",{},\"add\",1,2]"));
            let mut said = Vec::new();
            socket.read_to_end(&mut said).unwrap();
            if said.starts_with(b"[") {
                return said;
            }
        }
    });
    let said = String::from_utf8(said.await).unwrap();
    assert!(said.starts_with("[\"er\",{},\"the user 54321 may not"), "{said}");
    assert_eq!(server.status().forked, forked);
    let log = server.log();
    assert!(log.contains("uid=54321"), "{log}");
});

trial!(a_user_whom_a_namespace_does_not_map_is_another_user, async || {
    // A kernel or a container can forbid user namespaces.
    let unshare = || std::process::Command::new("unshare");
    let probe = unshare().args(["--user", "true"]).status();
    if !is_root() || !probe.is_ok_and(|status| status.success()) {
        return;
    }
    // Inside, the server's user has the id that the kernel also shows for everybody else.
    let start = async |options: &[&str]| {
        Guarded::start_with(options, |server| {
            let mut command = unshare();
            command.args(["--user", "--map-user=65534", "--map-group=65534", "--"]);
            command
                .arg(server.get_program())
                .envs(server.get_envs().filter_map(|(name, value)| Some((name, value?))));
            command
        })
        .await
    };
    let server = start(&["mode=666", "allow_users=1"]).await;
    let address = server.address();
    let refused = move || block_on(async { reason(&client_of(&address)).await });
    let reason = as_user(STRANGER, STRANGER, &[], refused).await;
    assert!(reason.contains("the user 65534 may not use this server"), "{reason}");

    let server = start(&["mode=666", "setup_fails=true"]).await;
    let address = server.address();
    let failed = move || {
        block_on(async { client_of(&address).call::<i64>("add", (1, 2)).await.unwrap_err() })
    };
    let error = as_user(STRANGER, STRANGER, &[], failed).await.to_string();
    assert!(error.contains("setup") && !error.contains("secret"), "{error}");
});

trial!(allowed_groups_are_served, async || {
    if !is_root() {
        return;
    }
    let server = Guarded::start(&["mode=666", "allow_groups=4711,4712"]).await;
    let many: &[u32] = &[
        1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25,
        26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47, 48,
        49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63, 64, 65, 66, 67, 68, 69, 4712,
    ];
    for (group, groups) in [(4711, &[][..]), (1, &[4712]), (1, many)] {
        let address = server.address();
        let call = move || {
            block_on(async { client_of(&address).call::<i64>("add", (1, 2)).await.unwrap() })
        };
        assert_eq!(as_user(STRANGER, group, groups, call).await, 3);
    }
    let address = server.address();
    let refused = move || block_on(async { reason(&client_of(&address)).await });
    let reason = as_user(STRANGER, 4713, &[4710], refused).await;
    assert!(reason.contains("may not use this server"), "{reason}");
});

trial!(a_server_refuses_to_start_with_unknown_users_or_groups, async || {
    let folder = tempfile::tempdir().unwrap();
    for (option, name) in [("allow_users", "no-such-user"), ("allow_groups", "no-such-group")] {
        let option = format!("{option}={name}");
        let said = programs::output(&["serve_guarded", &address_in(&folder), &option]);
        assert!(said.contains(&format!("`{name}`")) && said.contains("allow_"), "{said}");
    }
    let said = programs::output(&["serve_guarded", "tcp:127.0.0.1:0", "allow_users=0"]);
    assert!(said.contains("allow_users") && said.contains("no unix socket"), "{said}");
});

/// Checks that a worker has seen this process with this user and group.
fn assert_process(seen: Seen, user: u32, group: u32) {
    let (Some(Peer::Process { uid, gid, pid, .. }), None) = seen else { panic!("{seen:?}") };
    assert_eq!((uid, gid, pid), (user, group, std::process::id()));
}

trial!(a_worker_knows_its_peer, async || {
    let server = Guarded::start(&["mode=666"]).await;
    let own = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let seen: Seen = client_of(&server.address()).call("peer", ()).await.unwrap();
    assert_process(seen, own.0, own.1);
    if is_root() {
        let address = server.address();
        let call =
            move || block_on(async { client_of(&address).call::<Seen>("peer", ()).await.unwrap() });
        let seen = as_user(NOBODY, STRANGER, &[], call).await;
        assert_process(seen, NOBODY, STRANGER);
    }
    let (_server, port) = Guarded::start_tcp(&[]).await;
    let client = client_of(&format!("tcp:127.0.0.1:{port}"));
    let seen: Seen = client.call("peer", ()).await.unwrap();
    assert_eq!(seen, (None, Some("127.0.0.1".to_owned())));
    // Through the line to a server of this program.
    let (_server, client) = crate::support::start("spawned_peer");
    let seen: Seen = client.call("peer", ()).await.unwrap();
    assert_process(seen, own.0, own.1);
    assert_eq!(taskfork::worker::context().peer(), None);
});

fn ask_in_json(port: u16) -> String {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
    socket.write_all(b"[\"do\",{},\"add\",1,2]").unwrap();
    socket.shutdown(std::net::Shutdown::Write).unwrap();
    let mut said = Vec::new();
    let mut room = [0; 1000];
    // The test checks the first message only.
    while !said.ends_with(b"]") {
        match socket.read(&mut room).unwrap() {
            0 => break,
            length => said.extend_from_slice(&room[..length]),
        }
    }
    String::from_utf8(said).unwrap()
}

trial!(json_on_tcp_must_be_enabled, async || {
    let (server, port) = Guarded::start_tcp(&[]).await;
    let said = ask_in_json(port);
    assert!(said.starts_with("[\"er\",{},\"this server does not take the JSON"), "{said}");
    server.assert_untouched();
    let (_server, port) = Guarded::start_tcp(&["protocols=native,json"]).await;
    let client = Client::builder().address(format!("tcp:127.0.0.1:{port}"));
    let client = client.protocol(Protocol::Perl).min_workers(0).build().unwrap();
    assert_eq!(client.call::<i64>("add", (1, 2)).await.unwrap(), 3);
    let client = client_of(&format!("tcp:127.0.0.1:{port}"));
    assert_eq!(client.call::<i64>("add", (1, 2)).await.unwrap(), 3);
});

trial!(a_native_client_gets_an_error_if_its_protocol_is_disabled, async || {
    let server = Guarded::start(&["protocols=json"]).await;
    let reason = reason(&client_of(&server.address())).await;
    assert!(reason.contains("does not take the native protocol here (protocols)"), "{reason}");
    server.assert_untouched();
    let mut raw = Raw::connect(&server.path()).await;
    raw.send(b"[\"do\",{},\"add\",1,2]");
    assert_eq!(message(&mut raw.0).unwrap(), b"[\"ok\",{},3]");
});

trial!(a_network_address_must_be_allowed, async || {
    for address in ["tcp:0.0.0.0:0", "tcp:[::]:0", "tcp:192.0.2.1:0"] {
        let said = programs::output(&["serve", address]);
        assert!(said.contains("other machines can reach tcp:"), "{said}");
        assert!(said.contains("allow_unauthenticated_network"), "{said}");
    }
    let port = TcpListener::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port();
    let _server =
        programs::start(&["serve_guarded", &format!("tcp:0.0.0.0:{port}"), "network=true"]);
    let client = Client::builder().address(format!("tcp:127.0.0.1:{port}")).build().unwrap();
    assert_eq!(client.call::<i64>("add", (1, 2)).await.unwrap(), 3);
});

trial!(an_inherited_network_listener_must_be_allowed, async || {
    for (address, is_refused) in [("0.0.0.0:0", true), ("[::]:0", true), ("127.0.0.1:0", false)] {
        let listener = TcpListener::bind(address).unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut command = programs::command(&["serve_inherited"]);
        let command = command.stdin(OwnedFd::from(listener)).stdout(std::process::Stdio::piped());
        let child = command.spawn().unwrap();
        if is_refused {
            let said = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
            assert!(said.contains("other machines can reach fd:0"), "{said}");
            continue;
        }
        let _server = crate::support::processes::Program::new(child);
        let client = Client::builder().address(format!("tcp:127.0.0.1:{port}")).build().unwrap();
        assert_eq!(client.call::<i64>("add", (1, 2)).await.unwrap(), 3);
    }
});

/// What a client learns of a death and of a panic, shown in full.
async fn details(address: &str) -> (String, String) {
    let client = client_of(address);
    let death = client.call::<()>("complain_and_abort", ("secret words\n",)).await.unwrap_err();
    assert!(death.to_string().contains("SIGABRT"), "{death}");
    let panic = client.call::<()>("panic", ("no luck",)).await.unwrap_err();
    assert!(matches!(panic, Error::Call { error: CallError::Panic(_), .. }), "{panic:?}");
    assert!(panic.to_string().contains("no luck"), "{panic}");
    let boom = client.call::<()>("boom", ("the method's own words",)).await.unwrap_err();
    assert!(boom.to_string().contains("the method's own words"), "{boom}");
    (format!("{death:?} {death:#}"), format!("{panic:?}"))
}

fn assert_hidden((death, panic): (String, String)) {
    assert!(!death.contains("secret words"), "{death}");
    assert!(!panic.contains("servers.rs"), "{panic}");
}

async fn setup_error(address: &str) -> String {
    let error = client_of(address).call::<()>("nothing", ()).await.unwrap_err();
    assert!(error.to_string().starts_with("setup exception: "), "{error}");
    format!("{error:?}")
}

async fn hung_error(address: &str) -> String {
    let client = Client::builder().address(address).min_workers(0).grace(Duration::ZERO);
    let client = client.timeout(Duration::from_millis(300)).build().unwrap();
    let error = client.call::<()>("hang", ()).await.unwrap_err();
    assert!(error.to_string().contains("timed out"), "{error}");
    format!("{error:?}")
}

trial!(a_client_on_tcp_gets_no_details, async || {
    let (_server, port) = Guarded::start_tcp(&[]).await;
    let address = format!("tcp:127.0.0.1:{port}");
    assert_hidden(details(&address).await);
    let hung = hung_error(&address).await;
    assert!(!hung.contains("park"), "{hung}");
    let (server, port) = Guarded::start_tcp(&["setup_fails=true"]).await;
    let error = setup_error(&format!("tcp:127.0.0.1:{port}")).await;
    assert!(error.contains("share_details") && !error.contains("/secret"), "{error}");
    until("the reason in the log", || server.log().contains("/secret/file")).await;
});

trial!(a_client_of_another_user_gets_no_details, async || {
    if !is_root() {
        return;
    }
    let server = Guarded::start(&["mode=666"]).await;
    let address = server.address();
    let all = move || block_on(async { (details(&address).await, hung_error(&address).await) });
    let (details, hung) = as_user(NOBODY, NOBODY, &[], all).await;
    assert_hidden(details);
    assert!(!hung.contains("park"), "{hung}");
    let server = Guarded::start(&["mode=666", "setup_fails=true"]).await;
    let address = server.address();
    let error = as_user(NOBODY, NOBODY, &[], move || block_on(setup_error(&address))).await;
    assert!(!error.contains("/secret"), "{error}");
    // The server's own user is told.
    assert!(setup_error(&server.address()).await.contains("/secret/file"));
});

trial!(details_can_be_shared, async || {
    let (_server, port) = Guarded::start_tcp(&["share_details=true"]).await;
    let address = format!("tcp:127.0.0.1:{port}");
    let (death, panic) = details(&address).await;
    assert!(death.contains("secret words"), "{death}");
    assert!(panic.contains("servers.rs"), "{panic}");
    // On a busy machine there may be no stack.
    while !hung_error(&address).await.contains("park") {}
    let (_server, port) = Guarded::start_tcp(&["setup_fails=true", "share_details=true"]).await;
    assert!(setup_error(&format!("tcp:127.0.0.1:{port}")).await.contains("/secret/file"));
});
