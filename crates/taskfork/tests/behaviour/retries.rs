//! Calls that died with their workers, and are made again.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use taskfork::error::FatalError;
use taskfork::{BoxError, Client, Error, Server, ServerBuilder, ServerError};

use crate::support::trial;

#[taskfork::interface]
pub(crate) trait Dying {
    /// Counts its runs in a file, and kills its worker in the first `deaths` of them.
    #[taskfork(idempotent)]
    fn die(&mut self, runs: &Path, deaths: usize) -> usize;
    /// The same, without the mark.
    fn die_once(&mut self, runs: &Path, deaths: usize) -> usize;
    /// Counts its runs, and returns an error or panics.
    #[taskfork(idempotent)]
    fn fail(&mut self, runs: &Path, panics: bool) -> Result<(), String>;
    /// Counts its runs, and sleeps.
    #[taskfork(idempotent)]
    fn sleep(&mut self, runs: &Path);
}

struct State;

fn count(runs: &Path) -> usize {
    let before = fs::read(runs).unwrap_or_default();
    fs::write(runs, [&before[..], b"x"].concat()).unwrap();
    before.len() + 1
}

impl Dying for State {
    fn die(&mut self, runs: &Path, deaths: usize) -> usize {
        let run = count(runs);
        if run <= deaths {
            let me = rustix::process::getpid();
            rustix::process::kill_process(me, rustix::process::Signal::KILL).unwrap();
        }
        run
    }

    fn die_once(&mut self, runs: &Path, deaths: usize) -> usize {
        self.die(runs, deaths)
    }

    fn fail(&mut self, runs: &Path, panics: bool) -> Result<(), String> {
        count(runs);
        assert!(!panics, "no");
        Err("no".to_owned())
    }

    fn sleep(&mut self, runs: &Path) {
        count(runs);
        std::thread::sleep(Duration::from_secs(600));
    }
}

pub(crate) fn server(server: ServerBuilder) -> Result<(), ServerError> {
    server.setup(|| Ok::<_, BoxError>(State)).interface(DyingInterface).run()
}

/// A server, its client, and a file for the number of runs.
struct Setting {
    _server: taskfork::server::ServerHandle,
    client: DyingClient,
    _folder: tempfile::TempDir,
    runs: PathBuf,
}

impl Setting {
    fn new() -> Self {
        let server = Server::spawn("retries").unwrap();
        let client = Client::builder().address(server.address()).build_as().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let runs = folder.path().join("runs");
        Self { _server: server, client, _folder: folder, runs }
    }

    fn runs(&self) -> usize {
        fs::read(&self.runs).unwrap_or_default().len()
    }
}

fn is_death<E>(error: &Error<E>) -> bool {
    let may_have_run = error.may_have_run();
    may_have_run && matches!(error, Error::Fatal { cause: FatalError::WorkerDied(_), .. })
}

trial!(an_idempotent_call_is_made_again_on_another_worker, async || {
    let setting = Setting::new();
    assert_eq!(setting.client.retry(3).die(&setting.runs, 2).await.unwrap(), 3);
    assert_eq!(setting.runs(), 3);
    assert_eq!(setting.client.stats().busy, 0);
});

trial!(it_is_made_again_no_more_often_than_allowed, async || {
    let setting = Setting::new();
    let error = setting.client.retry(2).die(&setting.runs, 9).await.unwrap_err();
    assert!(is_death(&error), "{error}");
    assert_eq!(setting.runs(), 3);
    // Without `retry`, never.
    let error = setting.client.die(&setting.runs, 9).await.unwrap_err();
    assert!(is_death(&error), "{error}");
    assert_eq!(setting.runs(), 4);
});

trial!(a_call_that_is_not_marked_is_not_made_again, async || {
    let setting = Setting::new();
    let error = setting.client.retry(3).die_once(&setting.runs, 1).await.unwrap_err();
    assert!(is_death(&error), "{error}");
    assert_eq!(setting.runs(), 1);
});

trial!(an_answer_is_final, async || {
    let setting = Setting::new();
    setting.client.retry(3).fail(&setting.runs, false).await.unwrap_err();
    setting.client.retry(3).fail(&setting.runs, true).await.unwrap_err();
    assert_eq!(setting.runs(), 2);
});

trial!(a_call_of_a_checkout_is_not_made_again, async || {
    let setting = Setting::new();
    let checkout = setting.client.retry(3).checkout();
    let error = checkout.die(&setting.runs, 1).await.unwrap_err();
    assert!(is_death(&error), "{error}");
    assert_eq!(setting.runs(), 1);
});

trial!(a_call_whose_time_is_over_is_not_made_again, async || {
    let server = Server::spawn("retries").unwrap();
    let client = Client::builder().address(server.address()).timeout(Duration::from_millis(300));
    let client: DyingClient = client.build_as().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let runs = folder.path().join("runs");
    let error = client.retry(9).sleep(&runs).await.unwrap_err();
    let cause = match &error {
        Error::Fatal { cause, .. } => cause,
        other => panic!("{other}"),
    };
    assert!(matches!(cause, FatalError::TimedOut { .. }), "{error}");
    assert_eq!(fs::read(&runs).unwrap().len(), 1);
});

trial!(blocking_calls_are_made_again_too, async || {
    let server = Server::spawn("retries").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let runs = folder.path().join("runs");
    let client = Client::builder().address(server.address());
    let test = move || {
        let client: DyingBlockingClient = client.build_blocking_as().unwrap();
        assert_eq!(client.retry(1).die(&runs, 1).unwrap(), 2);
    };
    tokio::task::spawn_blocking(test).await.unwrap();
});
