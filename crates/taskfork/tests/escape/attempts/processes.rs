//! Other processes: their memory, their descriptors, signals, priorities and limits.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::attempt::Opening::{Programs, SpawnPrograms};
use crate::attempt::{Attempt, Surroundings, attempt};
use crate::system_call::{address, address_mut, open_by, system_call};

const SIGNAL_0: usize = 0;

/// In the same place in all processes that were forked from the server.
static WORD: [u8; 8] = *b"taskfork";

pub(super) fn attempts() -> Vec<Attempt> {
    vec![
        attempt("reads_its_servers_environment", |with| read_proc(with.server, "environ")),
        attempt("reads_its_servers_mappings", |with| read_proc(with.server, "maps")),
        attempt("reads_its_servers_memory", |with| read_memory(with.server)),
        attempt("writes_its_servers_memory", |with| write_memory(with.server)),
        attempt("reads_a_siblings_memory", |with| read_memory(with.sibling)),
        attempt("reads_its_clients_environment", |with| read_proc(with.client, "environ")),
        attempt("lists_a_siblings_descriptors", |with| {
            fs::read_dir(format!("/proc/{}/fd", with.sibling)).map(drop)
        }),
        attempt("opens_a_descriptor_of_its_server", |with| {
            File::open(format!("/proc/{}/fd/0", with.server)).map(drop)
        }),
        attempt("lists_the_processes", |_| fs::read_dir("/proc").map(drop)),
        attempt("takes_a_descriptor_of_a_sibling", |with| takes_descriptor(with.sibling)),
        attempt("takes_a_descriptor_of_its_server", |with| takes_descriptor(with.server)),
        attempt("takes_a_descriptor_of_its_client", |with| takes_descriptor(with.client)),
        attempt("copies_memory_out_of_its_server", |with| {
            copy_memory(libc::SYS_process_vm_readv, with.server)
        }),
        attempt("copies_memory_out_of_a_sibling", |with| {
            copy_memory(libc::SYS_process_vm_readv, with.sibling)
        }),
        attempt("copies_memory_into_a_sibling", |with| {
            copy_memory(libc::SYS_process_vm_writev, with.sibling)
        })
        .may_fail(&[libc::EFAULT], "the word is in memory that is only read"),
        attempt("traces_its_server", |with| traces(with.server)),
        attempt("traces_a_sibling", |with| traces(with.sibling)),
        attempt("traces_a_bystander", |with| traces(with.bystander)),
        attempt("lets_its_server_trace_it", |_| {
            system_call(libc::SYS_ptrace, &[libc::PTRACE_TRACEME as usize, 0, 0, 0]).map(drop)
        }),
        attempt("signals_its_server", |with| signals(with.server)),
        attempt("signals_a_sibling", |with| signals(with.sibling)),
        attempt("signals_its_client", |with| signals(with.client)),
        attempt("signals_a_bystander", |with| signals(with.bystander)),
        attempt("signals_its_servers_group", |with| {
            let group = rustix::process::getpgid(Pid::from_raw(with.server))?;
            signals(-group.as_raw_nonzero().get())
        }),
        attempt("signals_a_thread_of_its_server", |with| {
            let server = with.server as usize;
            system_call(libc::SYS_tgkill, &[server, server, SIGNAL_0]).map(drop)
        }),
        attempt("queues_a_signal_for_its_server", |with| {
            // The code of `sigqueue`, in a structure as large as the kernel expects.
            let mut information = [0_i32; 32];
            information[2] = libc::SI_QUEUE;
            let arguments = [with.server as usize, SIGNAL_0, address(&information)];
            system_call(libc::SYS_rt_sigqueueinfo, &arguments).map(drop)
        }),
        attempt("signals_its_server_by_descriptor", |with| {
            let server = process_descriptor(with.server)?;
            let arguments = [server.as_raw_fd() as usize, SIGNAL_0, 0, 0];
            system_call(libc::SYS_pidfd_send_signal, &arguments).map(drop)
        }),
        attempt("has_a_pipe_signal_a_bystander", pipe_signals)
            .effect(|with| has_signal(with, libc::SIGUSR1)),
        attempt("has_a_socket_signal_a_bystander", socket_signals)
            .effect(|with| has_signal(with, libc::SIGUSR2)),
        attempt("renices_its_server", |with| renices(with.server)),
        attempt("renices_a_sibling", |with| renices(with.sibling)),
        attempt("renices_a_bystander", |with| renices(with.bystander)),
        attempt("changes_the_input_priority_of_its_server", |with| {
            const PROCESS: usize = 1;
            system_call(libc::SYS_ioprio_set, &[PROCESS, with.server as usize, 0]).map(drop)
        }),
        attempt("moves_its_server_to_processors", |with| {
            let mut set = [0_u64; 128];
            let size = size_of_val(&set);
            let get = [with.server as usize, size, address_mut(&mut set)];
            system_call(libc::SYS_sched_getaffinity, &get)?;
            let set = [with.server as usize, size, address(&set)];
            system_call(libc::SYS_sched_setaffinity, &set).map(drop)
        }),
        attempt("changes_the_scheduler_of_its_server", |with| {
            let priority = 0_i32;
            let arguments = [with.server as usize, libc::SCHED_OTHER as usize, address(&priority)];
            system_call(libc::SYS_sched_setscheduler, &arguments).map(drop)
        }),
        attempt("reads_the_limits_of_its_server", |with| {
            let mut limit = [0_u64; 2];
            let resource = libc::RLIMIT_CORE as usize;
            let arguments = [with.server as usize, resource, 0, address_mut(&mut limit)];
            system_call(libc::SYS_prlimit64, &arguments).map(drop)
        }),
        attempt("changes_a_limit_of_a_bystander", |with| {
            let mut limit = [0_u64; 2];
            let resource = libc::RLIMIT_CORE as usize;
            let get = [with.bystander as usize, resource, 0, address_mut(&mut limit)];
            system_call(libc::SYS_prlimit64, &get)?;
            let set = [with.bystander as usize, resource, address(&limit), 0];
            system_call(libc::SYS_prlimit64, &set).map(drop)
        }),
        attempt("moves_pages_of_its_server", |with| {
            system_call(libc::SYS_move_pages, &[with.server as usize, 0, 0, 0, 0, 0]).map(drop)
        })
        .may_fail(&[libc::ENOSYS], "the kernel may lack memory nodes"),
        attempt("advises_the_memory_of_its_server", |with| {
            let server = process_descriptor(with.server)?;
            let page = WORD.as_ptr().addr() & !4095;
            let memory = [page, 4096];
            let arguments =
                [server.as_raw_fd() as usize, address(&memory), 1, libc::MADV_COLD as usize, 0];
            system_call(libc::SYS_process_madvise, &arguments).map(drop)
        })
        .for_root(),
        attempt("compares_itself_with_its_server", |with| {
            const MEMORY: usize = 1;
            let own = std::process::id() as usize;
            system_call(libc::SYS_kcmp, &[own, with.server as usize, MEMORY, 0, 0]).map(drop)
        })
        .may_fail(&[libc::ENOSYS], "the kernel may lack it"),
        attempt("reads_the_locks_of_its_server", |with| {
            let (mut head, mut length) = (0_usize, 0_usize);
            let arguments =
                [with.server as usize, address_mut(&mut head), address_mut(&mut length)];
            system_call(libc::SYS_get_robust_list, &arguments).map(drop)
        }),
        attempt("joins_the_group_of_its_server", |with| {
            let group = rustix::process::getpgid(Pid::from_raw(with.server))?;
            Ok(rustix::process::setpgid(None, Some(group))?)
        })
        // Groups are for children. They give no rights.
        .opened_by(&[SpawnPrograms, Programs]),
        attempt("outlives_its_server", |_| {
            let arguments = [libc::PR_SET_PDEATHSIG as usize, 0, 0, 0, 0];
            system_call(libc::SYS_prctl, &arguments).map(drop)
        }),
    ]
}

fn read_proc(process: i32, file: &str) -> io::Result<()> {
    fs::read(format!("/proc/{process}/{file}")).map(drop)
}

fn read_memory(process: i32) -> io::Result<()> {
    let memory = File::open(format!("/proc/{process}/mem"))?;
    memory.read_exact_at(&mut [0; WORD.len()], WORD.as_ptr().addr() as u64)
}

/// Opening is enough: the kernel checks nothing more when it is written to.
fn write_memory(process: i32) -> io::Result<()> {
    OpenOptions::new().write(true).open(format!("/proc/{process}/mem")).map(drop)
}

fn process_descriptor(process: i32) -> io::Result<OwnedFd> {
    let process = Pid::from_raw(process).ok_or(io::ErrorKind::NotFound)?;
    Ok(pidfd_open(process, PidfdFlags::empty())?)
}

fn takes_descriptor(process: i32) -> io::Result<()> {
    let process = process_descriptor(process)?;
    open_by(libc::SYS_pidfd_getfd, &[process.as_raw_fd() as usize, 0, 0]).map(drop)
}

fn copy_memory(number: libc::c_long, process: i32) -> io::Result<()> {
    let mut word = WORD;
    let local = [address_mut(&mut word), word.len()];
    let remote = [WORD.as_ptr().addr(), WORD.len()];
    let arguments = [process as usize, address(&local), 1, address(&remote), 1, 0];
    system_call(number, &arguments).map(drop)
}

/// Attaches to a process without stopping it, and detaches.
fn traces(process: i32) -> io::Result<()> {
    let process = process as usize;
    let request =
        |request: u32| system_call(libc::SYS_ptrace, &[request as usize, process, 0, 0]).map(drop);
    request(libc::PTRACE_SEIZE)?;
    // The kernel detaches only from a stopped process.
    request(libc::PTRACE_INTERRUPT)?;
    system_call(libc::SYS_wait4, &[process, 0, libc::__WALL as usize, 0])?;
    request(libc::PTRACE_DETACH)
}

fn signals(process: i32) -> io::Result<()> {
    system_call(libc::SYS_kill, &[process as usize, SIGNAL_0]).map(drop)
}

fn renices(process: i32) -> io::Result<()> {
    const PROCESS: usize = 0;
    // The kernel counts from 40 down when it is asked.
    let niceness = 20 - system_call(libc::SYS_getpriority, &[PROCESS, process as usize])? as isize;
    let arguments = [PROCESS, process as usize, niceness.cast_unsigned()];
    system_call(libc::SYS_setpriority, &arguments).map(drop)
}

/// Has the kernel send SIGUSR1 to the bystander when a pipe becomes readable.
fn pipe_signals(with: &Surroundings) -> io::Result<()> {
    let (reader, writer) = rustix::pipe::pipe()?;
    let pipe = reader.as_raw_fd() as usize;
    let set = |command: i32, value: usize| {
        system_call(libc::SYS_fcntl, &[pipe, command as usize, value]).map(drop)
    };
    const SET_SIGNAL: i32 = 10;
    set(libc::F_SETOWN, with.bystander as usize)?;
    set(SET_SIGNAL, libc::SIGUSR1 as usize)?;
    set(libc::F_SETFL, libc::O_ASYNC as usize)?;
    rustix::io::write(writer, b"x")?;
    Ok(())
}

/// The same by other calls, which only sockets have.
fn socket_signals(with: &Surroundings) -> io::Result<()> {
    const SET_OWNER: usize = 0x8901;
    const SET_SIGNAL: usize = 10;
    let (socket, other) = UnixStream::pair()?;
    let socket = socket.as_raw_fd() as usize;
    system_call(libc::SYS_ioctl, &[socket, SET_OWNER, address(&with.bystander)])?;
    system_call(libc::SYS_fcntl, &[socket, SET_SIGNAL, libc::SIGUSR2 as usize])?;
    let on = 1_i32;
    system_call(libc::SYS_ioctl, &[socket, libc::FIOASYNC as usize, address(&on)])?;
    rustix::io::write(other, b"x")?;
    Ok(())
}

/// Whether a signal waits for the bystander, which blocks it.
fn has_signal(with: &Surroundings, signal: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{}/status", with.bystander)).unwrap_or_default();
    let pending = status.lines().find_map(|line| line.strip_prefix("ShdPnd:"));
    let pending = pending.and_then(|pending| u64::from_str_radix(pending.trim(), 16).ok());
    pending.unwrap_or_default() & 1 << (signal - 1) != 0
}
