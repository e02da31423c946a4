//! Executing programs, and making processes.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{MemfdFlags, memfd_create};

use crate::attempt::Opening::{Execute, Programs, SpawnPrograms};
use crate::attempt::{Attempt, Surroundings, attempt};
use crate::system_call::{address, clone_child, end_child, fork_sleeper, system_call, text};

const OLD: &str = "the kernel may be too old to be asked";

/// The program that the opening `Execute` names.
pub(crate) const PROGRAM: &str = "/bin/true";

pub(super) fn attempts() -> Vec<Attempt> {
    vec![
        attempt("executes_a_program", |_| ends_well(&mut Command::new(PROGRAM)))
            .opened_by(&[Programs]),
        attempt("executes_another_program", |_| {
            ends_well(Command::new("/bin/cat").stdin(Stdio::null()))
        }),
        attempt("executes_a_copy_of_a_program", |with| {
            ends_well(&mut Command::new(executable(with, "program", program()?)?))
        }),
        // Landlock has no rules for memory. The program runs under the same sandbox.
        attempt("executes_a_program_in_memory", executes_memory).opened_by(&[Programs]),
        attempt("executes_a_script", |with| {
            let script = executable(with, "script", b"#!/bin/sh\nexit 0\n")?;
            ends_well(&mut Command::new(script))
        }),
        attempt("executes_a_program_by_the_loader", |with| {
            let loader = ["/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1"];
            let loader = loader.into_iter().find(|path| Path::new(path).exists());
            ends_well(
                Command::new(loader.unwrap_or("/lib64/ld-linux-x86-64.so.2")).arg(executable(
                    with,
                    "program",
                    program()?,
                )?),
            )
        })
        // The loader is one of the programs, and it reads the file that it is given.
        .opened_by(&[Programs])
        .may_fail(&[libc::EACCES], "no program may be mapped from a file system in memory"),
        attempt("replaces_itself_by_a_program", |_| may_execute(PROGRAM))
            .opened_by(&[Execute, Programs])
            .may_fail(&[libc::EINVAL], OLD),
        attempt("replaces_itself_by_another_program", |_| may_execute("/bin/cat"))
            .may_fail(&[libc::EINVAL], OLD),
        attempt("gains_rights_by_a_setuid_program", |with| {
            if with.setuid_program.as_os_str().is_empty() {
                return Err(io::Error::from_raw_os_error(libc::ENOENT));
            }
            let mut program = Command::new(&with.setuid_program);
            ends_well(program.arg(&with.file_of_root).stdout(Stdio::null()).stderr(Stdio::null()))
        })
        .may_fail(&[libc::ENOENT], "only root can make such a program")
        .refused_with(&[libc::ENOENT]),
        attempt("forks", |_| fork_sleeper().map(end_child)).opened_by(&[SpawnPrograms, Programs]),
        attempt("forks_until_it_cannot", forks_often).opened_by(&[SpawnPrograms, Programs]),
        attempt("forks_by_clone3", |_| {
            // As long as the first version of the arguments.
            let mut arguments = [0_u64; 8];
            arguments[4] = libc::SIGCHLD as u64;
            match system_call(libc::SYS_clone3, &[address(&arguments), size_of_val(&arguments)])? {
                // SAFETY: it ends the child, which has its own memory.
                #[allow(unsafe_code)]
                0 => unsafe { libc::_exit(0) },
                child => {
                    end_child(child as i32);
                    Ok(())
                }
            }
        })
        .refused_with(&[libc::ENOSYS]),
        attempt("makes_a_child_of_its_server", |_| clone_child(libc::CLONE_PARENT)),
        attempt("makes_a_child_in_a_new_user_namespace", |_| clone_child(libc::CLONE_NEWUSER))
            .may_fail(&[libc::EPERM, libc::ENOSPC], "users may not be allowed any"),
        attempt("makes_a_child_in_a_new_mount_namespace", |_| clone_child(libc::CLONE_NEWNS))
            .for_root(),
        attempt("makes_a_child_in_a_new_process_namespace", |_| clone_child(libc::CLONE_NEWPID))
            .for_root(),
    ]
}

/// Asks the kernel for the permission to execute a program, which would end the worker.
fn may_execute(program: &str) -> io::Result<()> {
    const ONLY_CHECK: usize = 0x1_0000;
    let path = text(program);
    let arguments = [path.as_ptr().addr(), 0];
    let environment = [0_usize];
    let (folder, path) = (libc::AT_FDCWD as usize, path.as_ptr().addr());
    let all = [folder, path, address(&arguments), address(&environment), ONLY_CHECK];
    system_call(libc::SYS_execveat, &all).map(drop)
}

fn ends_well(command: &mut Command) -> io::Result<()> {
    match command.status()? {
        status if status.success() => Ok(()),
        // The loader exits if it may not read the program.
        _ => Err(io::Error::from_raw_os_error(libc::EACCES)),
    }
}

/// Makes a file that can be executed, outside of the scratch folder if possible: that may allow no programs anyway.
fn executable(with: &Surroundings, name: &str, bytes: &[u8]) -> io::Result<PathBuf> {
    let create = |path: &Path| {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o700).open(path)?.write_all(bytes)
    };
    let mut path = with.new_file(name);
    if create(&path).is_err() {
        path = with.scratch.join(name);
        create(&path)?;
    }
    Ok(path)
}

/// The bytes of a program. `setup` has read it: an attacker can bring one along.
fn program() -> io::Result<&'static [u8]> {
    crate::server::PROGRAM_BYTES.get().map(Vec::as_slice).ok_or(io::ErrorKind::NotFound.into())
}

fn executes_memory(_: &Surroundings) -> io::Result<()> {
    let file = memfd_create("program", MemfdFlags::empty())?;
    File::from(file.try_clone()?).write_all(program()?)?;
    ends_well(&mut Command::new(format!("/proc/self/fd/{}", file.as_raw_fd())))
}

/// Makes more children than any worker needs, who all live at the same time.
fn forks_often(_: &Surroundings) -> io::Result<()> {
    let children: Vec<io::Result<i32>> = (0..64).map(|_| fork_sleeper()).collect();
    let mut result = Ok(());
    for child in children {
        match child {
            Ok(child) => end_child(child),
            Err(error) => result = Err(error),
        }
    }
    result
}
