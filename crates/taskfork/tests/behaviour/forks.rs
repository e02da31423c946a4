//! User code that forks: a child that comes back from a call, one that holds the worker's connection, and code that
//! has changed what SIGALRM does.

use std::io::Read;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use libc::pid_t;
use rustix::net::{SocketType, sockopt};
use taskfork::client::{BusyPoll, Protocol, Value};
use taskfork::error::{Death, End, FatalError, Stage};
use taskfork::log_defer::Log;
use taskfork::worker::logger;
use taskfork::{BoxError, Client, Error, Methods, ServerBuilder, ServerError};

use crate::files::{receive_with, send_with};
use crate::support::processes::{children, signal};
use crate::support::raw::Raw;
use crate::support::{address_in, programs, start, start_with, trial, until};

/// With which a process ends that a call has forked and that came back from it.
const CAME_BACK: i32 = 70;

/// As C's function does, or by the system call alone, of which C's library learns nothing.
fn fork(how: &str) -> pid_t {
    // SAFETY: this process has one thread, or the child does no more than it would with the others.
    #[allow(unsafe_code)]
    unsafe {
        match how {
            "fork" => libc::fork(),
            _ => libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) as pid_t,
        }
    }
}

/// The exit status of a child, once it has ended.
fn wait_for(child: pid_t) -> i32 {
    let mut status = -1;
    // SAFETY: it waits for a child of this process.
    #[allow(unsafe_code)]
    unsafe {
        libc::waitpid(child, &raw mut status, 0)
    };
    libc::WEXITSTATUS(status)
}

fn leave(status: i32) -> ! {
    // SAFETY: it ends this process.
    #[allow(unsafe_code)]
    unsafe {
        libc::_exit(status)
    }
}

/// Starts a process in its own group that keeps copies of all descriptors of this one.
pub(crate) fn start_holder() {
    if fork("fork") == 0 {
        // SAFETY: it makes system calls only.
        #[allow(unsafe_code)]
        unsafe {
            libc::setsid();
            libc::signal(libc::SIGTERM, libc::SIG_IGN);
            loop {
                libc::pause();
            }
        }
    }
}

#[derive(Default)]
struct Worker {
    in_setup: i32,
    in_done: i32,
}

pub(crate) fn server(server: ServerBuilder) -> Result<(), ServerError> {
    let methods = Methods::new()
        .function("echo", |value: Value| Ok(value))
        .function("pid", || Ok(std::process::id()))
        .function("return_twice", |how: String| {
            fork(&how);
            Ok(std::process::id())
        })
        .function("status_of_child", |how: String, what: String| {
            match (fork(&how), what.as_str()) {
                (0, "returns") => Ok(-1),
                (0, "fails") => Err(BoxError::from("in the child")),
                (0, "panics") => panic!("in the child"),
                (0, _) => std::process::exit(9),
                (child, _) => Ok(wait_for(child)),
            }
        })
        .function("log_in_child", || match fork("fork") {
            0 => {
                logger().info("said by the child");
                std::thread::sleep(Duration::from_millis(300));
                leave(0)
            }
            child => Ok(wait_for(child)),
        })
        .function("abort_with_holder", || -> Result<(), BoxError> {
            start_holder();
            std::process::abort()
        })
        .function("exit_with_holder", |status: i32| -> Result<(), BoxError> {
            start_holder();
            leave(status)
        })
        .function("start_holder", || {
            start_holder();
            Ok(std::process::id())
        })
        .function("make", |length: usize| Ok("x".repeat(length)))
        .function("give_connection", |path: String| {
            let connection = connection().ok_or("there is no connection")?;
            send_with(&Raw(UnixStream::connect(path)?), b"x", &[connection]);
            Ok(std::process::id())
        })
        .function("reset_alarm", || -> Result<(), BoxError> {
            // SAFETY: it sets no handler.
            #[allow(unsafe_code)]
            unsafe {
                libc::signal(libc::SIGALRM, libc::SIG_DFL)
            };
            std::thread::sleep(Duration::from_secs(1000));
            Ok(())
        })
        .function("own_alarm", || -> Result<(), BoxError> {
            // SAFETY: it sets no handler.
            #[allow(unsafe_code)]
            unsafe {
                libc::signal(libc::SIGALRM, libc::SIG_DFL);
                libc::raise(libc::SIGALRM)
            };
            Ok(())
        })
        .function("execute", || -> Result<(), BoxError> {
            use std::os::unix::process::CommandExt;
            Err(std::process::Command::new("sleep").arg("1000").exec().into())
        });
    server.interface(methods).run()
}

/// One whose workers fork in `setup` and in `checkout_done`.
pub(crate) fn around_calls(server: ServerBuilder) -> Result<(), ServerError> {
    server
        .setup(|| {
            let in_setup = match fork("fork") {
                0 => 0,
                child => wait_for(child),
            };
            Ok::<_, BoxError>(Worker { in_setup, in_done: 0 })
        })
        .checkout_done(|worker: &mut Worker| {
            match fork("clone") {
                0 => {}
                child => worker.in_done = wait_for(child),
            }
            Ok::<_, BoxError>(())
        })
        .interface(
            Methods::new()
                .method("statuses", |worker: &mut Worker| Ok((worker.in_setup, worker.in_done))),
        )
        .run()
}

/// A copy of this worker's connection, which is its only stream socket.
fn connection() -> Option<OwnedFd> {
    (3..64).find_map(|number| {
        // SAFETY: a number that is not open is refused.
        #[allow(unsafe_code)]
        let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
        let is_stream = sockopt::socket_type(descriptor).ok()? == SocketType::STREAM;
        is_stream.then(|| descriptor.try_clone_to_owned().ok())?
    })
}

fn death<T: std::fmt::Debug>(outcome: Result<T, Error>) -> Death {
    match outcome.unwrap_err() {
        Error::Fatal { cause: FatalError::WorkerDied(death), .. } => death,
        other => panic!("{other}"),
    }
}

/// Twenty checkouts, each of which is to have the answer to its own call.
async fn check_answers(client: &Client) {
    for number in 0..20 {
        assert_eq!(client.call::<u32>("echo", (number,)).await.unwrap(), number);
    }
}

trial!(a_child_that_returns_from_a_call_answers_nothing, async || {
    for protocol in [Protocol::Native, Protocol::Perl] {
        let (server, client) =
            start_with("forks", |client| client.max_workers(1).protocol(protocol));
        for how in ["fork", "clone"] {
            let worker: u32 = client.call("return_twice", (how,)).await.unwrap();
            check_answers(&client).await;
            assert_eq!(client.call::<u32>("pid", ()).await.unwrap(), worker);
        }
        assert_eq!(children(server.pid()).len(), 1);
    }
});

trial!(a_child_that_returns_while_rings_are_used_answers_nothing, async || {
    let (_server, client) = start_with("forks_awake", |client| {
        client.max_workers(1).busy_poll(BusyPoll::Fixed(Duration::from_secs(1)))
    });
    let checkout = client.checkout();
    for number in 0..100 {
        assert_eq!(checkout.call::<u32>("echo", (number,)).await.unwrap(), number);
    }
    for how in ["fork", "clone"] {
        checkout.call::<u32>("return_twice", (how,)).await.unwrap();
        for number in 0..50 {
            assert_eq!(checkout.call::<u32>("echo", (number,)).await.unwrap(), number);
        }
    }
});

trial!(a_child_ends_however_it_comes_back_from_a_call, async || {
    let (_server, client) = start_with("forks", |client| client.max_workers(1));
    for how in ["fork", "clone"] {
        for (what, status) in
            [("returns", CAME_BACK), ("fails", CAME_BACK), ("panics", CAME_BACK), ("exits", 9)]
        {
            let ended = client.call::<i32>("status_of_child", (how, what)).await;
            assert_eq!(ended.unwrap(), status, "{how}: {what}");
            check_answers(&client).await;
        }
    }
});

trial!(a_child_that_returns_from_setup_or_checkout_done_ends, async || {
    for entry in ["forks_around_calls", "forks_spare"] {
        let (_server, client) = start_with(entry, |client| client.max_workers(1));
        for in_done in [0, CAME_BACK] {
            let statuses: (i32, i32) = client.call("statuses", ()).await.unwrap();
            assert_eq!(statuses, (CAME_BACK, in_done), "{entry}");
        }
    }
});

trial!(a_child_that_logs_sends_nothing, async || {
    let (_server, client) = start_with("forks", |client| client.max_workers(1));
    let log = Log::new(drop);
    let checkout = client.checkout().log(&log);
    assert_eq!(checkout.call::<i32>("log_in_child", ()).await.unwrap(), 0);
    assert_eq!(checkout.call::<u32>("echo", (7,)).await.unwrap(), 7);
    let said = format!("{:?}", log.message().logs);
    assert!(!said.contains("said by the child"), "{said}");
});

// A child that comes back from `preload` would be another server on the same socket.
trial!(a_child_that_returns_from_preload_is_no_server, async || {
    let folder = tempfile::tempdir().unwrap();
    let server = programs::start(&["serve_forking_preload", &address_in(&folder)]);
    let client = Client::builder().address(address_in(&folder)).build().unwrap();
    let parents: Vec<u32> = client.call("parent_and_status", ()).await.unwrap();
    assert_eq!(parents, [server.pid(), CAME_BACK as u32]);
});

pub(crate) fn preloading(address: &str) -> Result<(), ServerError> {
    let methods = Methods::new().method("parent_and_status", |status: &mut u32| {
        Ok([std::os::unix::process::parent_id(), *status])
    });
    taskfork::Server::builder()
        .listen(address)
        .preload(|| match fork("fork") {
            0 => Ok::<_, BoxError>(0),
            child => Ok(wait_for(child) as u32),
        })
        .setup(|status| Ok::<_, BoxError>(*status))
        .interface(methods)
        .run()
}

trial!(a_death_is_reported_while_a_child_holds_the_connection, async || {
    for protocol in [Protocol::Native, Protocol::Perl] {
        let (_server, client) =
            start_with("forks", |client| client.protocol(protocol).max_workers(1));
        let is_native = protocol == Protocol::Native;
        let ended = |end| if is_native { end } else { End::Unknown };
        let checkout = || client.checkout().timeout(None);
        let aborted = death(checkout().call::<()>("abort_with_holder", ()).await);
        assert_eq!(aborted.end, ended(End::Signaled(libc::SIGABRT)));
        let exited = death(checkout().call::<()>("exit_with_holder", (3,)).await);
        assert_eq!(exited.end, ended(End::Exited(3)));
        // The worker dies between two calls of its checkout.
        let held = checkout();
        let pid: u32 = held.call("start_holder", ()).await.unwrap();
        signal(pid, libc::SIGKILL);
        assert_eq!(death(held.call::<()>("echo", (1,)).await).end, ended(End::Signaled(9)));
        let pid: u32 = client.call("start_holder", ()).await.unwrap();
        until("an idle worker", || client.stats().idle == 1).await;
        signal(pid, libc::SIGKILL);
        until("its end", || client.stats().idle == 0).await;
    }
});

// A notice cannot follow half an answer, and a child still holds the worker's end of the connection.
trial!(a_death_within_a_long_answer_is_reported_while_a_child_holds_the_connection, async || {
    let folder = tempfile::tempdir().unwrap();
    let _server = programs::start(&["serve_forks", &address_in(&folder)]);
    let path = folder.path().join("holder");
    let listener = UnixListener::bind(&path).unwrap();
    let (mut raw, _) = Raw::greeted(&folder.path().join("s")).await;
    raw.call("give_connection", vec![path.display().to_string().into()]);
    let (_, holder) = receive_with(&Raw::accept(&listener));
    let answer = raw.receive().unwrap();
    let pid = answer.as_array().unwrap()[2].as_u64().unwrap() as u32;
    raw.call("make", vec![(8 << 20).into()]);
    // The beginning of the answer, so that the worker is within it.
    raw.0.read_exact(&mut [0; 1000]).unwrap();
    raw.call("echo", vec![1.into()]);
    signal(pid, libc::SIGKILL);
    // Neither the end nor a reset is the end of the time that this test waits.
    let mut rest = Vec::new();
    if let Err(error) = raw.0.read_to_end(&mut rest) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
    assert!(rest.len() < 8 << 20, "{}", rest.len());
    drop(holder.unwrap());
});

#[track_caller]
fn assert_timed_out(outcome: Result<(), Error>) {
    let error = outcome.unwrap_err();
    let Error::Fatal { cause, may_have_run, .. } = &error else { panic!("{error}") };
    let FatalError::TimedOut { stage, hung, .. } = cause else { panic!("{error}") };
    assert_eq!((*stage, *may_have_run), (Stage::Running, true), "{error}");
    assert!(hung.as_ref().unwrap().ran_for > Duration::ZERO, "{error}");
}

trial!(a_call_that_has_reset_its_alarm_times_out, async || {
    let (_server, client) = start_with("forks", |client| client.grace(Duration::from_secs(20)));
    let checkout = client.checkout().timeout(Duration::from_millis(100));
    assert_timed_out(checkout.call("reset_alarm", ()).await);
    // By the server's own measure.
    let (_server, client) = start("forks_hung");
    let death = death(client.checkout().timeout(None).call::<()>("reset_alarm", ()).await);
    assert_eq!(
        death.reason.as_deref(),
        Some("hung for more than 0.2 seconds (hung_worker_timeout)")
    );
});

trial!(a_call_that_executes_another_program_times_out, async || {
    let (_server, client) = start_with("forks", |client| client.grace(Duration::from_secs(20)));
    let checkout = client.checkout().timeout(Duration::from_millis(100));
    assert_timed_out(checkout.call("execute", ()).await);
});

trial!(an_alarm_of_user_code_is_named, async || {
    let (_server, client) = start("forks");
    let checkout = client.checkout().timeout(Duration::from_secs(50));
    let death = death(checkout.call::<()>("own_alarm", ()).await);
    assert_eq!((death.end, death.reason), (End::Signaled(libc::SIGALRM), None));
});

/// Where this server is in a program of its own.
pub(crate) fn listening(address: &str) -> Result<(), ServerError> {
    server(taskfork::Server::builder().listen(address))
}
