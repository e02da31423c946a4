//! Descriptors that a worker has from its server or from `setup`.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::FdFlags;

use crate::attempt::Opening::Read;
use crate::attempt::{Attempt, Surroundings, attempt};
use crate::system_call::{address, open_by, permitted, system_call};

/// Higher than any descriptor of a worker here.
const MOST: i32 = 1024;

const CLOSED: &str = "a worker closes all descriptors of its server";

pub(super) fn attempts() -> Vec<Attempt> {
    vec![
        attempt("opens_below_a_folder_that_setup_has_opened", |with| {
            open_below(with, "etc/passwd")
        })
        .opened_by(&[Read]),
        attempt("opens_another_file_below_that_folder", |with| open_below(with, "etc/group")),
        attempt("goes_to_a_folder_that_setup_has_opened", |with| {
            system_call(libc::SYS_fchdir, &[with.root as usize])?;
            File::open("etc/group").map(drop)
        }),
        attempt("types_into_the_servers_terminal", |with| {
            system_call(
                libc::SYS_ioctl,
                &[with.terminal as usize, libc::TIOCSTI as usize, address(b"x")],
            )
            .map(drop)
        })
        .may_fail(&[libc::EIO], "the kernel may forbid it"),
        attempt("pastes_into_a_terminal", |with| {
            const TIOCLINUX: usize = 0x541c;
            const PASTE: u8 = 3;
            let arguments = [with.terminal as usize, TIOCLINUX, address(&[PASTE])];
            // Only terminals of the kernel itself have it.
            permitted(system_call(libc::SYS_ioctl, &arguments), &[libc::ENOTTY, libc::EINVAL])
        }),
        attempt("shortens_the_output_of_its_server", |_| {
            system_call(libc::SYS_ftruncate, &[1, 0]).map(drop)
        })
        .refused_with(&[libc::EINVAL])
        .effect(|with| std::fs::metadata(&with.output).is_ok_and(|output| output.len() == 0)),
        attempt("accepts_a_client_of_its_server", |_| {
            any_descriptor(|number| {
                let flags = libc::SOCK_NONBLOCK as usize;
                let accepted = open_by(libc::SYS_accept4, &[number, 0, 0, flags]);
                permitted(accepted, &[libc::EAGAIN])
            })
        })
        .fails(CLOSED),
        attempt("waits_for_events_of_its_server", |_| {
            any_descriptor(|number| {
                let mut event = [0_u64; 2];
                let event = crate::system_call::address_mut(&mut event);
                system_call(libc::SYS_epoll_pwait, &[number, event, 1, 0, 0, 0]).map(drop)
            })
        })
        .fails(CLOSED),
        attempt("signals_by_a_descriptor_that_it_has", |_| {
            any_descriptor(|number| {
                system_call(libc::SYS_pidfd_send_signal, &[number, 0, 0, 0]).map(drop)
            })
        })
        .fails(CLOSED),
        attempt("writes_to_what_its_server_publishes", |with| {
            let access = (libc::PROT_READ | libc::PROT_WRITE) as usize;
            let mut result = Err(io::ErrorKind::NotFound.into());
            for &(start, length) in &with.published {
                result = system_call(libc::SYS_mprotect, &[start, length, access]).map(drop);
            }
            result
        })
        .fails("its seals keep it as it is"),
        attempt("opens_its_own_memory_anew", |_| {
            let memory = rustix::fs::memfd_create("escape", rustix::fs::MemfdFlags::CLOEXEC)?;
            File::open(format!("/proc/self/fd/{}", memory.as_raw_fd())).map(drop)
        })
        .not_promised("Landlock has no rules for files without a path"),
        attempt("reads_the_pipe_that_wakes_its_server", |_| {
            any_descriptor(|number| {
                let path = format!("/proc/self/fd/{number}");
                let kind = std::fs::metadata(&path)?.file_type();
                // Standard error is a pipe of this worker alone.
                if !kind.is_fifo() || number <= 2 {
                    return Err(io::ErrorKind::NotFound.into());
                }
                let mut options = File::options();
                options.read(true).custom_flags(libc::O_NONBLOCK).open(path).map(drop)
            })
        })
        .for_root(),
    ]
}

fn open_below(with: &Surroundings, path: &str) -> io::Result<()> {
    // SAFETY: `setup` has opened it, and nothing closes it.
    #[allow(unsafe_code)]
    let root = unsafe { BorrowedFd::borrow_raw(with.root) };
    openat(root, path, OFlags::RDONLY, Mode::empty())?;
    Ok(())
}

/// Tries a call on each open descriptor. Succeeds if it does for one.
fn any_descriptor(step: impl Fn(usize) -> io::Result<()>) -> io::Result<()> {
    let mut last = Err(io::ErrorKind::NotFound.into());
    for number in 0..MOST {
        // SAFETY: the kernel checks the number.
        #[allow(unsafe_code)]
        let is_open = rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(number) });
        if is_open != Ok(FdFlags::empty()) && is_open != Ok(FdFlags::CLOEXEC) {
            continue;
        }
        let result = step(number as usize);
        if result.is_ok() {
            return result;
        }
        if result.as_ref().is_err_and(|error| error.kind() != io::ErrorKind::NotFound) {
            last = result;
        }
    }
    last
}
