//! Starting a server from within a client's program, by forking it or by executing it again: the
//! side of the new process.

use std::os::fd::OwnedFd;
use std::sync::OnceLock;

use super::builder::ServerBuilder;
use super::control::{self, ControlChannel, StartupData};
use super::environment;
use super::error::ServerError;
use super::handle::ServerHandle;
use super::launch;
use super::log;
use super::options::{Options, SpawnData};
use super::program_file;
use super::run::Server;
use super::spawned_server;
use super::test_entries;
use crate::sys::{self, ForkError, Forked};

/// A function that describes a server and runs it. [`init`] registers it by a name.
///
/// ```
/// use taskfork::{Methods, ServerBuilder, ServerError};
/// use taskfork::server::Entry;
///
/// fn adder(server: ServerBuilder) -> Result<(), ServerError> {
///     server.interface(Methods::new().function("add", |a: i64, b: i64| Ok(a + b))).run()
/// }
///
/// let servers: [(&str, Entry); 1] = [("adder", adder)];
/// # let _ = servers;
/// ```
pub type Entry = fn(ServerBuilder) -> Result<(), ServerError>;

struct Initialised {
    entries: Vec<String>,
    late: bool,
}

static INITIALISED: OnceLock<Initialised> = OnceLock::new();

/// Registers the servers that [`Server::spawn`] can start. It must be the first line of `main`,
/// before the runtime or any thread starts.
///
/// `Server::spawn` executes the program again. In that copy `init` runs the server and does not
/// return.
///
/// ```no_run
/// use taskfork::{Client, Methods, Server, ServerBuilder, ServerError};
///
/// fn adder(server: ServerBuilder) -> Result<(), ServerError> {
///     server.interface(Methods::new().function("add", |a: i64, b: i64| Ok(a + b))).run()
/// }
///
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     taskfork::init(&[("adder", adder)]);
///     tokio::runtime::Runtime::new()?.block_on(async {
///         let server = Server::spawn("adder")?;
///         let client = Client::builder().address(server.address()).build()?;
///         let sum: i64 = client.call("add", (2, 3)).await?;
///         assert_eq!(sum, 5);
///         Ok(())
///     })
/// }
/// ```
pub fn init(entries: &[(&str, Entry)]) {
    // The path is resolved before a new version can replace the file.
    program_file::path();
    let late = sys::thread_count().is_ok_and(|threads| threads > 1);
    let names = entries.iter().map(|(name, _)| (*name).to_owned()).collect();
    // Only the first call counts, because the names of a second one could be ambiguous.
    let _ = INITIALISED.set(Initialised { entries: names, late });
    if let Some(name) = sys::take_variable(environment::SERVER) {
        let entry = entries.iter().find(|(known, _)| *known == name).map(|(_, entry)| *entry);
        end_as_server(name, entry);
    }
}

/// Registers the servers of one use of [`test_support!`](crate::test_support). In a copy of the program that is to be
/// one of them, it runs the server and does not return. The loader of the program calls it before `main`, with a
/// single thread.
pub(crate) fn register_test_servers(module: &'static str, entries: &[(&'static str, Entry)]) {
    // The path is resolved before a new version can replace the file.
    program_file::path();
    let wanted = std::env::var(environment::SERVER).ok();
    for (name, entry) in entries {
        if wanted.as_deref() == Some(name) {
            sys::take_variable(environment::SERVER);
            end_as_server((*name).to_owned(), Some(*entry));
        }
        test_entries::add(name, module);
    }
}

/// Becomes the server `name`, and ends this process with it.
fn end_as_server(name: String, entry: Option<Entry>) -> ! {
    let status = become_server(name, entry);
    sys::exit_flushed(status)
}

fn become_server(name: String, entry: Option<Entry>) -> i32 {
    let taken = take_control().and_then(|control| Ok((control.receive_startup_data()?, control)));
    let (data, control) = match taken {
        Ok(taken) => taken,
        Err(error) => {
            let variable = environment::SERVER;
            log::error!("{variable} is set, but there is no control channel to a parent: {error}");
            return 1;
        }
    };
    let StartupData { stdout, stderr, config, previous } = data;
    // Until now both led to the program, which adds the output to its error if this process ends
    // before `init`.
    if let Err(errno) = restore_output(stdout, stderr) {
        log::error!("standard output or standard error cannot be set: {errno}");
    }
    let Some(entry) = entry else {
        // The program has checked the name against its own call of `init`, so the two calls differ.
        let known = INITIALISED.get().map(|known| known.entries.clone()).unwrap_or_default();
        control.report_failure(&ServerError::UnknownEntry { name, known });
        return 1;
    };
    serve(control, SpawnData { config, previous }, entry)
}

/// Redirects standard output and standard error to those of the program.
fn restore_output(stdout: Option<OwnedFd>, stderr: Option<OwnedFd>) -> rustix::io::Result<()> {
    stdout.map_or(Ok(()), |stdout| rustix::stdio::dup2_stdout(&stdout))?;
    stderr.map_or(Ok(()), |stderr| rustix::stdio::dup2_stderr(&stderr))
}

/// Takes over the control channel, which was passed as standard input.
fn take_control() -> std::io::Result<ControlChannel> {
    let stdin = rustix::stdio::stdin();
    let control = rustix::io::fcntl_dupfd_cloexec(stdin, 3)?;
    let nothing = rustix::fs::open(
        "/dev/null",
        rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?;
    rustix::stdio::dup2_stdin(&nothing)?;
    Ok(ControlChannel::new(control))
}

/// Describes and runs the server in its own process. Returns the exit status.
fn serve(
    control: ControlChannel,
    spawn_data: SpawnData,
    entry: impl FnOnce(ServerBuilder) -> Result<(), ServerError>,
) -> i32 {
    // A process group of its own, because the program handles what its terminal sends.
    let _ = rustix::process::setpgid(None, None);
    let reporter = control.clone();
    let options = Options { control: Some(control), spawn_data, ..Options::default() };
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        entry(ServerBuilder::with(options))
    })) {
        Ok(Ok(())) => 0,
        Ok(Err(error)) => {
            reporter.report_failure(&error);
            1
        }
        Err(_) => {
            reporter.report_panic();
            101
        }
    }
}

/// Checks whether this program can be executed again as the server `name`.
pub(super) fn check(name: &str) -> Result<(), ServerError> {
    if test_entries::is_registered(name)? {
        return Ok(());
    }
    let initialised =
        INITIALISED.get().ok_or_else(|| ServerError::NotInitialised { name: name.to_owned() })?;
    if initialised.late {
        return Err(ServerError::InitialisedLate);
    }
    if !initialised.entries.iter().any(|known| known == name) {
        let known = initialised.entries.clone();
        return Err(ServerError::UnknownEntry { name: name.to_owned(), known });
    }
    Ok(())
}

impl Server {
    /// Starts a server in a forked copy of this process. `entry` describes and runs the server
    /// there. The server shares the memory of this program copy-on-write.
    ///
    /// This process must have a single thread, so no runtime may have been started.
    /// [`Server::spawn`] has no such limit. The server is not replaced if it dies.
    ///
    /// ```no_run
    /// use taskfork::{Methods, Server};
    ///
    /// fn main() -> Result<(), taskfork::ServerError> {
    ///     let server = Server::fork(|server| {
    ///         server.interface(Methods::new().function("add", |a: i64, b: i64| Ok(a + b))).run()
    ///     })?;
    ///     println!("the server's pid is {}", server.pid());
    ///     server.close();
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// Returns [`ServerError::Threads`] if this process has further threads, and
    /// [`ServerError::Startup`] with the server's own error if it cannot start.
    #[expect(unsafe_code, reason = "a caller of an unsafe function of `sys`")]
    pub fn fork(
        entry: impl FnOnce(ServerBuilder) -> Result<(), ServerError>,
    ) -> Result<ServerHandle, ServerError> {
        let (ours, theirs) =
            control::pair().map_err(ServerError::system("cannot make a channel to the server"))?;
        let forked = sys::ThreadCount::of_this_process().map_err(Into::into).and_then(|count| {
            sys::flush_stdio();
            // SAFETY: the child is a server of its own, as the caller wants, and leaves by
            // `exit_now`.
            unsafe { sys::fork(&count) }
        });
        match forked {
            Ok(Forked::Parent { child }) => {
                drop(theirs);
                ServerHandle::new(launch::forked(child.as_raw().unsigned_abs(), ours)?, None)
            }
            Ok(Forked::Child) => {
                drop(ours);
                spawned_server::close_inherited();
                let status = serve(ControlChannel::new(theirs), SpawnData::default(), entry);
                sys::exit_flushed(status)
            }
            Err(ForkError::Threads { threads }) => Err(ServerError::Threads { threads }),
            Err(ForkError::Kernel(source)) => {
                Err(ServerError::System { what: "cannot fork the server", source })
            }
        }
    }
}
