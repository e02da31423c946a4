//! Starting the process of a server: executing the program again, with the environment, the
//! directory and the configuration of the first start.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::SigSet;

use super::control::{self, MAX_MESSAGE};
use super::environment;
use super::error::ServerError;
use super::starting_process::{Message, RunningServer, StartingProcess};
use super::startup_output::{BufferedOutput, Output};
use crate::address::Address;
use crate::sys;

/// Everything that is needed to start a server, and to start it again.
pub(crate) struct Launch {
    name: String,
    config: Option<Vec<u8>>,
    timeout: Option<Duration>,
    /// A replacement inherits the environment, directory and signal mask of the first start.
    variables: Vec<(OsString, OsString)>,
    directory: Option<PathBuf>,
    mask: Option<SigSet>,
}

/// Waits until a forked server is ready.
pub(crate) fn forked(pid: u32, channel: OwnedFd) -> Result<RunningServer, ServerError> {
    StartingProcess::new(pid, channel, VecDeque::new(), Vec::new())?.wait(None, None, &|| false)
}

impl Launch {
    /// Describes a server that inherits the state of this process as it is now.
    pub(crate) fn new(name: String, config: Option<Vec<u8>>, timeout: Option<Duration>) -> Self {
        Self {
            name,
            config,
            timeout,
            variables: std::env::vars_os().collect(),
            directory: std::env::current_dir().ok(),
            mask: SigSet::thread_get_mask().ok(),
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Starts a process and waits until the server is ready. `previous` is the address of the
    /// server that it replaces. Kills the process if the start is cancelled.
    pub(crate) fn start(
        &self,
        previous: Option<&Address>,
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<RunningServer, ServerError> {
        let cannot = "cannot make a channel to the server";
        let (channel, theirs) = control::pair().map_err(ServerError::system(cannot))?;
        let pipes = [
            (control::STDOUT, Output::new(rustix::stdio::stdout())),
            (control::STDERR, Output::new(rustix::stdio::stderr())),
        ];
        let mut command = Command::new("/proc/self/exe");
        command.stdin(Stdio::from(theirs)).env_clear();
        if let Some(own) = std::env::args_os().next() {
            command.arg0(own);
        }
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command.env(environment::SERVER, &self.name);
        if let Some(directory) = self.directory.as_ref().filter(|directory| directory.is_dir()) {
            command.current_dir(directory);
        }
        let (mut messages, mut outputs) = (VecDeque::new(), Vec::new());
        for (kind, output) in pipes {
            // Without a pipe, the process inherits the output.
            let Ok(Output { real, reader, writer }) = output else { continue };
            let Ok(for_child) = real.try_clone() else { continue };
            match kind {
                control::STDOUT => command.stdout(writer),
                _ => command.stderr(writer),
            };
            messages.push_back(Message { bytes: vec![kind], descriptor: Some(for_child.into()) });
            outputs.push(BufferedOutput::new(reader, real));
        }
        let plain = |bytes| Message { bytes, descriptor: None };
        // An empty configuration is sent too, because it differs from none.
        let config = self.config.iter().flat_map(|config| match config[..] {
            [] => vec![vec![control::CONFIG]],
            _ => config.chunks(MAX_MESSAGE - 1).map(|c| [&[control::CONFIG], c].concat()).collect(),
        });
        messages.extend(config.map(plain));
        let previous = previous.map(|address| format!("{}{address}", char::from(control::ADDRESS)));
        messages.extend(previous.map(|text| plain(text.into_bytes())));
        messages.push_back(plain(vec![control::BEGIN]));

        let mut child = sys::with_mask(self.mask.as_ref(), || command.spawn())
            .map_err(ServerError::system("cannot execute this program again"))?;
        // It holds the other ends of the channel and the pipes.
        drop(command);
        let starting =
            StartingProcess::new(child.id(), channel, messages, outputs).inspect_err(|_| {
                // No other code would wait for the process. It may have ended already.
                let _ = child.kill().and_then(|()| child.wait());
            })?;
        starting.wait(Some(&self.name), self.timeout, is_cancelled)
    }
}
