//! Private directories of workers: whose they are, how large they may be, and that nothing of them stays.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use taskfork::sandbox::{Level, Sandbox};
use taskfork::server::ServerStatus;
use taskfork::worker::context;
use taskfork::{BoxError, Client, Methods, Server, ServerError};

use crate::support::access_control::peer_pid;
use crate::support::processes::{Program, children, guardian, is_gone, signal, stop};
use crate::support::{address_in, programs, trial, until};

const MIB: usize = 1 << 20;

/// The test program that is a server with scratch directories in this folder. `KEY=VALUE` sets one option.
pub(crate) fn serve(address: &str, folder: &str, options: &[&str]) -> Result<(), ServerError> {
    let server = Server::builder().listen(address).scratch(MIB as u64).scratch_folder(folder);
    let (mut server, mut is_program) = (server, false);
    for option in options {
        let (key, value) = option.split_once('=').unwrap_or((option, ""));
        server = match key {
            "user" => server.user(value),
            "level" => server.sandbox(Sandbox::of_level(value.parse::<Level>().unwrap())),
            "program" => {
                is_program = true;
                server
            }
            other => panic!("no such option: {other}"),
        };
    }
    if is_program {
        return crate::executable::server(server);
    }
    let own = || context().scratch().ok_or_else(|| BoxError::from("there is none"));
    server
        .setup(move || Ok::<_, BoxError>(own()?.to_owned()))
        .interface(
            Methods::new()
                .method("path", move |in_setup: &mut PathBuf| {
                    assert_eq!(in_setup, own()?);
                    Ok(own()?.to_owned())
                })
                .function("owner", move || {
                    let status = std::fs::metadata(own()?)?;
                    Ok((status.uid(), status.mode() & 0o7777))
                })
                .function("write", move |name: String, bytes: usize| {
                    Ok(std::fs::write(own()?.join(name), vec![1; bytes])?)
                })
                .function("read", move |name: String| Ok(std::fs::read(own()?.join(name))?.len()))
                .function("write_at", |path: PathBuf| Ok(std::fs::write(path, "x")?))
                .function("list", |path: PathBuf| Ok(std::fs::read_dir(path)?.count()))
                .function("fill_with_folders", move |depth: usize| {
                    let mut at = own()?.to_owned();
                    for level in 0..depth {
                        std::os::unix::fs::symlink("/", at.join("link"))?;
                        std::fs::write(at.join("file"), "x")?;
                        at.push(format!("level {level}"));
                        std::fs::create_dir(&at)?;
                    }
                    Ok(())
                })
                .function("in_a_server_of_its_own", in_a_server_of_its_own)
                .function("abort", || -> Result<(), BoxError> { std::process::abort() }),
        )
        .run()
}

/// The directory and the client of a worker whose server is this worker, and this worker's process id.
fn in_a_server_of_its_own() -> Result<(Option<PathBuf>, Option<u32>, u32), BoxError> {
    let server = Server::fork(|server| {
        let surroundings = || {
            let scratch = context().scratch().map(Path::to_owned);
            Ok((scratch, peer_pid()))
        };
        server.interface(Methods::new().function("surroundings", surroundings)).run()
    })?;
    let client = taskfork::blocking::Client::builder().address(server.address());
    let (scratch, peer) = client.build_blocking()?.call("surroundings", ())?;
    Ok((scratch, peer, std::process::id()))
}

struct Served {
    folder: tempfile::TempDir,
    program: Program,
    client: Client,
}

impl Served {
    fn start(options: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), options)
    }

    fn start_in(folder: tempfile::TempDir, options: &[&str]) -> Self {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let (address, own) = (address_in(&folder), scratch_in(&folder));
        std::fs::create_dir_all(&own).unwrap();
        let path = own.display().to_string();
        let program = programs::start(&[&["serve_scratch", &address, &path], options].concat());
        let client = Client::builder().address(&address).min_workers(0).max_workers(2);
        Self { folder, program, client: client.build().unwrap() }
    }

    /// The folders of all servers.
    fn folders(&self) -> Vec<PathBuf> {
        folders(&scratch_in(&self.folder))
    }
}

fn scratch_in(folder: &tempfile::TempDir) -> PathBuf {
    folder.path().join("scratch")
}

fn folders(path: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect()
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether servers of this test can limit directories.
fn may_mount() -> bool {
    let folder = tempfile::tempdir().unwrap();
    let mut mount = std::process::Command::new("mount");
    mount.args(["-t", "tmpfs", "none"]).arg(folder.path());
    let may = mount.output().is_ok_and(|output| output.status.success());
    if may {
        std::process::Command::new("umount").arg(folder.path()).status().unwrap();
    } else {
        eprintln!("not tried: this process may not mount");
    }
    may
}

trial!(each_worker_has_a_directory_of_its_own, async || {
    let server = Served::start(&[]);
    let (one, other) = (server.client.checkout(), server.client.checkout());
    let paths: [PathBuf; 2] =
        [one.call("path", ()).await.unwrap(), other.call("path", ()).await.unwrap()];
    assert_ne!(paths[0], paths[1]);
    one.call::<()>("write", ("a", 1000)).await.unwrap();
    assert_eq!(one.call::<usize>("read", ("a",)).await.unwrap(), 1000);
    other.call::<usize>("read", ("a",)).await.unwrap_err();
    let (user, mode): (u32, u32) = one.call("owner", ()).await.unwrap();
    assert_eq!((user, mode), (rustix::process::geteuid().as_raw(), 0o700));
    // It goes with its worker.
    one.call::<()>("abort", ()).await.unwrap_err();
    until("the removal", || !paths[0].exists()).await;
    assert!(paths[1].exists());
});

trial!(a_worker_of_a_server_in_a_worker_has_neither_its_directory_nor_its_client, async || {
    let server = Served::start(&[]);
    let (scratch, peer, outer): (Option<PathBuf>, Option<u32>, u32) =
        server.client.call("in_a_server_of_its_own", ()).await.unwrap();
    assert_eq!((scratch, peer), (None, Some(outer)));
});

trial!(a_directory_belongs_to_the_user_of_its_worker, async || {
    if !is_root() {
        return;
    }
    for level in ["off", "compute"] {
        let server = Served::start(&["user=nobody", &format!("level={level}")]);
        let checkout = server.client.checkout();
        let owner: (u32, u32) = checkout.call("owner", ()).await.unwrap();
        assert_eq!(owner, (65_534, 0o700), "{level}");
        checkout.call::<()>("write", ("a", 10)).await.unwrap();
        let path: PathBuf = checkout.call("path", ()).await.unwrap();
        // The folder of all directories can neither be listed nor written to.
        let parent = path.parent().unwrap();
        checkout.call::<usize>("list", (parent,)).await.unwrap_err();
        checkout.call::<()>("write_at", (parent.join("x"),)).await.unwrap_err();
    }
});

trial!(a_confined_worker_writes_to_its_directory_alone, async || {
    let server = Served::start(&["level=compute"]);
    let (one, other) = (server.client.checkout(), server.client.checkout());
    one.call::<()>("write", ("a", 10)).await.unwrap();
    assert_eq!(one.call::<usize>("read", ("a",)).await.unwrap(), 10);
    let path: PathBuf = other.call("path", ()).await.unwrap();
    for elsewhere in [path.join("b"), path.with_file_name("b"), "/tmp/taskfork-elsewhere".into()] {
        let error = one.call::<()>("write_at", (&elsewhere,)).await.unwrap_err().to_string();
        assert!(error.contains("denied"), "{}: {error}", elsewhere.display());
    }
});

trial!(a_directory_is_limited_where_the_server_may_mount, async || {
    if !may_mount() {
        return;
    }
    let server = Served::start(&[]);
    let (one, other) = (server.client.checkout(), server.client.checkout());
    let error = one.call::<()>("write", ("a", 2 * MIB)).await.unwrap_err().to_string();
    assert!(error.contains("No space left"), "{error}");
    other.call::<()>("write", ("a", MIB / 2)).await.unwrap();
    for number in 0..MIB / 1024 + 100 {
        if other.call::<()>("write", (number.to_string(), 0)).await.is_err() {
            return;
        }
    }
    panic!("it may have any number of files");
});

trial!(a_deep_tree_of_a_worker_is_removed_and_links_are_not_followed, async || {
    let server = Served::start(&[]);
    let checkout = server.client.checkout();
    let path: PathBuf = checkout.call("path", ()).await.unwrap();
    checkout.call::<()>("fill_with_folders", (100,)).await.unwrap();
    drop(checkout);
    let (pid, folders) = (server.program.pid(), server.folders());
    assert_eq!(folders.len(), 1);
    assert!(path.starts_with(&folders[0]));
    let Served { program, client, folder } = server;
    drop(client);
    signal(pid, libc::SIGTERM);
    assert!(program.end().await.success());
    assert_eq!(std::fs::read_dir(scratch_in(&folder)).unwrap().count(), 0);
});

trial!(what_a_killed_server_leaves_is_removed, async || {
    let server = Served::start(&[]);
    let checkout = server.client.checkout();
    checkout.call::<()>("fill_with_folders", (10,)).await.unwrap();
    signal(server.program.pid(), libc::SIGKILL);
    until("the guardian's work", || server.folders().is_empty()).await;
});

trial!(what_a_server_and_its_guardian_leave_is_removed_by_the_next_server, async || {
    let server = Served::start(&[]);
    let checkout = server.client.checkout();
    checkout.call::<()>("fill_with_folders", (10,)).await.unwrap();
    let before = server.folders();
    let guardian = guardian(server.program.pid()).unwrap();
    let workers = children(server.program.pid());
    stop(guardian).await;
    signal(server.program.pid(), libc::SIGKILL);
    until("the workers' death", || workers.iter().all(|&pid| is_gone(pid))).await;
    signal(guardian, libc::SIGKILL);
    until("the guardian's death", || is_gone(guardian)).await;
    assert_eq!(server.folders(), before);
    let Served { folder, program, client } = server;
    drop((program, client));
    // Another server, whose folder stays while a third one starts.
    let server = Served::start_in(folder, &[]);
    let path = server.folder.path().join("s.status");
    until("the server", || ServerStatus::read(&path).is_ok()).await;
    let second = server.folders();
    assert_eq!(second.len(), 1);
    assert_ne!(second, before);
    let other = address_in(&tempfile::tempdir().unwrap());
    let shared = scratch_in(&server.folder).display().to_string();
    let third = programs::start(&["serve_scratch", &format!("{other}-gone"), &shared]);
    assert!(!third.end().await.success(), "its address does not exist");
    assert_eq!(server.folders(), second);
    let checkout = server.client.checkout();
    checkout.call::<()>("write", ("a", 10)).await.unwrap();
});

trial!(a_program_finds_its_directory_in_its_environment, async || {
    let server = Served::start(&["program"]);
    let variables: Vec<String> = server.client.call("variables", ()).await.unwrap();
    for name in ["TMPDIR", "TASKFORK_SCRATCH"] {
        assert!(variables.contains(&name.to_owned()), "{variables:?}");
    }
});

trial!(a_folder_that_cannot_be_used_keeps_the_server_from_starting, async || {
    let folder = tempfile::tempdir().unwrap();
    let address = address_in(&folder);
    let error = programs::output(&["serve_scratch", &address, "/nonexistent/folder"]);
    let expected =
        "`scratch` cannot be so: no directory can be made in /nonexistent/folder: No such";
    assert!(error.contains(expected), "{error}");
});
