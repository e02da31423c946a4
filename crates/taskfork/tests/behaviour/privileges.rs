//! What workers may do: their user and groups, what they can gain, and what they inherit.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Stdio;

use taskfork::server::Limit;
use taskfork::{Client, Methods, Server, ServerBuilder, ServerError};

use crate::support::processes::Program;
use crate::support::{address_in, programs, trial};

/// The user and the group of workers in these tests, and of servers that are not root's.
const OTHER: u32 = 65_534;

/// The test program that is a server. `KEY=VALUE` sets one option.
pub(crate) fn serve(address: &str, options: &[&str]) -> Result<(), ServerError> {
    let (mut server, mut is_program) = (Server::builder().listen(address), false);
    let list = |value: &str| -> Vec<String> {
        value.split(',').filter(|part| !part.is_empty()).map(str::to_owned).collect()
    };
    for option in options {
        let (key, value) = option.split_once('=').unwrap();
        server = match key {
            "user" => server.user(value),
            "group" => server.group(value),
            "groups" => server.groups(list(value)),
            "keep" => server.clear_env(list(value)),
            "umask" => server.umask(u32::from_str_radix(value, 8).unwrap()),
            "no_new_privs" => server.no_new_privs(value == "true"),
            "core" => server.limit(Limit::CoreSize, value.parse().unwrap()),
            "program" => {
                is_program = true;
                server
            }
            other => panic!("no such option: {other}"),
        };
    }
    match is_program {
        true => crate::executable::server(server),
        false => with_methods(server),
    }
}

fn with_methods(server: ServerBuilder) -> Result<(), ServerError> {
    let read = |name: &str| io::read_to_string(std::fs::File::open(format!("/proc/self/{name}"))?);
    server
        .setup(move || read("status"))
        .interface(
            Methods::new()
                .method("status_in_setup", |status: &mut String| Ok(status.clone()))
                .function("status", move || Ok(read("status")?))
                .function("limits", move || Ok(read("limits")?))
                .function("death_signal", || {
                    let signal = rustix::process::parent_process_death_signal()?;
                    Ok(signal.map(|signal| signal.as_raw()))
                })
                .function("variables", || {
                    Ok(std::env::vars_os()
                        .map(|(name, _)| name.to_string_lossy().into_owned())
                        .collect::<Vec<_>>())
                }),
        )
        .run()
}

/// A server with these options, and a client of it.
struct Served {
    _folder: tempfile::TempDir,
    _program: Program,
    client: Client,
}

impl Served {
    fn start(options: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let address = address_in(&folder);
        let program = programs::start(&[&["serve_privileged", &address], options].concat());
        let client = Client::builder().address(&address).min_workers(0).max_workers(1);
        Self { _folder: folder, _program: program, client: client.build().unwrap() }
    }

    async fn text(&self, method: &str) -> String {
        self.client.call(method, ()).await.unwrap()
    }
}

/// The values of this line, separated by single spaces.
fn line(text: &str, name: &str) -> String {
    let line = text.lines().find(|line| line.starts_with(name)).unwrap();
    line[name.len()..].split_whitespace().collect::<Vec<_>>().join(" ")
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// What a server with these options prints that cannot start. `user` starts it, if this process is root's.
async fn refusal(user: Option<u32>, options: &[&str]) -> String {
    let mut command = programs::command(
        &[&["serve_privileged", "unix:/nonexistent/privileges"], options].concat(),
    );
    if let Some(user) = user.filter(|_| is_root()) {
        command.uid(user).gid(user);
    }
    command.stdout(Stdio::piped());
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    String::from_utf8(output.stdout).unwrap()
}

trial!(a_worker_has_its_user_and_groups_before_its_setup, async || {
    if !is_root() {
        return;
    }
    let number = OTHER.to_string();
    for (options, group, groups) in [
        (vec![format!("user={number}")], number.as_str(), ""),
        (vec!["user=nobody".to_owned()], &number, ""),
        (vec!["user=4242".to_owned(), "group=4243".to_owned()], "4243", ""),
        (
            vec![format!("user={number}"), "group=7".to_owned(), "groups=9,root".to_owned()],
            "7",
            "0 9",
        ),
        (vec![format!("user={number}"), "groups=".to_owned()], &number, ""),
    ] {
        let user = if options[0] == "user=4242" { "4242" } else { &number };
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let server = Served::start(&options);
        for method in ["status_in_setup", "status"] {
            let status = server.text(method).await;
            let four = |id: &str| [id; 4].join(" ");
            assert_eq!(line(&status, "Uid:"), four(user), "{options:?}");
            assert_eq!(line(&status, "Gid:"), four(group), "{options:?}");
            let present = line(&status, "Groups:");
            let present = if groups.is_empty() && present == group { "" } else { &present };
            assert_eq!(present, groups, "{options:?}");
            for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
                assert_eq!(line(&status, set), "0000000000000000", "{set} {options:?}");
            }
        }
        let signal: Option<i32> = server.client.call("death_signal", ()).await.unwrap();
        assert_eq!(signal, Some(libc::SIGKILL), "{options:?}");
    }
});

trial!(root_without_capabilities_is_still_root, async || {
    if !is_root() {
        return;
    }
    let server = Served::start(&["user=root"]);
    let status = server.text("status").await;
    assert_eq!(line(&status, "Uid:"), "0 0 0 0");
    for set in ["CapPrm:", "CapEff:", "CapBnd:"] {
        assert_eq!(line(&status, set), "0000000000000000", "{set}");
    }
});

trial!(groups_alone_leave_the_user_and_its_capabilities, async || {
    if !is_root() {
        return;
    }
    let before = std::fs::read_to_string("/proc/self/status").unwrap();
    let status = Served::start(&["group=7", "groups=8,9"]).text("status").await;
    assert_eq!(line(&status, "Gid:"), "7 7 7 7");
    assert_eq!(line(&status, "Groups:"), "8 9");
    for same in ["Uid:", "CapPrm:"] {
        assert_eq!(line(&status, same), line(&before, same));
    }
});

trial!(a_program_that_is_a_worker_has_the_user_and_the_environment, async || {
    if !is_root() {
        return;
    }
    let server = Served::start(&["program=json", "user=nobody", "keep=PATH", "umask=077"]);
    let status = server.text("status").await;
    assert_eq!(line(&status, "Uid:"), [OTHER.to_string().as_str(); 4].join(" "));
    assert_eq!(line(&status, "CapBnd:"), "0000000000000000");
    assert_eq!(line(&status, "NoNewPrivs:"), "1");
    assert_eq!(line(&status, "Umask:"), "0077");
    let variables: Vec<String> = server.client.call("variables", ()).await.unwrap();
    assert!(variables.contains(&"PATH".to_owned()), "{variables:?}");
    assert!(!variables.contains(&"CARGO_MANIFEST_DIR".to_owned()), "{variables:?}");
});

trial!(a_worker_gains_no_privileges_and_leaves_no_core, async || {
    for (options, gains, core) in [
        (vec![], "1", Some("1 1")),
        (vec!["no_new_privs=false", "core=4096"], "0", Some("4096 4096")),
        (vec!["core=0"], "1", Some("0 0")),
    ] {
        let server = Served::start(&options);
        assert_eq!(line(&server.text("status").await, "NoNewPrivs:"), gains, "{options:?}");
        let limits = line(&server.text("limits").await, "Max core file size");
        let limits = limits.trim_end_matches(" bytes");
        // Where the hard limit is 0, an ordinary user cannot set another.
        assert!(core == Some(limits) || limits == "0 0", "{options:?}: {limits}");
    }
});

trial!(a_worker_has_the_variables_that_are_kept, async || {
    let folder = tempfile::tempdir().unwrap();
    let address = address_in(&folder);
    let arguments = ["serve_privileged", &address, "keep=PATH,SECOND", "umask=027"];
    let mut command = programs::command(&arguments);
    command.env("FIRST", "1").env("SECOND", "2").env("NOTIFY_SOCKET", "/nonexistent");
    let _program = Program::new(command.spawn().unwrap());
    let client = Client::builder().address(&address).build().unwrap();
    let mut variables: Vec<String> = client.call("variables", ()).await.unwrap();
    variables.sort();
    assert_eq!(variables, ["PATH", "SECOND", "TASKFORK_SERVER_ID"]);
    let status: String = client.call("status", ()).await.unwrap();
    assert_eq!(line(&status, "Umask:"), "0027");
});

trial!(a_user_that_cannot_be_had_keeps_the_server_from_starting, async || {
    for (user, options, expected) in [
        (None, &["user=no-such-user"][..], "`user` cannot be so: there is no user `no-such-user`"),
        (None, &["user=3999999999"], "is in no database, so its group is unknown: set `group`"),
        (None, &["groups=no-such-group"], "`groups` cannot be so: there is no group"),
        (None, &["umask=1000"], "`umask` cannot be so: 1000 has bits beyond"),
        (
            Some(OTHER),
            &["user=root"],
            "a worker may not change its supplementary groups (Operation",
        ),
        (Some(OTHER), &["group=0"], "a worker may not take on the group 0 (Operation"),
    ] {
        let error = refusal(user, options).await;
        assert!(error.contains(expected), "{options:?}: {error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
});

trial!(a_worker_that_its_server_could_not_kill_keeps_it_from_starting, async || {
    if !is_root() {
        return;
    }
    // As a service that has been given two capabilities and not the third.
    let address = "unix:/nonexistent/privileges";
    let mut command = programs::command(&["serve_privileged", address, "user=4242", "group=4242"]);
    command.stdout(Stdio::piped());
    // SAFETY: between fork and exec it only makes system calls.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(|| {
            use rustix::thread::{self, CapabilitySet};
            let two = CapabilitySet::SETUID | CapabilitySet::SETGID;
            thread::set_keep_capabilities(true)?;
            let other = rustix::process::Uid::from_raw(OTHER);
            thread::set_thread_res_uid(other, other, other)?;
            let sets = thread::CapabilitySets { effective: two, permitted: two, inheritable: two };
            thread::set_capabilities(None, sets)?;
            thread::configure_capability_in_ambient_set(CapabilitySet::SETUID, true)?;
            thread::configure_capability_in_ambient_set(CapabilitySet::SETGID, true)?;
            Ok(())
        });
    }
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let error = String::from_utf8(output.stdout).unwrap();
    assert!(error.contains("could not kill workers of another user: it needs CAP_KILL"), "{error}");
});

trial!(an_ordinary_user_may_name_itself, async || {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(folder.path(), Some(OTHER), Some(OTHER)).unwrap();
    let address = address_in(&folder);
    let mut command = programs::command(&["serve_privileged", &address, "user=nobody"]);
    command.uid(OTHER).gid(OTHER);
    let _program = Program::new(command.spawn().unwrap());
    let client = Client::builder().address(&address).build().unwrap();
    let status: String = client.call("status", ()).await.unwrap();
    assert_eq!(line(&status, "NoNewPrivs:"), "1");
});
