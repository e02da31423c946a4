//! The parts of a call, each on its own: encoding and decoding, the pool, and the round trip.
//! `cargo bench -p taskfork --bench parts`, with criterion's options behind `--`.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot run stops")]
#![allow(missing_docs, reason = "nothing here is for users")]

#[path = "pure/mod.rs"]
mod pure;

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group};
use taskfork::{Client, Methods, Server, ServerBuilder, ServerError};

fn codec(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("codec");
    for bytes in [0, 64, 4096] {
        let mut codec = pure::Codec::new(bytes);
        group.bench_function(BenchmarkId::new("there and back", bytes), |bencher| {
            bencher.iter(|| black_box(codec.there_and_back()));
        });
    }
}

fn checkouts(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pool");
    for waiting in [10, 100_000] {
        let mut turns = pure::Turns::new(waiting);
        group.bench_function(BenchmarkId::new("checkout and release", waiting), |bencher| {
            bencher.iter(|| turns.take_one());
        });
    }
}

fn echo(server: ServerBuilder) -> Result<(), ServerError> {
    server.interface(Methods::new().function("echo", |text: String| Ok(text))).run()
}

fn round_trip(criterion: &mut Criterion) {
    let server = Server::spawn("echo").unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let guard = runtime.enter();
    let client = Client::builder().address(server.address()).build().unwrap();
    drop(guard);
    let checkout = runtime.block_on(async { client.checkout() });
    let text = "x".repeat(64);
    criterion.bench_function("round trip", |bencher| {
        bencher.iter(|| {
            let back = runtime.block_on(checkout.call::<String>("echo", (&text,))).unwrap();
            assert_eq!(back.len(), 64);
        });
    });
}

criterion_group!(parts, codec, checkouts, round_trip);

fn main() {
    taskfork::init(&[("echo", echo)]);
    parts();
    Criterion::default().configure_from_args().final_summary();
}
