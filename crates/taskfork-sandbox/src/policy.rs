//! Which system calls a sandbox allows, and with which arguments.
//!
//! The lists have what Rust's standard library, glibc and the interpreters use to compute, to use what is
//! open, to wait, and to manage the process's own memory and threads. Everything that is not listed is
//! refused, so a system call that a later kernel adds is refused too.

use std::collections::BTreeMap;

use crate::filter::{Condition, Decision, Policy, Test};
use crate::level::Level;
use crate::sandbox::Sandbox;

/// The last system call that this module knows. Programs try later ones and go on without them.
const LAST_KNOWN: u32 = 471;

/// Memory, threads, time, signals to itself, and what is open. Every level has these.
const ALWAYS: &[i64] = &[
    // Memory.
    libc::SYS_brk,
    libc::SYS_get_mempolicy,
    libc::SYS_mbind,
    libc::SYS_mincore,
    libc::SYS_mlock,
    libc::SYS_mlock2,
    libc::SYS_mlockall,
    libc::SYS_mremap,
    libc::SYS_mseal,
    libc::SYS_msync,
    libc::SYS_munlock,
    libc::SYS_munlockall,
    libc::SYS_munmap,
    libc::SYS_pkey_alloc,
    libc::SYS_pkey_free,
    libc::SYS_set_mempolicy,
    // Threads.
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_futex_waitv,
    libc::SYS_get_robust_list,
    libc::SYS_getcpu,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_membarrier,
    libc::SYS_rseq,
    libc::SYS_sched_get_priority_max,
    libc::SYS_sched_get_priority_min,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    // Time.
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_getitimer,
    libc::SYS_gettimeofday,
    libc::SYS_nanosleep,
    libc::SYS_setitimer,
    libc::SYS_timer_create,
    libc::SYS_timer_delete,
    libc::SYS_timer_getoverrun,
    libc::SYS_timer_gettime,
    libc::SYS_timer_settime,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_gettime,
    libc::SYS_timerfd_settime,
    libc::SYS_times,
    // Signals.
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    libc::SYS_signalfd4,
    libc::SYS_wait4,
    libc::SYS_waitid,
    // What the process is.
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getgroups,
    libc::SYS_getpgid,
    libc::SYS_getppid,
    libc::SYS_getpriority,
    libc::SYS_getrandom,
    libc::SYS_getresgid,
    libc::SYS_getresuid,
    libc::SYS_getrusage,
    libc::SYS_getsid,
    libc::SYS_getuid,
    libc::SYS_sysinfo,
    libc::SYS_umask,
    libc::SYS_uname,
    // Descriptors.
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_copy_file_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getdents64,
    libc::SYS_lseek,
    libc::SYS_memfd_create,
    libc::SYS_pipe2,
    libc::SYS_ppoll,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pselect6,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_read,
    libc::SYS_readahead,
    libc::SYS_readv,
    libc::SYS_sendfile,
    libc::SYS_splice,
    libc::SYS_tee,
    libc::SYS_vmsplice,
    libc::SYS_write,
    libc::SYS_writev,
    // Sockets that are open.
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_recvfrom,
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_shutdown,
    // Files. Landlock decides which ones can be opened and changed.
    libc::SYS_chdir,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fchdir,
    libc::SYS_getcwd,
    libc::SYS_linkat,
    libc::SYS_mkdirat,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_readlinkat,
    libc::SYS_renameat2,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_symlinkat,
    libc::SYS_truncate,
    libc::SYS_unlinkat,
];

/// Calls that only x86-64 has: newer architectures have a general form, which is in [`ALWAYS`].
#[cfg(target_arch = "x86_64")]
const ALWAYS_OLDER: &[i64] = &[
    libc::SYS_access,
    libc::SYS_alarm,
    libc::SYS_arch_prctl,
    libc::SYS_creat,
    libc::SYS_dup2,
    libc::SYS_epoll_create,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd,
    libc::SYS_getdents,
    libc::SYS_getpgrp,
    libc::SYS_getrlimit,
    libc::SYS_link,
    libc::SYS_lstat,
    libc::SYS_mkdir,
    libc::SYS_open,
    libc::SYS_pause,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_rmdir,
    libc::SYS_select,
    libc::SYS_signalfd,
    libc::SYS_stat,
    libc::SYS_symlink,
    libc::SYS_sync_file_range,
    libc::SYS_time,
    libc::SYS_unlink,
];
#[cfg(target_arch = "aarch64")]
const ALWAYS_OLDER: &[i64] = &[SYS_RENAMEAT];
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const ALWAYS_OLDER: &[i64] = &[];

/// aarch64 has this call, but libc has no constant for it there.
#[cfg(target_arch = "aarch64")]
const SYS_RENAMEAT: i64 = 38;

/// What programs do to files and processes of their own user, with
/// [`no_network`](Sandbox::no_network).
const OWN_USER: &[i64] = &[
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_fgetxattr,
    libc::SYS_flistxattr,
    libc::SYS_fremovexattr,
    libc::SYS_fsetxattr,
    libc::SYS_getxattr,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_rm_watch,
    libc::SYS_ioprio_get,
    libc::SYS_lgetxattr,
    libc::SYS_listxattr,
    libc::SYS_llistxattr,
    libc::SYS_lremovexattr,
    libc::SYS_lsetxattr,
    libc::SYS_removexattr,
    libc::SYS_setfsgid,
    libc::SYS_setfsuid,
    libc::SYS_setgid,
    libc::SYS_setgroups,
    libc::SYS_setregid,
    libc::SYS_setresgid,
    libc::SYS_setresuid,
    libc::SYS_setreuid,
    libc::SYS_setuid,
    libc::SYS_setxattr,
    libc::SYS_sync,
    libc::SYS_syncfs,
    libc::SYS_utimensat,
];

#[cfg(target_arch = "x86_64")]
const OWN_USER_OLDER: &[i64] = &[
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_fchmodat2,
    libc::SYS_futimesat,
    libc::SYS_inotify_init,
    libc::SYS_lchown,
    libc::SYS_utime,
    libc::SYS_utimes,
];
#[cfg(not(target_arch = "x86_64"))]
const OWN_USER_OLDER: &[i64] = &[];

/// Starting processes, with [`spawn_programs`](Sandbox::spawn_programs).
const PROCESSES: &[i64] = &[
    libc::SYS_kill,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal,
    libc::SYS_setpgid,
    libc::SYS_setsid,
    libc::SYS_tgkill,
    libc::SYS_tkill,
];

#[cfg(target_arch = "x86_64")]
const PROCESSES_OLDER: &[i64] = &[libc::SYS_fork, libc::SYS_vfork];
#[cfg(not(target_arch = "x86_64"))]
const PROCESSES_OLDER: &[i64] = &[];

/// The decisions for all system calls of this sandbox.
pub(crate) fn policy(sandbox: &Sandbox) -> Policy {
    let mut list = List { calls: BTreeMap::new() };
    list.allow(ALWAYS);
    list.allow(ALWAYS_OLDER);
    list.missing(libc::SYS_clone3);
    list.restrict_own_process();
    list.restrict_descriptors();
    list.restrict_memory(sandbox.executes_programs());
    list.restrict_sockets(sandbox);
    if sandbox.level == Level::NoNetwork {
        list.allow(OWN_USER);
        list.allow(OWN_USER_OLDER);
    }
    if sandbox.executes_programs() {
        list.allow(&[libc::SYS_execve, libc::SYS_execveat]);
    }
    list.restrict_processes(sandbox.starts_processes());
    if sandbox.kills {
        // A handler of another kind would take the place of the one that records the call.
        list.allow_if(
            libc::SYS_rt_sigaction,
            [vec![argument(0, Test::IsNot(libc::SIGSYS as u32))]],
        );
    } else {
        list.allow(&[libc::SYS_rt_sigaction]);
    }
    Policy { calls: list.calls, last_known: LAST_KNOWN }
}

struct List {
    calls: BTreeMap<u32, Decision>,
}

impl List {
    fn allow(&mut self, calls: &[i64]) {
        self.calls.extend(calls.iter().map(|&call| (number(call), Decision::Allow)));
    }

    fn missing(&mut self, call: i64) {
        self.calls.insert(number(call), Decision::Missing);
    }

    fn allow_if(&mut self, call: i64, alternatives: impl IntoIterator<Item = Vec<Condition>>) {
        let alternatives = alternatives.into_iter().collect();
        self.calls.insert(number(call), Decision::AllowIf(alternatives));
    }

    /// Calls that name a process: only the own one, as 0 or by its id.
    fn restrict_own_process(&mut self) {
        let own = |rest: &[Condition]| {
            [Test::Is(0), Test::IsOwnProcess].map(|test| {
                let mut conditions = vec![argument(0, test)];
                conditions.extend(rest);
                conditions
            })
        };
        self.allow_if(libc::SYS_sched_setaffinity, own(&[]));
        // Reading limits, but not setting them: root could raise them.
        self.allow_if(libc::SYS_prlimit64, own(&[argument(2, Test::IsNull)]));
        // PRIO_PROCESS is 0. A negative niceness is above 19 as a number without a sign.
        let process = argument(0, Test::Is(0));
        let niceness = argument(2, Test::AtMost(19));
        self.allow_if(
            libc::SYS_setpriority,
            [Test::Is(0), Test::IsOwnProcess].map(|who| vec![process, argument(1, who), niceness]),
        );
        self.allow_if(
            libc::SYS_prctl,
            [
                libc::PR_GET_DUMPABLE,
                libc::PR_SET_NAME,
                libc::PR_GET_NAME,
                libc::PR_GET_SECCOMP,
                libc::PR_CAPBSET_READ,
                libc::PR_SET_TIMERSLACK,
                libc::PR_GET_TIMERSLACK,
                libc::PR_SET_NO_NEW_PRIVS,
                libc::PR_GET_NO_NEW_PRIVS,
                libc::PR_SET_THP_DISABLE,
                libc::PR_GET_THP_DISABLE,
                libc::PR_SET_VMA,
            ]
            .map(|option| vec![argument(0, Test::Is(option as u32))]),
        );
        // The argument that asks for the present value.
        self.allow_if(libc::SYS_personality, [vec![argument(0, Test::Is(u32::MAX))]]);
    }

    fn restrict_descriptors(&mut self) {
        // Not F_SETOWN, F_SETSIG and F_NOTIFY, which send signals, and not F_SETLEASE, which delays others.
        let ranges = [
            (libc::F_DUPFD, libc::F_SETLKW),
            (libc::F_OFD_GETLK, libc::F_OFD_SETLKW),
            (F_DUPFD_QUERY, F_DUPFD_QUERY),
            (libc::F_DUPFD_CLOEXEC, libc::F_DUPFD_CLOEXEC),
            (libc::F_GETPIPE_SZ, libc::F_GET_SEALS),
        ];
        self.allow_if(
            libc::SYS_fcntl,
            ranges.map(|(first, last)| {
                vec![
                    argument(1, Test::AtLeast(first as u32)),
                    argument(1, Test::AtMost(last as u32)),
                ]
            }),
        );
        // Not TIOCSTI, which types on the terminal, nor any other request of a terminal or device.
        self.allow_if(
            libc::SYS_ioctl,
            [
                libc::TCGETS,
                TCGETS2,
                libc::TIOCGWINSZ,
                libc::TIOCGPGRP,
                libc::FIONREAD,
                libc::FIONBIO,
                libc::FIOCLEX,
                libc::FIONCLEX,
            ]
            .map(|request| vec![argument(1, Test::Is(request as u32))]),
        );
    }

    fn restrict_memory(&mut self, allows_executable: bool) {
        // Pages that are marked as broken are lost for the machine.
        self.allow_if(
            libc::SYS_madvise,
            [vec![
                argument(2, Test::IsNot(libc::MADV_HWPOISON as u32)),
                argument(2, Test::IsNot(libc::MADV_SOFT_OFFLINE as u32)),
            ]],
        );
        let protected = [libc::SYS_mmap, libc::SYS_mprotect, libc::SYS_pkey_mprotect];
        if allows_executable {
            return self.allow(&protected);
        }
        let not_executable = argument(2, Test::Masked { mask: libc::PROT_EXEC as u32, value: 0 });
        for call in protected {
            self.allow_if(call, [vec![not_executable]]);
        }
    }

    fn restrict_sockets(&mut self, sandbox: &Sandbox) {
        /// The flags of `socket` that are part of its type.
        const FLAGS: u32 = (libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) as u32;
        let kind = |kind: i32| argument(1, Test::Masked { mask: !FLAGS, value: kind as u32 });
        let unix = argument(0, Test::Is(libc::AF_UNIX as u32));
        // Not SOCK_DGRAM: such a socket reaches any other by its address.
        let pairs = [libc::SOCK_STREAM, libc::SOCK_SEQPACKET];
        self.allow_if(libc::SYS_socketpair, pairs.map(|pair| vec![unix, kind(pair)]));
        // Not SO_ATTACH_FILTER and its like, which load programs into the kernel.
        let level = |level: i32| argument(1, Test::Is(level as u32));
        let not_option = |option: i32| argument(2, Test::IsNot(option as u32));
        self.allow_if(
            libc::SYS_setsockopt,
            [
                vec![
                    level(libc::SOL_SOCKET),
                    not_option(libc::SO_ATTACH_FILTER),
                    not_option(libc::SO_ATTACH_BPF),
                    not_option(libc::SO_ATTACH_REUSEPORT_CBPF),
                    not_option(libc::SO_ATTACH_REUSEPORT_EBPF),
                ],
                vec![level(libc::IPPROTO_TCP)],
            ],
        );
        // MSG_FASTOPEN connects, and Landlock does not see it.
        let mask = libc::MSG_FASTOPEN as u32;
        let no_connect = |place| vec![argument(place, Test::Masked { mask, value: 0 })];
        self.allow_if(libc::SYS_sendto, [no_connect(3)]);
        self.allow_if(libc::SYS_sendmsg, [no_connect(2)]);
        self.allow_if(libc::SYS_sendmmsg, [no_connect(3)]);

        let mut sockets = Vec::new();
        if !sandbox.tcp_ports.is_empty() {
            for family in [libc::AF_INET, libc::AF_INET6] {
                // Not the other protocols of streams, such as MPTCP, whose ports Landlock does not check.
                for protocol in [0, libc::IPPROTO_TCP] {
                    sockets.push(vec![
                        argument(0, Test::Is(family as u32)),
                        kind(libc::SOCK_STREAM),
                        argument(2, Test::Is(protocol as u32)),
                    ]);
                }
            }
        }
        if !sandbox.unix_sockets.is_empty() {
            sockets.extend(pairs.map(|pair| vec![unix, kind(pair)]));
        }
        if !sockets.is_empty() {
            self.allow_if(libc::SYS_socket, sockets);
            self.allow(&[libc::SYS_connect]);
        }
    }

    fn restrict_processes(&mut self, starts_processes: bool) {
        /// The flags that put a new process into namespaces of its own.
        const NAMESPACES: u32 = (libc::CLONE_NEWCGROUP
            | libc::CLONE_NEWIPC
            | libc::CLONE_NEWNET
            | libc::CLONE_NEWNS
            | libc::CLONE_NEWPID
            | libc::CLONE_NEWUSER
            | libc::CLONE_NEWUTS) as u32;
        if starts_processes {
            self.allow(PROCESSES);
            self.allow(PROCESSES_OLDER);
            let shared = argument(0, Test::Masked { mask: NAMESPACES, value: 0 });
            return self.allow_if(libc::SYS_clone, [vec![shared]]);
        }
        let thread = (libc::CLONE_THREAD | libc::CLONE_VM) as u32;
        let shared = argument(0, Test::Masked { mask: NAMESPACES | thread, value: thread });
        self.allow_if(libc::SYS_clone, [vec![shared]]);
        let own = [vec![argument(0, Test::IsOwnProcess)]];
        self.allow_if(libc::SYS_kill, own.clone());
        self.allow_if(libc::SYS_tgkill, own);
    }
}

/// libc has no constants for these.
const F_DUPFD_QUERY: i32 = 1027;
const TCGETS2: libc::Ioctl = 0x802c_542a;

/// A test of the low 32 bits of an argument, or of all its bits.
const fn argument(argument: u8, test: Test) -> Condition {
    Condition { argument, test }
}

fn number(call: i64) -> u32 {
    u32::try_from(call).unwrap_or(u32::MAX)
}
