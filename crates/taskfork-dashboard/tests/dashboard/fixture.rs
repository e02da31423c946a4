//! Servers, and a dashboard in this process.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use taskfork::server::ServerHandle;
use taskfork::{Client, Server};
use taskfork_dashboard::model::Status;
use taskfork_dashboard::{Dashboard, DashboardBuilder};
use tokio::runtime::Runtime;

pub(crate) const TOKEN: &str = "0123456789abcdef-token";

/// How long tests wait for anything.
pub(crate) const LONG: Duration = Duration::from_secs(40);

/// A server at a unix socket. It ends with this value.
pub(crate) struct TestServer {
    pub(crate) handle: ServerHandle,
    pub(crate) address: String,
    pub(crate) folder: tempfile::TempDir,
}

impl TestServer {
    pub(crate) fn start(entry: &'static str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let address = format!("unix:{}", folder.path().join("s").display());
        Self { handle: Server::spawn_with(entry, &address).unwrap(), address, folder }
    }

    pub(crate) fn status_socket(&self) -> PathBuf {
        self.folder.path().join("s.status")
    }

    /// A client with so many workers at most, and calls without a time limit.
    pub(crate) fn client(&self, runtime: &Runtime, workers: usize) -> Client {
        let _entered = runtime.enter();
        let client = Client::builder().address(&self.address).min_workers(0);
        client.max_workers(workers).timeout(None).dont_refork_after_error(true).build().unwrap()
    }
}

/// A dashboard that is served on a port of its own.
pub(crate) struct TestDashboard {
    pub(crate) runtime: Runtime,
    pub(crate) url: String,
    pub(crate) port: u16,
}

impl TestDashboard {
    pub(crate) fn start(builder: DashboardBuilder) -> Self {
        Self::serve(builder.build().unwrap())
    }

    pub(crate) fn serve(dashboard: Dashboard) -> Self {
        let runtime = runtime();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        runtime.spawn(dashboard.serve(listener));
        Self { runtime, url: format!("http://127.0.0.1:{port}"), port }
    }

    /// The dashboard of one server.
    pub(crate) fn of(server: &TestServer) -> Self {
        Self::start(Dashboard::builder().server("documents", server.status_socket()))
    }

    pub(crate) fn status(&self) -> Status {
        serde_json::from_str(&self.get("/api/status", &[]).1).unwrap()
    }

    /// The status and the body.
    pub(crate) fn get(&self, path: &str, headers: &[(&str, &str)]) -> (u16, String) {
        let mut request = agent().get(format!("{}{path}", self.url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut response = request.call().unwrap();
        (response.status().as_u16(), response.body_mut().read_to_string().unwrap())
    }

    pub(crate) fn post(&self, path: &str, headers: &[(&str, &str)], body: &str) -> (u16, String) {
        let mut request = agent().post(format!("{}{path}", self.url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut response = request.send(body).unwrap();
        (response.status().as_u16(), response.body_mut().read_to_string().unwrap())
    }
}

pub(crate) fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

pub(crate) fn agent() -> ureq::Agent {
    let config = ureq::Agent::config_builder().http_status_as_error(false);
    config.timeout_global(Some(LONG)).build().into()
}

pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !condition() {
        assert!(Instant::now() < end, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
