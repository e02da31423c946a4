//! What attempts try to reach: files, listening sockets and a process, all of the user that the trials run as.

use std::fs;
use std::io::Read;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use crate::attempt::Surroundings;
use crate::scratch::make_precious;
use crate::server::PATIENCE;

/// What stands in the environment of a process that does something else than run trials.
pub(crate) const REQUESTED: &str = "TASKFORK_ESCAPE_REQUEST";

/// Names the folder with the files of root in the environment.
pub(crate) const FILES_OF_ROOT: &str = "TASKFORK_ESCAPE_FILES_OF_ROOT";

pub(crate) const BYSTANDER: &str = "bystander";

struct Made {
    surroundings: Surroundings,
    folder: tempfile::TempDir,
    bystander: Mutex<Child>,
}

static MADE: OnceLock<Made> = OnceLock::new();

/// A copy of this process, which can be executed wherever its file is.
pub(crate) fn copy(request: &str) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.env(REQUESTED, request).stdin(Stdio::null());
    command
}

/// The same for all trials.
pub(crate) fn surroundings() -> &'static Surroundings {
    &MADE.get_or_init(make).surroundings
}

/// Makes again what attempts have removed.
pub(crate) fn refresh() {
    let with = surroundings();
    for name in ["existing", "removable", "movable"] {
        let path = with.writable(name);
        if !path.exists() {
            fs::write(path, "text").unwrap();
        }
    }
}

/// Removes what was made, once no trial runs any more.
pub(crate) fn remove() {
    if let Some(made) = MADE.get() {
        let mut bystander = made.bystander.lock().unwrap();
        let _ = bystander.kill();
        let _ = bystander.wait();
        // The guardians of the killed servers unmount the scratch folders.
        let start = Instant::now();
        while fs::remove_dir_all(made.folder.path()).is_err() && start.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn make() -> Made {
    let folder = tempfile::tempdir().unwrap();
    let outside = folder.path().to_owned();
    // Workers of another user have their scratch folders below.
    fs::set_permissions(&outside, PermissionsExt::from_mode(0o755)).unwrap();
    fs::create_dir(outside.join("writable")).unwrap();
    fs::write(outside.join("secret"), "secret").unwrap();
    fs::create_dir(outside.join("scratch")).unwrap();
    make_precious(&outside).unwrap();
    let abstract_name = format!("taskfork-escape-{}", std::process::id());
    let name = SocketAddr::from_abstract_name(&abstract_name).unwrap();
    accepts(UnixListener::bind_addr(&name).unwrap());
    accepts(UnixListener::bind(outside.join("stream")).unwrap());
    accepts(UnixListener::bind(outside.join("other-stream")).unwrap());
    let datagrams = UnixDatagram::bind(outside.join("datagrams")).unwrap();
    std::thread::spawn(move || while datagrams.recv(&mut [0; 8]).is_ok() {});
    let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let udp_port = udp.local_addr().unwrap().port();
    std::thread::spawn(move || while udp.recv(&mut [0; 8]).is_ok() {});
    let mut bystander = copy(BYSTANDER).stdout(Stdio::piped()).spawn().unwrap();
    // It says when it blocks its signals.
    bystander.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
    let surroundings = Surroundings {
        client: std::process::id().cast_signed(),
        bystander: bystander.id().cast_signed(),
        outside,
        tcp: listens(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()),
        other_tcp: listens(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()),
        // A machine may have no such addresses.
        tcp_v6: TcpListener::bind(("::1", 0)).map_or(1, listens),
        udp: udp_port,
        abstract_name,
        setuid_program: of_root("cat"),
        file_of_root: of_root("file"),
        ..Surroundings::default()
    };
    Made { surroundings, folder, bystander: Mutex::new(bystander) }
}

/// Makes the files that only root can make, for the trials of an ordinary user.
pub(crate) fn make_files_of_root() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let (program, file) = (folder.path().join("cat"), folder.path().join("file"));
    fs::copy("/bin/cat", &program).unwrap();
    fs::write(&file, "secret").unwrap();
    for (path, mode) in [(&program, 0o4755), (&file, 0o600), (&folder.path().to_owned(), 0o755)] {
        fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    }
    folder
}

/// One of these files, if there are any.
fn of_root(name: &str) -> PathBuf {
    std::env::var_os(FILES_OF_ROOT)
        .map_or_else(PathBuf::new, |folder| Path::new(&folder).join(name))
}

fn accepts(listener: UnixListener) {
    std::thread::spawn(move || listener.incoming().for_each(drop));
}

/// Returns the port.
fn listens(listener: TcpListener) -> u16 {
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || listener.incoming().for_each(drop));
    port
}

/// What the bystander does: it blocks the signals that attempts send it, says so, and waits.
pub(crate) fn stand_by() {
    // SAFETY: the set is initialized before it is used, and nothing else is changed.
    #[allow(unsafe_code)]
    unsafe {
        let mut signals: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut signals);
        libc::sigaddset(&raw mut signals, libc::SIGUSR1);
        libc::sigaddset(&raw mut signals, libc::SIGUSR2);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const signals, std::ptr::null_mut());
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
    }
    println!("ready");
    loop {
        std::thread::park();
    }
}
