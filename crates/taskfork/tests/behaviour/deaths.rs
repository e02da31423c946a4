//! Workers that die: in every state, by every means.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use taskfork::error::{Activity, Death, End, FatalError};
use taskfork::{Client, Error};

use crate::support::processes::{Program, children, is_alive, signal};
use crate::support::{address_in, programs, start, start_with, trial, until};

fn death<T: std::fmt::Debug>(outcome: Result<T, Error>) -> (Death, bool) {
    match outcome.unwrap_err() {
        Error::Fatal { cause: FatalError::WorkerDied(death), may_have_run, .. } => {
            (death, may_have_run)
        }
        other => panic!("{other}"),
    }
}

trial!(a_death_in_a_call_reports_its_cause_and_process, async || {
    let (_server, client) = start("general");
    let checkout = client.checkout();
    let pid: u32 = checkout.call("pid", ()).await.unwrap();
    let (exited, may_have_run) = death(checkout.call::<()>("exit", (3,)).await);
    assert_eq!((exited.pid, exited.end), (pid, End::Exited(3)));
    assert_eq!((exited.reason, exited.during), (None, Some(Activity::Call)));
    assert_eq!((exited.stderr, exited.hung), (None, None));
    assert!(may_have_run);

    for (method, number) in [("abort", libc::SIGABRT), ("segv", libc::SIGSEGV)] {
        let (killed, _) = death(client.call::<()>(method, ()).await);
        assert_eq!(killed.end, End::Signaled(number), "{method}");
    }
    let error = client.call::<()>("segv", ()).await.unwrap_err().to_string();
    assert!(error.starts_with("worker connection suddenly died: worker "), "{error}");
    assert!(error.ends_with("was killed by SIGSEGV during a call"), "{error}");
});

trial!(a_killed_worker_is_reported_with_its_signal, async || {
    let (_server, client) = start("general");
    for number in [libc::SIGUSR1, libc::SIGRTMIN()] {
        let checkout = client.checkout();
        let pid: u32 = checkout.call("pid", ()).await.unwrap();
        let hanging = checkout.call::<()>("hang", ());
        signal(pid, number);
        assert_eq!(death(hanging.await).0.end, End::Signaled(number));
    }
});

// The kernel reaps the children of a process that ignores their deaths, and tells it nothing.
trial!(deaths_are_reported_if_the_program_ignores_sigchld, async || {
    let folder = tempfile::tempdir().unwrap();
    let address = address_in(&folder);
    let _program = programs::start(&["serve_ignoring_deaths", &address]);
    let client = Client::builder().address(address).min_workers(0).build().unwrap();
    let (exited, _) = death(client.call::<()>("exit", (3,)).await);
    assert_eq!(exited.end, End::Exited(3));
});

trial!(all_calls_of_a_dead_worker_end, async || {
    let (_server, client) = start("general");
    let checkout = client.checkout();
    let calls = [(); 3].map(|()| checkout.call::<()>("abort", ()));
    let ran: Vec<_> = {
        let mut ran = Vec::new();
        for call in calls {
            ran.push(death(call.await).1);
        }
        ran
    };
    assert_eq!(ran, [true, false, false]);
});

trial!(a_worker_that_dies_idle_is_replaced_without_an_error, async || {
    let (_server, client) = start_with("general", |client| client.min_workers(1).max_workers(1));
    for _ in 0..5 {
        let pid: u32 = client.call("pid", ()).await.unwrap();
        signal(pid, libc::SIGKILL);
        // At once: the death may not even have been noticed yet.
        assert_ne!(client.call::<u32>("pid", ()).await.unwrap(), pid);
    }
    let pid: u32 = client.call("pid", ()).await.unwrap();
    signal(pid, libc::SIGKILL);
    until("the worker's end", || !is_alive(pid)).await;
    until("another worker", || client.stats().idle == 1).await;
    assert_ne!(client.call::<u32>("pid", ()).await.unwrap(), pid);
});

trial!(a_worker_that_dies_between_two_calls_ends_the_checkout, async || {
    let (_server, client) = start("general");
    let checkout = client.checkout();
    let pid: u32 = checkout.call("pid", ()).await.unwrap();
    signal(pid, libc::SIGKILL);
    let (killed, may_have_run) = death(checkout.call::<()>("nothing", ()).await);
    assert_eq!((killed.pid, killed.end), (pid, End::Signaled(libc::SIGKILL)));
    assert!(!may_have_run, "its state is lost, but the call itself has not run");

    let checkout = client.checkout();
    let pid: u32 = checkout.call("pid", ()).await.unwrap();
    signal(pid, libc::SIGKILL);
    until("the worker's end", || !is_alive(pid)).await;
    until("the death to be noticed", || client.stats().busy == 0).await;
    assert_eq!(death(checkout.ready().await).0.pid, pid);
});

trial!(a_worker_that_dies_before_the_first_call_is_replaced_without_an_error, async || {
    let (server, client) = start_with("general", |client| client.max_workers(1));
    let checkout = client.checkout();
    checkout.ready().await.unwrap();
    let pid = children(server.pid())[0];
    signal(pid, libc::SIGKILL);
    assert_ne!(checkout.call::<u32>("pid", ()).await.unwrap(), pid);

    let checkout = client.checkout();
    drop(checkout);
});

trial!(a_worker_that_dies_while_cleaning_up_is_replaced_without_an_error, async || {
    let (_server, client) = start_with("done_fails", |client| client.max_workers(1));
    let mut pids = Vec::new();
    for _ in 0..10 {
        pids.push(client.call::<u32>("pid", ()).await.unwrap());
    }
    pids.dedup();
    assert_eq!(pids.len(), 10, "an unclean worker was used again");
});

trial!(many_idle_deaths_under_load_lose_no_call, async || {
    let (server, client) = start("general");
    let returned = Arc::new(AtomicU32::new(0));
    let callers: Vec<_> = (0..4)
        .map(|_| {
            let (client, returned) = (client.clone(), returned.clone());
            tokio::spawn(async move {
                let mut unrun = 0;
                for _ in 0..150 {
                    match client.call::<i64>("add", (1, 1)).await {
                        Ok(sum) => assert_eq!(sum, 2),
                        // A call that was running is lost with its worker; no other may be.
                        Err(error) => unrun += usize::from(!error.may_have_run()),
                    }
                    returned.fetch_add(1, Ordering::Relaxed);
                }
                unrun
            })
        })
        .collect();
    // A call gives up after ten workers that ended before they began it, so that on a busy machine
    // deaths must not come faster than calls return.
    let mut killed_at = u32::MAX;
    while !callers.iter().all(tokio::task::JoinHandle::is_finished) {
        let now = returned.load(Ordering::Relaxed);
        if now == killed_at {
            tokio::time::sleep(Duration::from_millis(3)).await;
            continue;
        }
        killed_at = now;
        for pid in children(server.pid()).into_iter().take(1) {
            // SAFETY: a plain system call; the process may be gone already.
            #[allow(unsafe_code)]
            unsafe {
                libc::kill(pid as i32, libc::SIGKILL);
            }
        }
    }
    for caller in callers {
        assert_eq!(caller.await.unwrap(), 0, "calls that had not run were lost");
    }
});

trial!(with_one_worker_deaths_never_make_two, async || {
    let (server, client) = start_with("general", |client| client.max_workers(1));
    for _ in 0..5 {
        client.call::<()>("abort", ()).await.unwrap_err();
        let calls: Vec<_> = (0..5).map(|_| client.call::<()>("nothing", ())).collect();
        let stats = client.stats();
        assert!(stats.busy + stats.idle + stats.connecting <= 1, "{stats:?}");
        for call in calls {
            call.await.unwrap();
        }
    }
    until("the dead to be buried", || children(server.pid()).len() <= 1).await;
});

trial!(one_death_harms_no_other_checkout, async || {
    let (_server, client) = start("general");
    let other = client.checkout();
    other.call::<()>("remember", ("kept",)).await.unwrap();
    let slow = other.call::<()>("sleep", (100,));
    for _ in 0..5 {
        client.call::<()>("segv", ()).await.unwrap_err();
    }
    slow.await.unwrap();
    assert_eq!(other.call::<String>("note", ()).await.unwrap(), "kept");
});

trial!(a_hung_worker_is_killed_whatever_it_does, async || {
    let (_server, client) = start("hung");
    for method in ["hang", "spin"] {
        let (killed, may_have_run) = death(client.call::<()>(method, ()).await);
        assert_eq!(killed.end, End::Signaled(libc::SIGKILL), "{method}");
        assert_eq!(killed.during, Some(Activity::Call));
        let reason = killed.reason.unwrap();
        assert_eq!(reason, "hung for more than 0.3 seconds (hung_worker_timeout)");
        assert!(may_have_run);
    }
});

trial!(a_worker_below_the_limit_is_not_hung, async || {
    let (_server, client) = start("hung");
    let checkout = client.checkout();
    let pid: u32 = checkout.call("pid", ()).await.unwrap();
    for _ in 0..6 {
        checkout.call::<()>("sleep", (100,)).await.unwrap();
    }
    assert_eq!(checkout.call::<u32>("pid", ()).await.unwrap(), pid);
});

trial!(a_worker_whose_client_times_out_is_killed_inside_its_call, async || {
    let (_server, client) =
        start_with("general", |client| client.timeout(Duration::from_millis(100)));
    let checkout = client.checkout();
    let pid: u32 = checkout.call("pid", ()).await.unwrap();
    checkout.call::<()>("hang", ()).await.unwrap_err();
    until("the worker's end", || !is_alive(pid)).await;
});

trial!(processes_started_by_a_worker_die_with_it, async || {
    let (_server, client) = start("general");
    let checkout = client.checkout();
    let grandchild: u32 = checkout.call("start_child", ()).await.unwrap();
    assert!(is_alive(grandchild));
    checkout.call::<()>("abort", ()).await.unwrap_err();
    until("the end of what it started", || crate::support::processes::is_gone(grandchild)).await;
});

trial!(the_server_logs_one_line_for_each_death, async || {
    let folder = tempfile::tempdir().unwrap();
    let mut command = programs::command(&["serve_logging", &address_in(&folder)]);
    let mut child = command.stderr(std::process::Stdio::piped()).spawn().unwrap();
    let mut stderr = child.stderr.take().unwrap();
    let program = Program::new(child);
    let client = Client::builder().address(address_in(&folder)).max_workers(1).build().unwrap();
    let mut pids = Vec::new();
    for (method, arguments) in [("abort", None), ("exit", Some(3)), ("hang", None)] {
        let checkout = client.checkout();
        pids.push(checkout.call::<u32>("pid", ()).await.unwrap());
        let checkout = checkout.timeout(Duration::from_millis(100));
        let ended = match arguments {
            Some(argument) => checkout.call::<()>(method, (argument,)).await,
            None => checkout.call::<()>(method, ()).await,
        };
        ended.unwrap_err();
    }
    drop(client);
    signal(program.pid(), libc::SIGTERM);
    assert!(program.end().await.success());
    let mut text = String::new();
    std::io::Read::read_to_string(&mut stderr, &mut text).unwrap();
    let ends = ["was killed by SIGABRT", "exited with status 3", "its call's time was over"];
    for (pid, end) in pids.into_iter().zip(ends) {
        let lines = text.lines().filter(|line| !line.starts_with('['));
        let about: Vec<_> = lines.filter(|line| line.contains(&format!("pid={pid}"))).collect();
        assert!(about.len() == 1 && about[0].contains(end), "{pid}: {about:#?} in {text}");
    }
});
