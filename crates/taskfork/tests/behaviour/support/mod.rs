//! What the tests share: servers to call, programs to run, and waiting for things to happen.

#[cfg(feature = "spans")]
pub(crate) mod capture;
pub(crate) mod logged;
pub(crate) mod processes;
pub(crate) mod raw;
pub(crate) mod roles;
pub(crate) mod servers;
pub(crate) mod strangers;

use std::time::Duration;

use taskfork::client::ClientBuilder;
use taskfork::server::ServerHandle;
use taskfork::{Client, Server};

/// No test takes that long unless something hangs.
const LIMIT: Duration = Duration::from_secs(60);

/// Turns functions into trials; an `async fn` runs in a runtime of its own.
macro_rules! trials {
    ($($name:ident,)*) => {
        pub(crate) fn trials() -> Vec<libtest_mimic::Trial> {
            vec![$(
                libtest_mimic::Trial::test(
                    concat!(module_path!(), "::", stringify!($name)).replacen("behaviour::", "", 1),
                    || crate::support::run($name),
                ),
            )*]
        }
    };
}
pub(crate) use trials;

pub(crate) fn run<F: Future<Output = ()>>(test: fn() -> F) -> Result<(), libtest_mimic::Failed> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let outcome = runtime.block_on(async { tokio::time::timeout(LIMIT, test()).await });
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome.map_err(|_| format!("not done after {LIMIT:?}").into())
}

/// A server of `servers::ENTRIES` and a client of it with few workers.
pub(crate) fn start(entry: &str) -> (ServerHandle, Client) {
    start_with(entry, |client| client)
}

pub(crate) fn start_with(
    entry: &str,
    options: impl FnOnce(ClientBuilder) -> ClientBuilder,
) -> (ServerHandle, Client) {
    let server = Server::spawn(entry).unwrap();
    let client = Client::builder().address(server.address()).min_workers(0).max_workers(4);
    let client = options(client).build().unwrap();
    (server, client)
}

/// Where a test's own server listens.
pub(crate) fn address_in(folder: &tempfile::TempDir) -> String {
    format!("unix:{}", folder.path().join("s").display())
}

/// Waits until `condition` holds, by looking again and again.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let waited = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    if tokio::time::timeout(Duration::from_secs(30), waited).await.is_err() {
        panic!("waited in vain for {what}");
    }
}
