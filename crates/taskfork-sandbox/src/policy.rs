//! Which system calls a sandbox allows, and with which arguments.
//!
//! The lists have what Rust's standard library, glibc and the interpreters use to compute, to use what is
//! open, to wait, and to manage the process's own memory and threads. Everything that is not listed is
//! refused, so a system call that a later kernel adds is refused too.

use std::collections::BTreeMap;

use crate::decision::Decision::{self, Allow};
use crate::decision::{Policy, Test};
use crate::level::Level;
use crate::sandbox::Sandbox;

/// The last system call that this module knows. Programs try later ones and go on without them.
const LAST_KNOWN: u32 = 471;

/// Memory, threads, time, signals to itself, and what is open. Every level has these.
const ALWAYS: &[i64] = &[
    // Memory.
    libc::SYS_brk,
    libc::SYS_mincore,
    libc::SYS_mlock,
    libc::SYS_mlock2,
    libc::SYS_mremap,
    libc::SYS_mseal,
    libc::SYS_msync,
    libc::SYS_munlock,
    libc::SYS_munmap,
    libc::SYS_pkey_alloc,
    libc::SYS_pkey_free,
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

/// What programs do to files, processes and memory of their own user, with
/// [`no_network`](Sandbox::no_network). Elsewhere, `splice` and its like are left out because faults of
/// the kernel's pipes have been a way out of sandboxes; libraries copy without them.
const OWN_USER: &[i64] = &[
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_get_mempolicy,
    libc::SYS_mbind,
    libc::SYS_mlockall,
    libc::SYS_munlockall,
    libc::SYS_set_mempolicy,
    libc::SYS_splice,
    libc::SYS_tee,
    libc::SYS_vmsplice,
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
    libc::SYS_setrlimit,
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
    let is_own_user = sandbox.level == Level::NoNetwork;
    let mut list = List { calls: BTreeMap::new() };
    list.allow(ALWAYS);
    list.allow(ALWAYS_OLDER);
    list.decide(libc::SYS_clone3, Decision::Missing);
    list.restrict_own_process(is_own_user);
    list.restrict_descriptors(is_own_user);
    list.restrict_memory(sandbox.executes_programs());
    list.restrict_sockets(sandbox);
    if is_own_user {
        list.allow(OWN_USER);
        list.allow(OWN_USER_OLDER);
        // Pipes with a name, but no devices.
        let is_pipe = Test::Masked { mask: libc::S_IFMT, value: libc::S_IFIFO };
        list.decide(libc::SYS_mknodat, Allow.only_if(2, is_pipe));
    }
    if sandbox.executes_programs() {
        list.allow(&[libc::SYS_execve, libc::SYS_execveat]);
    }
    list.restrict_processes(sandbox.starts_processes());
    if sandbox.kills {
        // A handler of another kind would take the place of the one that records the call.
        let is_violation = Test::Is(libc::SIGSYS as u32);
        list.decide(libc::SYS_rt_sigaction, Allow.unless_any(0, [is_violation]));
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
        for &call in calls {
            self.decide(call, Allow);
        }
    }

    fn decide(&mut self, call: i64, decision: Decision) {
        // Numbers of system calls are small.
        self.calls.insert(call as u32, decision);
    }

    /// Calls that can name another process: only for the own one, as 0 or by its id.
    fn restrict_own_process(&mut self, is_own_user: bool) {
        let own = [Test::Is(0), Test::IsOwnProcess];
        self.decide(libc::SYS_sched_setaffinity, Allow.if_any(0, own));
        if is_own_user {
            // PRIO_PROCESS is 0.
            self.decide(libc::SYS_setpriority, Allow.if_any(1, own).only_if(0, Test::Is(0)));
            self.decide(libc::SYS_prlimit64, Allow.if_any(0, own));
        } else {
            // Reading limits, but not setting them.
            self.decide(libc::SYS_prlimit64, Allow.only_if(2, Test::IsNull).if_any(0, own));
        }
        // A process may ask to end with its parent, but not to outlive it.
        let ends_with_parent = Allow.only_if(1, Test::Is(libc::SIGKILL as u32));
        let options = [
            one(libc::PR_GET_DUMPABLE),
            between(libc::PR_SET_NAME, libc::PR_GET_NAME),
            one(libc::PR_GET_SECCOMP),
            one(libc::PR_CAPBSET_READ),
            between(libc::PR_SET_TIMERSLACK, libc::PR_GET_TIMERSLACK),
            between(libc::PR_SET_NO_NEW_PRIVS, libc::PR_GET_NO_NEW_PRIVS),
            between(libc::PR_SET_THP_DISABLE, libc::PR_GET_THP_DISABLE),
            one(libc::PR_SET_VMA),
        ];
        let options = Allow.if_any(0, options);
        let decision = ends_with_parent.or(0, one(libc::PR_SET_PDEATHSIG), options);
        self.decide(libc::SYS_prctl, decision);
        // The argument that asks for the present value.
        self.decide(libc::SYS_personality, Allow.only_if(0, Test::Is(u32::MAX)));
    }

    fn restrict_descriptors(&mut self, is_own_user: bool) {
        // Not F_SETOWN, F_SETSIG and F_NOTIFY, which send signals, and not F_SETLEASE, which delays others.
        let commands = [
            between(libc::F_DUPFD, libc::F_GETFL),
            between(libc::F_GETLK, libc::F_SETLKW),
            between(libc::F_OFD_GETLK, libc::F_OFD_SETLKW),
            one(F_DUPFD_QUERY),
            one(libc::F_DUPFD_CLOEXEC),
            between(libc::F_GETPIPE_SZ, libc::F_GET_SEALS),
        ];
        // An open file may be shared with other processes, and these flags change what they see of it.
        let refused = (libc::O_ASYNC | libc::O_DIRECT | libc::O_NOATIME) as u32;
        let set_flags = Allow.only_if(2, Test::HasNone(refused));
        let decision = set_flags.or(1, one(libc::F_SETFL), Allow.if_any(1, commands));
        self.decide(libc::SYS_fcntl, decision);
        let request = |request: libc::Ioctl| Test::Is(request as u32);
        let decision = if is_own_user {
            // Not what types on a terminal, takes it over, or sends signals to another process.
            let refused = [
                libc::TIOCSTI,
                TIOCLINUX,
                libc::TIOCSETD,
                libc::TIOCCONS,
                FIOSETOWN,
                SIOCSPGRP,
                libc::FIOASYNC,
            ];
            Allow.unless_any(1, refused.map(request))
        } else {
            let allowed = [
                libc::TCGETS,
                TCGETS2,
                libc::TIOCGWINSZ,
                libc::TIOCGPGRP,
                libc::FIONREAD,
                libc::TIOCOUTQ,
                libc::FIONBIO,
                libc::FIOCLEX,
                libc::FIONCLEX,
            ];
            Allow.if_any(1, allowed.map(request))
        };
        self.decide(libc::SYS_ioctl, decision);
    }

    fn restrict_memory(&mut self, allows_executable: bool) {
        // Pages that are marked as broken are lost for the machine.
        let broken = [one(libc::MADV_HWPOISON), one(libc::MADV_SOFT_OFFLINE)];
        self.decide(libc::SYS_madvise, Allow.unless_any(2, broken));
        let protected = [libc::SYS_mmap, libc::SYS_mprotect, libc::SYS_pkey_mprotect];
        if allows_executable {
            return self.allow(&protected);
        }
        for call in protected {
            self.decide(call, Allow.only_if(2, Test::HasNone(libc::PROT_EXEC as u32)));
        }
    }

    fn restrict_sockets(&mut self, sandbox: &Sandbox) {
        /// The flags of `socket` that are part of its type.
        const FLAGS: u32 = (libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) as u32;
        let kind = |kind: i32| Test::Masked { mask: !FLAGS, value: kind as u32 };
        // Not SOCK_DGRAM: such a socket reaches any other by its address.
        let is_pair = [kind(libc::SOCK_STREAM), kind(libc::SOCK_SEQPACKET)];
        let unix = Allow.if_any(1, is_pair);
        self.decide(libc::SYS_socketpair, unix.clone().only_if(0, one(libc::AF_UNIX)));
        // Other options load programs into the kernel, or are for root.
        let of_sockets = Allow.if_any(
            2,
            [
                one(libc::SO_REUSEADDR),
                between(libc::SO_SNDBUF, libc::SO_KEEPALIVE),
                one(libc::SO_LINGER),
                between(libc::SO_RCVLOWAT, libc::SO_SNDTIMEO),
            ],
        );
        let of_tcp = Allow.if_any(
            2,
            [
                one(libc::TCP_NODELAY),
                between(libc::TCP_CORK, libc::TCP_KEEPCNT),
                one(libc::TCP_QUICKACK),
                one(libc::TCP_USER_TIMEOUT),
            ],
        );
        let of_tcp = of_tcp.only_if(1, one(libc::IPPROTO_TCP));
        self.decide(libc::SYS_setsockopt, of_sockets.or(1, one(libc::SOL_SOCKET), of_tcp));
        // MSG_FASTOPEN connects, and Landlock does not see it.
        let no_connect = Test::HasNone(libc::MSG_FASTOPEN as u32);
        self.decide(libc::SYS_sendto, Allow.only_if(3, no_connect));
        self.decide(libc::SYS_sendmsg, Allow.only_if(2, no_connect));
        self.decide(libc::SYS_sendmmsg, Allow.only_if(3, no_connect));

        if sandbox.accepts_connections || sandbox.level == Level::Gateway {
            self.allow(&[libc::SYS_accept, libc::SYS_accept4]);
        }

        let mut socket = Decision::Refuse;
        if !sandbox.unix_sockets.is_empty() {
            socket = unix.or(0, one(libc::AF_UNIX), socket);
        }
        if !sandbox.tcp_ports.is_empty() {
            // Not the other protocols of streams, such as MPTCP, whose ports Landlock does not check.
            let tcp = Allow.if_any(2, [Test::Is(0), one(libc::IPPROTO_TCP)]);
            let tcp = tcp.only_if(1, kind(libc::SOCK_STREAM));
            socket = tcp.clone().or(0, one(libc::AF_INET), tcp.or(0, one(libc::AF_INET6), socket));
        }
        if socket != Decision::Refuse {
            self.decide(libc::SYS_socket, socket);
            self.allow(&[libc::SYS_connect]);
        }
    }

    fn restrict_processes(&mut self, starts_processes: bool) {
        /// The flags that give a new process namespaces of its own, or another parent or tracer.
        const REFUSED: u32 = (libc::CLONE_NEWCGROUP
            | libc::CLONE_NEWIPC
            | libc::CLONE_NEWNET
            | libc::CLONE_NEWNS
            | libc::CLONE_NEWPID
            | libc::CLONE_NEWUSER
            | libc::CLONE_NEWUTS
            | libc::CLONE_PARENT
            | libc::CLONE_PTRACE
            | libc::CLONE_UNTRACED) as u32;
        if starts_processes {
            self.allow(PROCESSES);
            self.allow(PROCESSES_OLDER);
            return self.decide(libc::SYS_clone, Allow.only_if(0, Test::HasNone(REFUSED)));
        }
        let thread = (libc::CLONE_THREAD | libc::CLONE_VM) as u32;
        let is_thread = Test::Masked { mask: REFUSED | thread, value: thread };
        self.decide(libc::SYS_clone, Allow.only_if(0, is_thread));
        for call in [libc::SYS_kill, libc::SYS_tgkill] {
            self.decide(call, Allow.only_if(0, Test::IsOwnProcess));
        }
    }
}

/// libc has no constants for these.
const F_DUPFD_QUERY: i32 = 1027;
const TCGETS2: libc::Ioctl = 0x802c_542a;
const TIOCLINUX: libc::Ioctl = 0x541c;
const FIOSETOWN: libc::Ioctl = 0x8901;
const SIOCSPGRP: libc::Ioctl = 0x8902;

fn one(value: i32) -> Test {
    Test::Is(value as u32)
}

fn between(first: i32, last: i32) -> Test {
    Test::IsBetween(first as u32, last as u32)
}
