//! What is counted: in the client's own figures, and in those for a recorder.

use std::collections::BTreeMap;
use std::time::Duration;

use taskfork::Client;
use taskfork::client::Overload;
use taskfork::server::ServerStatus;

use crate::support::{address_in, programs, start_with, trial, until};

trial!(a_client_counts_checkouts_waits_calls_and_deaths, async || {
    let (server, client) = start_with("general", |client| {
        client.max_workers(1).max_queue(1).overload(Overload::RefuseNewest)
    });
    let first = client.checkout();
    first.call::<()>("nothing", ()).await.unwrap();
    let second = client.checkout();
    client.checkout().call::<()>("nothing", ()).await.unwrap_err();
    tokio::time::sleep(Duration::from_millis(50)).await;
    first.call::<()>("boom", ("it fails",)).await.unwrap_err();
    drop(first);
    second.call::<()>("abort", ()).await.unwrap_err();
    drop(second);
    let late = client.checkout().timeout(Duration::from_millis(50));
    late.call::<()>("hang", ()).await.unwrap_err();
    drop(late);
    let cancelled = client.checkout();
    cancelled.call::<()>("nothing", ()).await.unwrap();
    drop(cancelled.call::<()>("hang", ()));
    let hanging = cancelled.call::<()>("hang", ());
    tokio::select! {
        _ = hanging => panic!("it came to an end"),
        () = tokio::time::sleep(Duration::from_millis(20)) => {}
    }
    drop(cancelled);
    client.call::<()>("exit", (3,)).await.unwrap_err();

    let stats = client.stats();
    assert_eq!((stats.checkouts, stats.refused, stats.calls), (5, 1, 3), "{stats:?}");
    assert!((0.05..10.0).contains(&stats.longest_wait), "{stats:?}");
    assert!(stats.seconds_waited >= stats.longest_wait);
    assert!(stats.connected >= 4, "{stats:?}");
    let expected = [("cancelled", 1), ("exited", 1), ("signaled", 1), ("timed_out", 1)];
    let expected = expected.map(|(cause, count)| (cause.to_owned(), count));
    assert_eq!(stats.deaths, BTreeMap::from(expected));
    let text = serde_json::to_string(&stats).unwrap();
    assert_eq!(serde_json::from_str::<taskfork::client::Stats>(&text).unwrap(), stats);
    server.close();
});

trial!(a_recorder_receives_the_metrics_of_clients_and_servers, async || {
    let folder = tempfile::tempdir().unwrap();
    let address = address_in(&folder);
    let program = programs::start(&["serve", &address]);
    let path = folder.path().join("s.status");
    until("the server", || ServerStatus::read(&path).is_ok()).await;
    let text = programs::output(&["record", &address, &path.display().to_string()]);
    for line in [
        "taskfork_call_seconds_count{client=\"counted\",method=\"add\",outcome=\"ok\"} 2",
        "taskfork_call_seconds_count{client=\"counted\",method=\"boom\",outcome=\"error\"} 1",
        "taskfork_worker_deaths_total{client=\"counted\",cause=\"signaled\"} 1",
        "taskfork_checkout_wait_seconds_count{client=\"counted\"} 4",
        "taskfork_client_workers{client=\"counted\",state=\"idle\"} 2",
        "taskfork_queue_length{client=\"counted\"} 0",
        "taskfork_server_workers{server=\"taskfork\",state=\"idle\"} 2",
        "taskfork_server_workers{server=\"taskfork\",state=\"spare\"} 0",
        "taskfork_server_deaths_total{server=\"taskfork\",cause=\"signaled\"} 1",
        "taskfork_server_sandbox{server=\"taskfork\",level=\"off\"} 1",
        "taskfork_server_workers_forked_total{server=\"taskfork\"}",
        "# TYPE taskfork_server_workers gauge",
    ] {
        assert!(text.contains(line), "no {line} in\n{text}");
    }
    drop(program);
});

/// Prints what a recorder has after some calls.
pub(crate) fn record(address: &str, status: &str) {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).unwrap();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let client = Client::builder().address(address).name("counted").min_workers(2);
        let client = client.max_workers(2).build().unwrap();
        for _ in 0..2 {
            client.call::<i64>("add", (1, 2)).await.unwrap();
        }
        client.call::<()>("boom", ("it fails",)).await.unwrap_err();
        client.call::<()>("abort", ()).await.unwrap_err();
        let idle = || {
            ServerStatus::read(status)
                .unwrap()
                .workers
                .iter()
                .filter(|worker| worker.state == "idle")
                .count()
        };
        until("two idle workers", || client.stats().idle == 2 && idle() == 2).await;
        // What is now is shown once a second.
        let shown = "taskfork_client_workers{client=\"counted\",state=\"idle\"} 2";
        until("what there is", || handle.render().contains(shown)).await;
        ServerStatus::read(status).unwrap().record_metrics();
        print!("{}", handle.render());
    });
}
