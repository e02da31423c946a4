//! What runs before the first call.

use std::time::Duration;

use taskfork::error::{Activity, CallError, End, FatalError};
use taskfork::{Client, Error};

use crate::support::raw::Raw;
use crate::support::{address_in, programs, start, trial};

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
