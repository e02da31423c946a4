//! Reports of how far a call has got.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use taskfork::server::ServerStatus;
use taskfork::worker::context;
use taskfork::{Methods, Progress, ServerBuilder, ServerError};

use crate::support::{start, trial};

pub(crate) fn server(server: ServerBuilder) -> Result<(), ServerError> {
    let methods = Methods::<()>::new()
        .function("report_and_wait", |file: PathBuf| {
            context().progress(1, 3, "files");
            wait_for(&file);
            Ok(())
        })
        .function("report_often", |reports: u64, file: PathBuf| {
            for done in 0..reports {
                context().progress(done, reports, "steps");
            }
            context().progress(reports, None, &"é".repeat(100));
            wait_for(&file);
            Ok(())
        });
    server.interface(methods).run()
}

/// Workers wait for a file, so that tests decide when a call ends.
fn wait_for(file: &Path) {
    while !file.exists() {
        std::thread::sleep(Duration::from_millis(2));
    }
}

trial!(reports_reach_the_caller_and_the_status, async || {
    let (server, client) = start("progress");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("go on");
    let call = client.call::<()>("report_and_wait", (&file,));
    let mut progress = call.progress();
    assert_eq!(progress.changed().await, Some(Progress::new(1, 3, "files")));
    assert_eq!(progress.latest(), Some(Progress::new(1, 3, "files")));
    assert_eq!(call.progress().latest(), Some(Progress::new(1, 3, "files")));
    let shown = |status: ServerStatus| status.workers.into_iter().find_map(|it| it.progress);
    assert_eq!(shown(server.status().unwrap()), Some(Progress::new(1, 3, "files")));

    std::fs::write(&file, "").unwrap();
    call.await.unwrap();
    assert_eq!(progress.changed().await, None);
    assert_eq!(shown(server.status().unwrap()), None);
});

trial!(a_caller_gets_the_latest_report_and_no_more_than_20_a_second, async || {
    let (_server, client) = start("progress");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("go on");
    let begun = Instant::now();
    let mut call = client.call::<()>("report_often", (300_000_u64, &file));
    let mut progress = call.progress();
    let mut reports = Vec::new();
    loop {
        tokio::select! {
            done = &mut call => break done.unwrap(),
            Some(report) = progress.changed() => {
                // The last one has no total.
                if report.total.is_none() {
                    std::fs::write(&file, "").unwrap();
                }
                reports.push(report);
            }
        }
    }
    let most = begun.elapsed().as_millis() as usize / 50 + 1;
    assert!((1..=most).contains(&reports.len()), "{} reports, {most} are allowed", reports.len());
    assert!(reports.is_sorted_by_key(|report| report.done), "{reports:?}");
    assert_eq!(reports.last(), Some(&Progress::new(300_000, None, "é".repeat(32))));
});

trial!(a_watcher_is_told_though_the_task_that_polled_the_call_rests, async || {
    let (_server, client) = start("progress");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("go on");
    let mut call = client.call::<()>("report_and_wait", (&file,));
    let mut progress = call.progress();
    // The connection wakes this task for the call from here on.
    tokio::select! {
        biased;
        done = &mut call => panic!("{done:?}"),
        () = std::future::ready(()) => {}
    }
    assert_eq!(progress.changed().await, Some(Progress::new(1, 3, "files")));
    std::fs::write(&file, "").unwrap();
    assert_eq!(progress.changed().await, None);
    call.await.unwrap();
});

trial!(the_reports_end_with_a_call_that_is_dropped_or_never_made, async || {
    let (_server, client) = start("progress");
    let folder = tempfile::tempdir().unwrap();
    let checkout = client.checkout();
    let file = folder.path().join("go on");
    let call = checkout.call::<()>("report_and_wait", (&file,));
    let mut progress = call.progress();
    let (reported, first) = tokio::sync::oneshot::channel();
    let watching = tokio::spawn(async move {
        assert_eq!(progress.changed().await, Some(Progress::new(1, 3, "files")));
        reported.send(()).unwrap();
        progress.changed().await
    });
    first.await.unwrap();
    // The other task most likely waits after this, so that it must be told of the end, and does not only see it.
    tokio::time::sleep(Duration::from_millis(20)).await;
    drop(call);
    assert_eq!(watching.await.unwrap(), None);
    drop(checkout);

    let ready = taskfork::Call::<u32>::ready(Ok(1));
    assert_eq!(ready.progress().changed().await, None);
});
