//! Reading and writing files, and changing what is known of them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, RenameFlags, Timestamps, XattrFlags, chownat, mknodat,
    renameat_with, setxattr, utimensat,
};

use crate::attempt::Opening::{Read as ReadFile, Write as WriteFolder};
use crate::attempt::{Attempt, Surroundings, attempt};
use crate::system_call::{address, address_mut, open_by, permitted, system_call, text};

const PASSWORDS: &str = "/etc/passwd";

pub(super) fn attempts() -> Vec<Attempt> {
    vec![
        attempt("reads_the_password_file", |_| read(PASSWORDS)).opened_by(&[ReadFile]),
        attempt("reads_another_file", |with| read(with.secret())),
        attempt("lists_a_folder", |_| fs::read_dir("/etc").map(drop)),
        attempt("reads_beside_its_scratch_folder", |with| {
            read(with.scratch.join("../../../../../../../..").join(&PASSWORDS[1..]))
        })
        .opened_by(&[ReadFile]),
        attempt("reads_through_a_link_in_its_scratch_folder", |with| {
            let link = with.scratch.join("link");
            symlink(with.secret(), &link)?;
            read(link)
        }),
        attempt("reads_through_a_link_that_it_swaps", reads_through_a_swapped_link)
            .opened_by(&[ReadFile]),
        attempt("writes_through_a_link_that_it_swaps", writes_through_a_swapped_link)
            .opened_by(&[WriteFolder]),
        attempt("reads_the_root_of_its_parent", |with| {
            read(format!("/proc/{}/root{}", with.server, with.secret().display()))
        }),
        attempt("reads_the_program_of_its_server", |_| read("/proc/self/exe")),
        attempt("creates_a_file", |with| fs::write(with.new_file("new"), "x"))
            .opened_by(&[WriteFolder]),
        attempt("creates_a_file_elsewhere", |with| {
            fs::write(with.outside.join(format!("new-{}", std::process::id())), "x")
        }),
        attempt("appends_to_a_file", |with| {
            OpenOptions::new().append(true).open(with.writable("existing"))?.write_all(b"x")
        })
        .opened_by(&[WriteFolder]),
        attempt("truncates_a_file", |with| {
            let path = text(with.writable("existing").to_str().unwrap_or_default());
            system_call(libc::SYS_truncate, &[path.as_ptr().addr(), 0]).map(drop)
        })
        .opened_by(&[WriteFolder]),
        attempt("removes_a_file", |with| fs::remove_file(with.writable("removable")))
            .opened_by(&[WriteFolder]),
        attempt("moves_a_file", |with| {
            fs::rename(with.writable("movable"), with.new_file("moved"))
        })
        .opened_by(&[WriteFolder]),
        attempt("moves_a_file_out_of_its_scratch_folder", |with| {
            let inside = with.scratch.join("inside");
            fs::write(&inside, "x")?;
            fs::rename(inside, with.new_file("moved-out"))
        })
        .opened_by(&[WriteFolder])
        .may_fail(&[libc::EXDEV], "both may be on different file systems")
        .refused_with(&[libc::EXDEV]),
        attempt("links_a_file_into_its_scratch_folder", |with| {
            let link = with.scratch.join("hard-link");
            fs::hard_link(with.secret(), &link)?;
            read(link)
        })
        .may_fail(&[libc::EXDEV], "both may be on different file systems")
        .refused_with(&[libc::EXDEV]),
        attempt("makes_a_link", |with| symlink("/", with.new_file("link")))
            .opened_by(&[WriteFolder]),
        attempt("makes_a_folder", |with| fs::create_dir(with.new_file("folder")))
            .opened_by(&[WriteFolder]),
        attempt("makes_a_device", |with| {
            let null = rustix::fs::makedev(1, 3);
            let path = with.new_file("device");
            Ok(mknodat(CWD, path, FileType::CharacterDevice, Mode::RUSR, null)?)
        })
        .for_root(),
        attempt("changes_the_mode_of_a_file", |with| {
            fs::set_permissions(with.secret(), PermissionsExt::from_mode(0o644))
        }),
        attempt("changes_the_owner_of_a_file", |with| {
            let user = rustix::process::getuid();
            Ok(chownat(CWD, with.secret(), Some(user), None, AtFlags::empty())?)
        }),
        attempt("changes_the_times_of_a_file", |with| {
            let now = rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
            let times = Timestamps { last_access: now, last_modification: now };
            Ok(utimensat(CWD, with.secret(), &times, AtFlags::empty())?)
        }),
        attempt("sets_an_attribute_of_a_file", |with| {
            Ok(setxattr(with.secret(), "user.escape", b"x", XattrFlags::empty())?)
        })
        .may_fail(&[libc::EOPNOTSUPP], "the file system may have no attributes"),
        attempt("asks_whether_a_file_is_there", |_| {
            Ok(rustix::fs::access(PASSWORDS, rustix::fs::Access::EXISTS)?)
        })
        .not_promised("Landlock has no rules for it"),
        attempt("asks_how_large_a_file_is", |with| fs::metadata(with.secret()).map(drop))
            .not_promised("Landlock has no rules for it"),
        attempt("watches_a_folder", |_| {
            let watch = rustix::fs::inotify::init(rustix::fs::inotify::CreateFlags::empty())?;
            let flags = rustix::fs::inotify::WatchFlags::ACCESS;
            rustix::fs::inotify::add_watch(watch, "/etc", flags)?;
            Ok(())
        }),
        attempt("watches_all_files", |_| {
            const REPORT_FILE_HANDLES: usize = 0x200;
            open_by(libc::SYS_fanotify_init, &[REPORT_FILE_HANDLES, 0]).map(drop)
        })
        .may_fail(&[libc::ENOSYS], "the kernel may lack fanotify"),
        attempt("takes_a_handle_of_a_file", |_| file_handle().map(drop)),
        attempt("opens_a_file_by_its_handle", opens_by_handle).for_root(),
        attempt("opens_the_kernels_log", |_| File::open("/dev/kmsg").map(drop)).for_root(),
        attempt("opens_a_disk", opens_a_disk).for_root(),
        attempt("opens_a_terminal", |_| {
            OpenOptions::new().read(true).write(true).open("/dev/ptmx").map(drop)
        }),
        attempt("changes_where_cores_go", |_| writes_back("/proc/sys/kernel/core_pattern"))
            .for_root(),
        attempt("changes_a_setting_of_the_kernel", |_| writes_back("/proc/sys/vm/swappiness"))
            .for_root(),
        attempt("writes_to_sysfs", |_| writes_back("/sys/kernel/mm/transparent_hugepage/enabled"))
            .for_root(),
        attempt("opens_the_system_request_trigger", |_| {
            OpenOptions::new().write(true).open("/proc/sysrq-trigger").map(drop)
        })
        .may_fail(&[libc::ENOENT, libc::EACCES], "the kernel may lack it")
        .refused_with(&[libc::ENOENT]),
        attempt("makes_a_file_in_shared_memory", |_| {
            let path = format!("/dev/shm/taskfork-escape-{}", std::process::id());
            let made = File::create_new(&path).map(drop);
            let _ = fs::remove_file(path);
            made
        }),
        attempt("makes_a_nameless_file", |with| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).custom_flags(libc::O_TMPFILE);
            options.open(&with.outside).map(drop)
        })
        .may_fail(&[libc::EOPNOTSUPP], "the file system may have no files without a name"),
        attempt("makes_a_setuid_file", |with| {
            let path = with.scratch.join("setuid");
            fs::write(&path, "x")?;
            fs::set_permissions(&path, PermissionsExt::from_mode(0o4755))
        }),
        attempt("makes_a_file_immutable", makes_immutable).for_root(),
    ]
}

fn read(path: impl AsRef<Path>) -> io::Result<()> {
    File::open(path)?.read(&mut [0; 16]).map(drop)
}

/// Writes what a file of the kernel has already.
fn writes_back(path: &str) -> io::Result<()> {
    let text = fs::read_to_string(path)?;
    // Some show all values with the current one in brackets.
    let current = text.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    let current = current.map_or(&*text, |(current, _)| current);
    OpenOptions::new().write(true).open(path)?.write_all(current.as_bytes())
}

/// Opens a name while another thread swaps two names in the scratch folder: `inside`, a file with the text `inside`, and
/// `link`, a link to `aim`. Opens `inside` with these options again and again. Succeeds if that opens another file once.
fn races(with: &Surroundings, aim: &Path, options: &OpenOptions) -> io::Result<()> {
    const ROUNDS: usize = 20_000;
    // On a busy machine the other thread may not run for a long time.
    const TIME: Duration = Duration::from_secs(60);
    let (inside, link) = (with.scratch.join("inside"), with.scratch.join("link"));
    fs::write(&inside, "inside")?;
    let inode = fs::metadata(&inside)?.ino();
    symlink(aim, &link)?;
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        std::thread::Builder::new().spawn_scoped(scope, || {
            while !is_over.load(Ordering::Relaxed) {
                let _ = renameat_with(CWD, &inside, CWD, &link, RenameFlags::EXCHANGE);
            }
        })?;
        let (mut last, mut round, start) = (None, 0, Instant::now());
        while round < ROUNDS || (last.is_none() && start.elapsed() < TIME) {
            round += 1;
            match options.open(&inside).and_then(|file| file.metadata()) {
                Ok(file) if file.ino() != inode => {
                    last = Some(Ok(()));
                    break;
                }
                Ok(_) => {}
                Err(error) => last = Some(Err(error)),
            }
        }
        is_over.store(true, Ordering::Relaxed);
        last.unwrap_or_else(|| Err(io::ErrorKind::TimedOut.into()))
    })
}

fn reads_through_a_swapped_link(with: &Surroundings) -> io::Result<()> {
    races(with, Path::new(PASSWORDS), OpenOptions::new().read(true))
}

fn writes_through_a_swapped_link(with: &Surroundings) -> io::Result<()> {
    races(with, &with.writable("existing"), OpenOptions::new().append(true))
}

#[repr(C)]
struct FileHandle {
    length: u32,
    kind: i32,
    bytes: [u8; 128],
}

fn file_handle() -> io::Result<FileHandle> {
    let mut handle = FileHandle { length: 128, kind: 0, bytes: [0; 128] };
    let (path, mut mount) = (text(PASSWORDS), 0_i32);
    let arguments = [
        libc::AT_FDCWD as usize,
        path.as_ptr().addr(),
        address_mut(&mut handle),
        address_mut(&mut mount),
        0,
    ];
    system_call(libc::SYS_name_to_handle_at, &arguments)?;
    Ok(handle)
}

fn opens_by_handle(with: &Surroundings) -> io::Result<()> {
    let handle = file_handle()?;
    open_by(libc::SYS_open_by_handle_at, &[with.root as usize, address(&handle), 0]).map(drop)
}

/// Opens the disk that has the root file system, or the first that there is.
fn opens_a_disk(_: &Surroundings) -> io::Result<()> {
    let device = |path: &Path| {
        let kind = rustix::fs::stat(path).ok()?.st_mode;
        (FileType::from_raw_mode(kind) == FileType::BlockDevice).then(|| path.to_owned())
    };
    let disk = match fs::read_dir("/dev") {
        Ok(entries) => entries.flatten().find_map(|entry| device(&entry.path())),
        // What most machines have.
        Err(_) => None,
    };
    let disk = disk.unwrap_or_else(|| "/dev/loop0".into());
    File::open(disk).map(drop)
}

/// Sets the flag that keeps even root from removing a file, and takes it back.
fn makes_immutable(with: &Surroundings) -> io::Result<()> {
    const GET_FLAGS: usize = 0x8008_6601;
    const SET_FLAGS: usize = 0x4008_6602;
    const IMMUTABLE: u32 = 0x10;
    let file = File::create(with.scratch.join("immutable"))?;
    let descriptor = std::os::fd::AsRawFd::as_raw_fd(&file) as usize;
    let mut flags = [0_u32; 2];
    let get = [descriptor, GET_FLAGS, address_mut(&mut flags)];
    permitted(system_call(libc::SYS_ioctl, &get), &[libc::ENOTTY])?;
    let before = flags;
    flags[0] |= IMMUTABLE;
    let set = [descriptor, SET_FLAGS, address(&flags)];
    permitted(system_call(libc::SYS_ioctl, &set), &[libc::ENOTTY, libc::EOPNOTSUPP])?;
    let reset = [descriptor, SET_FLAGS, address(&before)];
    permitted(system_call(libc::SYS_ioctl, &reset), &[libc::ENOTTY, libc::EOPNOTSUPP])
}
