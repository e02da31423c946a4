//! The other side of floors: copies of this program that do one simple thing.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};

use crate::{hand_written, nats, remote, system_calls};

/// Starts a copy of this program in a role, with its socket as standard input.
pub fn start(role: &[&str], socket: OwnedFd) -> Child {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(role).stdin(Stdio::from(socket)).spawn().expect("a copy of this program")
}

/// Runs the role that the command line names. Returns false if it names none.
pub fn run(arguments: &[String]) -> bool {
    let stdin = || std::io::stdin().as_fd().try_clone_to_owned().expect("standard input");
    if remote::run(arguments, stdin) || nats::run(arguments) {
        return true;
    }
    match arguments {
        [role, bytes] if role == "answer" => {
            let mut socket = UnixStream::from(stdin());
            let mut buffer = vec![0; bytes.parse().expect("a number")];
            while socket.read_exact(&mut buffer).is_ok() && socket.write_all(&buffer).is_ok() {}
        }
        // It ends with its connection.
        [role] if role == "serve" => drop(hand_written::serve(UnixStream::from(stdin()))),
        [role, calls] if role == "calls" => {
            system_calls::make_calls(calls.parse().expect("a number"));
        }
        [role] if role == "compute" => loop {
            std::hint::spin_loop();
        },
        [role] if role == "fork" => fork_for_ever(UnixListener::from(stdin())),
        _ => return false,
    }
    true
}

/// Forks for each connection and answers requests of 64 bytes in the child, with its process id in front.
fn fork_for_ever(listener: UnixListener) {
    // SAFETY: children are reaped by the kernel; no handler runs.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    while let Ok((mut socket, _)) = listener.accept() {
        // SAFETY: this process has one thread.
        if unsafe { libc::fork() } == 0 {
            let mut buffer = [0; 64];
            while socket.read_exact(&mut buffer).is_ok() {
                buffer[..4].copy_from_slice(&std::process::id().to_ne_bytes());
                if socket.write_all(&buffer).is_err() {
                    break;
                }
            }
            // SAFETY: it ends this process.
            unsafe { libc::_exit(0) };
        }
    }
}
