//! What a confined process tries.
#![expect(unsafe_code, reason = "raw system calls, as hostile code makes them")]

use std::fs;
use std::io::{self, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use taskfork_sandbox::Level::{self, Compute, Files, Gateway, NoNetwork, Node, Off, Perl, Python};

/// One thing to try.
pub(super) struct Attempt {
    pub(super) name: &'static str,
    /// The levels at which it succeeds. At all others it is refused with EACCES or EPERM.
    pub(super) allowed: &'static [Level],
    pub(super) run: fn() -> io::Result<()>,
}

const ALL: &[Level] = &[Off, NoNetwork, Files, Compute, Gateway, Python, Node, Perl];
const OPEN_FILES: &[Level] = &[Off, NoNetwork];
const NULL_DEVICES: &[Level] = &[Off, NoNetwork, Files, Python, Node, Perl];
const UNCONFINED: &[Level] = &[Off];
const ACCEPTING: &[Level] = &[Off, Gateway];
const EXECUTABLE_MEMORY: &[Level] = &[Off, NoNetwork, Python, Node, Perl];

macro_rules! attempts {
    ($($name:ident $allowed:ident $run:expr;)*) => {
        &[$(Attempt { name: stringify!($name), allowed: $allowed, run: || $run },)*]
    };
}

pub(super) const ATTEMPTS: &[Attempt] = attempts! {
    read_a_file OPEN_FILES fs::read("/etc/passwd").map(drop);
    list_a_directory OPEN_FILES fs::read_dir("/etc").map(drop);
    read_null NULL_DEVICES fs::read("/dev/null").map(drop);
    write_to_scratch ALL write_to_scratch();
    write_elsewhere OPEN_FILES write_elsewhere();
    make_a_thread ALL make_a_thread();
    make_a_socket_pair ALL UnixStream::pair().map(drop);
    make_a_datagram_pair UNCONFINED UnixDatagram::pair().map(drop);
    signal_itself ALL call(libc::SYS_kill, [own_id(), 0, 0, 0]);
    signal_another_process UNCONFINED call(libc::SYS_kill, [victim_id(), 0, 0, 0]);
    renice_another_process UNCONFINED call(libc::SYS_setpriority, [0, victim_id(), 19, 0]);
    move_another_process UNCONFINED move_victim();
    listen_on_tcp UNCONFINED TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map(drop);
    accept_a_connection ACCEPTING accept_a_connection();
    ask_for_unread_bytes ALL ask_for_unread_bytes();
    connect_by_tcp UNCONFINED connect_to(1);
    connect_to_another_port UNCONFINED connect_to(2);
    send_by_udp UNCONFINED UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).map(drop);
    make_a_netlink_socket UNCONFINED
        call(libc::SYS_socket, [libc::AF_NETLINK.into(), libc::SOCK_RAW.into(), 0, 0]);
    start_a_process OPEN_FILES start_a_process();
    start_a_program OPEN_FILES Command::new("/bin/true").status().map(drop);
    map_executable_memory EXECUTABLE_MEMORY map_executable_memory();
    make_executable_memory EXECUTABLE_MEMORY
        call(libc::SYS_mprotect, [0, 0, libc::PROT_EXEC.into(), 0]);
    splice_a_pipe OPEN_FILES splice_a_pipe();
    trace_another_process UNCONFINED call(libc::SYS_ptrace, [libc::PTRACE_SEIZE.into(), victim_id(), 0, 0]);
    make_a_namespace UNCONFINED call(libc::SYS_unshare, [0, 0, 0, 0]);
    read_a_limit ALL call(libc::SYS_prlimit64, [0, 0, 0, 0]);
};

fn call(number: i64, arguments: [i64; 4]) -> io::Result<()> {
    let [a, b, c, d] = arguments;
    // SAFETY: the attempts pass no pointers but null ones.
    let result = unsafe { libc::syscall(number, a, b, c, d) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes this process one of an ordinary user.
pub(super) fn change_user(id: u32) {
    // SAFETY: only ids are changed, in a process of one thread.
    let done =
        unsafe { libc::setgroups(0, std::ptr::null()) | libc::setgid(id) | libc::setuid(id) };
    assert_eq!(done, 0, "{}", io::Error::last_os_error());
}

fn own_id() -> i64 {
    std::process::id().into()
}

/// Another process of the same user.
static VICTIM: OnceLock<u32> = OnceLock::new();

/// A process that attempts aim at. It ends when its standard input closes.
pub(super) struct Victim(Child);

impl Victim {
    pub(super) fn start() -> Self {
        let child = Command::new("cat").stdin(Stdio::piped()).spawn().expect("a process");
        VICTIM.set(child.id()).expect("one attempt for each process");
        Self(child)
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        // Closes its standard input first.
        self.0.wait().expect("a process that ends");
    }
}

fn victim_id() -> i64 {
    (*VICTIM.get().expect("a process to aim at")).into()
}

/// A listening socket from before the sandbox.
static LISTENER: OnceLock<TcpListener> = OnceLock::new();

/// Opens a listening socket with nothing to accept.
pub(super) fn listen() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a listening socket");
    listener.set_nonblocking(true).expect("a socket that does not block");
    LISTENER.set(listener).expect("one attempt for each process");
}

fn accept_a_connection() -> io::Result<()> {
    match LISTENER.get().expect("a listening socket").accept() {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
        other => other.map(drop),
    }
}

fn ask_for_unread_bytes() -> io::Result<()> {
    let (here, _there) = UnixStream::pair()?;
    let mut bytes: libc::c_int = 0;
    // SAFETY: the kernel writes one number to a local variable.
    let done = unsafe { libc::ioctl(here.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn write_to_scratch() -> io::Result<()> {
    fs::create_dir_all("a/b")?;
    fs::write("a/b/file", "text")?;
    fs::rename("a/b/file", "a/file")?;
    assert_eq!(fs::read_to_string("a/file")?, "text");
    assert_eq!(fs::metadata("a/file")?.len(), 4);
    fs::remove_file("a/file")?;
    fs::remove_dir_all("a")
}

fn write_elsewhere() -> io::Result<()> {
    let path = format!("/var/tmp/taskfork-sandbox-{}", std::process::id());
    fs::write(&path, "text")?;
    fs::remove_file(&path)
}

fn start_a_process() -> io::Result<()> {
    fork(|| true).map(|_| ())
}

/// What `check` returns in a forked process. It must not allocate, because other threads may hold locks.
pub(super) fn fork(check: impl FnOnce() -> bool) -> io::Result<bool> {
    // SAFETY: the new process only runs `check`, and ends.
    match unsafe { libc::fork() } {
        0 => {
            let status = i32::from(!check());
            // SAFETY: ends the new process without the exit handlers of this one.
            unsafe { libc::_exit(status) }
        }
        child if child < 0 => Err(io::Error::last_os_error()),
        child => {
            let mut status = 0;
            // SAFETY: the kernel writes one number to a local variable.
            match unsafe { libc::waitpid(child, &raw mut status, 0) } {
                ended if ended == child => Ok(status == 0),
                _ => Err(io::Error::last_os_error()),
            }
        }
    }
}

fn splice_a_pipe() -> io::Result<()> {
    let (reader, mut writer) = io::pipe()?;
    let (_other_reader, other_writer) = io::pipe()?;
    writer.write_all(b"text")?;
    // SAFETY: the call gets null pointers and descriptors that are open.
    let moved = unsafe {
        let (from, to) = (reader.as_raw_fd(), other_writer.as_raw_fd());
        libc::splice(from, std::ptr::null_mut(), to, std::ptr::null_mut(), 4, 0)
    };
    if moved < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn make_a_thread() -> io::Result<()> {
    let thread = std::thread::Builder::new().name("second".into()).spawn(|| 1)?;
    assert_eq!(thread.join().ok(), Some(1));
    Ok(())
}

fn move_victim() -> io::Result<()> {
    let all = [u64::MAX; 16];
    let length = size_of_val(&all);
    // SAFETY: the kernel reads a local array of this length.
    let done =
        unsafe { libc::syscall(libc::SYS_sched_setaffinity, victim_id(), length, all.as_ptr()) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn connect_to(port: u16) -> io::Result<()> {
    match TcpStream::connect((Ipv4Addr::LOCALHOST, port)) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        other => other.map(drop),
    }
}

fn map_executable_memory() -> io::Result<()> {
    let access = libc::PROT_READ | libc::PROT_EXEC;
    let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: the kernel chooses the address of a new mapping.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), 4096, access, kind, -1, 0) };
    if start == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
}
