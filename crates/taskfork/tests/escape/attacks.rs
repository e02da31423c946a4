//! What a worker can do to its server, once an attacker owns it: by its end, its signals, its descriptors and its name. Each
//! attack has a server of its own. After it the server lives, serves a new client and a sibling, tells its status, and
//! has got rid of the worker.

use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FileType, OFlags};

use crate::attempt::Surroundings;
use crate::confinement::Confinement;
use crate::kills;
use crate::scratch::{self, is_precious_unchanged};
use crate::server::{PATIENCE, Running};
use crate::surroundings::surroundings;
use crate::system_call::{address, address_mut, system_call};

/// What comes of the worker.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Expected {
    Answers,
    /// The call fails, and its error has this text.
    Ends(&'static str),
}

#[derive(Clone, Copy)]
pub(crate) struct Attack {
    pub(crate) name: &'static str,
    pub(crate) run: fn(&Surroundings) -> io::Result<()>,
    expected: Expected,
    /// The sandboxes under which it is run.
    confinements: &'static [Confinement],
}

impl Attack {
    pub(super) fn under(self, confinements: &'static [Confinement]) -> Self {
        Self { confinements, ..self }
    }
}

/// How long the client waits for an attack that does not return.
const TIMEOUT: Duration = Duration::from_secs(3);

pub(crate) fn all() -> Vec<Attack> {
    let of_process = vec![
        attack("exits_as_if_it_had_finished", Expected::Ends("exited"), |_| {
            system_call(libc::SYS_exit_group, &[0]).map(drop)
        }),
        attack("ends_only_its_main_thread", Expected::Ends("timed out"), |_| {
            std::thread::Builder::new().spawn(wait_for_ever)?;
            system_call(libc::SYS_exit, &[0]).map(drop)
        }),
        attack("stops_itself", Expected::Ends("timed out"), |_| {
            let own = std::process::id() as usize;
            system_call(libc::SYS_kill, &[own, libc::SIGSTOP as usize]).map(drop)
        }),
        attack("blocks_all_signals_and_spins", Expected::Ends("timed out"), |_| {
            let (all, block) = (u64::MAX, libc::SIG_BLOCK as usize);
            system_call(libc::SYS_rt_sigprocmask, &[block, address(&all), 0, 8])?;
            loop {
                std::hint::spin_loop();
            }
        }),
        attack("ignores_all_signals_and_waits", Expected::Ends("timed out"), |_| {
            for signal in 1..=64 {
                let ignore = [libc::SIG_IGN, 0, 0, 0];
                // Two signals cannot be ignored, and a sandbox may refuse a third.
                let _ = system_call(libc::SYS_rt_sigaction, &[signal, address(&ignore), 0, 8]);
            }
            wait_for_ever()
        }),
        attack("closes_all_its_descriptors", Expected::Ends("timed out"), |_| {
            system_call(libc::SYS_close_range, &[0, u32::MAX as usize, 0])?;
            wait_for_ever()
        }),
        attack("shuts_its_connection_down_and_stays", Expected::Ends(""), |_| {
            for socket in of_type(FileType::Socket) {
                let _ = system_call(libc::SYS_shutdown, &[socket as usize, 2]);
            }
            wait_for_ever()
        }),
        attack("overflows_its_stack", Expected::Ends("SIGABRT"), |_| {
            overflow(0);
            Ok(())
        }),
        attack("names_itself_like_a_dead_process", Expected::Answers, |_| {
            let name = *b") Z 1 1 1 (\n\0";
            let arguments = [libc::PR_SET_NAME as usize, address(&name), 0, 0, 0];
            system_call(libc::SYS_prctl, &arguments).map(drop)
        }),
        attack("writes_its_errors_byte_by_byte", Expected::Answers, |_| {
            // Each write is read alone, if the pipe can be made one of packets.
            let flags = OFlags::DIRECT | OFlags::WRONLY;
            let _ = rustix::fs::fcntl_setfl(borrowed(2), flags);
            for _ in 0..5_000 {
                system_call(libc::SYS_write, &[2, address(b"x"), 1])?;
            }
            Ok(())
        }),
        attack("fills_the_pipe_that_all_workers_share", Expected::Answers, |_| {
            for pipe in of_type(FileType::Fifo).into_iter().filter(|&pipe| pipe != 2) {
                // The description is shared, and so is this flag.
                let _ = rustix::fs::fcntl_setfl(borrowed(pipe), OFlags::WRONLY);
                let least = [pipe as usize, libc::F_SETPIPE_SZ as usize, 4096];
                let _ = system_call(libc::SYS_fcntl, &least);
                for _ in 0..500 {
                    std::thread::Builder::new().spawn(move || {
                        let bytes = [0_u8; 4096];
                        let arguments = [pipe as usize, address(&bytes), bytes.len()];
                        while system_call(libc::SYS_write, &arguments).is_ok() {}
                    })?;
                }
            }
            Ok(())
        }),
        attack("locks_and_shortens_what_it_shares", Expected::Answers, |_| {
            for shared in [1, 2] {
                let _ = system_call(libc::SYS_flock, &[shared, libc::LOCK_EX as usize]);
                let _ = system_call(libc::SYS_ftruncate, &[shared, 0]);
            }
            Ok(())
        }),
        attack("allocates_until_it_cannot", Expected::Ends(""), |_| {
            // Nothing is touched, so the machine notices nothing of it.
            const PIECE: usize = 1 << 44;
            let (access, flags) = (
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            );
            let arguments = [0, PIECE, access as usize, flags as usize, usize::MAX, 0];
            while system_call(libc::SYS_mmap, &arguments).is_ok() {}
            std::process::abort()
        }),
        attack("overwrites_all_shared_memory", Expected::Ends(""), |with| {
            for &(start, length) in &with.shared {
                for word in 0..length / size_of::<u64>() {
                    // SAFETY: it is mapped for writing until the process ends, as its list of mappings said.
                    #[allow(unsafe_code)]
                    unsafe {
                        (start as *mut u64).add(word).write_volatile(u64::MAX);
                    }
                }
            }
            wait_for_ever()
        }),
        attack("asks_to_be_told_of_its_servers_end", Expected::Answers, |_| {
            let mut before = 0_i32;
            let get = [libc::PR_GET_PDEATHSIG as usize, address_mut(&mut before), 0, 0, 0];
            let _ = system_call(libc::SYS_prctl, &get);
            let set = [libc::PR_SET_PDEATHSIG as usize, libc::SIGCHLD as usize, 0, 0, 0];
            let _ = system_call(libc::SYS_prctl, &set);
            Ok(())
        }),
    ];
    [of_process, kills::attacks(), scratch::attacks()].concat()
}

/// The worker's own user, another one if the server is root, and no sandbox.
const USUAL: &[Confinement] = &[Confinement::Compute, Confinement::OtherUser, Confinement::Off];

pub(super) fn attack(
    name: &'static str,
    expected: Expected,
    run: fn(&Surroundings) -> io::Result<()>,
) -> Attack {
    Attack { name, run, expected, confinements: USUAL }
}

pub(crate) fn run(attack: &Attack) -> Result<(), String> {
    for &confinement in attack.confinements.iter().filter(|it| it.is_possible()) {
        let server = Running::start(confinement, attack.name);
        let result = check(&server, attack);
        server.end();
        result.map_err(|error| format!("{confinement}: {error}"))?;
    }
    Ok(())
}

fn check(server: &Running, attack: &Attack) -> Result<(), String> {
    let client = server.client();
    // What is asked first gets all the time that it needs. The next checkout gets the same worker.
    let checkout = client.checkout();
    let pid: u32 = checkout.call("pid", ()).map_err(|error| error.to_string())?;
    let scratch: PathBuf = checkout.call("scratch", ()).map_err(|error| error.to_string())?;
    drop(checkout);
    let timeout = match attack.expected {
        Expected::Answers => PATIENCE,
        Expected::Ends(_) => TIMEOUT,
    };
    let checkout = client.checkout().timeout(timeout);
    let result = checkout.call::<()>("attack", (attack.name,));
    match (attack.expected, result) {
        (Expected::Answers, Ok(())) => {
            let again: u32 = checkout.call("pid", ()).map_err(|error| error.to_string())?;
            if again != pid {
                return Err("another worker answers".to_owned());
            }
            server.is_well()?;
        }
        (Expected::Answers, Err(error)) => return Err(format!("the call fails: {error:#}")),
        (Expected::Ends(_), Ok(())) => return Err("the call does not fail".to_owned()),
        (Expected::Ends(text), Err(error)) => {
            let error = format!("{error:#}");
            if !error.contains(text) {
                return Err(format!("the call does not fail with `{text}`: {error}"));
            }
        }
    }
    drop(checkout);
    client.close();
    is_gone(Path::new(&format!("/proc/{pid}")))?;
    is_gone(&scratch)?;
    is_precious_unchanged(surroundings())?;
    server.is_well()
}

/// Waits until a process has ended, or until its folder has been removed.
fn is_gone(path: &Path) -> Result<(), String> {
    let start = Instant::now();
    while fs::symlink_metadata(path).is_ok() {
        if start.elapsed() > PATIENCE {
            return Err(format!("{} is still there", path.display()));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn wait_for_ever() -> io::Result<()> {
    loop {
        std::thread::park();
    }
}

fn borrowed(number: i32) -> BorrowedFd<'static> {
    // SAFETY: the kernel checks the number, and nothing closes it meanwhile.
    #[allow(unsafe_code)]
    unsafe {
        BorrowedFd::borrow_raw(number)
    }
}

/// The open descriptors of a type.
fn of_type(wanted: FileType) -> Vec<i32> {
    let is_wanted = |number: &i32| {
        let status = rustix::fs::fstat(borrowed(*number));
        status.is_ok_and(|status| FileType::from_raw_mode(status.st_mode) == wanted)
    };
    (0..1024).filter(is_wanted).collect()
}

#[expect(unconditional_recursion, reason = "it is to overflow the stack")]
fn overflow(depth: u64) -> u64 {
    let space = std::hint::black_box([depth; 128]);
    overflow(space[0] + 1) + space[1]
}
