//! A worker that executes its program in its own place. The process, its descriptors and its slot stay; what else the worker
//! knows is passed on as bytes.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;

use nix::sys::signal::Signal;
use rustix::io::FdFlags;

use super::executable::Executable;
use super::inherited_state::{Client, Config, STATE_VARIABLE, State};
use super::init::{TakeoverFiles, WorkerInit};
use super::sandbox::WorkerSandbox;
use super::scoreboard::{ProgramStage, WorkerSlot};
use crate::error::BoxError;
use crate::sys::{Disposition, OccupiedMemory};

/// What a worker passes on to a program that takes it over, as long as it has begun no call.
#[derive(Debug)]
pub(super) struct Successor {
    files: TakeoverFiles,
    state: State,
    /// What has been received from the client.
    received: Vec<u8>,
}

impl Successor {
    /// That of a new worker, which has no client yet.
    pub(super) fn new(init: &mut WorkerInit) -> Option<Self> {
        let files = init.takeover.take()?;
        let state = State {
            pid: std::process::id(),
            number: init.number,
            server: init.server.clone(),
            scratch: init.scratch.as_ref().map(|path| path.as_os_str().as_bytes().to_vec()),
            config: Config::of(&init.config),
            client: None,
            slot: files.slot.as_raw_fd(),
            published: files.published.as_raw_fd(),
            wake: init.wake.as_raw_fd(),
            memory: None,
        };
        Some(Self { files, state, received: Vec::new() })
    }

    /// The worker is a spare one, and gets its client on this channel.
    pub(super) fn set_channel(&mut self, channel: &OwnedFd) {
        self.state.client = Some(Client::Channel(channel.as_raw_fd()));
    }

    /// The worker has a client, which has sent these bytes and files and has not been answered, except by the hello if it
    /// `is_greeted`.
    pub(super) fn set_connection(
        &mut self,
        socket: BorrowedFd<'_>,
        received: Vec<u8>,
        files: &[OwnedFd],
        is_greeted: bool,
    ) {
        let (socket, files) = (socket.as_raw_fd(), files.iter().map(AsRawFd::as_raw_fd).collect());
        self.state.client = Some(Client::Connection { socket, files, is_greeted });
        self.received = received;
    }

    /// Executes `program` in the place of this process. Returns only the reason why that has failed.
    pub(super) fn execute(
        mut self,
        program: &Executable,
        sandbox: Option<&WorkerSandbox>,
        slot: WorkerSlot,
        memory: Option<&OccupiedMemory>,
    ) -> BoxError {
        self.state.memory = memory.and_then(OccupiedMemory::descriptors);
        let state = match self.state.write(&self.received) {
            Ok(state) => state,
            Err(error) => {
                return format!("what its program needs cannot be passed on: {error}").into();
            }
        };
        let passed = self.passed().chain([state.as_raw_fd()]);
        let passed: Vec<RawFd> = passed.collect();
        let mut command = program.command(sandbox);
        command.env(STATE_VARIABLE, state.as_raw_fd().to_string());
        // SIGALRM may come before the program has a handler, and would end it.
        let alarm = Disposition::ignore(Signal::SIGALRM);
        slot.set_program_stage(Some(ProgramStage::Executed));
        let error = match set_inherited(&passed, true) {
            Ok(()) => command.exec(),
            Err(error) => error,
        };
        // Programs that are started later get none of them.
        let _ = set_inherited(&passed, false);
        // The attempt has made it the default, by which a write to a closed pipe would end this worker.
        std::mem::forget(Disposition::ignore(Signal::SIGPIPE));
        slot.set_program_stage(None);
        drop(alarm);
        program.start_error(&error, sandbox)
    }

    /// The descriptors that the program needs.
    fn passed(&self) -> impl Iterator<Item = RawFd> {
        let TakeoverFiles { slot, published } = &self.files;
        let own = [slot.as_raw_fd(), published.as_raw_fd(), self.state.wake];
        let of_client = match &self.state.client {
            None => Vec::new(),
            Some(Client::Channel(channel)) => vec![*channel],
            Some(Client::Connection { socket, files, .. }) => {
                files.iter().copied().chain([*socket]).collect()
            }
        };
        own.into_iter().chain(of_client).chain(self.state.memory.into_iter().flatten())
    }
}

/// Sets whether programs that this process executes get these descriptors, which are open.
#[expect(unsafe_code, reason = "a caller of an unsafe function")]
fn set_inherited(descriptors: &[RawFd], is_inherited: bool) -> io::Result<()> {
    let flags = if is_inherited { FdFlags::empty() } else { FdFlags::CLOEXEC };
    for &descriptor in descriptors {
        // SAFETY: the borrow ends with this statement, and the descriptor is open, or the call returns EBADF.
        rustix::io::fcntl_setfd(unsafe { BorrowedFd::borrow_raw(descriptor) }, flags)?;
    }
    Ok(())
}
