//! What is left when a server is killed: nothing.

use taskfork::Server;

use crate::support::processes::{all_children, children, descriptors, guardian, is_gone, signal};
use crate::support::{start, trial, until};

trial!(processes_started_by_workers_end_with_a_killed_server, async || {
    let (server, client) = start("general");
    let checkout = client.checkout();
    let mut started: Vec<u32> = checkout.call("start_daemons", ()).await.unwrap();
    started.push(checkout.call("start_child", ()).await.unwrap());
    started.push(checkout.call("escape", ()).await.unwrap());
    // A copy of the worker itself, which has left its group and its session.
    started.push(checkout.call("fork_daemon", ()).await.unwrap());
    started.extend(children(server.pid()));
    let guardian = guardian(server.pid()).unwrap();
    assert!(started.iter().all(|&pid| !is_gone(pid)));
    signal(server.pid(), libc::SIGKILL);
    until("all are gone", || started.iter().all(|&pid| is_gone(pid))).await;
    until("the guardian is gone", || is_gone(guardian)).await;
});

trial!(a_guardian_that_dies_is_replaced, async || {
    let (server, client) = start("general");
    let first = guardian(server.pid()).unwrap();
    signal(first, libc::SIGKILL);
    until("another", || guardian(server.pid()).is_some_and(|next| next != first)).await;
    assert!(is_gone(first));
    let started: Vec<u32> = client.call("start_daemons", ()).await.unwrap();
    signal(server.pid(), libc::SIGKILL);
    until("all are gone", || started.iter().all(|&pid| is_gone(pid))).await;
});

// When its guardian dies, the server has few descriptors left. The number varies, so that starting
// another guardian fails at each point.
trial!(workers_run_if_the_guardian_cannot_be_started, async || {
    let (server, client) = start("general");
    let checkout = client.checkout();
    let worker: u32 = checkout.call("pid", ()).await.unwrap();
    let limit = |most: u64| {
        let both = libc::rlimit { rlim_cur: most, rlim_max: 1024 };
        let pid = server.pid().cast_signed();
        // SAFETY: it reads a value that is there.
        #[allow(unsafe_code)]
        let set = unsafe { libc::prlimit(pid, libc::RLIMIT_NOFILE, &both, std::ptr::null_mut()) };
        assert_eq!(set, 0);
    };
    let open = descriptors(server.pid()) as u64;
    for spare in 0..6 {
        let own = guardian(server.pid()).unwrap();
        // The two of the dead guardian are free again.
        limit(open - 2 + spare);
        signal(own, libc::SIGKILL);
        until("its end is seen", || !all_children(server.pid()).contains(&own)).await;
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        assert!(!is_gone(server.pid()) && !is_gone(worker), "with {spare} descriptors left");
        limit(1024);
        until("another", || guardian(server.pid()).is_some()).await;
        assert_eq!(checkout.call::<u32>("pid", ()).await.unwrap(), worker);
    }
    assert_eq!(all_children(server.pid()).len(), 2, "a worker and a guardian");
});

trial!(a_guardian_goes_with_its_server, async || {
    let server = Server::spawn("general").unwrap();
    let guardian = guardian(server.pid()).unwrap();
    // What a terminal or a service manager sends to all is not for it.
    for number in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        signal(guardian, number);
    }
    assert_eq!(all_children(server.pid()), [guardian]);
    server.close();
    assert!(is_gone(guardian));
});

trial!(other_servers_are_left_alone, async || {
    let (first, _) = start("general");
    let (_second, client) = start("general");
    let started: Vec<u32> = client.call("start_daemons", ()).await.unwrap();
    let checkout = client.checkout();
    let worker: u32 = checkout.call("pid", ()).await.unwrap();
    let child: u32 = checkout.call("start_child", ()).await.unwrap();
    drop(started);
    let own = guardian(first.pid()).unwrap();
    signal(first.pid(), libc::SIGKILL);
    until("the guardian has done its work", || is_gone(own)).await;
    assert!(!is_gone(worker) && !is_gone(child));
});
