//! Signals that a terminal or a service manager sends to all processes of a server, and a terminal that stops
//! programs in the background that write to it.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use taskfork::server::Stderr;
use taskfork::{BoxError, Client, Methods, Server};

use crate::support::processes::{children, descendants, is_gone, signal};
use crate::support::{address_in, programs, start, trial, until};

/// Says that it has begun, by a file, and waits for another file.
pub(crate) fn wait_for(path: &str) -> io::Result<()> {
    File::create(begun(path))?;
    while !Path::new(path).exists() {
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn begun(path: &str) -> PathBuf {
    format!("{path}.begun").into()
}

static HANDLED: AtomicBool = AtomicBool::new(false);

extern "C" fn handle(_: libc::c_int) {
    HANDLED.store(true, Ordering::SeqCst);
}

/// What a program says of the signals that it ignores.
fn ignored_by(command: &mut Command) -> Result<String, BoxError> {
    let output = command.args(["SigIgn:", "/proc/self/status"]).output()?;
    Ok(String::from_utf8(output.stdout)?)
}

fn methods() -> Methods<()> {
    Methods::new()
        .function("pid", || Ok(std::process::id()))
        .function("wait_for", |path: String| {
            wait_for(&path)?;
            Ok(std::process::id())
        })
        .function("handle", || {
            // SAFETY: the handler stores to an atomic variable only.
            #[allow(unsafe_code)]
            unsafe {
                libc::signal(libc::SIGTERM, handle as *const () as libc::sighandler_t);
                libc::raise(libc::SIGTERM);
            }
            Ok(HANDLED.load(Ordering::SeqCst))
        })
        .function("ignored_by_programs", || {
            let mut other = Command::new("grep");
            Ok((
                ignored_by(&mut Command::new("grep"))?,
                ignored_by(taskfork::worker::default_signals(&mut other))?,
            ))
        })
        .function("print", |text: String| {
            println!("{text}");
            eprintln!("{text}");
            Ok(())
        })
        .function("abort", || -> Result<(), BoxError> { std::process::abort() })
}

pub(crate) fn serve(address: &str) {
    tracing_subscriber::fmt().with_ansi(false).with_writer(io::stderr).init();
    let server = Server::builder().listen(address).stderr(Stderr::Inherit);
    server.interface(methods()).run().unwrap();
}

/// Sends this signal to the server and all below it while a call runs. The call gets its result all the same, and
/// the server ends well.
async fn a_call_goes_on(program: &str, number: i32) {
    let folder = tempfile::tempdir().unwrap();
    let program = programs::start(&[program, &address_in(&folder)]);
    let client = Client::builder().address(address_in(&folder)).build().unwrap();
    let checkout = client.checkout();
    let pid: u32 = checkout.call("pid", ()).await.unwrap();
    let go = folder.path().join("go").display().to_string();
    let running = checkout.call::<u32>("wait_for", (&go,));
    until("the call has begun", || begun(&go).exists()).await;
    let below = descendants(program.pid());
    assert!(below.contains(&pid) && below.len() >= 2, "{below:?}");
    for &one in &below {
        for other in [libc::SIGHUP, libc::SIGQUIT, libc::SIGTTOU, number] {
            signal(one, other);
        }
    }
    signal(program.pid(), number);
    until("the listener's end", || !folder.path().join("s").exists()).await;
    File::create(&go).unwrap();
    assert_eq!(running.await.unwrap(), pid, "signal {number}");
    drop(checkout);
    assert!(program.end().await.success(), "signal {number}");
    until("nothing is left", || below.iter().all(|&one| is_gone(one))).await;
}

trial!(a_call_goes_on_though_all_processes_get_a_signal, async || {
    for number in [libc::SIGTERM, libc::SIGINT] {
        a_call_goes_on("serve_signals", number).await;
    }
});

trial!(a_call_of_a_program_goes_on_though_all_processes_get_a_signal, async || {
    for number in [libc::SIGTERM, libc::SIGINT] {
        a_call_goes_on("serve_executable", number).await;
    }
});

// A service manager signals a program and the server that the program has started, and the program ends its server.
trial!(a_signal_during_shutdown_kills_no_worker, async || {
    let folder = tempfile::tempdir().unwrap();
    for ends in [
        |server: &taskfork::server::ServerHandle| server.shutdown(),
        |server: &taskfork::server::ServerHandle| signal(server.pid(), libc::SIGHUP),
    ] {
        let (server, client) = start("general");
        let (checkout, idle) = (client.checkout(), client.checkout());
        let pid: u32 = checkout.call("pid", ()).await.unwrap();
        let other: u32 = idle.call("pid", ()).await.unwrap();
        drop(idle);
        let path = folder.path().join(pid.to_string()).display().to_string();
        let running = checkout.call::<()>("wait_for", (&path,));
        until("the call has begun", || begun(&path).exists()).await;
        let server_pid = server.pid();
        ends(&server);
        until("the idle worker has ended", || is_gone(other)).await;
        signal(server_pid, libc::SIGTERM);
        until("the server has taken the signal", || !is_pending(server_pid, libc::SIGTERM)).await;
        File::create(&path).unwrap();
        running.await.unwrap();
        drop(checkout);
        until("the server's end", || is_gone(server_pid)).await;
    }
});

fn is_pending(pid: u32, number: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("ShdPnd:"));
    let pending = line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    pending.is_some_and(|pending| pending & 1 << (number - 1) != 0)
}

trial!(code_of_a_worker_can_handle_signals, async || {
    let folder = tempfile::tempdir().unwrap();
    let _program = programs::start(&["serve_signals", &address_in(&folder)]);
    let client = Client::builder().address(address_in(&folder)).build().unwrap();
    assert!(client.call::<bool>("handle", ()).await.unwrap());
});

trial!(a_program_started_by_a_worker_inherits_ignored_signals_by_default, async || {
    let folder = tempfile::tempdir().unwrap();
    let _program = programs::start(&["serve_signals", &address_in(&folder)]);
    let client = Client::builder().address(address_in(&folder)).build().unwrap();
    let (as_worker, told) =
        client.call::<(String, String)>("ignored_by_programs", ()).await.unwrap();
    let ignores = |line: &str, number: i32| {
        let mask = u64::from_str_radix(line.trim_start_matches("SigIgn:").trim(), 16).unwrap();
        mask & 1 << (number - 1) != 0
    };
    for number in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGTTOU] {
        assert!(ignores(&as_worker, number), "{number}: {as_worker}");
        assert!(!ignores(&told, number), "{number}: {told}");
    }
});

/// A pseudo terminal: its master side, and the path of its slave side.
#[allow(unsafe_code)]
fn terminal() -> (File, String) {
    // SAFETY: each call gets what the one before has given, and a buffer with its length.
    unsafe {
        let end = libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC);
        assert!(end >= 0, "{}", io::Error::last_os_error());
        let end = File::from_raw_fd(end);
        assert_eq!(libc::grantpt(end.as_raw_fd()), 0);
        assert_eq!(libc::unlockpt(end.as_raw_fd()), 0);
        let mut path = [0; 100];
        assert_eq!(libc::ptsname_r(end.as_raw_fd(), path.as_mut_ptr(), path.len()), 0);
        let path = std::ffi::CStr::from_ptr(path.as_ptr()).to_str().unwrap().to_owned();
        (end, path)
    }
}

/// Leads a session at this terminal, which stops programs in the background that write to it, and starts a server
/// there.
#[allow(unsafe_code)]
pub(crate) fn serve_in_background(terminal: &str, address: &str) {
    // SAFETY: it has no memory as argument.
    assert_ne!(unsafe { libc::setsid() }, -1);
    // The terminal becomes that of the session by this.
    let terminal = File::options().read(true).write(true).open(terminal).unwrap();
    // SAFETY: the kernel writes to the structure, all of whose bytes may be zero, and reads it.
    unsafe {
        let mut settings: libc::termios = std::mem::zeroed();
        assert_eq!(libc::tcgetattr(terminal.as_raw_fd(), &raw mut settings), 0);
        settings.c_lflag |= libc::TOSTOP;
        assert_eq!(libc::tcsetattr(terminal.as_raw_fd(), libc::TCSANOW, &raw const settings), 0);
        assert_eq!(libc::tcgetpgrp(terminal.as_raw_fd()), libc::getpgrp());
    }
    let mut server = programs::command(&["serve_signals", address]);
    server.stdout(terminal.try_clone().unwrap()).stderr(terminal).process_group(0);
    server.spawn().unwrap().wait().unwrap();
}

trial!(a_terminal_stops_neither_server_nor_workers_in_the_background, async || {
    let folder = tempfile::tempdir().unwrap();
    let (mut end, path) = terminal();
    let leader = programs::start(&["serve_in_background", &path, &address_in(&folder)]);
    let mut shown = end.try_clone().unwrap();
    let shows = std::thread::spawn(move || {
        let mut all = Vec::new();
        // Reading ends with an error when no process has the terminal open any more.
        let _ = shown.read_to_end(&mut all);
        String::from_utf8_lossy(&all).into_owned()
    });
    let client = Client::builder().address(address_in(&folder)).max_workers(1).build().unwrap();
    for _ in 0..2 {
        client.call::<()>("print", ("printed by a worker",)).await.unwrap();
        // Of this the server logs a line.
        client.call::<()>("abort", ()).await.unwrap_err();
    }
    drop(client);
    let server = children(leader.pid())[0];
    signal(server, libc::SIGTERM);
    assert!(leader.end().await.success());
    io::Write::flush(&mut end).unwrap();
    let shown = shows.join().unwrap();
    assert_eq!(shown.matches("printed by a worker").count(), 4, "{shown}");
    assert_eq!(shown.matches("SIGABRT").count(), 2, "{shown}");
});
