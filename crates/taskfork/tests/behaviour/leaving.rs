//! How workers leave once their client has left.

use std::path::PathBuf;

use taskfork::{BoxError, Methods, ServerBuilder, ServerError};

use crate::support::processes::{is_alive, is_gone, stop};
use crate::support::{start, trial, until};

/// Its destructor waits until a process opens the FIFO for writing.
#[derive(Default)]
struct State {
    fifo: Option<PathBuf>,
}

impl Drop for State {
    fn drop(&mut self) {
        if let Some(fifo) = &self.fifo {
            let _ = std::fs::File::open(fifo);
        }
    }
}

pub(crate) fn server(server: ServerBuilder) -> Result<(), ServerError> {
    let methods = Methods::new().method("wait_at_exit", |state: &mut State, fifo: PathBuf| {
        state.fifo = Some(fifo);
        Ok(std::process::id())
    });
    server.setup(|| Ok::<_, BoxError>(State::default())).interface(methods).run()
}

trial!(a_worker_that_drops_its_state_is_leaving, async || {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("fifo");
    let made = std::process::Command::new("mkfifo").arg(&fifo).status().unwrap();
    assert!(made.success());
    let (server, client) = start("leaving");
    let pid: u32 = client.call("wait_at_exit", (&fifo,)).await.unwrap();

    drop(client);
    until("the worker is leaving", || {
        server.status().unwrap().workers.iter().any(|worker| worker.state == "leaving")
    })
    .await;
    assert!(is_alive(pid));

    std::fs::OpenOptions::new().write(true).open(&fifo).unwrap();
    until("the worker has exited", || is_gone(pid)).await;
    assert_eq!(server.status().unwrap().deaths.get("hung"), None);
});

trial!(a_worker_that_does_not_notice_its_clients_end_is_killed, async || {
    let (server, client) = start("general");
    // The checkout is open while the worker stops, so that it does not stop in `checkout_done`. That has
    // a longer time limit.
    let checkout = client.checkout();
    let pid: u32 = checkout.call("pid", ()).await.unwrap();
    stop(pid).await;

    drop((checkout, client));
    until("the worker is killed", || is_gone(pid)).await;
    until("its death is counted", || server.status().unwrap().deaths.get("hung") == Some(&1)).await;
});
