//! How often memory is allocated for one call, in the client's process and in the worker's.
//! `cargo bench -p taskfork --bench allocations` prints `call allocations client COUNT worker COUNT`.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot run stops")]
#![allow(missing_docs, reason = "nothing here is for users")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use taskfork::{Client, Methods, Server, ServerBuilder, ServerError};

static COUNT: AtomicU64 = AtomicU64::new(0);

/// The system's allocator, counted.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: it only counts what it hands on.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        COUNT.fetch_add(1, Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

fn server(server: ServerBuilder) -> Result<(), ServerError> {
    let methods = Methods::new()
        .function("nothing", || Ok(()))
        .function("allocations", || Ok(COUNT.load(Relaxed)));
    server.interface(methods).run()
}

const CALLS: u64 = 1000;

fn main() {
    taskfork::init(&[("server", server)]);
    let server = Server::spawn("server").unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let [client, worker] = runtime.block_on(async {
        let client = Client::builder().address(server.address()).build().unwrap();
        let checkout = client.checkout();
        for _ in 0..CALLS {
            checkout.call::<()>("nothing", ()).await.unwrap();
        }
        let in_worker = async || checkout.call::<u64>("allocations", ()).await.unwrap();
        let (worker, here) = (in_worker().await, COUNT.load(Relaxed));
        for _ in 0..CALLS {
            checkout.call::<()>("nothing", ()).await.unwrap();
        }
        let here = COUNT.load(Relaxed) - here;
        [here, in_worker().await - worker].map(|count| count as f64 / CALLS as f64)
    });
    println!("call allocations client {client:.2} worker {worker:.2}");
}
