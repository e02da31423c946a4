//! Taking more than a share of the machine.

use std::io;

use crate::attempt::{Attempt, Surroundings, attempt};
use crate::system_call::{address, address_mut, open_by, system_call};

pub(super) fn attempts() -> Vec<Attempt> {
    vec![
        attempt("maps_a_tebibyte", maps_a_tebibyte).refused_with(&[libc::ENOMEM]),
        attempt("opens_thousands_of_descriptors", opens_many).refused_with(&[libc::EMFILE]),
        attempt("raises_its_limit_of_descriptors", |_| raises(libc::RLIMIT_NOFILE as usize))
            .may_fail(&[libc::EPERM], "its server may lack the privilege"),
        attempt("raises_its_limit_of_core_files", |_| raises(libc::RLIMIT_CORE as usize))
            .may_fail(&[libc::EPERM], "its server may lack the privilege"),
        attempt("becomes_urgent", |_| {
            let priority = 1_i32;
            let arguments = [0, libc::SCHED_FIFO as usize, address(&priority)];
            system_call(libc::SYS_sched_setscheduler, &arguments)?;
            let (usual, priority) = (libc::SCHED_OTHER as usize, 0_i32);
            system_call(libc::SYS_sched_setscheduler, &[0, usual, address(&priority)]).map(drop)
        })
        .for_root(),
        attempt("makes_itself_nicer_to_itself", |_| {
            let arguments = [0, 0, (-5_isize).cast_unsigned()];
            system_call(libc::SYS_setpriority, &arguments).map(drop)
        })
        .for_root(),
        attempt("keeps_memory_of_system_v", |_| {
            let made = system_call(libc::SYS_shmget, &[0, 4096, 0o1600])?;
            system_call(libc::SYS_shmctl, &[made, libc::IPC_RMID as usize, 0]).map(drop)
        })
        .may_fail(&[libc::ENOSYS], "the kernel may lack it"),
        attempt("keeps_semaphores_of_system_v", |_| {
            let made = system_call(libc::SYS_semget, &[0, 1, 0o1600])?;
            system_call(libc::SYS_semctl, &[made, 0, libc::IPC_RMID as usize]).map(drop)
        })
        .may_fail(&[libc::ENOSYS], "the kernel may lack it"),
        attempt("keeps_a_queue_of_system_v", |_| {
            let made = system_call(libc::SYS_msgget, &[0, 0o1600])?;
            system_call(libc::SYS_msgctl, &[made, libc::IPC_RMID as usize, 0]).map(drop)
        })
        .may_fail(&[libc::ENOSYS], "the kernel may lack it"),
        attempt("keeps_a_queue_of_messages", |_| {
            let name = crate::system_call::text(format!("escape-{}", std::process::id()));
            let flags = (libc::O_RDWR | libc::O_CREAT) as usize;
            open_by(libc::SYS_mq_open, &[name.as_ptr().addr(), flags, 0o600, 0])?;
            system_call(libc::SYS_mq_unlink, &[name.as_ptr().addr()]).map(drop)
        })
        .may_fail(&[libc::ENOSYS], "the kernel may lack it"),
    ]
}

/// Reserves more addresses than any limit allows. Nothing is used of them.
fn maps_a_tebibyte(_: &Surroundings) -> io::Result<()> {
    const LENGTH: usize = 1 << 40;
    let (access, flags) = (
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
    );
    let arguments = [0, LENGTH, access as usize, flags as usize, usize::MAX, 0];
    let start = system_call(libc::SYS_mmap, &arguments)?;
    system_call(libc::SYS_munmap, &[start, LENGTH]).map(drop)
}

/// Opens more descriptors than any worker needs, after it has raised its own limit as far as it may.
fn opens_many(_: &Surroundings) -> io::Result<()> {
    const MANY: usize = 3000;
    let mut limit = [0_u64; 2];
    let resource = libc::RLIMIT_NOFILE as usize;
    system_call(libc::SYS_prlimit64, &[0, resource, 0, address_mut(&mut limit)])?;
    let raised = [limit[1]; 2];
    let _ = system_call(libc::SYS_prlimit64, &[0, resource, address(&raised), 0]);
    let opened: io::Result<Vec<_>> = (0..MANY).map(|_| open_by(libc::SYS_dup, &[2])).collect();
    let _ = system_call(libc::SYS_prlimit64, &[0, resource, address(&limit), 0]);
    opened.map(drop)
}

/// Raises a limit by one above the highest that is allowed, or to what is no limit.
fn raises(resource: usize) -> io::Result<()> {
    let mut limit = [0_u64; 2];
    system_call(libc::SYS_prlimit64, &[0, resource, 0, address_mut(&mut limit)])?;
    let most = limit[1].saturating_add(1);
    let raised = [most; 2];
    system_call(libc::SYS_prlimit64, &[0, resource, address(&raised), 0]).map(drop)
}
