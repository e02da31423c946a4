//! Code that the tests share: servers to call, programs to run, and waiting for conditions.

pub(crate) mod access_control;
#[cfg(feature = "spans")]
pub(crate) mod capture;
pub(crate) mod inputs;
pub(crate) mod logged;
pub(crate) mod processes;
pub(crate) mod programs;
pub(crate) mod raw;
pub(crate) mod raw_rings;
pub(crate) mod servers;

use std::time::Duration;

use taskfork::client::ClientBuilder;
use taskfork::server::ServerHandle;
use taskfork::{Client, Server};

/// The time limit of a test. A test that takes longer hangs. It is long because a busy machine may be slow by any
/// factor.
const LIMIT: Duration = Duration::from_secs(300);

/// A test of this binary.
pub(crate) struct Behaviour {
    pub(crate) name: &'static str,
    pub(crate) run: fn() -> Result<(), libtest_mimic::Failed>,
}

/// All tests. The linker collects what [`trial!`] declares.
#[linkme::distributed_slice]
pub(crate) static BEHAVIOURS: [Behaviour];

/// Declares a test: its name and its body, which runs in a runtime of its own.
///
/// A macro, because a binary with its own `main` cannot use `#[test]`. The form of a call lets
/// rustfmt format the body.
macro_rules! trial {
    ($name:ident, async || $body:block) => {
        async fn $name() $body

        const _: () = {
            #[linkme::distributed_slice(crate::support::BEHAVIOURS)]
            #[allow(unsafe_code, reason = "the attribute names a section of the program")]
            static TRIAL: crate::support::Behaviour = crate::support::Behaviour {
                name: concat!(module_path!(), "::", stringify!($name)),
                run: || crate::support::run($name),
            };
        };
    };
}
pub(crate) use trial;

/// All tests, in the order of their names.
pub(crate) fn trials() -> Vec<libtest_mimic::Trial> {
    let mut tests: Vec<_> = BEHAVIOURS.iter().collect();
    tests.sort_unstable_by_key(|test| test.name);
    let trial = |test: &Behaviour| {
        libtest_mimic::Trial::test(test.name.replacen("behaviour::", "", 1), test.run)
    };
    tests.into_iter().map(trial).collect()
}

pub(crate) fn run<F: Future<Output = ()>>(test: fn() -> F) -> Result<(), libtest_mimic::Failed> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let outcome = runtime.block_on(async { tokio::time::timeout(LIMIT, test()).await });
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome.map_err(|_| format!("not done after {LIMIT:?}").into())
}

/// Starts the server `entry` of `servers::ENTRIES`, and a client of it with at most 4 workers.
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

/// The address of a unix socket in `folder`.
pub(crate) fn address_in(folder: &tempfile::TempDir) -> String {
    format!("unix:{}", folder.path().join("s").display())
}

/// Polls `condition` every 2 milliseconds until it holds. Panics after 30 seconds.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let waited = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    if tokio::time::timeout(LIMIT / 2, waited).await.is_err() {
        panic!("timed out waiting for {what}");
    }
}
