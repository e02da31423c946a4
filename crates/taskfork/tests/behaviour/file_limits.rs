//! Programs whose files may not become long (`ulimit -f`), which memory that is shared counts as.

use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use taskfork::blob::BlobMut;
use taskfork::{Blob, Client};

use crate::support::processes::{Program, set_limit, signal};
use crate::support::{address_in, programs, trial, until};

/// Limits the files of the program to `bytes` bytes (RLIMIT_FSIZE).
fn limit(command: &mut Command, bytes: u64) {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: it makes one system call, which reads what is there.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(move || match libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
}

const LONG: usize = 1 << 20;

/// Makes blobs in each way, and enough calls for each kind of memory that two processes share.
async fn exchange(client: &Client) {
    let checkout = client.checkout();
    for fill in 0..100 {
        let mut memory = checkout.alloc_blob(LONG).unwrap();
        memory.fill(fill);
        let blob = memory.freeze().unwrap();
        assert_eq!(checkout.call::<Blob>("echo", (blob,)).await.unwrap()[..], vec![fill; LONG]);
        let blob = Blob::from(vec![fill; LONG]);
        assert_eq!(checkout.call::<Blob>("echo", (blob,)).await.unwrap()[..], vec![fill; LONG]);
        // The worker answers an echo in the client's memory. This blob needs memory of its own.
        let made = checkout.call::<Blob>("make", (LONG, fill)).await.unwrap();
        assert_eq!(made[..], vec![fill; LONG]);
    }
    let mut memory = BlobMut::new(LONG).unwrap();
    memory[LONG - 1] = 7;
    let blob = memory.freeze().unwrap();
    assert_eq!(checkout.call::<Blob>("echo", (blob,)).await.unwrap()[LONG - 1], 7);
}

/// The test program that is a client.
pub(crate) fn use_blobs(address: &str) {
    let address = address.to_owned();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = Client::builder().address(address).max_workers(1).build().unwrap();
        exchange(&client).await;
    });
}

trial!(a_client_that_may_share_no_memory_sends_instead, async || {
    let folder = tempfile::tempdir().unwrap();
    let _server = programs::start(&["serve_shared_buffers", &address_in(&folder)]);
    let mut command = programs::command(&["blobs_without_files", &address_in(&folder)]);
    limit(&mut command, 0);
    let done = tokio::task::spawn_blocking(move || command.status().unwrap());
    assert!(done.await.unwrap().success());
});

trial!(workers_that_may_share_no_memory_send_blobs, async || {
    let folder = tempfile::tempdir().unwrap();
    let mut command = programs::command(&["serve_shared_buffers", &address_in(&folder)]);
    limit(&mut command, 8192);
    let _server = Program::new(command.spawn().unwrap());
    let client = Client::builder().address(address_in(&folder)).max_workers(1).build().unwrap();
    exchange(&client).await;
});

trial!(a_server_that_can_have_no_memory_says_why, async || {
    let folder = tempfile::tempdir().unwrap();
    let mut command = programs::command(&["serve", &address_in(&folder)]);
    limit(&mut command, 100);
    let out = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let told = String::from_utf8_lossy(&out.stdout).into_owned();
    assert_eq!(out.status.code(), Some(1), "{told}");
    assert!(
        told.contains("the limit of file sizes (RLIMIT_FSIZE, `ulimit -f`) is 100 bytes"),
        "{told}"
    );
});

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

trial!(a_log_that_has_reached_the_limit_ends_nothing, async || {
    let folder = tempfile::tempdir().unwrap();
    for program in ["serve_logging", "serve_logging_to"] {
        let (path, address) = (folder.path().join(program), address_in(&folder));
        let mut command = match program {
            "serve_logging" => programs::command(&[program, &address]),
            _ => programs::command(&[program, path.to_str().unwrap(), &address]),
        };
        if program == "serve_logging" {
            command.stderr(File::options().append(true).create(true).open(&path).unwrap());
        }
        limit(&mut command, 8192);
        let server = Program::new(command.spawn().unwrap());
        let client = Client::builder().address(&address).min_workers(0).max_workers(1);
        let client = client.build().unwrap();
        let lines = "a line that makes the log longer\n".repeat(50);
        for _ in 0..10 {
            client.call::<()>("complain", (&lines,)).await.unwrap();
        }
        // The server's own lines, which are of other lengths.
        for _ in 0..40 {
            client.call::<()>("abort", ()).await.unwrap_err();
        }
        assert_eq!(client.call::<i64>("add", (1, 2)).await.unwrap(), 3);
        assert!(text(&path).len() <= 8192);
        set_limit(server.pid(), libc::RLIMIT_FSIZE, libc::RLIM_INFINITY);
        until("the number of lost lines", || text(&path).contains("lines were lost")).await;
        drop(client);
        signal(server.pid(), libc::SIGTERM);
        assert!(server.end().await.success());
    }
});
