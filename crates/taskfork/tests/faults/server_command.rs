//! How a test starts a copy of its own program as a server.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use rustix::process::{Resource, Rlimit, setrlimit};

/// So few descriptors that a crowd of connections uses them up.
const DESCRIPTORS: u64 = 60;

/// The command of a server that has few descriptors and is silent: it would log each injected fault.
pub(crate) fn server_command() -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.stderr(Stdio::null()).process_group(0);
    let most = Rlimit { current: Some(DESCRIPTORS), maximum: Some(DESCRIPTORS) };
    // SAFETY: it only sets a limit, by one system call.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(move || Ok(setrlimit(Resource::Nofile, most)?));
    }
    command
}
