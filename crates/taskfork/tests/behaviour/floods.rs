//! Workers that never stop sending, played by hand. They delay neither the caller's runtime nor its timeout.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use log_defer::Log;
use taskfork::client::{ClientBuilder, Input, Protocol, Value};
use taskfork::{Client, Error};
use tokio::runtime::Builder;

use crate::support::raw::{Raw, agreed, frame, greet, greet_as, map, of_call, text};
use crate::support::raw_rings::{agree, call_until_it_fails};
use crate::support::{address_in, trial, until};

const TIMEOUT: Duration = Duration::from_millis(500);

/// For how much work of its thread a timer waits at most, with its own time.
const LATE: Duration = Duration::from_millis(110);

/// A flood has no end. A call that fails within this time did not wait for it.
const PATIENCE: Duration = Duration::from_secs(20);

/// The time for which this thread has had a core.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap(), time.tv_nsec.try_into().unwrap())
}

/// How often this thread has waited for a page from a disk.
fn major_faults() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
    // The name may have any characters, so the fields are counted from its end.
    let (_, fields) = stat.rsplit_once(')').unwrap();
    fields.split_whitespace().nth(9).unwrap().parse().unwrap()
}

const PERIOD: Duration = Duration::from_millis(10);

/// Sends the same bytes until the other side has gone.
fn flood(raw: &mut Raw, bytes: &[u8]) {
    let many = bytes.repeat((32 << 10) / bytes.len() + 1);
    while raw.0.write_all(&many).is_ok() {}
}

fn nothing() -> Vec<u8> {
    frame(vec![7.into(), map(&[])])
}

/// A worker says such messages only once it shares memory.
fn flood_of_nothing(raw: &mut Raw) {
    // The other side may have gone.
    let _ = raw.0.write_all(&agreed(1 << 20));
    flood(raw, &nothing());
}

/// A server that does with each connection what `serve` does, in a thread for each.
fn serve(folder: &tempfile::TempDir, serve: impl Fn(UnixStream) + Clone + Send + 'static) {
    let listener = UnixListener::bind(folder.path().join("s")).unwrap();
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let serve = serve.clone();
            std::thread::spawn(move || serve(socket.unwrap()));
        }
    });
}

fn options(folder: &tempfile::TempDir) -> ClientBuilder {
    let client = Client::builder().address(address_in(folder)).min_workers(0).max_workers(1);
    client.timeout(TIMEOUT)
}

/// Runs this on a runtime of one thread, and on one of two; in each a timer is never late, and what runs there ends
/// after the timeout at the latest.
async fn on_both_runtimes<F: Future<Output = ()>>(test: impl Fn() -> F + Send + Clone + 'static) {
    for is_multi in [false, true] {
        let test = test.clone();
        let tested = tokio::task::spawn_blocking(move || {
            let mut runtime = match is_multi {
                false => Builder::new_current_thread(),
                true => Builder::new_multi_thread(),
            };
            let runtime = runtime.worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(async {
                let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
                let timer = tokio::spawn(async move {
                    let (mut latest, mut most_work) = (Duration::ZERO, Duration::ZERO);
                    while stopped.try_recv().is_err() {
                        let faults = major_faults();
                        let (start, work) = (Instant::now(), processor_time());
                        tokio::time::sleep(PERIOD).await;
                        latest = latest.max(start.elapsed());
                        // Of the same thread, if there is only one.
                        let work = processor_time().saturating_sub(work);
                        // Where memory is short, the kernel swaps in the thread's time.
                        if major_faults() == faults {
                            most_work = most_work.max(work);
                        }
                    }
                    (latest, most_work)
                });
                test().await;
                stop.send(()).unwrap();
                let (latest, most_work) = timer.await.unwrap();
                assert!(latest < PATIENCE, "the timer was {latest:?} late");
                if !is_multi {
                    // On a busy machine the thread may not run for long, so that only its own work counts.
                    assert!(most_work < LATE, "the timer waited for {most_work:?} of work");
                }
            });
            runtime.shutdown_timeout(Duration::from_secs(1));
        });
        tested.await.unwrap();
    }
}

/// A call of such a server fails, though the flood goes on.
async fn fails_in_time(client: &Client) -> Error {
    let start = Instant::now();
    let checkout = client.checkout().log(&Log::new(drop));
    let error = checkout.call::<Value>("anything", ()).await.unwrap_err();
    let elapsed = start.elapsed();
    assert!(error.is_fatal() && elapsed < PATIENCE, "{elapsed:?}: {error}");
    error
}

/// Calls a server that greets, and then does this, on both runtimes.
async fn flooded(then: impl Fn(&mut Raw) + Clone + Send + 'static) {
    on_both_runtimes(move || {
        let then = then.clone();
        async move {
            let folder = tempfile::tempdir().unwrap();
            serve(&folder, move |socket| {
                let mut raw = Raw(socket);
                greet_as(&mut raw, &[("files", 16.into())]);
                then(&mut raw);
            });
            let client = options(&folder).build().unwrap();
            fails_in_time(&client).await;
        }
    })
    .await;
}

trial!(a_flood_of_empty_messages_blocks_no_runtime, async || {
    flooded(|raw| {
        raw.receive();
        flood_of_nothing(raw);
    })
    .await;
});

trial!(a_flood_from_a_worker_that_does_not_read_blocks_no_runtime, async || {
    flooded(|raw| {
        raw.0.shutdown(Shutdown::Read).unwrap();
        flood_of_nothing(raw);
    })
    .await;
    flooded(|raw| {
        raw.receive();
        raw.0.shutdown(Shutdown::Read).unwrap();
        flood_of_nothing(raw);
    })
    .await;
});

trial!(a_flood_of_notes_blocks_no_runtime, async || {
    let line = Value::Array(vec![0.5.into(), 30.into(), text("line")]);
    let logs = Value::Array(vec![line; 20]);
    let log = map(&[("start", 1.5e9.into()), ("logs", logs)]);
    for meta in [map(&[]), map(&[("ld", log)])] {
        let notes = frame(vec![4.into(), meta]);
        flooded(move |raw| {
            raw.receive();
            flood(raw, &notes);
        })
        .await;
    }
});

trial!(a_flood_of_spans_blocks_no_runtime, async || {
    let record = Value::Array(vec![4.into(), 1.into(), 1.into()]);
    let trace = map(&[("trace", Value::Array(vec![record; 100]))]);
    let notes = frame(vec![4.into(), trace]);
    flooded(move |raw| {
        raw.receive();
        flood(raw, &notes);
    })
    .await;
});

/// Reads a stream of such a server, and sends it an input, until that fails.
async fn stream_fails_in_time(client: &Client) {
    let start = Instant::now();
    let input = Input::iter(0_u64..);
    let mut items = client.stream_with_input::<Value, Value>("anything", (), input);
    let mut count = 0_u64;
    let error = loop {
        match items.next().await {
            Ok(Some(_)) => count += 1,
            Ok(None) => panic!("the stream has ended"),
            Err(error) => break error,
        }
    };
    let elapsed = start.elapsed();
    assert!(error.is_fatal() && elapsed < PATIENCE, "{elapsed:?}, {count} items: {error}");
}

trial!(a_flood_in_a_stream_blocks_no_runtime, async || {
    let item =
        || frame(vec![11.into(), map(&[("cost", 300.into()), ("call", 1.into())]), 5.into()]);
    let credit = || frame(vec![12.into(), map(&[]), 1.into(), (1_u64 << 40).into()]);
    let empty = |count: usize| nothing().repeat(count);
    for messages in [
        empty(1),
        item(),
        [item(), empty(100)].concat(),
        [empty(3), item()].concat(),
        credit(),
        [item(), credit()].concat(),
    ] {
        on_both_runtimes(move || {
            let messages = messages.clone();
            async move {
                let folder = tempfile::tempdir().unwrap();
                serve(&folder, move |socket| {
                    let mut raw = Raw(socket);
                    let can =
                        [("files", 16.into()), ("items", true.into()), ("input", true.into())];
                    greet_as(&mut raw, &can);
                    raw.receive();
                    let _ = raw.0.write_all(&agreed(1 << 20));
                    flood(&mut raw, &messages);
                });
                let client = options(&folder).build().unwrap();
                stream_fails_in_time(&client).await;
            }
        })
        .await;
    }
});

trial!(a_flood_of_skipped_answers_blocks_no_runtime, async || {
    flooded(|raw| {
        raw.receive();
        flood(raw, &frame(vec![5.into(), of_call(1)]));
    })
    .await;
});

/// Calls a server that has agreed on rings, and then does this, on both runtimes.
async fn flooded_with_rings(
    then: impl Fn(Raw, crate::support::raw_rings::Rings) + Clone + Send + 'static,
) {
    on_both_runtimes(move || {
        let then = then.clone();
        async move {
            let folder = tempfile::tempdir().unwrap();
            let listener = UnixListener::bind(folder.path().join("s")).unwrap();
            std::thread::spawn(move || {
                let (raw, rings, _) = agree(&listener);
                then(raw, rings);
            });
            let client = options(&folder).build().unwrap();
            let start = Instant::now();
            let error = call_until_it_fails(&client).await;
            assert!(error.is_fatal() && start.elapsed() < PATIENCE, "{error}");
        }
    })
    .await;
}

trial!(a_flood_through_a_ring_blocks_no_runtime, async || {
    flooded_with_rings(|mut raw, rings| {
        rings.fill_for_ever(&nothing(), || {
            raw.0.set_nonblocking(true).unwrap();
            !matches!(raw.0.read(&mut [0; 100]), Ok(0))
        });
    })
    .await;
});

trial!(a_flood_of_wake_ups_blocks_no_runtime, async || {
    flooded_with_rings(|mut raw, _| flood(&mut raw, &[0; 4])).await;
});

trial!(an_endless_frame_blocks_no_runtime, async || {
    flooded(|raw| {
        raw.receive();
        raw.send(&(64_u32 << 20).to_le_bytes());
        flood(raw, &[7; 1024]);
    })
    .await;
});

trial!(a_flood_of_blanks_blocks_no_runtime, async || {
    on_both_runtimes(|| async {
        let folder = tempfile::tempdir().unwrap();
        serve(&folder, |socket| flood(&mut Raw(socket), b" \n\t"));
        let client = options(&folder).protocol(Protocol::Perl).build().unwrap();
        fails_in_time(&client).await;
    })
    .await;
});

trial!(a_flood_before_the_hello_blocks_no_runtime, async || {
    for first in [&b"taskfork"[..], b"taskfork\xff\xff\xff\x03", b""] {
        on_both_runtimes(move || async move {
            let folder = tempfile::tempdir().unwrap();
            serve(&folder, move |socket| {
                let mut raw = Raw(socket);
                if raw.0.write_all(first).is_ok() {
                    flood_of_nothing(&mut raw);
                }
            });
            let client = options(&folder).build().unwrap();
            fails_in_time(&client).await;
        })
        .await;
    }
});

trial!(a_flood_on_an_idle_connection_blocks_no_runtime, async || {
    for keeps_checkout in [false, true] {
        on_both_runtimes(move || async move {
            let folder = tempfile::tempdir().unwrap();
            serve(&folder, |socket| {
                let mut raw = Raw(socket);
                greet(&mut raw, 1);
                raw.send(&[agreed(1 << 20), frame(vec![1.into(), of_call(1), 5.into()])].concat());
                flood(&mut raw, &nothing());
            });
            let client = options(&folder).build().unwrap();
            let checkout = client.checkout();
            assert_eq!(checkout.call::<u8>("five", ()).await.unwrap(), 5);
            let kept = keeps_checkout.then_some(checkout);
            let is_lost = || client.stats().idle + client.stats().busy == 0;
            until("the worker to be left", is_lost).await;
            if let Some(checkout) = kept {
                let error = checkout.call::<u8>("five", ()).await.unwrap_err();
                assert!(error.to_string().contains("without end though no call runs"), "{error}");
            }
        })
        .await;
    }
});

trial!(a_flood_blocks_no_thread_of_the_blocking_client, async || {
    let folder = tempfile::tempdir().unwrap();
    serve(&folder, |socket| {
        let mut raw = Raw(socket);
        greet(&mut raw, 1);
        flood_of_nothing(&mut raw);
    });
    let address = address_in(&folder);
    let called = tokio::task::spawn_blocking(move || {
        let client = Client::builder().address(address).min_workers(0).timeout(TIMEOUT);
        let client = client.build_blocking().unwrap();
        let start = Instant::now();
        let error = client.call::<Value>("anything", ()).unwrap_err();
        (error, start.elapsed())
    });
    let (error, elapsed) = called.await.unwrap();
    assert!(error.is_fatal() && elapsed < PATIENCE, "{elapsed:?}: {error}");
});

trial!(a_call_that_is_dropped_ends_a_flood, async || {
    on_both_runtimes(|| async {
        let folder = tempfile::tempdir().unwrap();
        let (ended, end) = std::sync::mpsc::channel();
        serve(&folder, move |socket| {
            let mut raw = Raw(socket);
            greet(&mut raw, 1);
            flood_of_nothing(&mut raw);
            let _ = ended.send(());
        });
        let client = options(&folder).timeout(None).build().unwrap();
        let call = client.call::<Value>("anything", ());
        assert!(tokio::time::timeout(TIMEOUT, call).await.is_err());
        until("the connection's end", || end.try_recv().is_ok()).await;
    })
    .await;
});

/// Sends a byte now and then until the other side has gone.
fn trickle(raw: &mut Raw) {
    while raw.0.write_all(&[7]).is_ok() {
        std::thread::sleep(Duration::from_millis(5));
    }
}

trial!(a_frame_that_trickles_does_not_outlive_the_timeout, async || {
    let folder = tempfile::tempdir().unwrap();
    serve(&folder, |socket| {
        let mut raw = Raw(socket);
        greet(&mut raw, 1);
        raw.send(&1_000_000_u32.to_le_bytes());
        trickle(&mut raw);
    });
    let client = options(&folder).grace(Duration::ZERO).build().unwrap();
    let start = Instant::now();
    let error = client.call::<Value>("anything", ()).await.unwrap_err();
    assert!(start.elapsed() < PATIENCE, "{error}");
    assert!(error.to_string().contains("timed out after 0.5 seconds"), "{error}");
});

trial!(a_slow_hello_does_not_outlive_the_timeout, async || {
    for first in [&b"task"[..], b"taskfork\x00\x10\x00\x00"] {
        let folder = tempfile::tempdir().unwrap();
        serve(&folder, move |socket| {
            let mut raw = Raw(socket);
            raw.send(first);
            if first.len() > 8 {
                trickle(&mut raw);
            } else {
                raw.drain();
            }
        });
        let client = options(&folder).build().unwrap();
        fails_in_time(&client).await;
    }
});

trial!(a_worker_that_never_reads_does_not_outlive_the_timeout, async || {
    on_both_runtimes(|| async {
        let folder = tempfile::tempdir().unwrap();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let ended = std::sync::Arc::new(std::sync::Mutex::new(ended));
        serve(&folder, move |socket| {
            let mut raw = Raw(socket);
            greet(&mut raw, 0);
            let _ = ended.lock().unwrap().recv();
        });
        let client = options(&folder).build().unwrap();
        let long = taskfork::Blob::from(vec![1; 32 << 20]);
        let checkout = client.checkout();
        let start = Instant::now();
        let calls: Vec<_> = (0..4).map(|_| checkout.call::<Value>("x", (&long,))).collect();
        for call in calls {
            assert!(call.await.unwrap_err().is_fatal());
        }
        assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
        drop(end);
    })
    .await;
});
