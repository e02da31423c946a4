//! A client of workers that are reached through a gateway, with a runtime of one thread.

use std::time::{Duration, Instant};

use taskfork::client::{BusyPoll, ClientBuilder};
use taskfork::{Blob, Client};
use tokio::runtime::{Builder, Runtime};

use crate::pools::{LIMIT, text};

pub struct FarClient {
    pub runtime: Runtime,
    pub client: Client,
}

/// A runtime of one thread.
pub fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

impl FarClient {
    pub fn new(client: ClientBuilder) -> Self {
        let runtime = runtime();
        let entered = runtime.enter();
        let client = client.min_workers(0).max_frame(LIMIT).busy_poll(BusyPoll::Off).timeout(None);
        let client = client.build().expect("a client");
        drop(entered);
        Self { runtime, client }
    }

    /// How long each of these calls of 64 bytes takes, one after the other.
    pub fn latencies(&self, calls: usize) -> Vec<Duration> {
        let text = text();
        self.runtime.block_on(async {
            let checkout = self.client.checkout();
            let mut times = Vec::new();
            for _ in 0..calls {
                let start = Instant::now();
                let _: String = checkout.call("echo", (&text,)).await.expect("an answer");
                times.push(start.elapsed());
            }
            times
        })
    }

    /// How long it takes to send so many bytes and to get them back, one time after the other.
    pub fn exchanges(&self, bytes: usize, times: usize) -> Vec<Duration> {
        let body = Blob::from(vec![b'x'; bytes]);
        self.runtime.block_on(async {
            let checkout = self.client.checkout();
            let mut all = Vec::new();
            for _ in 0..times {
                let start = Instant::now();
                let back: Blob = checkout.call("bytes", (&body,)).await.expect("an answer");
                all.push(start.elapsed());
                assert_eq!(back.len(), bytes);
            }
            all
        })
    }
}
