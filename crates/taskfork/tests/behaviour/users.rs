//! Workers that change their user in `setup`: what they share with their clients, and that they end with their
//! server.

use std::path::Path;

use taskfork::client::Value;
use taskfork::server::ServerStatus;
use taskfork::{BoxError, Methods, Server, ServerError};

use crate::support::processes::{children, guardian, is_gone, signal, stop};
use crate::support::raw::{Raw, frame, map, text};
use crate::support::{address_in, programs, trial, until};

const OTHER: libc::uid_t = 65_534;

/// A server whose workers take these as real, effective and saved user in `setup`: `+` is another user than root, `-`
/// leaves one as it is. With `!` in front the first setup of each worker fails after that.
pub(crate) fn serve(users: &str, spares: &str, address: &str) -> Result<(), ServerError> {
    let (fails, users) = (users.starts_with('!'), users.trim_start_matches('!').to_owned());
    let fails = std::cell::Cell::new(fails);
    let spares = spares.parse().unwrap_or_default();
    let death_signal = || {
        let signal = rustix::process::parent_process_death_signal()?;
        Ok(signal.map(|signal| signal.as_raw()))
    };
    Server::builder()
        .listen(address)
        .spare_workers(spares)
        .setup(move || -> Result<(), BoxError> {
            change(&users)?;
            if fails.replace(false) { Err("not yet".into()) } else { Ok(()) }
        })
        .interface(
            Methods::new()
                .function("pid", || Ok(std::process::id()))
                .function("change", |users: String| Ok(change(&users)?))
                .function("death_signal", death_signal),
        )
        .run()
}

fn change(users: &str) -> std::io::Result<()> {
    let user = |at| if users.as_bytes().get(at) == Some(&b'+') { OTHER } else { libc::uid_t::MAX };
    // SAFETY: it changes nothing but the users of this process.
    #[allow(unsafe_code)]
    match unsafe { libc::setresuid(user(0), user(1), user(2)) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Waits until the server listens, and this many spare workers have been set up.
async fn spares_in(folder: &tempfile::TempDir, count: usize) {
    until("the spares", || {
        let status = ServerStatus::read(folder.path().join("s.status"));
        status.is_ok_and(|status| {
            status.workers.iter().filter(|worker| worker.state == "spare").count() == count
        })
    })
    .await;
}

/// What a worker says to a client that sends its hello and a call at once.
async fn agrees_with_ungreeted(path: &Path) -> Option<u64> {
    let mut raw = Raw::connect(path).await;
    let hello = map(&[
        ("versions", Value::Array(vec![1.into()])),
        ("name", text("raw")),
        ("files", 16.into()),
        ("lent", 1000.into()),
    ]);
    let call = vec![1.into(), map(&[]), text("pid"), Value::Array(vec![])];
    raw.send(&[b"taskfork".to_vec(), frame(vec![0.into(), hello]), frame(call)].concat());
    let mut preamble = [0; 8];
    std::io::Read::read_exact(&mut raw.0, &mut preamble).unwrap();
    assert_eq!(raw.receive().unwrap().as_array().unwrap()[0], 0.into());
    raw.receive_agreed()
}

trial!(a_worker_shares_memory_with_its_own_user_alone, async || {
    if !is_root() {
        return;
    }
    for (users, shares) in
        [("---", true), ("+++", false), ("+--", false), ("-+-", false), ("--+", false)]
    {
        for spares in [0, 1] {
            let folder = tempfile::tempdir().unwrap();
            let address = address_in(&folder);
            let _server = programs::start(&["serve_as", users, &spares.to_string(), &address]);
            let path = folder.path().join("s");
            spares_in(&folder, spares).await;
            let (mut raw, agreed) = Raw::sharing(&path, 1000, "pid").await;
            assert_eq!(agreed.is_some(), shares, "{users} with {spares} spares: {agreed:?}");
            // It is said once.
            raw.call("pid", vec![]);
            assert_eq!(raw.receive_agreed(), None, "{users}");
            spares_in(&folder, spares).await;
            let agreed = agrees_with_ungreeted(&path).await;
            assert_eq!(agreed.is_some(), shares, "{users} with {spares} spares: {agreed:?}");
            // Nothing is said to a client that has not asked.
            assert_eq!(Raw::sharing(&path, 0, "pid").await.1, None, "{users}");
        }
    }
});

trial!(a_client_of_another_user_is_served_without_shared_memory, async || {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let _server = programs::start(&["serve_as", "+++", "0", &address_in(&folder)]);
    let client = taskfork::Client::builder().address(address_in(&folder)).build().unwrap();
    let checkout = client.checkout();
    // More than there are before rings are offered.
    for _ in 0..100 {
        checkout.call::<u32>("pid", ()).await.unwrap();
    }
});

trial!(a_worker_agrees_once_its_setup_has_succeeded, async || {
    let folder = tempfile::tempdir().unwrap();
    let _server = programs::start(&["serve_as", "!---", "0", &address_in(&folder)]);
    let (mut raw, agreed) = Raw::sharing(&folder.path().join("s"), 1000, "pid").await;
    assert_eq!(agreed, None, "it is not set up");
    raw.call("pid", vec![]);
    assert!(raw.receive_agreed().is_some());
});

trial!(a_worker_that_has_changed_its_user_in_a_call_takes_no_rings, async || {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let _server = programs::start(&["serve_as", "---", "0", &address_in(&folder)]);
    for (users, takes) in [("---", true), ("--+", false), ("+++", false)] {
        let (mut raw, agreed) = Raw::sharing(&folder.path().join("s"), 1000, "pid").await;
        assert!(agreed.is_some());
        raw.call("change", vec![text(users)]);
        raw.receive().unwrap();
        crate::support::raw_rings::offer_to(&raw);
        raw.call("pid", vec![]);
        let next = raw.receive().unwrap();
        assert_eq!(next.as_array().unwrap()[0] == 8.into(), takes, "{users}: {next}");
    }
});

/// Continues a process that has been stopped.
struct Stopped(u32);

impl Drop for Stopped {
    fn drop(&mut self) {
        signal(self.0, libc::SIGCONT);
    }
}

trial!(a_worker_that_has_changed_its_user_ends_with_its_server, async || {
    if !is_root() {
        return;
    }
    for (users, spares) in [("+++", 0), ("+++", 1), ("!+++", 0)] {
        let folder = tempfile::tempdir().unwrap();
        let address = address_in(&folder);
        let server = programs::start(&["serve_as", users, &spares.to_string(), &address]);
        spares_in(&folder, spares).await;
        let (mut raw, _) = Raw::sharing(&folder.path().join("s"), 0, "pid").await;
        raw.call("death_signal", vec![]);
        let answer = raw.receive().unwrap();
        assert_eq!(answer.as_array().unwrap()[2], libc::SIGKILL.into(), "{users}, {spares} spares");
        until("all workers", || children(server.pid()).len() == 1 + spares).await;
        let workers = children(server.pid());
        // It would kill them as well.
        let guardian = guardian(server.pid()).unwrap();
        stop(guardian).await;
        let stopped = Stopped(guardian);
        signal(server.pid(), libc::SIGKILL);
        until("the workers' death", || workers.iter().all(|&pid| is_gone(pid))).await;
        drop(stopped);
        until("the guardian's end", || is_gone(guardian)).await;
    }
});
