//! What ends a worker under `kill()`, whatever it does to the signal that ends it. The death names the system call.

use std::io;

use crate::attacks::{Attack, Expected, attack};
use crate::attempt::Surroundings;
use crate::confinement::Confinement;
use crate::system_call::{address, system_call};

const KILL: &[Confinement] = &[Confinement::Kill];

pub(super) fn attacks() -> Vec<Attack> {
    let killed = |name, text, run| attack(name, Expected::Ends(text), run).under(KILL);
    vec![
        killed("kill::traces", "it called `ptrace`", |_| traces()),
        killed("kill::traces_in_another_thread", "it called `ptrace`", |_| {
            let thread = std::thread::Builder::new().spawn(traces)?;
            thread.join().map_err(|_| io::ErrorKind::Other)?
        }),
        // It cannot be recorded then.
        killed("kill::traces_with_the_signal_blocked", "SIGSYS", |_| {
            let (all, block) = (u64::MAX, libc::SIG_BLOCK as usize);
            system_call(libc::SYS_rt_sigprocmask, &[block, address(&all), 0, 8])?;
            traces()
        }),
        killed("kill::ignores_the_signal", "it called `rt_sigaction`", |_| {
            // As the kernel knows it: handler, flags, restorer, mask.
            let action = [libc::SIG_IGN, 0, 0, 0];
            let signal = libc::SIGSYS as usize;
            system_call(libc::SYS_rt_sigaction, &[signal, address(&action), 0, 8]).map(drop)
        }),
        killed("kill::adds_a_filter", "it called `seccomp`", adds_filter),
        killed("kill::forks", "it called `clone`", |_| {
            crate::system_call::fork_sleeper().map(crate::system_call::end_child)
        }),
        killed("kill::opens_a_socket", "it called `socket`", |_| {
            std::net::UdpSocket::bind("127.0.0.1:0").map(drop)
        }),
        #[cfg(target_arch = "x86_64")]
        killed("kill::makes_a_call_of_32_bits", "SIGSYS", |_| {
            crate::system_call::system_call_32(20, [0; 3]).map(drop)
        }),
    ]
}

fn traces() -> io::Result<()> {
    system_call(libc::SYS_ptrace, &[libc::PTRACE_TRACEME as usize, 0, 0, 0]).map(drop)
}

/// A later filter that allows everything does not open an earlier one, but it could hand calls to another process.
fn adds_filter(_: &Surroundings) -> io::Result<()> {
    const SET_FILTER: usize = 1;
    let allow = libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW };
    let program = libc::sock_fprog { len: 1, filter: std::ptr::from_ref(&allow).cast_mut() };
    system_call(libc::SYS_seccomp, &[SET_FILTER, 0, address(&program)]).map(drop)
}
