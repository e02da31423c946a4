//! What works for every client, however it reaches its workers.

use taskfork::error::{Activity, Death, End, FatalError};
use taskfork::log_defer::Log;
use taskfork::{Blob, Client, Error};

pub(crate) async fn assert_calls_are_answered_in_order(client: &Client) {
    let checkout = client.checkout();
    let calls: Vec<_> = (0..1000).map(|n: i64| checkout.call::<i64>("add", (n, 1))).collect();
    for (n, call) in (0..).zip(calls) {
        assert_eq!(call.await.unwrap(), n + 1);
    }
}

pub(crate) async fn assert_many_tasks_call(client: &Client) {
    let calls = (0..200_i64).map(|n| {
        let client = client.clone();
        tokio::spawn(async move { (n, client.call::<i64>("add", (n, n)).await.unwrap()) })
    });
    for call in calls.collect::<Vec<_>>() {
        let (n, sum) = call.await.unwrap();
        assert_eq!(sum, 2 * n);
    }
}

pub(crate) async fn assert_long_arguments_and_results_pass(client: &Client) {
    for length in [4096, (64 << 10) + 1, 100 << 20] {
        let bytes: Vec<u8> = (0..length).map(|at: u32| (at ^ (at >> 8)) as u8).collect();
        let blob = Blob::from(bytes);
        let echo: Blob = client.call("echo", (&blob,)).await.unwrap();
        assert!(echo == blob, "{length} bytes have changed");
    }
}

pub(crate) async fn assert_a_workers_log_arrives(client: &Client) {
    let log = Log::builder().start(drop);
    client.checkout().log(&log).call::<()>("work", ("working",)).await.unwrap();
    assert!(format!("{:?}", log.message()).contains("working"), "{log:?}");
}

pub(crate) async fn assert_a_death_is_reported(client: &Client) {
    let checkout = client.checkout();
    let pid: u32 = checkout.call("pid", ()).await.unwrap();
    let (exited, may_have_run) = death(checkout.call::<()>("exit", (3,)).await);
    assert_eq!((exited.pid, exited.end), (pid, End::Exited(3)));
    assert_eq!(exited.during, Some(Activity::Call));
    assert!(may_have_run);
}

/// The death that ended a call, and whether the call may have run.
pub(crate) fn death<T: std::fmt::Debug>(outcome: Result<T, Error>) -> (Death, bool) {
    match outcome.unwrap_err() {
        Error::Fatal { cause: FatalError::WorkerDied(death), may_have_run, .. } => {
            (death, may_have_run)
        }
        other => panic!("{other:?}"),
    }
}
