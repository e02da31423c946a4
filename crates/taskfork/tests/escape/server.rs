//! The servers whose workers try to escape: one for each confinement, in a process of its own.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::net::{Ipv4Addr, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::Child;
use std::sync::{Arc, LazyLock, Mutex, OnceLock};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use taskfork::blocking::{Checkout, Client};
use taskfork::server::{Limit, ServerStatus};
use taskfork::worker::context;
use taskfork::{BoxError, Methods, Server};

use crate::attempt::Surroundings;
use crate::confinement::Confinement;
use crate::surroundings::{copy, surroundings};
use crate::system_call::system_call;
use crate::{attacks, attempts};

pub(crate) const SERVE: &str = "serve ";

/// A program that an attacker has brought along.
pub(crate) static PROGRAM_BYTES: OnceLock<Vec<u8>> = OnceLock::new();

/// The user of workers whose server is root.
const OTHER_USER: u32 = 60_022;

/// No attempt takes longer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The size of a scratch folder in bytes, with room for the files of attacks.
const SCRATCH: u64 = 64 << 20;

#[derive(Serialize, Deserialize)]
struct Request {
    confinement: Confinement,
    with: Surroundings,
    terminal: PathBuf,
}

/// What came of an attempt: the number of the error, 0 if it succeeded, or -1 and the text of an error that has no
/// number.
pub(crate) type Outcome = (i32, String);

/// Runs this process as a server.
pub(crate) fn serve(request: &str) {
    let Request { confinement, with, terminal } = serde_json::from_str(request).unwrap();
    // So that a worker's session has a terminal that it could type into.
    let terminal = control_terminal(&terminal);
    PROGRAM_BYTES.get_or_init(|| std::fs::read(attempts::PROGRAM).unwrap());
    let address = format!("unix:{}", with.server_socket.display());
    let server =
        Server::builder().listen(address.as_str()).status_socket(with.status_socket.clone());
    let server = server.sandbox(confinement.sandbox(&with)).scratch(SCRATCH);
    let server = server.scratch_folder(with.outside.join("scratch"));
    let server = match confinement {
        Confinement::OtherUser => server.user(OTHER_USER).group(OTHER_USER),
        _ => server,
    };
    let server = match confinement {
        // A sandbox sets this anyway.
        Confinement::Off => server.no_new_privs(false),
        // What a level itself does not bound.
        _ => server.limit(Limit::AddressSpace, 16 << 30).limit(Limit::OpenFiles, 256),
    };
    let setup = move || -> Result<Surroundings, BoxError> {
        let connection = TcpStream::connect((Ipv4Addr::LOCALHOST, with.tcp))?;
        let scratch = context().scratch().ok_or("there is no scratch folder")?.to_owned();
        // They stay open for as long as the worker.
        Ok(Surroundings {
            scratch,
            terminal: terminal.try_clone()?.into_raw_fd(),
            root: File::open("/")?.into_raw_fd(),
            shared: shared_mappings("rw-s")?,
            published: shared_mappings("r--s")?,
            connection: connection.into_raw_fd(),
            ..with.clone()
        })
    };
    let methods = Methods::new()
        .method("attempt", |with: &mut Surroundings, name: String, sibling: i32| {
            with.server = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
            with.sibling = sibling;
            let attempts = attempts::all();
            let attempt = attempts.iter().find(|attempt| attempt.name == name);
            Ok(outcome((attempt.ok_or("there is no such attempt")?.run)(with)))
        })
        .method("scratch", |with: &mut Surroundings| Ok(with.scratch.clone()))
        .method("attack", |with: &mut Surroundings, name: String| {
            with.server = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
            let attacks = attacks::all();
            let attack = attacks.iter().find(|attack| attack.name == name);
            Ok((attack.ok_or("there is no such attack")?.run)(with)?)
        })
        .method("pid", |_: &mut Surroundings| Ok(std::process::id()));
    server.setup(setup).interface(methods).run().unwrap();
}

/// The mappings with this access that a server shares with its workers: where they begin, and their lengths.
fn shared_mappings(wanted: &str) -> io::Result<Vec<(usize, usize)>> {
    let mapping = |line: &str| {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let [start, end] = [start, end].map(|at| usize::from_str_radix(at, 16).unwrap_or_default());
        (rest.starts_with(wanted) && rest.contains("memfd:taskfork"))
            .then_some((start, end - start))
    };
    Ok(std::fs::read_to_string("/proc/self/maps")?.lines().filter_map(mapping).collect())
}

fn outcome(result: io::Result<()>) -> Outcome {
    match result {
        Ok(()) => (0, String::new()),
        Err(error) => (error.raw_os_error().unwrap_or(-1), error.to_string()),
    }
}

fn control_terminal(path: &std::path::Path) -> OwnedFd {
    rustix::process::setsid().unwrap();
    let terminal = OpenOptions::new().read(true).write(true).open(path).unwrap();
    system_call(libc::SYS_ioctl, &[terminal.as_raw_fd() as usize, libc::TIOCSCTTY as usize, 0])
        .unwrap();
    terminal.into()
}

/// A server of this process.
pub(crate) struct Running {
    child: Mutex<Child>,
    address: String,
    pub(crate) with: Surroundings,
    sibling: Checkout,
    sibling_pid: i32,
    _terminal: OwnedFd,
}

static RUNNING: LazyLock<Mutex<HashMap<Confinement, Arc<OnceLock<Running>>>>> =
    LazyLock::new(Mutex::default);

/// The server with this confinement. It is started when it is first asked for.
pub(crate) fn running(confinement: Confinement) -> Arc<OnceLock<Running>> {
    let server = RUNNING.lock().unwrap().entry(confinement).or_default().clone();
    server.get_or_init(|| Running::start(confinement, "attempts"));
    server
}

pub(crate) fn end_all() {
    for server in RUNNING.lock().unwrap().values() {
        if let Some(server) = server.get() {
            server.end();
        }
    }
}

impl Running {
    /// Starts a server. Its files are named after `purpose`.
    pub(crate) fn start(confinement: Confinement, purpose: &str) -> Self {
        let (master, terminal) = terminal().unwrap();
        let folder = &surroundings().outside;
        let file = |kind: &str| folder.join(format!("{purpose}-{confinement:?}.{kind}"));
        let mut with = surroundings().clone();
        (with.server_socket, with.status_socket) = (file("socket"), file("status"));
        with.output = file("output");
        std::fs::write(&with.output, "output").unwrap();
        let address = format!("unix:{}", with.server_socket.display());
        let request = Request { confinement, with: with.clone(), terminal };
        let request = serde_json::to_string(&request).unwrap();
        let (log, output) = (file("log"), OpenOptions::new().append(true).open(&with.output));
        let mut command = copy(&format!("{SERVE}{request}"));
        command.stdout(output.unwrap()).stderr(File::create(&log).unwrap());
        let child = Mutex::new(command.spawn().unwrap());
        let sibling = client(&address).checkout();
        let sibling_pid = sibling.call("pid", ()).unwrap_or_else(|error| {
            let log = std::fs::read_to_string(&log).unwrap_or_default();
            panic!("no server: {error:#}; it wrote: {log}")
        });
        Self { child, address, with, sibling, sibling_pid, _terminal: master }
    }

    pub(crate) fn end(&self) {
        let mut child = self.child.lock().unwrap();
        let _ = child.kill();
        let _ = child.wait();
    }

    /// A client with workers of its own.
    pub(crate) fn client(&self) -> Client {
        client(&self.address)
    }

    /// Whether the server lives, tells its status, and serves a new client, and the sibling still answers.
    pub(crate) fn is_well(&self) -> Result<(), String> {
        if let Ok(Some(status)) = self.child.lock().unwrap().try_wait() {
            return Err(format!("the server has ended: {status}"));
        }
        let new = self.client().call::<i32>("pid", ());
        new.map_err(|error| format!("a new client is not served: {error}"))?;
        let status = ServerStatus::read(&self.with.status_socket);
        status.map_err(|error| format!("the server does not tell its status: {error}"))?;
        let sibling = self.sibling.call::<i32>("pid", ());
        let sibling = sibling.map_err(|error| format!("its sibling does not answer: {error}"))?;
        match sibling == self.sibling_pid {
            true => Ok(()),
            false => Err("another worker answers instead of its sibling".to_owned()),
        }
    }

    /// Has a new worker make an attempt. Then the worker must answer, and so must its server and its sibling.
    pub(crate) fn attempt(&self, name: &str) -> Result<Outcome, String> {
        let client = client(&self.address);
        let checkout = client.checkout();
        let before: u32 = checkout.call("pid", ()).map_err(|error| error.to_string())?;
        let outcome = checkout.call("attempt", (name, self.sibling_pid));
        let outcome = outcome.map_err(|error| format!("the call fails: {error}"))?;
        let after: u32 = checkout
            .call("pid", ())
            .map_err(|error| format!("the worker does not answer after {outcome:?}: {error}"))?;
        if before != after {
            return Err(format!("another worker answers after {outcome:?}"));
        }
        let sibling = self.sibling.call::<i32>("pid", ());
        match sibling.map_err(|error| format!("its sibling does not answer: {error}"))? {
            sibling if sibling == self.sibling_pid => Ok(outcome),
            _ => Err("another worker answers instead of its sibling".to_owned()),
        }
    }
}

fn client(address: &str) -> Client {
    let options = Client::builder().address(address).min_workers(0).max_workers(1);
    options.timeout(PATIENCE).connect_timeout(PATIENCE).build_blocking().unwrap()
}

/// A new terminal: what controls it, and the path of what programs open.
fn terminal() -> io::Result<(OwnedFd, PathBuf)> {
    let (mut master, mut slave) = (-1, -1);
    let mut name = [0_u8; 64];
    // SAFETY: the kernel writes two descriptors, which nothing else owns, and a short name.
    #[allow(unsafe_code)]
    let (master, _slave) = unsafe {
        let name = name.as_mut_ptr().cast();
        let (settings, size) = (std::ptr::null_mut(), std::ptr::null_mut());
        if libc::openpty(&raw mut master, &raw mut slave, name, settings, size) == -1 {
            return Err(io::Error::last_os_error());
        }
        (OwnedFd::from_raw_fd(master), OwnedFd::from_raw_fd(slave))
    };
    let name = std::ffi::CStr::from_bytes_until_nul(&name).map_err(io::Error::other)?;
    Ok((master, PathBuf::from(name.to_str().map_err(io::Error::other)?)))
}
