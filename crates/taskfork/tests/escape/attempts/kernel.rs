//! The kernel itself: its less common system calls, and what only root may do.

use std::io;

use crate::attempt::{Attempt, Surroundings, attempt};
use crate::system_call::{address, address_mut, open_by, permitted, system_call, text};

const MAY_LACK: &str = "the kernel may lack it";
const LACKING: &[i32] = &[libc::ENOSYS];

pub(super) fn attempts() -> Vec<Attempt> {
    let mut attempts = vec![
        attempt("makes_a_ring_of_calls", |_| {
            let mut parameters = [0_u32; 30];
            open_by(libc::SYS_io_uring_setup, &[1, address_mut(&mut parameters)]).map(drop)
        })
        .may_fail(&[libc::ENOSYS, libc::EPERM], "the kernel may have it switched off"),
        attempt("loads_a_map_of_bpf", |_| {
            // An array of one word.
            let attributes = [2_u32, 4, 4, 1];
            let arguments = [0, address(&attributes), size_of_val(&attributes)];
            open_by(libc::SYS_bpf, &arguments).map(drop)
        })
        .for_root(),
        attempt("handles_its_own_page_faults", |_| {
            const USER_MODE_ONLY: usize = 1;
            open_by(libc::SYS_userfaultfd, &[USER_MODE_ONLY]).map(drop)
        })
        .may_fail(LACKING, MAY_LACK),
        attempt("counts_events_of_the_processor", |_| {
            // A clock in software, without the kernel's share.
            let size = 64_u64 << 32;
            let attributes = [1 | size, 0, 0, 0, 0, 0b110_0000, 0, 0];
            let arguments = [address(&attributes), 0, usize::MAX, usize::MAX, 0];
            open_by(libc::SYS_perf_event_open, &arguments).map(drop)
        })
        .may_fail(&[libc::ENOSYS, libc::EACCES], "the kernel may forbid it"),
        attempt("finds_a_keyring", |_| {
            const PROCESS: usize = (-2_isize).cast_unsigned();
            system_call(libc::SYS_keyctl, &[0, PROCESS, 1]).map(drop)
        })
        .may_fail(LACKING, MAY_LACK),
        attempt("adds_a_key", |_| {
            const PROCESS: usize = (-2_isize).cast_unsigned();
            let (kind, name) = (text("user"), text("escape"));
            let arguments = [kind.as_ptr().addr(), name.as_ptr().addr(), address(b"x"), 1, PROCESS];
            system_call(libc::SYS_add_key, &arguments).map(drop)
        })
        .may_fail(LACKING, MAY_LACK),
        attempt("asks_for_a_key", |_| {
            let (kind, name) = (text("user"), text("escape-missing"));
            let arguments = [kind.as_ptr().addr(), name.as_ptr().addr(), 0, 0];
            permitted(system_call(libc::SYS_request_key, &arguments), &[libc::ENOKEY])
        })
        .may_fail(LACKING, MAY_LACK),
        attempt("mounts_a_file_system", |with| {
            let (path, kind) =
                (text(with.outside.to_str().unwrap_or_default()), text("no-such-fs"));
            let arguments =
                [kind.as_ptr().addr(), path.as_ptr().addr(), kind.as_ptr().addr(), 0, 0];
            permitted(system_call(libc::SYS_mount, &arguments), &[libc::ENODEV])
        })
        .for_root(),
        attempt("unmounts_a_file_system", |with| {
            let path = text(with.outside.to_str().unwrap_or_default());
            permitted(system_call(libc::SYS_umount2, &[path.as_ptr().addr(), 0]), &[libc::EINVAL])
        })
        .for_root(),
        attempt("changes_the_root_file_system", |_| {
            let path = text(".");
            let path = path.as_ptr().addr();
            permitted(
                system_call(libc::SYS_pivot_root, &[path, path]),
                &[libc::EINVAL, libc::EBUSY],
            )
        })
        .for_root(),
        attempt("opens_a_file_system", |_| {
            let kind = text("tmpfs");
            open_by(libc::SYS_fsopen, &[kind.as_ptr().addr(), 0]).map(drop)
        })
        .for_root(),
        attempt("copies_a_tree_of_mounts", |_| {
            const CLONE: usize = 1;
            let path = text("/");
            let arguments = [libc::AT_FDCWD as usize, path.as_ptr().addr(), CLONE];
            open_by(libc::SYS_open_tree, &arguments).map(drop)
        })
        .for_root(),
        attempt("changes_its_root", |_| {
            let path = text("/");
            system_call(libc::SYS_chroot, &[path.as_ptr().addr()]).map(drop)
        })
        .for_root(),
        attempt("makes_a_user_namespace", |_| unshare(libc::CLONE_NEWUSER))
            .may_fail(&[libc::EPERM, libc::ENOSPC, libc::EINVAL], "users may not be allowed any"),
        attempt("makes_a_mount_namespace", |_| unshare(libc::CLONE_NEWNS)).for_root(),
        attempt("makes_a_network_namespace", |_| unshare(libc::CLONE_NEWNET)).for_root(),
        attempt("makes_a_control_group_namespace", |_| unshare(libc::CLONE_NEWCGROUP)).for_root(),
        attempt("enters_a_namespace", |with| {
            // The kernel looks at the kind of descriptor first.
            let arguments = [with.root as usize, libc::CLONE_NEWUTS as usize];
            permitted(system_call(libc::SYS_setns, &arguments), &[libc::EINVAL])
        }),
        attempt("loads_a_kernel", |_| {
            const WRONG_FLAGS: usize = 0xffff;
            let arguments = [0, 0, 0, WRONG_FLAGS];
            permitted(system_call(libc::SYS_kexec_load, &arguments), &[libc::EINVAL])
        })
        .may_fail(&[libc::ENOSYS, libc::EPERM], MAY_LACK),
        attempt("loads_a_kernel_from_a_file", |_| {
            const WRONG_FLAGS: usize = 0xffff;
            let arguments = [usize::MAX, usize::MAX, 0, 0, WRONG_FLAGS];
            permitted(system_call(libc::SYS_kexec_file_load, &arguments), &[libc::EINVAL])
        })
        .may_fail(&[libc::ENOSYS, libc::EPERM], MAY_LACK),
        attempt("loads_a_module", |_| {
            let parameters = text("");
            let arguments = [address(b"no module"), 9, parameters.as_ptr().addr()];
            permitted(system_call(libc::SYS_init_module, &arguments), &[libc::ENOEXEC])
        })
        .may_fail(&[libc::ENOSYS, libc::EPERM], MAY_LACK),
        attempt("loads_a_module_from_a_file", |_| {
            let parameters = text("");
            let arguments = [usize::MAX, parameters.as_ptr().addr(), 0];
            permitted(system_call(libc::SYS_finit_module, &arguments), &[libc::EBADF])
        })
        .may_fail(&[libc::ENOSYS, libc::EPERM], MAY_LACK),
        attempt("removes_a_module", |_| {
            let name = text("no_such_module");
            permitted(
                system_call(libc::SYS_delete_module, &[name.as_ptr().addr(), 0]),
                &[libc::ENOENT],
            )
        })
        .may_fail(&[libc::ENOSYS, libc::EPERM], MAY_LACK),
        attempt("reboots", |_| {
            // The kernel compares these numbers after it has checked the permission.
            permitted(system_call(libc::SYS_reboot, &[1, 2, 3, 0]), &[libc::EINVAL])
        })
        .for_root(),
        attempt("names_the_machine", |_| {
            let name = text("escape");
            let arguments = [name.as_ptr().addr(), usize::MAX];
            permitted(system_call(libc::SYS_sethostname, &arguments), &[libc::EINVAL])
        })
        .for_root(),
        attempt("names_the_domain_of_the_machine", |_| {
            let name = text("escape");
            let arguments = [name.as_ptr().addr(), usize::MAX];
            permitted(system_call(libc::SYS_setdomainname, &arguments), &[libc::EINVAL])
        })
        .for_root(),
        attempt("sets_the_clock", |_| {
            // Neither a time nor a zone: nothing changes.
            system_call(libc::SYS_settimeofday, &[0, 0]).map(drop)
        })
        .for_root(),
        attempt("sets_a_clock", |_| {
            const NO_SUCH_CLOCK: usize = 15;
            let time = [0_i64; 2];
            let arguments = [NO_SUCH_CLOCK, address(&time)];
            permitted(system_call(libc::SYS_clock_settime, &arguments), &[libc::EINVAL])
        }),
        attempt("adjusts_the_clock", adjusts_clock).for_root(),
        attempt("adds_a_swap_file", |_| {
            let path = text("/nonexistent/swap");
            permitted(system_call(libc::SYS_swapon, &[path.as_ptr().addr(), 0]), &[libc::ENOENT])
        })
        .for_root(),
        attempt("removes_a_swap_file", |_| {
            let path = text("/nonexistent/swap");
            permitted(system_call(libc::SYS_swapoff, &[path.as_ptr().addr()]), &[libc::ENOENT])
        })
        .for_root(),
        attempt("accounts_for_processes", |_| {
            let path = text("/nonexistent/account");
            permitted(system_call(libc::SYS_acct, &[path.as_ptr().addr()]), &[libc::ENOENT])
        })
        .may_fail(&[libc::ENOSYS, libc::EPERM], MAY_LACK),
        attempt("changes_quotas", |_| {
            let path = text("/nonexistent/device");
            let turn_off = 0x80_0003 << 8;
            let arguments = [turn_off, path.as_ptr().addr(), 0, 0];
            permitted(system_call(libc::SYS_quotactl, &arguments), &[libc::ENOENT, libc::ENOTBLK])
        })
        .may_fail(&[libc::ENOSYS], MAY_LACK),
        attempt("reads_the_kernels_log", |_| {
            const READ_ALL: usize = 3;
            let mut log = [0_u8; 64];
            system_call(libc::SYS_syslog, &[READ_ALL, address_mut(&mut log), log.len()]).map(drop)
        })
        .for_root(),
        attempt("becomes_another_user", |_| {
            system_call(libc::SYS_setresuid, &[usize::MAX, 60_021, usize::MAX])?;
            system_call(libc::SYS_setresuid, &[usize::MAX, 0, usize::MAX]).map(drop)
        })
        .for_root(),
        attempt("becomes_root", |_| system_call(libc::SYS_setuid, &[0]).map(drop)).for_root(),
        attempt("joins_a_group", |_| {
            let groups = [0_u32];
            system_call(libc::SYS_setgroups, &[1, address(&groups)]).map(drop)
        })
        .for_root(),
        attempt("takes_capabilities", |_| {
            const VERSION_3: u32 = 0x2008_0522;
            const ADMINISTRATOR: u32 = 1 << 21;
            let header = [VERSION_3, 0];
            let capabilities = [ADMINISTRATOR, ADMINISTRATOR, 0, 0, 0, 0];
            let mut before = [0_u32; 6];
            system_call(libc::SYS_capget, &[address(&header), address_mut(&mut before)])?;
            system_call(libc::SYS_capset, &[address(&header), address(&capabilities)])?;
            system_call(libc::SYS_capset, &[address(&header), address(&before)]).or(Ok(0)).map(drop)
        })
        .for_root(),
        attempt("makes_all_its_memory_executable", |_| {
            const READ_IMPLIES_EXECUTE: usize = 0x40_0000;
            let before = system_call(libc::SYS_personality, &[0xffff_ffff])?;
            system_call(libc::SYS_personality, &[before | READ_IMPLIES_EXECUTE])?;
            system_call(libc::SYS_personality, &[before]).map(drop)
        }),
        attempt("handles_calls_of_other_processes", listens_for_calls),
        attempt("changes_its_description_of_memory", |_| {
            const SET_START_OF_BREAK: usize = 6;
            let now = system_call(libc::SYS_brk, &[0])?;
            let arguments = [libc::PR_SET_MM as usize, SET_START_OF_BREAK, now, 0, 0];
            permitted(system_call(libc::SYS_prctl, &arguments), &[libc::EINVAL])
        })
        .may_fail(&[libc::EPERM], "root may lack the privilege"),
        attempt("lets_anybody_trace_it", |_| {
            const SET_TRACER: usize = 0x5961_6d61;
            permitted(
                system_call(libc::SYS_prctl, &[SET_TRACER, usize::MAX, 0, 0, 0]),
                // Without Yama there is no such call.
                &[libc::EINVAL],
            )
        }),
    ];
    #[cfg(target_arch = "x86_64")]
    attempts.extend(of_x86_64());
    attempts
}

#[cfg(target_arch = "x86_64")]
fn of_x86_64() -> Vec<Attempt> {
    use crate::system_call::{copy_below_4_gib, system_call_32};

    const X32: libc::c_long = 0x4000_0000;
    const NO_32_BIT: &str = "the kernel may lack 32-bit programs";
    vec![
        attempt("opens_a_file_by_a_call_of_32_bits", |with| {
            let path = copy_below_4_gib(
                text(with.secret().to_str().unwrap_or_default()).as_bytes_with_nul(),
            )?;
            system_call_32(5, [path, 0, 0]).map(drop)
        })
        .may_fail(LACKING, NO_32_BIT),
        attempt("makes_a_socket_by_a_call_of_32_bits", |_| {
            let datagram = (libc::SOCK_DGRAM | libc::SOCK_CLOEXEC) as u32;
            system_call_32(359, [libc::AF_INET as u32, datagram, 0]).map(drop)
        })
        .may_fail(LACKING, NO_32_BIT),
        attempt("asks_its_process_id_by_a_call_of_32_bits", |_| {
            system_call_32(20, [0; 3]).map(drop)
        })
        .may_fail(LACKING, NO_32_BIT),
        attempt("makes_a_socket_by_a_number_of_x32", |_| {
            open_by(X32 | libc::SYS_socket, &[libc::AF_INET as usize, libc::SOCK_DGRAM as usize, 0])
                .map(drop)
        })
        .may_fail(LACKING, "the kernel may lack x32"),
        attempt("reads_its_segments", |_| system_call(libc::SYS_modify_ldt, &[0, 0, 0]).map(drop))
            .may_fail(LACKING, MAY_LACK),
        attempt("talks_to_ports_of_the_machine", |_| {
            system_call(libc::SYS_ioperm, &[0x80, 1, 1])?;
            system_call(libc::SYS_ioperm, &[0x80, 1, 0]).map(drop)
        })
        .may_fail(&[libc::ENOSYS, libc::EPERM], MAY_LACK),
        attempt("talks_to_all_ports_of_the_machine", |_| {
            system_call(libc::SYS_iopl, &[3])?;
            system_call(libc::SYS_iopl, &[0]).map(drop)
        })
        .may_fail(&[libc::ENOSYS, libc::EPERM], MAY_LACK),
    ]
}

fn unshare(flags: i32) -> io::Result<()> {
    system_call(libc::SYS_unshare, &[flags as usize]).map(drop)
}

/// Sets the frequency that the clock has.
fn adjusts_clock(_: &Surroundings) -> io::Result<()> {
    // SAFETY: all bit patterns are valid.
    #[allow(unsafe_code)]
    let mut state: libc::timex = unsafe { std::mem::zeroed() };
    system_call(libc::SYS_adjtimex, &[address_mut(&mut state)])?;
    state.modes = libc::ADJ_FREQUENCY;
    system_call(libc::SYS_adjtimex, &[address_mut(&mut state)]).map(drop)
}

/// Installs a filter that allows everything, and that could hand calls to another process.
fn listens_for_calls(_: &Surroundings) -> io::Result<()> {
    const SET_FILTER: usize = 1;
    const NEW_LISTENER: usize = 1 << 3;
    let allow = libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW };
    let program = libc::sock_fprog { len: 1, filter: std::ptr::from_ref(&allow).cast_mut() };
    // Without privileges the kernel takes filters only of such processes.
    system_call(libc::SYS_prctl, &[libc::PR_SET_NO_NEW_PRIVS as usize, 1, 0, 0, 0])?;
    open_by(libc::SYS_seccomp, &[SET_FILTER, NEW_LISTENER, address(&program)]).map(drop)
}
