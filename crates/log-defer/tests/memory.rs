//! The bound of a log is one on the memory that it occupies.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use log_defer::{Log, Message};
use serde_json::{Value, json};

/// How many bytes are allocated now, as the program asked for them.
static HELD: AtomicUsize = AtomicUsize::new(0);

struct Counting;

#[expect(unsafe_code, reason = "an allocator cannot be written otherwise")]
// SAFETY: each call is passed on unchanged to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HELD.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps to the contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps to the contract, which is the same.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const BOUND: usize = 1 << 20;

/// What fills a log, called with ever new numbers.
type Fill = fn(&Log, u64);

/// Merges a message as a worker could send it.
fn merge(log: &Log, logs: Value, timers: Value, data: Value) {
    let message = json!({ "start": 1, "logs": logs, "timers": timers, "data": data });
    let encoded = rmp_serde::to_vec_named(&message).unwrap();
    log.merge(rmp_serde::from_slice::<Message>(&encoded).unwrap());
}

// The only test here, as all threads share the count.
#[test]
fn a_log_holds_no_more_memory_than_its_bound() {
    let fills: [(&str, Fill); 15] = [
        ("empty lines", |log, _| log.info(Vec::new())),
        ("short lines", |log, number| log.info(("line", number))),
        ("long lines", |log, _| log.info("x".repeat(5000))),
        ("lists with spare room", |log, _| log.info(Vec::<Value>::with_capacity(100))),
        ("lists of nothing", |log, _| log.info(json!(vec![Value::Null; 100]))),
        ("lists of lists", |log, _| log.info(json!([[[[[[]]]]]]))),
        ("small objects", |log, _| log.info(json!({ "": null }))),
        ("objects in objects", |log, _| log.info(json!({ "a": { "b": { "c": {} } } }))),
        ("large objects", |log, _| {
            let large: serde_json::Map<_, _> =
                (0..100).map(|number: u32| (number.to_string(), Value::Null)).collect();
            log.info(Value::Object(large));
        }),
        ("timers", |log, _| log.timer("t").stop()),
        ("running timers", |log, _| std::mem::forget(log.timer("t"))),
        ("data", |log, number| log.data(number.to_string(), ())),
        ("objects as data", |log, number| log.data(number.to_string(), json!({ "": null }))),
        ("merged lines", |log, _| {
            let line = json!([0, 1, [null], { "": null }]);
            merge(log, json!(vec![line; 10]), json!([]), json!({}));
        }),
        ("merged timers and data", |log, number| {
            let timers = vec![json!(["t", 0, 1]); 10];
            let data = json!({ number.to_string(): [null, null], "same": number });
            merge(log, json!([]), json!(timers), data);
        }),
    ];
    for (name, fill) in fills {
        let before = HELD.load(Ordering::Relaxed);
        let log = Log::builder().max_bytes(BOUND).start(drop);
        for number in 0..20_000 {
            fill(&log, number);
        }
        let held = HELD.load(Ordering::Relaxed) - before;
        assert!(held <= BOUND + BOUND / 8, "{name}: {held} bytes for a bound of {BOUND}");
        assert!(held >= BOUND / 4, "{name}: no more than {held} bytes for a bound of {BOUND}");
        assert!(log.message().logs.iter().any(|entry| {
            entry.items.first().is_some_and(|item| item.to_string().contains("were left out"))
        }));
        drop(log);
    }
}
