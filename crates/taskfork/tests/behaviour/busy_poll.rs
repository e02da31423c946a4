//! Polling for messages before sleeping.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use taskfork::client::{BusyPoll, Value};
use taskfork::{Client, Server};

use crate::support::{start, start_with, trial};

trial!(results_are_the_same_as_without_busy_polling, async || {
    for entry in ["general", "looking"] {
        let budget = BusyPoll::Fixed(Duration::from_millis(2));
        let (_server, client) = start_with(entry, |client| client.busy_poll(budget).max_workers(2));
        let calls: Vec<_> = (0..20).map(|n: u64| (n, client.call::<Value>("echo", (n,)))).collect();
        for (n, call) in calls {
            assert_eq!(call.await.unwrap(), Value::from(n));
        }
        let checkout = client.checkout();
        let queued: Vec<_> = (0..20).map(|n| checkout.call::<i64>("add", (n, 1))).collect();
        for (n, call) in queued.into_iter().enumerate() {
            assert_eq!(call.await.unwrap(), n as i64 + 1);
        }
        checkout.call::<()>("boom", ("it fails",)).await.unwrap_err();
        let blob: Value = checkout.call("blob", (3_000_000,)).await.unwrap();
        assert_eq!(blob.as_slice().unwrap().len(), 3_000_000);
        checkout.call::<()>("sleep", (20,)).await.unwrap();
        let died = checkout.call::<()>("abort", ()).await.unwrap_err().to_string();
        assert!(died.contains("SIGABRT"), "{died}");
        let late = client.checkout().timeout(Duration::from_millis(30));
        let late = late.call::<()>("hang", ()).await.unwrap_err().to_string();
        assert!(late.contains("timed out after 0.03 seconds"), "{late}");
    }
});

/// What a process has used so far, in the kernel's ticks of ten milliseconds.
fn ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

trial!(an_idle_pool_takes_no_processor_time, async || {
    let (_server, client) = start("general");
    let checkout = client.checkout();
    let pid: u32 = checkout.call("pid", ()).await.unwrap();
    for _ in 0..500 {
        checkout.call::<()>("nothing", ()).await.unwrap();
    }
    let before = ticks(pid);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let used = ticks(pid) - before;
    assert!(used <= 2, "{used} of 50 ticks");
});

/// Runs this on a runtime of one thread, with a client that polls for longer than any answer takes.
async fn alone<T: Send + 'static, F: Future<Output = T>>(
    entry: &str,
    run: impl FnOnce(Client) -> F + Send + 'static,
) -> T {
    let server = Server::spawn(entry).unwrap();
    let address = server.address();
    let done = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let client = Client::builder()
                .address(address)
                .busy_poll(BusyPoll::Fixed(Duration::from_secs(10)));
            run(client.build().unwrap()).await
        })
    });
    done.await.unwrap()
}

trial!(other_tasks_run_while_a_call_polls, async || {
    // The worker looks as well, so that no call waits for anything.
    let turns = alone("looking", |client| async move {
        let checkout = client.checkout();
        checkout.ready().await.unwrap();
        let turns = Arc::new(AtomicU32::new(0));
        let counted = turns.clone();
        let other = tokio::spawn(async move {
            loop {
                counted.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        });
        for _ in 0..2000 {
            checkout.call::<()>("nothing", ()).await.unwrap();
            if turns.load(Ordering::Relaxed) >= 10 {
                break;
            }
        }
        other.abort();
        turns.load(Ordering::Relaxed)
    });
    let turns = turns.await;
    assert!(turns >= 10, "{turns} turns in 2000 calls");
});

trial!(spinning_does_not_delay_other_answers, async || {
    let answered = alone("general", |client| async move {
        let (slow, quick) = (client.checkout(), client.checkout());
        slow.ready().await.unwrap();
        quick.ready().await.unwrap();
        let answered = Arc::new(AtomicU32::new(0));
        let counted = answered.clone();
        tokio::spawn(async move {
            for _ in 0..50 {
                quick.call::<()>("nothing", ()).await.unwrap();
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
        slow.call::<()>("sleep", (2000,)).await.unwrap();
        answered.load(Ordering::Relaxed)
    });
    assert_eq!(answered.await, 50);
});
