//! What runs before the first call.

use std::path::{Path, PathBuf};
use std::time::Duration;

use taskfork::error::{Activity, CallError, End, FatalError, Stage};
use taskfork::{BoxError, Client, Error, Methods, Server, ServerBuilder, ServerError};

use crate::support::raw::Raw;
use crate::support::{address_in, programs, start, trial};

/// The file in the folder of a test for which setups wait, and one that shows that a call has begun.
const GO: &str = "go";
const RAN: &str = "ran";

/// A server whose setups wait for the file `go`.
pub(crate) fn waiting(server: ServerBuilder) -> Result<(), ServerError> {
    let folder: PathBuf = server.config()?;
    let (go, ran) = (folder.join(GO), folder.join(RAN));
    let hanging = ran.clone();
    server
        .setup(move || {
            while !go.exists() {
                std::thread::sleep(Duration::from_millis(2));
            }
            Ok::<_, BoxError>(())
        })
        .interface(
            Methods::new()
                .function("pid", move || {
                    std::fs::write(&ran, "")?;
                    Ok(std::process::id())
                })
                .function("hang", move || -> Result<(), BoxError> {
                    std::fs::write(&hanging, "")?;
                    loop {
                        std::thread::park();
                    }
                }),
        )
        .run()
}

/// The stage in which a call's time ended, and whether it may have run.
pub(crate) fn timed_out<T: std::fmt::Debug>(outcome: Result<T, Error>) -> (Stage, bool) {
    match outcome.unwrap_err() {
        Error::Fatal { cause: FatalError::TimedOut { stage, .. }, may_have_run, .. } => {
            (stage, may_have_run)
        }
        error => panic!("{error:?}"),
    }
}

/// Calls a server whose workers wait in `setup` for a file: before that is there, and then.
pub(crate) async fn assert_a_late_setup_shows(client: &Client, folder: &Path) {
    let short = client.with_timeout(Duration::from_millis(300));
    let outcome = short.call::<u32>("pid", ()).await;
    let text = outcome.as_ref().unwrap_err().to_string();
    assert!(text.ends_with("while its worker ran `setup` (timeout)"), "{text}");
    assert_eq!(timed_out(outcome), (Stage::Setup, false));
    // Calls that were sent ahead have not run either.
    let checkout = client.checkout().timeout(Duration::from_millis(300));
    let calls = [(); 3].map(|()| checkout.call::<u32>("pid", ()));
    for call in calls {
        assert_eq!(timed_out(call.await), (Stage::Setup, false));
    }
    let waiting = client.call::<u32>("pid", ());
    assert!(!folder.join(RAN).exists());
    std::fs::write(folder.join(GO), "").unwrap();
    waiting.await.unwrap();
    assert!(folder.join(RAN).exists());
    // Behind `setup` it is as ever.
    let run_timeout = client.with_timeout(None).with_run_timeout(Duration::from_millis(50));
    assert_eq!(timed_out(run_timeout.call::<()>("hang", ()).await), (Stage::Running, true));
}

trial!(a_failed_setup_reaches_the_first_call_and_the_next_tries_again, async || {
    let (_server, client) = start("setup_second_time");
    let checkout = client.checkout();
    let error = checkout.call::<u32>("tries", ()).await.unwrap_err();
    assert_eq!(error.to_string(), "setup exception: outer");
    assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "no licence");
    assert!(!error.may_have_run() && !error.is_fatal());
    assert_eq!(checkout.call::<u32>("tries", ()).await.unwrap(), 1);
    assert_eq!(checkout.call::<u32>("tries", ()).await.unwrap(), 1);
});

trial!(a_panic_in_setup_is_an_error_of_the_call, async || {
    let (_server, client) = start("setup_panics");
    let error = client.call::<u32>("pid", ()).await.unwrap_err();
    assert!(matches!(error, Error::Call { error: CallError::Setup { .. }, .. }), "{error}");
    let text = error.to_string();
    assert!(text.starts_with("setup exception: panicked: no driver ("), "{text}");
    assert!(text.contains("servers.rs:"), "{text}");
});

trial!(a_death_in_setup_is_reported_to_the_caller, async || {
    let (_server, client) = start("setup_dies");
    let error = client.call::<u32>("pid", ()).await.unwrap_err();
    let Error::Fatal { cause: FatalError::WorkerDied(death), may_have_run, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!((death.end, death.during), (End::Exited(7), Some(Activity::Setup)));
    assert!(!may_have_run);
});

trial!(a_hang_in_setup_ends, async || {
    let (_server, client) = start("setup_hangs");
    let error = client.call::<u32>("pid", ()).await.unwrap_err().to_string();
    assert!(error.contains("during setup: hung for more than 0.2 seconds"), "{error}");
});

trial!(a_setup_that_always_dies_is_no_boot_loop, async || {
    let folder = tempfile::tempdir().unwrap();
    let address = address_in(&folder);
    let _program = programs::start(&["serve_dying_setup", &address]);
    let _client = Client::builder().address(&address).min_workers(4).build().unwrap();
    // The time is given to the client to do wrong in: nothing else could be waited for.
    tokio::time::sleep(Duration::from_millis(700)).await;
    // Workers are numbered: the next one's greeting tells how many there were before it.
    let (_raw, hello) = Raw::greeted(&folder.path().join("s")).await;
    let meta = hello.as_array().unwrap()[1].as_map().unwrap();
    let (_, born) = meta.iter().find(|(key, _)| key.as_str() == Some("worker")).unwrap();
    let born = born.as_u64().unwrap();
    assert!((4..100).contains(&born), "{born} workers in 0.7 seconds");
});

trial!(a_call_whose_time_ends_during_setup_has_not_run, async || {
    for entry in ["setup_waits", "setup_waits_tcp"] {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::spawn_with(entry, &folder.path()).unwrap();
        let client = Client::builder().address(server.address()).min_workers(0).max_workers(2);
        assert_a_late_setup_shows(&client.build().unwrap(), folder.path()).await;
    }
});

// From the second round on, calls go out with the client's hello.
trial!(a_call_that_was_sent_with_the_hello_has_not_run_during_setup, async || {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::spawn_with("setup_waits", &folder.path()).unwrap();
    let client = Client::builder().address(server.address()).min_workers(0).max_workers(4);
    let client = client.timeout(Duration::from_millis(300)).build().unwrap();
    for _ in 0..3 {
        let calls: Vec<_> = (0..4).map(|_| client.call::<u32>("pid", ())).collect();
        for call in calls {
            assert_eq!(timed_out(call.await), (Stage::Setup, false));
        }
    }
    assert!(!folder.path().join(RAN).exists());
});

trial!(an_abort_during_setup_says_that_the_call_has_not_run, async || {
    let folder = tempfile::tempdir().unwrap();
    for entry in ["setup_waits", "setup_waits_tcp"] {
        let server = Server::spawn_with(entry, &folder.path()).unwrap();
        let client = Client::builder().address(server.address()).build().unwrap();
        let checkout = client.checkout();
        checkout.ready().await.unwrap();
        let call = checkout.call::<u32>("pid", ());
        checkout.abort("enough");
        let error = call.await.unwrap_err();
        assert!(!error.may_have_run() && error.to_string() == "enough", "{error:?}");
    }
});
