//! Deadlines of calls: what the worker sees, and how a call ends that takes longer.

use std::time::{Duration, Instant};

use taskfork::error::{CallError, FatalError, Hung, Stage};
use taskfork::worker::context;
use taskfork::{BoxError, Client, Error, Methods, ServerBuilder, ServerError};

use crate::support::processes::is_gone;
use crate::support::{address_in, start, start_with, trial, until};

#[inline(never)]
fn hang_in_this_function() {
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}

pub(crate) fn server(server: ServerBuilder) -> Result<(), ServerError> {
    let methods = Methods::new()
        .function("left", || {
            let context = context();
            let until = context.deadline().map(|at| at.saturating_duration_since(Instant::now()));
            Ok((context.remaining(), until, context.is_cancelled()))
        })
        .function("blocking", |seconds: u32| -> Result<u32, BoxError> {
            // SAFETY: it only sleeps.
            #[allow(unsafe_code)]
            let unslept = unsafe { libc::sleep(seconds) };
            match unslept {
                0 => Ok(seconds),
                _ if context().is_cancelled() => Err("interrupted, and cleaned up".into()),
                _ => Err("interrupted for no reason".into()),
            }
        })
        .function("loop", || -> Result<(), BoxError> {
            while !context().is_cancelled() {
                std::hint::spin_loop();
            }
            Err("asked to stop".into())
        })
        .function("late", |milliseconds: u64| {
            std::thread::sleep(Duration::from_millis(milliseconds));
            Ok(context().is_cancelled())
        })
        .function("hang", || {
            hang_in_this_function();
            Ok(())
        })
        .function("allocate_for_ever", || -> Result<(), BoxError> {
            // SAFETY: what is allocated is freed.
            #[allow(unsafe_code)]
            unsafe {
                loop {
                    // Of all sizes, so that most of the time is spent with malloc's lock held.
                    let blocks: [_; 8] = std::array::from_fn(|place| libc::malloc(5000 << place));
                    std::hint::black_box(&blocks);
                    blocks.into_iter().for_each(|block| libc::free(block));
                }
            }
        })
        .function("block_signals", || -> Result<(), BoxError> {
            set_blocked(true);
            hang_in_this_function();
            Ok(())
        })
        .function("block_signals_for_a_while", || -> Result<(), BoxError> {
            set_blocked(true);
            while !is_alarm_pending() {
                std::thread::yield_now();
            }
            std::thread::sleep(Duration::from_millis(120));
            set_blocked(false);
            hang_in_this_function();
            Ok(())
        })
        .function("pid", || Ok(std::process::id()));
    server.interface(methods).run()
}

/// Blocks all signals, or none.
fn set_blocked(is_blocked: bool) {
    // SAFETY: plain settings of this process.
    #[allow(unsafe_code)]
    unsafe {
        let mut signals = std::mem::zeroed();
        if is_blocked {
            libc::sigfillset(&mut signals);
        }
        libc::sigprocmask(libc::SIG_SETMASK, &signals, std::ptr::null_mut());
    }
}

fn is_alarm_pending() -> bool {
    // SAFETY: the kernel writes the set.
    #[allow(unsafe_code)]
    unsafe {
        let mut signals = std::mem::zeroed();
        libc::sigpending(&mut signals);
        libc::sigismember(&signals, libc::SIGALRM) == 1
    }
}

pub(crate) type Left = (Option<Duration>, Option<Duration>, bool);

trial!(a_worker_knows_how_much_time_is_left, async || {
    assert_eq!((context().remaining(), context().is_cancelled()), (None, false));
    let (_server, client) = start_with("deadlines", |client| client.max_workers(1));
    let time = Duration::from_secs(20);
    let checkout = client.checkout().timeout(time);
    let (left, until, cancelled) = checkout.call::<Left>("left", ()).await.unwrap();
    let enough = Duration::from_secs(15)..=time;
    assert!(enough.contains(&left.unwrap()) && enough.contains(&until.unwrap()), "{left:?}");
    assert!(!cancelled);

    // The time in the queue counts.
    let queued = client.checkout().timeout(time).call::<Left>("left", ());
    checkout.call::<bool>("late", (300_u64,)).await.unwrap();
    drop(checkout);
    let (left, ..) = queued.await.unwrap();
    assert!(left.unwrap() < time - Duration::from_millis(290), "{left:?}");

    let checkout = client.checkout().timeout(None);
    assert_eq!(checkout.call::<Left>("left", ()).await.unwrap(), (None, None, false));
});

trial!(a_system_call_that_blocks_is_interrupted, async || {
    let (_server, client) = start_with("deadlines", |client| client.grace(Duration::from_secs(20)));
    let checkout = client.checkout();
    let pid: u32 = checkout.call("pid", ()).await.unwrap();
    let checkout = checkout.timeout(Duration::from_millis(100));
    let error = checkout.call::<u32>("blocking", (40,)).await.unwrap_err();
    assert_eq!(error.to_string(), "interrupted, and cleaned up");
    assert!(!error.is_fatal());
    assert_eq!(checkout.call::<u32>("pid", ()).await.unwrap(), pid);
});

trial!(a_loop_that_asks_may_end_by_itself, async || {
    let (_server, client) = start_with("deadlines", |client| client.grace(Duration::from_secs(20)));
    let checkout = client.checkout();
    let _: u32 = checkout.call("pid", ()).await.unwrap();
    let checkout = checkout.timeout(Duration::from_millis(50));
    let error = checkout.call::<()>("loop", ()).await.unwrap_err();
    assert!(matches!(error, Error::Call { error: CallError::Interface(_), .. }), "{error}");
});

trial!(the_grace_can_be_longer, async || {
    let (_server, client) = start_with("deadlines", |client| client.grace(Duration::from_secs(10)));
    let checkout = client.checkout();
    let _: u32 = checkout.call("pid", ()).await.unwrap();
    let checkout = checkout.timeout(Duration::from_millis(50));
    assert!(checkout.call::<bool>("late", (500_u64,)).await.unwrap());
});

/// Where a call hung whose time was over. On a busy machine the server can lack the time to find the stack.
/// Then the error gives the reason.
fn hung(error: &Error) -> Option<&Hung> {
    let Error::Fatal {
        cause: FatalError::TimedOut { stage: Stage::Running, hung, .. },
        may_have_run: true,
        ..
    } = error
    else {
        panic!("{error:?}")
    };
    let hung = hung.as_deref()?;
    assert_eq!(hung.stack.is_none(), hung.no_stack.is_some(), "{hung:?}");
    Some(hung)
}

/// Tries until the machine was not too busy for a stack to be found.
async fn until_told<T>(mut attempt: impl AsyncFnMut() -> (bool, T)) -> T {
    loop {
        if let (true, result) = attempt().await {
            return result;
        }
    }
}

trial!(the_error_of_a_hung_call_has_its_stack, async || {
    let (_server, client) = start("deadlines");
    let (pid, error) = until_told(async || {
        let checkout = client.checkout();
        let pid: u32 = checkout.call("pid", ()).await.unwrap();
        let checkout = checkout.timeout(Duration::from_millis(100));
        let error = checkout.call::<()>("hang", ()).await.unwrap_err();
        assert_eq!(error.to_string(), "timed out after 0.1 seconds while running (timeout)");
        (hung(&error).is_some_and(|hung| hung.stack.is_some()), (pid, error))
    })
    .await;
    let hung = hung(&error).unwrap();
    assert!(hung.ran_for >= Duration::from_millis(195), "{hung:?}");
    let stack = hung.stack.as_deref().unwrap();
    assert!(stack.contains("hang_in_this_function"), "{stack}");
    assert!(stack.contains("tests/behaviour/deadlines.rs:"), "{stack}");
    assert!(!stack.contains("taskfork::worker::"), "{stack}");
    let report = format!("{error:#}");
    assert!(report.contains("hang_in_this_function") && report.contains("it had run for"));
    until("the worker is gone", || is_gone(pid)).await;
});

trial!(the_error_of_a_server_timeout_has_the_stack, async || {
    let (_server, client) = start_with("deadlines_hung", |client| client.timeout(None));
    let stack = until_told(async || {
        let error = client.call::<()>("hang", ()).await.unwrap_err();
        let Error::Fatal { cause: FatalError::WorkerDied(death), .. } = error else {
            panic!("{error:?}")
        };
        let reason = death.reason.as_deref().unwrap();
        assert!(reason.contains("hung_worker_timeout"), "{reason}");
        let hung = death.hung.unwrap();
        assert_eq!(hung.stack.is_none(), hung.no_stack.is_some(), "{hung:?}");
        (hung.stack.is_some(), hung.stack)
    })
    .await;
    assert!(stack.unwrap().contains("hang_in_this_function"));
});

trial!(a_worker_that_cannot_tell_is_killed_all_the_same, async || {
    let (_server, client) = start_with("deadlines_hung", |client| client.timeout(None));
    let error = client.call::<()>("block_signals", ()).await.unwrap_err();
    let Error::Fatal { cause: FatalError::WorkerDied(death), .. } = &error else {
        panic!("{error:?}")
    };
    let hung = death.hung.as_ref().unwrap();
    let reason = "the worker's code blocks SIGALRM";
    assert_eq!((hung.stack.as_deref(), hung.no_stack.as_deref()), (None, Some(reason)));
    assert!(format!("{error:#}").contains("its stack is not known: the worker's code blocks"));
});

trial!(a_worker_that_blocks_signals_for_a_while_tells_its_stack, async || {
    let (_server, client) = start_with("deadlines_hung", |client| client.timeout(None));
    until_told(async || {
        let error = client.call::<()>("block_signals_for_a_while", ()).await.unwrap_err();
        let Error::Fatal { cause: FatalError::WorkerDied(death), .. } = &error else {
            panic!("{error:?}")
        };
        let stack = death.hung.as_ref().unwrap().stack.as_deref().unwrap_or_default();
        // The signal comes at once when it is no longer blocked.
        (stack.contains("set_blocked"), ())
    })
    .await;
});

trial!(a_hang_inside_the_allocator_has_its_stack, async || {
    let (_server, client) = start("deadlines");
    // Each worker tells, whatever lock it holds: none that has had a core is without a stack.
    for _ in 0..4 {
        until_told(async || {
            let checkout = client.checkout();
            let _: u32 = checkout.call("pid", ()).await.unwrap();
            let checkout = checkout.timeout(Duration::from_millis(50));
            let error = checkout.call::<()>("allocate_for_ever", ()).await.unwrap_err();
            let hung = hung(&error);
            let reason = hung.and_then(|hung| hung.no_stack.as_deref()).unwrap_or_default();
            assert!(!reason.contains("SIGALRM"), "{reason}");
            (hung.is_some_and(|hung| hung.stack.is_some()), ())
        })
        .await;
    }
});

trial!(a_late_alarm_does_not_reach_the_next_call, async || {
    let (_server, client) = start("deadlines");
    for _ in 0..50 {
        let checkout = client.checkout().timeout(Duration::from_millis(20));
        // It ends about when its time does.
        let _ = checkout.call::<bool>("late", (20_u64,)).await;
        let checkout = checkout.timeout(Duration::from_secs(20));
        match checkout.call::<u32>("blocking", (0,)).await {
            Ok(_) | Err(Error::Fatal { may_have_run: false, .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
});

trial!(a_worker_without_a_deadline_is_killed_by_its_client, async || {
    use std::io::Read;
    use std::os::unix::net::UnixListener;

    use crate::support::raw::{Raw, map, text};

    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("s")).unwrap();
    let worker = std::thread::spawn(move || {
        let mut raw = Raw::accept(&listener);
        raw.0.read_exact(&mut [0; 8]).unwrap();
        raw.receive().unwrap();
        raw.send(b"taskfork");
        let hello = [("version", 1.into()), ("pid", 1.into()), ("server", text("deaf"))];
        raw.send_message(vec![0.into(), map(&hello)]);
        let call = raw.receive().unwrap();
        raw.drain();
        call
    });
    let client = Client::builder().address(address_in(&folder)).min_workers(0).max_workers(1);
    let client = client.timeout(Duration::from_millis(50)).grace(Duration::from_millis(7));
    let client = client.build().unwrap();
    let error = client.call::<()>("any", ()).await.unwrap_err();
    assert!(
        matches!(error, Error::Fatal { cause: FatalError::TimedOut { hung: None, .. }, .. }),
        "{error:?}"
    );
    drop(client);
    let call = worker.join().unwrap();
    assert_eq!(call[1]["grace"], 7000.into());
    assert!((1..=50_000).contains(&call[1]["timeout"].as_u64().unwrap()), "{call}");
});

// The client's one clock has rung for the first, and is set again though nothing else happens.
trial!(a_time_that_is_set_after_the_last_has_come_is_kept, async || {
    let (_server, client) = start_with("general", |client| client.max_workers(1));
    let holder = client.checkout().timeout(None);
    let _: u32 = holder.call("pid", ()).await.unwrap();
    for _ in 0..2 {
        let waiting = client.checkout().timeout(Duration::from_millis(20));
        // Whatever the new place in the queue has brought about is over by then.
        tokio::time::sleep(Duration::from_millis(20)).await;
        let error = waiting.call::<u32>("pid", ()).await.unwrap_err();
        let waited = matches!(
            error,
            Error::Fatal { cause: FatalError::TimedOut { stage: Stage::Waiting, .. }, .. }
        );
        assert!(waited, "{error}");
    }
});
