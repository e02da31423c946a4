//! Forking a worker, and setting up the new process.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::time::Instant;

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, getpid, set_parent_process_death_signal, setpgid};

use super::clients::WaitingClient;
use super::{EventLoop, token};
use crate::clock::now;
use crate::log_output;
use crate::server::child::{Child, Role};
use crate::server::error::ServerError;
use crate::server::guardian::Guardian;
use crate::server::limits::Limit;
use crate::server::log;
use crate::server::orphans::become_subreaper;
use crate::server::parent::Parent;
use crate::server::process::is_child_of;
use crate::server::refusal::Refusal;
use crate::server::scratch::ScratchFolder;
use crate::server::spawned_server;
use crate::server::stderr::{CapturedStderr, Stderr};
use crate::server::supervisor::ClientKey;
use crate::server::worker_groups::WorkerGroups;
use crate::sys::{self, ForkError, Forked};
use crate::worker::scoreboard::ServerSlot;
use crate::worker::{ClientSource, TakeoverFiles, WorkerConfig, WorkerInit};

/// The process that a fork returns in.
#[derive(Debug)]
enum ForkSide {
    Parent(Pid, Option<CapturedStderr>),
    /// With its standard error, unless it keeps the server's.
    Worker {
        stderr: Option<OwnedFd>,
        captured: Option<CapturedStderr>,
        needs_only_low: bool,
    },
}

/// What a new worker process has before it becomes a worker.
struct ChildInit {
    /// Its standard error, unless it keeps the server's.
    stderr: Option<OwnedFd>,
    socket: ClientSource,
    slot: ServerSlot,
    number: u64,
    scratch: Option<PathBuf>,
    /// The file through which it joins its control group.
    group: Option<OwnedFd>,
    inherited: InheritedFds,
}

/// The server's descriptors of the new worker, which the worker has to close.
#[derive(Debug)]
struct InheritedFds {
    role: Role,
    captured: Option<CapturedStderr>,
    /// It needs none with a high number.
    needs_only_low: bool,
}

#[taskfork_macros::startup_code]
impl EventLoop {
    /// Forks a worker for `client`. Refuses the client if that fails.
    pub(super) fn fork_for_client(&mut self, number: u64, key: ClientKey) {
        let Some(WaitingClient { client, protocol, since }) = self.connections.waiting.take(key)
        else {
            return self.supervisor.handle_fork_failed();
        };
        let failed = match client.socket.try_clone() {
            Ok(own) => {
                self.fork_worker(number, Role::Client(own), ClientSource::Accepted(client)).err()
            }
            Err(error) => Some((ClientSource::Accepted(client), ForkError::Kernel(error))),
        };
        if failed.is_none() {
            self.status.counters.waits.add(now().saturating_sub(since));
        }
        if let Some((source, error)) = failed {
            self.supervisor.handle_fork_failed();
            let refusal = Refusal::busy(protocol, error.to_string());
            match source {
                ClientSource::Accepted(client) => {
                    let refusal = refusal.with_client(&client);
                    self.refuse(client.socket, refusal);
                }
                ClientSource::Channel(socket) => self.refuse(socket, refusal),
            }
        }
    }

    /// Forks the worker with this number. There must be room for it. Gives back `socket` if the fork
    /// fails. In the new worker this does not return.
    pub(super) fn fork_worker(
        &mut self,
        number: u64,
        role: Role,
        mut socket: ClientSource,
    ) -> Result<(), (ClientSource, ForkError)> {
        let (scratch, group) = match self.make_surroundings(number) {
            Ok(made) => made,
            Err(error) => return Err((socket, ForkError::Kernel(error))),
        };
        let mut slot = match self.scoreboard.allocate() {
            Ok(slot) => slot,
            Err(error) => {
                self.discard_surroundings(number);
                return Err((socket, ForkError::Kernel(error)));
            }
        };
        self.process.partial_forks.prepare(self.children.len(), &self.process.threads);
        self.template.title.set_number(number);
        let gate = self.descendants.gate.as_ref();
        let needed = [Some(socket.descriptor()), group.as_ref(), slot.file(), gate];
        let needed = needed.into_iter().flatten().map(AsRawFd::as_raw_fd);
        let published = self.scoreboard.published_descriptor().map(|file| file.as_raw_fd());
        let needed = needed.chain(published);
        match self.fork_child(needed) {
            Ok(ForkSide::Parent(pid, stderr)) => {
                self.supervisor.handle_forked(number, now());
                if !self
                    .descendants
                    .guardian
                    .as_mut()
                    .is_none_or(|guardian| guardian.record_fork(pid))
                {
                    self.replace_guardian();
                }
                let kept = self.scoreboard.hide_from_children(&slot);
                drop(slot.take_file());
                let relayed_peer = socket.take_relayed_peer();
                self.register(Child::new(pid, role, slot, number, stderr, relayed_peer));
                if let Err(error) = kept {
                    let what = "its slot cannot be kept from other workers";
                    self.kill_unwatchable(number, &ServerError::System { what, source: error });
                }
                Ok(())
            }
            Ok(ForkSide::Worker { stderr, captured, needs_only_low }) => {
                let inherited = InheritedFds { role, captured, needs_only_low };
                self.become_worker(ChildInit {
                    stderr,
                    socket,
                    slot,
                    number,
                    scratch,
                    group,
                    inherited,
                })
            }
            Err(error) => {
                self.descendants.orphans.handle_failed_fork();
                self.discard_surroundings(number);
                if let Err(error) = self.scoreboard.hide_from_children(&slot) {
                    if self.logs.limits.workers.acquire(Instant::now()) {
                        log::error!(
                            "a slot cannot be kept from workers, and is not used again: {error}"
                        );
                    }
                } else {
                    self.scoreboard.quarantine(slot);
                }
                Err((socket, error))
            }
        }
    }

    /// Makes the scratch directory and the control group of the worker with this number, if workers have
    /// them.
    fn make_surroundings(&self, number: u64) -> io::Result<(Option<PathBuf>, Option<OwnedFd>)> {
        let named = |what: &'static str| {
            move |error: io::Error| {
                io::Error::new(error.kind(), format!("its {what} cannot be made: {error}"))
            }
        };
        let scratch =
            self.surroundings.scratch.as_ref().map(|scratch| scratch.add(number)).transpose();
        let scratch = scratch.map_err(named("scratch directory"))?;
        let group = self.surroundings.groups.as_ref().map(|groups| groups.add(number)).transpose();
        let group = group.map_err(named("control group"));
        Ok((scratch, group.inspect_err(|_| self.discard_surroundings(number))?))
    }

    /// Removes them after a fork that has failed.
    fn discard_surroundings(&self, number: u64) {
        self.surroundings.scratch.iter().for_each(|scratch| scratch.discard(number));
        self.surroundings.groups.iter().for_each(|groups| groups.discard(number));
    }

    fn register(&mut self, mut child: Child) {
        let number = child.number;
        let forks = &self.process.partial_forks;
        forks.move_up(child.role_descriptor_mut());
        child.stderr_mut().into_iter().for_each(|pipe| forks.move_up(pipe));
        let watched = match child.stderr() {
            Some(stderr) => self.watch(stderr.as_fd(), token(number, 1), EventFlags::IN),
            None => Ok(()),
        };
        self.children.insert(child);
        let forks = &self.process.partial_forks;
        self.children.note_low(number, |descriptor| forks.is_low(descriptor));
        match watched {
            Ok(()) => self.watch_client(number),
            Err(error) => self.kill_unwatchable(number, &error),
        }
    }

    /// Watches a worker's connection for its client's end.
    pub(super) fn watch_client(&mut self, number: u64) {
        let Some(child) = self.children.get(number) else { return };
        let Some(connection) = child.connection() else { return };
        let flags = EventFlags::RDHUP | EventFlags::ET;
        if let Err(error) = self.watch(connection.as_fd(), token(number, 0), flags) {
            self.kill_unwatchable(number, &error);
        }
    }

    fn kill_unwatchable(&mut self, number: u64, error: &ServerError) {
        if self.logs.limits.workers.acquire(Instant::now()) {
            log::error!(worker = number, "a worker is killed: {error}");
        }
        if let Some(child) = self.children.get(number) {
            child.kill_group();
        }
        self.supervisor.handle_unwatchable(number);
        self.reap_worker(number);
    }

    /// Forks the process, in its own process group and with its own standard error.
    #[inline]
    #[expect(unsafe_code, reason = "a caller of an unsafe function of `sys`")]
    fn fork_child(&self, needed: impl Iterator<Item = RawFd>) -> Result<ForkSide, ForkError> {
        let Self { process, children, supervisor, .. } = self;
        let (stderr, writer) = match self.options.stderr {
            Stderr::Capture | Stderr::Log | Stderr::Hide => {
                let (captured, writer) = CapturedStderr::new()?;
                (Some(captured), Some(writer))
            }
            Stderr::Inherit => (None, None),
        };
        let server = getpid();
        // The standard streams of C and Rust must be empty, or both processes would write their
        // buffers. Once the server runs, only a subscriber can have filled them.
        if tracing::dispatcher::has_been_set() {
            sys::flush_stdio();
        }
        let needed = needed.chain(writer.as_ref().map(AsRawFd::as_raw_fd));
        let needs_only_low = process.partial_forks.needs_only_low(needed);
        // A worker that needs only low descriptors uses nothing that the server knows about other workers. A fork
        // copies an entry of the page tables for each page, and makes the first write to it expensive.
        // SAFETY: as for the fork. `become_worker` reads neither value if `needs_only_low` is true.
        let left_out = needs_only_low.then(|| unsafe {
            [children.pages(), supervisor.pages()].map(|pages| pages.leave_out_of_forks())
        });
        // SAFETY: the child becomes a worker, which closes everything of the server, drops none of its
        // values, and leaves by `exit_now`.
        let forked =
            unsafe { process.partial_forks.fork(&process.threads, children.len(), needs_only_low) };
        match forked? {
            Forked::Parent { child } => {
                let pid =
                    Pid::from_raw(child.as_raw()).ok_or(ForkError::Kernel(Errno::SRCH.into()))?;
                drop(left_out);
                // Both processes do this, so that it holds before either of them continues.
                let _ = setpgid(Some(pid), Some(pid));
                Ok(ForkSide::Parent(pid, stderr))
            }
            Forked::Child => {
                let _ = setpgid(None, None);
                let _ = set_parent_process_death_signal(Some(Signal::KILL));
                // The server may have died before the signal was asked for.
                if !is_child_of(server) {
                    sys::exit_now(1);
                }
                become_subreaper();
                std::mem::forget(left_out);
                Ok(ForkSide::Worker { stderr: writer, captured: stderr, needs_only_low })
            }
        }
    }

    /// In a new worker: closes everything of the server, and serves. It writes to as little of the
    /// inherited memory as possible, because the kernel copies each page that is written to, which
    /// takes as long as several system calls.
    #[expect(unsafe_code, reason = "a caller of an unsafe function of `sys`")]
    fn become_worker(&self, init: ChildInit) -> ! {
        let ChildInit { stderr, socket, mut slot, number, scratch, group, inherited } = init;
        let InheritedFds { role, captured, needs_only_low } = inherited;
        spawned_server::close_inherited();
        let redirected = || {
            rustix::stdio::dup2_stdin(&self.template.dev_null)?;
            stderr.as_ref().map_or(Ok(()), rustix::stdio::dup2_stderr)?;
            if self.template.sandbox.is_some() {
                // The server's standard output may be a file, which the worker could truncate or lock.
                let output = stderr.as_ref().unwrap_or(&self.template.dev_null);
                rustix::stdio::dup2_stdout(output)?;
            }
            Ok::<(), Errno>(())
        };
        let ready = redirected()
            .map_err(io::Error::from)
            .and_then(|()| self.scoreboard.seal(&slot))
            .and_then(|()| self.process.signals.reset_for_worker())
            .and_then(|()| group.map_or(Ok(()), join_group))
            .and_then(|()| self.options.limits.apply().map_err(io::Error::other))
            .map(|()| self.scoreboard.worker_slot(&slot));
        let published = self.scoreboard.published_descriptor();
        let published = published.and_then(|file| file.try_clone_to_owned().ok());
        let takeover = slot.take_file().zip(published);
        let takeover = takeover.map(|(slot, published)| TakeoverFiles { slot, published });
        let slot = match ready {
            Ok(slot) => slot,
            Err(error) => {
                log::error!("a worker cannot start: {error}");
                sys::exit_now(1);
            }
        };
        let init = WorkerInit {
            // SAFETY: this process never returns into the server's code, which alone uses and drops
            // the value.
            wake: unsafe { sys::move_out_unchecked(self.process.wake.writer()) },
            client: socket,
            slot,
            number,
            // SAFETY: as above.
            server: unsafe { sys::move_out_unchecked(&self.options.name) },
            // SAFETY: as above.
            buffers: unsafe { sys::move_out_unchecked(&self.template.buffers) },
            config: WorkerConfig {
                max_frame: self.options.max_frame,
                max_blob: self.options.max_blob,
                shared_memory: self.options.shared_memory,
                stall_timeout: self.options.stall_timeout,
                busy_poll: self.options.busy_poll,
                cores: self.template.cores,
                max_result: self.options.sandbox.result_limit().unwrap_or(usize::MAX),
                max_calls: self.options.recycling.max_calls,
                max_memory: self.options.recycling.max_memory,
                replace_after: self.options.replace_after,
                share_details: self.options.access.details,
                server_user: self.connections.rules.own(),
            },
            sandbox: self.template.sandbox.clone(),
            scratch,
            // SAFETY: as above.
            gate: self
                .descendants
                .gate
                .as_ref()
                .map(|gate| unsafe { sys::move_out_unchecked(gate) }),
            memory: None,
            is_taken_over: false,
            takeover,
        };
        let captured = captured.as_ref().and_then(CapturedStderr::pipe);
        {
            let log = log_output::with_descriptors();
            let of_worker = [stderr.as_ref(), captured].into_iter().flatten();
            let of_log = log.iter().flat_map(|log| log.descriptors());
            let of_worker = of_worker.chain([role.descriptor()]).map(AsFd::as_fd).chain(of_log);
            let of_worker = of_worker.map(|descriptor| descriptor.as_raw_fd());
            // SAFETY: as above. Nothing below uses the owners of these descriptors.
            unsafe {
                sys::close_unchecked(self.descriptors(needs_only_low).chain(of_worker));
                if needs_only_low {
                    self.process.partial_forks.close_high();
                }
            }
        }
        // The limit can be restored only after the server's descriptors have been closed.
        if !self.options.limits.has(Limit::OpenFiles) {
            self.process.open_files.restore();
        }
        self.template.title.show();
        sys::reseed_c_random();
        // The steps above may need the server's privileges.
        let server = Pid::from_raw(self.process.pid.cast_signed());
        let server = server.ok_or(io::ErrorKind::NotFound.into());
        if let Err(error) = server.and_then(|server| self.template.privileges.apply(server)) {
            log::error!("a worker cannot give up its privileges: {error}");
            sys::exit_now(1);
        }
        let run = std::panic::AssertUnwindSafe(|| (self.template.program)(init));
        let status = std::panic::catch_unwind(run).unwrap_or(101);
        sys::exit_flushed(status)
    }

    /// The descriptors of the server that a worker must close, without those of other workers that have high numbers
    /// if it needs only low ones.
    fn descriptors(&self, needs_only_low: bool) -> impl Iterator<Item = RawFd> {
        let own = [
            self.template.dev_null.as_fd(),
            self.process.epoll.as_fd(),
            self.process.signals.as_fd(),
        ];
        let all = (!needs_only_low).then(|| self.children.iter());
        let all = all.into_iter().flatten().flat_map(Child::descriptors);
        let low = needs_only_low.then(|| self.children.low_descriptors());
        own.into_iter()
            .chain([self.process.threads.as_fd(), self.process.wake.as_fd()])
            .chain(self.descendants.oom_kills.descriptor())
            .chain(self.descendants.orphans.descriptor())
            .chain(self.options.control.as_ref().map(AsFd::as_fd))
            .chain(self.options.parent.as_ref().and_then(Parent::channel))
            .chain(self.connections.listener.as_ref().map(AsFd::as_fd))
            .chain(self.status.listener.as_ref().map(AsFd::as_fd))
            .chain(self.connections.files.former().map(AsFd::as_fd))
            .chain(self.status.requests.descriptors())
            .chain(self.takeover.successor.as_ref().map(AsFd::as_fd))
            .chain(self.descendants.guardian.iter().flat_map(Guardian::descriptors))
            .chain(self.surroundings.groups.as_ref().map(WorkerGroups::descriptor))
            .chain(self.surroundings.scratch.iter().flat_map(ScratchFolder::descriptors))
            .chain(self.connections.handshakes.descriptors())
            .chain(self.connections.waiting.descriptors())
            .chain(all)
            .map(|descriptor| descriptor.as_raw_fd())
            .chain(low.into_iter().flatten())
    }
}

/// Joins the control group of a new worker. Closes the file, because the kernel checks a write by the rights of
/// the process that opened it: the worker could move processes of others into its group.
#[inline]
fn join_group(processes: OwnedFd) -> io::Result<()> {
    // 0 stands for the process that writes it.
    rustix::io::write(&processes, b"0")?;
    Ok(())
}
