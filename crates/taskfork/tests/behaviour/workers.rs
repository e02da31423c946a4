//! What a worker process is like.

use std::collections::{HashMap, HashSet};

use crate::support::processes::{command_line, descriptors};
use crate::support::{address_in, programs, start, start_with, trial};

trial!(server_and_workers_are_named_in_ps, async || {
    let (server, client) = start("general");
    let checkout = client.checkout();
    let pid: u32 = checkout.call("pid", ()).await.unwrap();
    assert_eq!(command_line(server.pid()), "taskfork-server:general");
    assert_eq!(command_line(pid), "taskfork-worker:general(1)");
    let status: String = checkout.call("status", ()).await.unwrap();
    assert!(status.starts_with("Name:\ttaskfork-worker\n"), "{status}");
});

trial!(a_long_name_is_cut_at_a_letter, async || {
    let (server, client) = start("long_name");
    let pid: u32 = client.call("pid", ()).await.unwrap();
    assert_eq!(command_line(server.pid()), format!("taskfork-server:{}", "é".repeat(32)));
    assert_eq!(command_line(pid), format!("taskfork-worker:{}(1)", "é".repeat(32)));
});

trial!(a_worker_holds_no_descriptor_of_anybody_else, async || {
    let (_server, client) = start_with("general", |client| client.min_workers(4));
    // What this program was started with goes to whatever it starts.
    let inherited: HashSet<String> = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| {
            Some(std::fs::read_link(entry.ok()?.path()).ok()?.display().to_string())
        })
        .collect();
    let mut sockets = HashSet::new();
    let mut pipes: HashMap<String, usize> = HashMap::new();
    let checkouts: Vec<_> = (0..4).map(|_| client.checkout()).collect();
    for checkout in &checkouts {
        let open: Vec<String> = checkout.call("descriptors", ()).await.unwrap();
        let own: Vec<_> = open.iter().filter(|target| target.starts_with("socket:")).collect();
        assert_eq!(own.len(), 1, "its own connection only: {open:?}");
        assert!(sockets.insert(own[0].clone()), "two workers hold {}", own[0]);
        let own = open.iter().filter(|target| target.starts_with("pipe:"));
        let own: HashSet<_> = own.filter(|target| !inherited.contains(*target)).collect();
        assert_eq!(own.len(), 2, "its standard error, and what wakes the server: {open:?}");
        own.into_iter().for_each(|pipe| *pipes.entry(pipe.clone()).or_default() += 1);
        let of_kernel = open.iter().filter(|target| target.starts_with("anon_inode:"));
        assert_eq!(of_kernel.count(), 0, "no epoll, signal or process descriptor: {open:?}");
    }
    let mut holders: Vec<_> = pipes.into_values().collect();
    holders.sort_unstable();
    assert_eq!(holders, [1, 1, 1, 1, 4], "only what wakes the server is held by all");
});

trial!(a_worker_of_a_listening_server_does_not_hold_the_listener, async || {
    let (server, client) = start("tcp");
    let checkout = client.checkout();
    let open: Vec<String> = checkout.call("descriptors", ()).await.unwrap();
    let sockets = open.iter().filter(|target| target.starts_with("socket:")).count();
    assert_eq!(sockets, 1, "{open:?}");
    assert!(descriptors(server.pid()) > open.len());
});

trial!(a_connection_over_tcp_neither_waits_nor_outlives_its_peer, async || {
    let (_server, client) = start("tcp");
    let options: Vec<(bool, bool)> = client.call("tcp_options", ()).await.unwrap();
    assert_eq!(options, [(true, true)]);
});

fn mask(status: &str, field: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    u64::from_str_radix(line.trim(), 16).unwrap()
}

trial!(signals_are_those_of_a_worker_whatever_the_server_had_set, async || {
    let folder = tempfile::tempdir().unwrap();
    let address = address_in(&folder);
    let _program = programs::start(&["serve_masked", &address]);
    let client = taskfork::Client::builder().address(&address).build().unwrap();
    let status: String = client.call("status", ()).await.unwrap();
    assert_eq!(mask(&status, "SigBlk:"), 0);
    // Signals that the C library reserves are excluded.
    let ignored = mask(&status, "SigIgn:") & !(0b11 << 31);
    let expected =
        [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGPIPE, libc::SIGTTOU];
    assert_eq!(ignored, expected.iter().map(|number| 1 << (number - 1)).sum::<u64>());
    let caught = mask(&status, "SigCgt:") & !(1 << (libc::SIGSEGV - 1) | 1 << (libc::SIGBUS - 1));
    // By which it tells where it hangs, and where it is.
    assert_eq!(caught, 1 << (libc::SIGALRM - 1) | 1 << (libc::SIGURG - 1), "{caught:x}");
});

trial!(a_write_to_a_closed_pipe_is_an_error, async || {
    let (_server, client) = start("general");
    let kind: String = client.call("write_to_closed_pipe", ()).await.unwrap();
    assert_eq!(kind, "broken pipe");
});

trial!(the_random_generator_of_c_differs_between_workers, async || {
    let (_server, client) = start("general");
    let (one, two) = (client.checkout(), client.checkout());
    let (one, two) = (one.call::<Vec<i32>>("random", ()), two.call::<Vec<i32>>("random", ()));
    assert_ne!(one.await.unwrap(), two.await.unwrap());
});

trial!(standard_output_of_a_worker_never_reaches_the_wire, async || {
    let (_server, client) = start("general");
    let checkout = client.checkout();
    checkout.call::<()>("print", ("printed by a worker",)).await.unwrap();
    assert_eq!(checkout.call::<i64>("add", (1, 1)).await.unwrap(), 2);
});

trial!(output_buffered_by_the_server_is_written_once, async || {
    let folder = tempfile::tempdir().unwrap();
    let address = address_in(&folder);
    let output = folder.path().join("output");
    let mut command = programs::command(&["serve_printing", &address]);
    command.stdout(std::fs::File::create(&output).unwrap());
    let program = crate::support::processes::Program::new(command.spawn().unwrap());
    let client = taskfork::Client::builder().address(&address).max_workers(3).build().unwrap();
    let calls: Vec<_> = (0..9).map(|_| client.call::<()>("print", ("w",))).collect();
    for call in calls {
        call.await.unwrap();
    }
    drop(client);
    crate::support::processes::signal(program.pid(), libc::SIGTERM);
    program.end().await;
    let output = std::fs::read_to_string(output).unwrap();
    assert_eq!(output.matches("buffered by the server;").count(), 1, "{output}");
    assert_eq!(output.matches("ww\n").count(), 9, "{output}");
});

trial!(standard_input_is_empty, async || {
    let (_server, client) = start("general");
    assert_eq!(client.call::<String>("read_stdin", ()).await.unwrap(), "");
});

trial!(each_worker_leads_a_process_group, async || {
    let (_server, client) = start("general");
    let pid: u32 = client.call("pid", ()).await.unwrap();
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let group = stat.rsplit(')').next().unwrap().split_whitespace().nth(2).unwrap();
    assert_eq!(group, pid.to_string());
});

trial!(a_program_started_by_a_worker_does_not_become_a_server, async || {
    let (_server, client) = start("general");
    let variables: Vec<String> = client.call("variables", ()).await.unwrap();
    assert!(!variables.contains(&"TASKFORK_SERVER".to_owned()), "{variables:?}");
});
