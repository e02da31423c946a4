//! The files of a server's sockets, which others can remove.

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use taskfork::Client;
use taskfork::server::ServerStatus;

use crate::support::processes::{Program, is_gone, signal, stop};
use crate::support::{programs, trial, until};

struct Place {
    _folder: tempfile::TempDir,
    socket: PathBuf,
    status: PathBuf,
    log: PathBuf,
    address: String,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("inner");
        std::fs::create_dir(&inner).unwrap();
        let socket = inner.join("s");
        let address = format!("unix:{}", socket.display());
        let (status, log) = (inner.join("s.status"), folder.path().join("log"));
        Self { _folder: folder, socket, status, log, address }
    }

    async fn serve(&self) -> Program {
        let program =
            programs::start(&["serve_logging_to", self.log.to_str().unwrap(), &self.address]);
        until("the server", || self.status().is_some()).await;
        program
    }

    fn status(&self) -> Option<u32> {
        ServerStatus::read(&self.status).ok().map(|status| status.pid)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// A client that has no connection yet.
    async fn call(&self) {
        let client = Client::builder().address(&self.address).min_workers(0).build().unwrap();
        client.call::<()>("nothing", ()).await.unwrap();
    }
}

async fn ends_well(program: Program, place: &Place) {
    signal(program.pid(), libc::SIGTERM);
    assert!(program.end().await.success());
    assert!(!place.socket.exists() && !place.status.exists());
}

trial!(files_that_were_removed_are_bound_again, async || {
    let place = Place::new();
    let program = place.serve().await;
    for _ in 0..2 {
        std::fs::remove_file(&place.socket).unwrap();
        std::fs::remove_file(&place.status).unwrap();
        let gone = Instant::now();
        until("both files", || place.socket.exists() && place.status.exists()).await;
        assert!(gone.elapsed() < Duration::from_secs(10), "{:?}", gone.elapsed());
        place.call().await;
        assert_eq!(place.status(), Some(program.pid()));
    }
    let log = place.log();
    let told = |file: &Path| {
        log.lines().filter(|line| line.contains(&format!("{} was gone", file.display()))).count()
    };
    assert_eq!((told(&place.socket), told(&place.status)), (2, 2), "{log}");
    ends_well(program, &place).await;
});

trial!(a_folder_that_was_made_anew_has_the_socket_again, async || {
    let place = Place::new();
    let program = place.serve().await;
    let folder = place.socket.parent().unwrap();
    std::fs::remove_dir_all(folder).unwrap();
    until("a word of it", || place.log().contains("cannot be bound again")).await;
    std::fs::create_dir(folder).unwrap();
    until("both files", || place.socket.exists() && place.status.exists()).await;
    place.call().await;
    // It was said once, however often it was tried.
    let (log, socket) = (place.log(), place.socket.display());
    let told = log.lines().filter(|line| line.contains(&format!("{socket} is gone,")));
    assert_eq!(told.count(), 1, "{log}");
    ends_well(program, &place).await;
});

trial!(a_new_server_binds_a_file_that_was_gone_before, async || {
    let place = Place::new();
    let program = place.serve().await;
    // Without its folder, the old server cannot bind the file itself meanwhile.
    let (folder, moved) = (place.socket.parent().unwrap(), place._folder.path().join("moved"));
    std::fs::rename(folder, &moved).unwrap();
    std::fs::remove_file(moved.join("s")).unwrap();
    signal(program.pid(), libc::SIGHUP);
    until("a new server", || is_gone(program.pid())).await;
    std::fs::create_dir(folder).unwrap();
    until("the status", || place.status().is_some()).await;
    let new = Successor(place.status().unwrap());
    until("the file", || place.socket.exists()).await;
    place.call().await;
    signal(new.0, libc::SIGTERM);
    until("its end", || is_gone(new.0) && !place.socket.exists()).await;
});

/// A server that is no child of this process, and ends with the test.
struct Successor(u32);

impl Drop for Successor {
    fn drop(&mut self) {
        if !is_gone(self.0) {
            signal(self.0, libc::SIGKILL);
        }
    }
}

trial!(clients_connected_before_the_socket_file_was_removed_are_served, async || {
    let place = Place::new();
    let program = place.serve().await;
    // A stopped server accepts no connection: it waits in the queue of the old socket.
    stop(program.pid()).await;
    let client = Client::builder().address(&place.address).min_workers(1).max_workers(1);
    let client = client.build().unwrap();
    let call = tokio::spawn(async move { client.call::<()>("nothing", ()).await });
    let waits = || {
        let sockets = std::fs::read_to_string("/proc/net/unix").unwrap();
        let name = place.socket.display().to_string();
        // The listener, and a connection that is not accepted.
        sockets.lines().filter(|line| line.ends_with(&name)).count() > 1
    };
    until("the connection", waits).await;
    std::fs::remove_file(&place.socket).unwrap();
    // Until it can look for the file.
    tokio::time::sleep(Duration::from_millis(600)).await;
    signal(program.pid(), libc::SIGCONT);
    call.await.unwrap().unwrap();
    until("the file", || place.socket.exists()).await;
    ends_well(program, &place).await;
});

trial!(another_servers_socket_is_left_alone, async || {
    let place = Place::new();
    let program = place.serve().await;
    let other = place.socket.with_file_name("other");
    let listener = UnixListener::bind(&other).unwrap();
    std::fs::rename(&other, &place.socket).unwrap();
    until("a word of it", || place.log().contains("another server listens at")).await;
    // The server looks twice a second.
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert_eq!(place.log().matches("another server listens at").count(), 1);
    std::os::unix::net::UnixStream::connect(&place.socket).unwrap();
    listener.accept().unwrap();
    // When the other has gone with its file, the path is free.
    drop(listener);
    std::fs::remove_file(&place.socket).unwrap();
    until("the server's own file", || place.socket.exists()).await;
    place.call().await;
    ends_well(program, &place).await;
});
