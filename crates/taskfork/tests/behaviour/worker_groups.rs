//! Control groups of workers. These tests need the right to make groups of version 2. The limits of groups need
//! controllers, which a machine may not have there.

use std::path::{Path, PathBuf};

use taskfork::server::Limit;
use taskfork::{Client, Methods, Server, ServerError};

use crate::support::processes::{Program, is_gone, signal};
use crate::support::servers::inspection;
use crate::support::{address_in, programs, trial, until};

/// The test program that is a server below this group. An option limits memory or the processor.
pub(crate) fn serve(address: &str, group: &str, options: &[&str]) -> Result<(), ServerError> {
    let mut server = Server::builder().listen(address);
    if group != "-" {
        server = server.cgroup(group);
    }
    for option in options {
        server = match *option {
            "memory" => server.limit(Limit::Memory, 64 << 20),
            "cpu" => server.limit(Limit::CpuPercent, 50),
            other => panic!("no such option: {other}"),
        };
    }
    let methods =
        Methods::new().function("group", || Ok(std::fs::read_to_string("/proc/self/cgroup")?));
    let methods = methods.function("files_of_groups", || {
        let files = std::fs::read_dir("/proc/self/fd")?;
        let targets = files.filter_map(|file| std::fs::read_link(file.ok()?.path()).ok());
        let targets = targets.map(|target| target.display().to_string());
        Ok(targets.filter(|target| target.contains("taskfork-")).collect::<Vec<_>>())
    });
    let methods =
        methods.function("abort", || -> Result<(), taskfork::BoxError> { std::process::abort() });
    server
        .setup(|| Ok::<_, taskfork::BoxError>(Default::default()))
        .interface(inspection(methods))
        .run()
}

/// A group for the groups of workers.
struct Parent(PathBuf);

impl Parent {
    /// Returns `None` where there can be no such group.
    fn new() -> Option<Self> {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mount = mounts.lines().find(|line| line.contains(" - cgroup2 "))?;
        let root = Path::new(mount.split_whitespace().nth(4)?);
        let group =
            root.join(format!("taskfork-test-{}-{}", std::process::id(), fastrand::u32(..)));
        match std::fs::create_dir(&group) {
            Ok(()) => Some(Self(group)),
            Err(error) => {
                eprintln!("not tried: no control group can be made here: {error}");
                None
            }
        }
    }

    fn path(&self) -> String {
        self.0.display().to_string()
    }

    /// The names of the groups of workers.
    fn groups(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap());
        let folders = entries.filter(|entry| entry.file_type().unwrap().is_dir());
        folders.map(|entry| entry.file_name().into_string().unwrap()).collect()
    }
}

impl Drop for Parent {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

fn start(parent: &Parent, folder: &tempfile::TempDir) -> (Program, Client) {
    let address = address_in(folder);
    let server = programs::start(&["serve_grouped", &address, &parent.path()]);
    let client = Client::builder().address(&address).min_workers(0).max_workers(1);
    (server, client.build().unwrap())
}

trial!(a_worker_has_a_group_and_leaves_no_process_of_it, async || {
    let Some(parent) = Parent::new() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (server, client) = start(&parent, &folder);
    let checkout = client.checkout();
    let group: String = checkout.call("group", ()).await.unwrap();
    let name = format!("taskfork-{}-1", server.pid());
    assert!(group.lines().any(|line| line.starts_with("0::") && line.ends_with(&name)), "{group}");
    assert_eq!(parent.groups(), [name]);
    // The kernel would allow it to move processes of others by a file that the server has opened.
    let open: Vec<String> = checkout.call("files_of_groups", ()).await.unwrap();
    assert_eq!(open, [""; 0]);
    let left: Vec<u32> = checkout.call("start_daemons", ()).await.unwrap();
    checkout.call::<()>("abort", ()).await.unwrap_err();
    until("the group is removed", || parent.groups().is_empty()).await;
    assert!(left.iter().all(|&pid| is_gone(pid)));
    // The next worker has one of its own.
    client.call::<u32>("pid", ()).await.unwrap();
    assert_eq!(parent.groups(), [format!("taskfork-{}-2", server.pid())]);
    drop(client);
    signal(server.pid(), libc::SIGTERM);
    assert!(server.end().await.success());
    assert_eq!(parent.groups(), [""; 0]);
});

trial!(the_groups_of_a_killed_server_are_removed, async || {
    let Some(parent) = Parent::new() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (server, client) = start(&parent, &folder);
    let checkout = client.checkout();
    let left: Vec<u32> = checkout.call("start_daemons", ()).await.unwrap();
    assert_eq!(parent.groups().len(), 1);
    signal(server.pid(), libc::SIGKILL);
    until("the groups are removed", || parent.groups().is_empty()).await;
    assert!(left.iter().all(|&pid| is_gone(pid)));
});

trial!(a_group_that_cannot_be_used_keeps_the_server_from_starting, async || {
    let folder = tempfile::tempdir().unwrap();
    let plain = folder.path().display().to_string();
    let refusal = |group: &str, options: &[&str]| {
        programs::output(&[&["serve_grouped", "unix:/nonexistent/s", group], options].concat())
    };
    let error = refusal(&plain, &[]);
    assert!(error.contains("`cgroup` cannot be so") && error.contains("version 2"), "{error}");
    let error = refusal("/nonexistent/group", &[]);
    assert!(error.contains("cannot open /nonexistent/group"), "{error}");
    let error = refusal("-", &["cpu"]);
    assert!(error.contains("CpuPercent needs a control group: set `cgroup`"), "{error}");
    let Some(parent) = Parent::new() else { return };
    let controllers = std::fs::read_to_string(parent.0.join("cgroup.controllers")).unwrap();
    if !controllers.split_whitespace().any(|controller| controller == "memory") {
        let error = refusal(&parent.path(), &["memory"]);
        assert!(error.contains("does not have the controller `memory`"), "{error}");
    }
});

trial!(a_death_for_the_memory_of_a_group_names_the_limit, async || {
    let Some(parent) = Parent::new() else { return };
    let folder = tempfile::tempdir().unwrap();
    let controllers = std::fs::read_to_string(parent.0.join("cgroup.controllers")).unwrap();
    if !controllers.split_whitespace().any(|controller| controller == "memory") {
        eprintln!("not tried: control groups cannot limit memory here");
        return;
    }
    let address = address_in(&folder);
    let _server = programs::start(&["serve_grouped", &address, &parent.path(), "memory"]);
    let client = Client::builder().address(&address).max_workers(1).build().unwrap();
    let error = client.call::<()>("leak", (256_u64 << 20,)).await.unwrap_err();
    assert!(error.to_string().contains("its limit of memory was reached"), "{error}");
});
