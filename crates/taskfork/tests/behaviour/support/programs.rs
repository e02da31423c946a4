//! Test programs: copies of this binary that do something else. An environment variable says what.

use std::process::{Child, Command, Stdio};

use taskfork::{Server, ServerError};

use super::processes::Program;
use super::servers;

const REQUESTED: &str = "TASKFORK_TEST_PROGRAM";

/// Starts a test program.
pub(crate) fn start(arguments: &[&str]) -> Program {
    Program::new(command(arguments).spawn().unwrap())
}

/// What a test program prints before it ends.
pub(crate) fn output(arguments: &[&str]) -> String {
    let child: Child = command(arguments).stdout(Stdio::piped()).spawn().unwrap();
    String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
}

/// Runs a test program and expects it to succeed.
pub(crate) async fn run(program: &'static str) {
    let done = tokio::task::spawn_blocking(move || command(&[program]).status());
    assert!(done.await.unwrap().unwrap().success());
}

pub(crate) fn command(arguments: &[&str]) -> Command {
    command_of(&std::env::current_exe().unwrap(), arguments)
}

/// The command of a test program that is a copy of this binary in another file.
pub(crate) fn command_of(program: &std::path::Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.env(REQUESTED, arguments.join(" ")).stdin(Stdio::null());
    command
}

/// Starts a test program without a controlling terminal, because SIGHUP means something else to a server that has one.
pub(crate) fn start_detached(arguments: &[&str]) -> Program {
    Program::new(detached(command(arguments)).spawn().unwrap())
}

/// Starts a program in its own session.
pub(crate) fn detached(mut command: Command) -> Command {
    use std::os::unix::process::CommandExt;
    // SAFETY: it makes one system call.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(|| match libc::setsid() {
            -1 => Err(std::io::Error::last_os_error()),
            _ => Ok(()),
        });
    }
    command
}

/// Runs the requested test program if it never calls `taskfork::init`, or calls it too late.
pub(crate) fn run_requested_before_init() -> bool {
    match requested().iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["spawn_without_init"] => print_error(Server::spawn("general")),
        ["spawn_with_late_init"] => {
            let (_keep, wait) = std::sync::mpsc::channel::<()>();
            std::thread::spawn(move || wait.recv());
            taskfork::init(servers::ENTRIES);
            print_error(Server::spawn("general"));
        }
        ["before_init", what] => {
            crate::spawn_failures::before_init(what);
            return false;
        }
        _ => return false,
    }
    true
}

/// Runs the requested test program, if there is one.
pub(crate) fn run_requested() -> bool {
    match requested().iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => return false,
        ["serve", address] => print_error(servers::serve(Server::builder().listen(address))),
        ["serve_guarded", address, ref options @ ..] => {
            print_error(super::access_control::serve(address, options));
        }
        ["idle_client", address, workers] => {
            crate::fairness::idle(address, workers.parse().unwrap());
        }
        ["serve_with", option, value, address] => {
            print_error(crate::time_limits::serve(option, value, address));
        }
        ["serve_streams", address] => {
            print_error(crate::streams::server(Server::builder().listen(address)));
        }
        ["serve_inputs", address] => {
            print_error(crate::support::inputs::server(Server::builder().listen(address)));
        }
        ["serve_slow_setup", address] => print_error(crate::time_limits::serve_slow_setup(address)),
        // Also on a service manager's socket, at the address `-`.
        ["serve_logged", address, ref options @ ..] => {
            tracing_subscriber::fmt().with_ansi(false).with_writer(std::io::stderr).init();
            print_error(serve_logged(address, options));
        }
        ["serve_activated"] => print_error(servers::serve(Server::builder())),
        ["serve_once", flag, address] => {
            // The second one does not come up.
            let first = std::fs::File::create_new(flag).is_ok();
            assert!(first, "it has been started before");
            print_error(servers::serve(Server::builder().listen(address)));
        }
        ["serve_logging", address] => {
            servers::log();
            let server = Server::builder().listen(address);
            let server = server.stall_timeout(std::time::Duration::from_millis(200));
            print_error(servers::serve(server));
        }
        ["serve_logging_plainly", address] => {
            tracing_subscriber::fmt().with_ansi(false).with_writer(std::io::stderr).init();
            print_error(servers::serve(Server::builder().listen(address)));
        }
        ["serve_logging_to", file, address, ref options @ ..] => {
            taskfork::server::LogWriter::open(file).unwrap();
            servers::log();
            print_error(serve_logged(address, options));
        }
        ["blobs_without_files", address] => crate::file_limits::use_blobs(address),
        ["serve_ignoring_deaths", address] => {
            // SAFETY: it is no handler.
            #[allow(unsafe_code)]
            unsafe {
                libc::signal(libc::SIGCHLD, libc::SIG_IGN);
            }
            print_error(servers::serve(Server::builder().listen(address)));
        }
        ["serve_signals", address] => crate::signals::serve(address),
        ["serve_in_background", terminal, address] => {
            crate::signals::serve_in_background(terminal, address);
        }
        ["serve_with_an_orphan", folder, address] => crate::orphans::serve(folder, address),
        ["serve_limited", option, value, drops, address] => {
            crate::limits::serve_limited(option, value.parse().unwrap(), drops, address);
        }
        ["serve_recycling", address] => {
            let server = Server::builder().listen(address).max_calls(3).max_memory(200 << 20);
            let age = std::time::Duration::from_secs(4);
            print_error(servers::serve(server.max_age(age).max_idle(age / 8)));
        }
        ["serve_failing_spares", address] => {
            servers::log();
            print_error(crate::spares::failing(Server::builder().listen(address)));
        }
        ["serve_inheriting", address] => {
            let server = Server::builder().stderr(taskfork::server::Stderr::Inherit);
            print_error(servers::serve(server.listen(address)));
        }
        ["serve_as", users, spares, address] => {
            print_error(crate::users::serve(users, spares, address));
        }
        ["serve_privileged", address, ref options @ ..] => {
            print_error(crate::privileges::serve(address, options));
        }
        ["serve_sandboxed", address, level, ref options @ ..] => {
            print_error(crate::sandbox::serve(address, level, options));
        }
        ["serve_scratch", address, folder, ref options @ ..] => {
            print_error(crate::scratch::serve(address, folder, options));
        }
        ["serve_grouped", address, group, ref options @ ..] => {
            print_error(crate::worker_groups::serve(address, group, options));
        }
        ["serve_logs", address] => {
            print_error(crate::logs::server(Server::builder().listen(address)));
        }
        ["serve_appending", address, file] => {
            let server = Server::builder().listen(address);
            print_error(servers::appending(server, file));
        }
        ["native_worker"] => crate::executable::work_natively(),
        ["streaming_worker"] => crate::program_streams::work(),
        ["json_worker"] => crate::executable::work(),
        ["takes_over", folder] => crate::takeover::work(folder),
        ["serve_takeover", address, folder, ref options @ ..] => {
            print_error(crate::takeover::serve(address, folder, options));
        }
        ["serve_executable", address] => {
            print_error(crate::executable::server(Server::builder().listen(address)));
        }
        ["serve_slow_spares", address, file] => {
            print_error(crate::spares::slow(Server::builder().listen(address), file));
        }
        ["serve_perl", address] => {
            print_error(crate::perl::server(Server::builder().listen(address)));
        }
        ["serve_json_bytes", address] => {
            print_error(crate::json_bytes::server(Server::builder().listen(address)));
        }
        ["serve_coderef", address] => {
            print_error(crate::perl::coderef(Server::builder().listen(address)));
        }
        ["serve_dying_setup", address] => {
            print_error(servers::setup_dies(Server::builder().listen(address)));
        }
        ["serve_files", address] => {
            print_error(crate::files::server(Server::builder().listen(address)));
        }
        ["serve_forks", address] => print_error(crate::forks::listening(address)),
        ["serve_forking_preload", address] => print_error(crate::forks::preloading(address)),
        ["serve_shared_buffers", address] => print_error(crate::shared_buffers::serve(address)),
        ["serve_rings", address] => print_error(crate::rings::serve_at(address)),
        ["release_rings"] => super::run(crate::rings::release_all).unwrap(),
        ["return_idle_buffers"] => super::run(crate::shared_buffers::return_idle).unwrap(),
        ["release_buffers"] => super::run(crate::shared_buffers::release_all).unwrap(),
        ["hundreds_of_siblings"] => super::run(crate::many_workers::hold_siblings).unwrap(),
        ["closed_stderr"] => super::run(crate::many_workers::close_stderr).unwrap(),
        ["hundreds_of_deaths"] => super::run(crate::many_workers::die_at_once).unwrap(),
        ["few_descriptors"] => super::run(crate::descriptors::hold_few).unwrap(),
        ["count_files"] => super::run(crate::files::count_files).unwrap(),
        ["serve_inherited"] => {
            print_error(servers::serve(Server::builder().listen("fd:0")));
        }
        ["serve_masked", address] => {
            mask_and_ignore();
            print_error(servers::serve(Server::builder().listen(address)));
        }
        ["serve_printing", address] => {
            print!("buffered by the server;");
            print_error(servers::serve(Server::builder().listen(address)));
        }
        ["run_with_threads"] => {
            let (_keep, wait) = std::sync::mpsc::channel::<()>();
            std::thread::spawn(move || wait.recv());
            print_error(servers::serve(Server::builder().listen("unix:/nonexistent/s")));
        }
        ["fork_and_call"] => fork_and_call(),
        #[cfg(feature = "spans")]
        ["listen_at_info"] => crate::spans::listen_at_info(),
        #[cfg(feature = "metrics")]
        ["record", address, status] => crate::metrics::record(address, status),
        ["serve_with_a_child"] => crate::limits::serve_with_a_child(),
        ["call_and_stop", address, server] => {
            crate::limits::call_and_stop(address, server.parse().unwrap());
        }
        ["fork_at_bytes", folder] => fork_at_bytes(folder),
        ["two_forks"] => two_forks(),
        ["before_init", _] => crate::spawn_failures::spawn_failing_server(),
        ["fork_and_kill"] => crate::spawned::fork_and_kill(),
        ["spawn_and_fork"] => crate::spawned::spawn_and_fork(),
        ["inherit"] => crate::spawn_config::inherit(),
        ["return_error"] => {
            use std::process::Termination;
            // As a `main` that returns it.
            Server::spawn("nobody").map(drop).report();
        }
        ["orphan_server", how] => {
            let server = match how {
                "fork" => Server::fork(servers::serve).unwrap(),
                _ => Server::spawn("general").unwrap(),
            };
            println!("{}", server.pid());
            // SAFETY: it ends this process, without a chance to do anything about it.
            #[allow(unsafe_code)]
            unsafe {
                libc::kill(libc::getpid(), libc::SIGKILL);
            }
        }
        ref other => panic!("no such program: {other:?}"),
    }
    true
}

/// Whether this word is among the arguments of this test program.
pub(crate) fn has_argument(argument: &str) -> bool {
    requested().iter().any(|requested| requested == argument)
}

fn serve_logged(address: &str, options: &[&str]) -> Result<(), ServerError> {
    let (mut server, mut at_end) = (Server::builder(), None);
    if address != "-" {
        server = server.listen(address);
    }
    for option in options {
        server = match option.split_once('=') {
            None if *option == "keep_pid" => server.keep_pid(true),
            None if *option == "restart" => server.restart_on_hangup(true),
            // What a new server is told is in the file.
            Some(("listen_in", file)) => {
                server.listen(std::fs::read_to_string(file).unwrap().trim())
            }
            Some(("max_workers_in", file)) => {
                let most = std::fs::read_to_string(file).unwrap().trim().parse().unwrap();
                server.max_workers(most)
            }
            Some(("grace", milliseconds)) => {
                let grace = milliseconds.parse().unwrap();
                server.shutdown_grace(std::time::Duration::from_millis(grace))
            }
            // What the program does when it has served.
            Some(("at_end", file)) => {
                at_end = Some(file);
                server
            }
            _ => panic!("no such option: {option}"),
        };
    }
    let served = servers::serve(server);
    // The server's parent finds the file.
    if at_end.is_some_and(|file| std::fs::File::create_new(file).is_ok()) {
        loop {
            std::thread::park();
        }
    }
    served
}

/// The name and the arguments of the requested test program.
fn requested() -> Vec<String> {
    let words = std::env::var(REQUESTED).unwrap_or_default();
    words.split_whitespace().map(str::to_owned).collect()
}

fn print_error<T>(outcome: Result<T, ServerError>) {
    if let Err(error) = outcome {
        println!("{error}");
        std::process::exit(1);
    }
}

/// Blocks and ignores signals as a careless parent may.
fn mask_and_ignore() {
    // SAFETY: plain settings of this process, which has one thread.
    #[allow(unsafe_code)]
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigfillset(&mut set);
        libc::sigdelset(&mut set, libc::SIGTERM);
        libc::sigprocmask(libc::SIG_SETMASK, &set, std::ptr::null_mut());
        libc::signal(libc::SIGALRM, libc::SIG_IGN);
        libc::signal(libc::SIGUSR1, libc::SIG_IGN);
    }
}

fn fork_and_call() {
    let server = Server::fork(servers::serve).unwrap();
    let pid = server.pid();
    let options = taskfork::Client::builder().address(server.address()).max_workers(1);
    let client = options.build_blocking().unwrap();
    let sum: i64 = client.call("add", (2, 3)).unwrap();
    drop(client);
    server.close();
    println!("{sum} {}", std::path::Path::new(&format!("/proc/{pid}")).exists());
}

/// A server whose path is not UTF-8, called through its handle's address, and through the text of that.
fn fork_at_bytes(folder: &str) {
    use std::os::unix::ffi::OsStrExt;

    let path = std::path::Path::new(folder).join(std::ffi::OsStr::from_bytes(b"s\xff%"));
    let address = taskfork::client::Address::unix(path).unwrap();
    let server = Server::fork(|server| servers::serve(server.listen(&address))).unwrap();
    let client =
        |options: taskfork::client::ClientBuilder| options.max_workers(1).build_blocking().unwrap();
    let builder = taskfork::Client::builder;
    let text = server.address().to_string();
    for client in [client(builder().address(server.address())), client(builder().address(&text))] {
        let sum: i64 = client.call("add", (2, 3)).unwrap();
        assert_eq!(sum, 5);
    }
    server.close();
    println!("5 {text}");
}

/// The second server is forked while the program holds the line to the first, which must end all
/// the same when the program closes that.
fn two_forks() {
    let first = Server::fork(servers::serve).unwrap();
    let second = Server::fork(servers::serve).unwrap();
    first.close();
    second.close();
    println!("both ended");
}
