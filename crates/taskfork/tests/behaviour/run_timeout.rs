//! The time limit that counts from when a call begins to run.

use std::time::Duration;

use taskfork::Error;
use taskfork::client::Protocol;
use taskfork::error::{FatalError, Stage, TimeoutOption};

use crate::deadlines::Left;
use crate::support::{start_with, trial};

/// The option of the limit that ended a call, and the limit.
fn limit(error: &Error) -> (TimeoutOption, Duration) {
    match error {
        Error::Fatal {
            cause: FatalError::TimedOut { after, limit, stage: Stage::Running, .. },
            ..
        } => (*limit, *after),
        error => panic!("{error:?}"),
    }
}

trial!(many_calls_at_once_have_each_their_own_time, async || {
    let run_timeout = Duration::from_secs(100);
    let (_server, client) = start_with("deadlines", |client| {
        client.max_workers(2).timeout(None).run_timeout(run_timeout)
    });
    let calls: Vec<_> = (0..40).map(|_| client.call::<bool>("late", (5_u64,))).collect();
    let last = client.call::<Left>("left", ());
    for call in calls {
        assert!(!call.await.unwrap());
    }
    // 40 calls of 5 milliseconds on 2 workers came before it.
    let (left, ..) = last.await.unwrap();
    assert!(left.unwrap() > run_timeout - Duration::from_millis(100), "{left:?}");
});

trial!(a_call_that_runs_too_long_names_the_limit, async || {
    let run_timeout = Duration::from_millis(100);
    let (_server, client) = start_with("deadlines", |client| client.timeout(None));
    let short = client.with_run_timeout(run_timeout);
    let error = short.call::<()>("hang", ()).await.unwrap_err();
    assert_eq!(limit(&error), (TimeoutOption::RunTimeout, run_timeout));
    assert_eq!(error.to_string(), "timed out after 0.1 seconds while running (run_timeout)");

    let both = client.with_timeout(run_timeout).with_run_timeout(Duration::from_secs(100));
    let error = both.call::<()>("hang", ()).await.unwrap_err();
    assert_eq!(limit(&error), (TimeoutOption::Timeout, run_timeout));

    // The other handle has no limit.
    let (left, ..) = client.call::<Left>("left", ()).await.unwrap();
    assert_eq!(left, None);
});

trial!(pipelined_calls_have_each_their_own_time, async || {
    let (_server, client) =
        start_with("deadlines", |client| client.timeout(None).grace(Duration::from_secs(20)));
    let run_timeout = Duration::from_secs(50);
    let checkout = client.checkout().run_timeout(run_timeout);
    let slow = [(); 3].map(|()| checkout.call::<bool>("late", (200_u64,)));
    let last = checkout.call::<Left>("left", ());
    for call in slow {
        assert!(!call.await.unwrap());
    }
    let (left, ..) = last.await.unwrap();
    assert!(left.unwrap() > run_timeout - Duration::from_millis(400), "{left:?}");

    let checkout = checkout.run_timeout(Duration::from_millis(50));
    let calls = [(); 2].map(|()| checkout.call::<bool>("late", (500_u64,)));
    for call in calls {
        assert!(call.await.unwrap(), "its own time was over");
    }
});

trial!(a_server_in_perl_keeps_no_time_so_the_client_does, async || {
    let run_timeout = Duration::from_millis(100);
    let (_server, client) = start_with("deadlines", |client| {
        client.timeout(None).run_timeout(run_timeout).protocol(Protocol::Perl)
    });
    let error = client.call::<()>("hang", ()).await.unwrap_err();
    assert_eq!(limit(&error), (TimeoutOption::RunTimeout, run_timeout));
});
