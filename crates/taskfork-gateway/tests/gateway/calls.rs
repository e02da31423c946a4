//! Everything that works for a local client works through a gateway.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use taskfork::blob::OpenFile;
use taskfork::client::Protocol;
use taskfork::error::{FatalError, Stage};
use taskfork::{Blob, Error};
use tracing::Instrument;
use tracing::instrument::WithSubscriber;

use crate::any_client;
use crate::support::{Served, assert_a_late_setup_shows, is_gone, trial, until};

trial!(a_call_is_answered, async || {
    let served = Served::start().await;
    assert_eq!(served.client().call::<i64>("add", (2, 3)).await.unwrap(), 5);
    let error = served.client().call::<()>("fail", ()).await.unwrap_err();
    assert!(!error.is_fatal() && error.to_string().contains("it failed"), "{error}");
});

trial!(a_client_without_a_runtime_calls_too, async || {
    let served = Served::start().await;
    let builder = served.client_builder();
    let call = move || {
        let client = builder.build_blocking().unwrap();
        client.call::<i64>("add", (2, 3)).unwrap()
    };
    assert_eq!(tokio::task::spawn_blocking(call).await.unwrap(), 5);
});

trial!(calls_are_sent_ahead_and_answered_in_order, async || {
    let served = Served::start().await;
    any_client::assert_calls_are_answered_in_order(&served.client()).await;
});

trial!(many_tasks_call_at_the_same_time, async || {
    let served = Served::start().await;
    any_client::assert_many_tasks_call(&served.client()).await;
});

trial!(long_arguments_and_results_pass, async || {
    let served = Served::start().await;
    any_client::assert_long_arguments_and_results_pass(&served.client()).await;
});

trial!(a_workers_log_arrives, async || {
    let served = Served::start().await;
    any_client::assert_a_workers_log_arrives(&served.client()).await;
});

trial!(a_workers_events_arrive, async || {
    let served = Served::start().await;
    let written = Arc::new(Mutex::new(Vec::new()));
    let writer = written.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || Shared(writer.clone())).finish();
    let call = async {
        let span = tracing::info_span!("calling");
        let client = served.client();
        let call = async move { client.call::<()>("trace", ("from a worker",)).await };
        call.instrument(span).await.unwrap();
    };
    call.with_subscriber(subscriber).await;
    let text = String::from_utf8(written.lock().unwrap().clone()).unwrap();
    let line = text.lines().find(|line| line.contains("from a worker")).unwrap();
    assert!(line.contains("calling"), "{line}");
});

/// A writer to memory.
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

trial!(a_call_whose_time_ends_during_setup_has_not_run, async || {
    let served = Served::start_entry("slow", |gateway, _| gateway).await;
    assert_a_late_setup_shows(&served.client(), served.folder.path()).await;
});

trial!(a_late_call_says_so_and_its_worker_is_killed, async || {
    let served = Served::start().await;
    let checkout = served.client().checkout().timeout(Duration::from_secs(5));
    let pid: u32 = checkout.call("pid", ()).await.unwrap();
    let checkout = served.client().checkout().timeout(Duration::from_millis(300));
    let error = loop {
        match checkout.call::<()>("hang", ()).await.unwrap_err() {
            error if error.may_have_run() => break error,
            // The machine is busy, and the time was over before the worker had the call.
            _ => continue,
        }
    };
    let Error::Fatal { cause: FatalError::TimedOut { stage, hung, .. }, .. } = error else {
        panic!("{error:?}")
    };
    assert_eq!(stage, Stage::Running);
    // The server's notice has passed.
    assert!(hung.is_some());
    assert!(!is_gone(pid));
});

trial!(dropping_a_call_kills_its_worker, async || {
    let served = Served::start().await;
    let checkout = served.client().checkout();
    let pid: u32 = checkout.call("pid", ()).await.unwrap();
    let marker = served.folder.path().join("runs");
    let call = checkout.call::<()>("hang_after", (&marker,));
    let call = tokio::spawn(call);
    until("the call", || marker.exists()).await;
    call.abort();
    drop(checkout);
    until("the worker's end", || is_gone(pid)).await;
});

// The client's end must not wait behind what the worker does not read.
trial!(dropping_a_call_kills_its_worker_though_more_was_sent, async || {
    let served = Served::start().await;
    let checkout = served.client().checkout();
    let pid: u32 = checkout.call("pid", ()).await.unwrap();
    let marker = served.folder.path().join("runs");
    let running = tokio::spawn(checkout.call::<()>("hang_after", (&marker,)));
    let waiting = tokio::spawn(checkout.call::<Blob>("echo", (Blob::from(vec![1; 20 << 20]),)));
    until("the call", || marker.exists()).await;
    // Much of the second call is on its way, or all that there is room for.
    tokio::time::sleep(Duration::from_millis(100)).await;
    running.abort();
    waiting.abort();
    drop(checkout);
    until("the worker's end", || is_gone(pid)).await;
});

trial!(open_files_are_refused_where_they_cannot_go, async || {
    let served = Served::start().await;
    let checkout = served.client().checkout();
    let file = OpenFile::from(std::fs::File::open("/dev/null").unwrap());
    let error = checkout.call::<u64>("length", (file,)).await.unwrap_err();
    assert!(!error.may_have_run() && !error.is_fatal());
    assert!(error.to_string().contains("open files can be sent through unix sockets only"));
    let error = checkout.call::<OpenFile>("open", ("/dev/null",)).await.unwrap_err();
    assert!(!error.is_fatal(), "{error}");
    assert!(error.to_string().contains("open files can be sent through unix sockets only"));
    assert_eq!(checkout.call::<i64>("add", (1, 2)).await.unwrap(), 3);
});

trial!(json_is_refused_in_json, async || {
    let served = Served::start().await;
    let client = served.client_builder().protocol(Protocol::Perl).build().unwrap();
    let error = client.call::<i64>("add", (1, 2)).await.unwrap_err();
    assert!(error.to_string().contains("native protocol only"), "{error}");
});
