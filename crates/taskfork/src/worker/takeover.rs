//! A program that a worker has executed in its own place, and that takes the worker over.

use std::ffi::OsString;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use bytes::BytesMut;
use rustix::io::FdFlags;

use super::executable::Made;
use super::handlers::Handlers;
use super::inherited_state::{Client, State, VERSION};
use super::init::{AcceptedClient, ClientSource, IoBuffers, WorkerInit};
use super::interface::Interface;
use super::scoreboard::WorkerSlot;
use super::serve::{prepare, serve};
use crate::error::Failure;
use crate::sys::{self, OccupiedMemory};
use crate::wire::WireError;
use crate::wire::frame::{self, PREAMBLE};
use crate::wire::hello::{MAX_HELLO, WorkerHello};
use crate::wire::native::VERSIONS;

/// What to do about a program that is a child of the process that the server knows.
pub(super) const NOT_IN_PLACE: &str = "the program is a child of the command that the server has started, such as a shell or \
                                       `timeout`: have it executed in the place of that, as by `exec` in a shell";

/// How long a program may go on once its connection has ended.
const END_TIMEOUT: Duration = Duration::from_secs(1);

/// The exit status of a process that finds its worker taken over: `EX_SOFTWARE` of sysexits.
const TAKEN_STATUS: i32 = 70;

/// Says to the worker that has started this program that it can serve a connection itself, and waits until that has
/// noticed it. This program has nothing else to do then: the worker executes it once more, in its own place.
///
/// # Errors
/// If the other side is no server of this version, which would serve without this.
pub fn offer(connection: OwnedFd) -> Result<(), String> {
    let failed = |error: io::Error| format!("the connection to the server failed: {error}");
    let mut connection = UnixStream::from(connection);
    let mut out = PREAMBLE.to_vec();
    let hello = WorkerHello {
        version: VERSIONS[0],
        pid: std::process::id(),
        takes_over: VERSION.to_owned(),
        ..WorkerHello::default()
    };
    frame::put(&mut out, |out| hello.put(out));
    io::Write::write_all(&mut connection, &out).map_err(failed)?;
    let (mut inbox, mut has_preamble, mut has_hello) = (BytesMut::new(), false, false);
    let mut piece = [0; 4096];
    loop {
        match io::Read::read(&mut connection, &mut piece) {
            Ok(0) => return Ok(()),
            Ok(length) => inbox.extend_from_slice(&piece[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => return Err(failed(error)),
        }
        let wrong = |error: WireError| error.to_string();
        has_preamble = has_preamble || frame::take_preamble(&mut inbox).map_err(wrong)?;
        has_hello = has_hello
            || has_preamble && frame::take(&mut inbox, MAX_HELLO).map_err(wrong)?.is_some();
        if has_hello && !inbox.is_empty() {
            return Err("this program serves its connection itself, and was sent a call without having got one: start it by \
                        `taskfork serve` of the same version"
                .to_owned());
        }
    }
}

/// A worker that this program has taken over.
#[derive(Debug)]
pub struct Inherited(WorkerInit);

impl Inherited {
    /// Takes over the worker whose state has this descriptor.
    ///
    /// # Errors
    /// If the server has another version, or the state cannot be read.
    ///
    /// # Safety
    /// The descriptor must have been inherited, as the variable `TASKFORK_WORKER` says, and this is called only once.
    #[expect(unsafe_code, reason = "descriptors are passed on by their numbers")]
    pub unsafe fn take(state: RawFd) -> Result<Self, String> {
        let failed = |error: io::Error| format!("the state of the worker cannot be read: {error}");
        // SAFETY: the caller has promised that no other value owns it.
        let file = unsafe { sys::take_inherited(state) }.map_err(failed)?;
        let mut content = Vec::new();
        let mut file = std::fs::File::from(file);
        io::Seek::rewind(&mut file).map_err(failed)?;
        io::Read::read_to_end(&mut file, &mut content).map_err(failed)?;
        let (state, received) = State::read(&content)?;
        if state.pid != std::process::id() {
            return Err(NOT_IN_PLACE.to_owned());
        }
        // SAFETY: the worker that has executed this program has left these descriptors open for it alone, and each is taken
        // once, because the state is.
        unsafe { Self::of(state, received) }.map_err(failed)
    }

    /// # Safety
    /// The descriptors of the state must be open, and no value of this process may own them.
    #[expect(unsafe_code, reason = "descriptors are passed on by their numbers")]
    unsafe fn of(state: State, received: &[u8]) -> io::Result<Self> {
        let take = |number: RawFd| {
            // SAFETY: the caller has promised that no value owns it.
            let descriptor = unsafe { sys::take_inherited(number) }?;
            // Programs that user code starts must not have it.
            rustix::io::fcntl_setfd(&descriptor, FdFlags::CLOEXEC)?;
            Ok::<_, io::Error>(descriptor)
        };
        let slot = sys::map_inherited_page(&take(state.slot)?)?;
        let published = sys::map_inherited_published(&take(state.published)?)?;
        let client = match state.client.ok_or(io::ErrorKind::InvalidData)? {
            Client::Channel(channel) => ClientSource::Channel(take(channel)?),
            Client::Connection { socket, files, is_greeted } => {
                let files = files.into_iter().map(take).collect::<io::Result<_>>()?;
                let client = AcceptedClient::new(take(socket)?, received.to_vec(), None);
                ClientSource::Accepted(AcceptedClient { files, is_greeted, ..client })
            }
        };
        let memory =
            state.memory.map(|[sizes, status]| Ok::<_, io::Error>([take(sizes)?, take(status)?]));
        Ok(Self(WorkerInit {
            client,
            slot: WorkerSlot::new(slot, published),
            number: state.number,
            server: state.server,
            config: state.config.into_config(),
            // It applies already.
            sandbox: None,
            scratch: state.scratch.map(|path| PathBuf::from(OsString::from_vec(path))),
            wake: take(state.wake)?,
            buffers: IoBuffers::new(),
            memory: memory.transpose()?.map(OccupiedMemory::of),
            is_taken_over: true,
            takeover: None,
            gate: None,
        }))
    }

    /// Serves the worker's connection until it ends. Returns the exit status for this process, which ends by that a second later
    /// if it goes on.
    pub fn serve<S: 'static>(
        self,
        setup: impl Fn() -> Result<S, Failure> + 'static,
        checkout_done: impl Fn(&mut S) -> Result<(), Failure> + 'static,
        interface: &dyn Interface<S>,
    ) -> i32 {
        let handlers = Handlers {
            setup: Box::new(move |_| setup().map(Made::State)),
            has_setup: true,
            checkout_done: Some(Box::new(checkout_done)),
            program: None,
        };
        if !self.0.slot.begin_serving() {
            eprintln!("taskfork: another process has taken this worker over");
            return TAKEN_STATUS;
        }
        prepare();
        sys::map_worker_mark();
        // The server has other functions at these addresses.
        sys::disable_stack_capture();
        let status = serve(self.0, interface, &handlers);
        // The server keeps the worker's place until this process ends. Without a thread, it waits for longer.
        let _ = sys::spawn_without_signals("taskfork-end", move || {
            std::thread::sleep(END_TIMEOUT);
            eprintln!("taskfork: this program goes on a second after its connection, and is ended");
            sys::exit_now(status)
        });
        status
    }
}
