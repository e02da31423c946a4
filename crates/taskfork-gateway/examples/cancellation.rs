//! Measures how long a worker still lives after its client has dropped a call, at the unix socket and through a gateway
//! over the loopback interface. Prints the median and the 99th percentile.
//!
//!     cargo run --release -p taskfork-gateway --example cancellation [CALLS]

#![allow(clippy::unwrap_used, reason = "a measurement that fails panics")]

use std::time::{Duration, Instant};

use rcgen::{CertificateParams, KeyPair};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use taskfork::server::Entry;
use taskfork::{BoxError, Client, Methods, Server, ServerBuilder, ServerError};
use taskfork_gateway::Gateway;

const ENTRIES: &[(&str, Entry)] = &[("hangs", serve)];

fn serve(server: ServerBuilder) -> Result<(), ServerError> {
    let address: String = server.config()?;
    let methods = Methods::new().function("pid", || Ok(std::process::id())).function(
        "hang",
        || -> Result<(), BoxError> {
            loop {
                std::thread::park();
            }
        },
    );
    server.listen(address).interface(methods).run()
}

fn main() {
    taskfork::init(ENTRIES);
    let calls = std::env::args().nth(1).map_or(500, |calls| calls.parse().unwrap());
    tokio::runtime::Runtime::new().unwrap().block_on(measure(calls));
}

async fn measure(calls: usize) {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let local = format!("unix:{}", file("s").display());
    let _server = Server::spawn_with("hangs", &local).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(["localhost".to_owned()]).unwrap();
    std::fs::write(file("cert"), certificate.self_signed(&key).unwrap().pem()).unwrap();
    std::fs::write(file("key"), key.serialize_pem()).unwrap();
    let gateway = Gateway::builder()
        .server(local.as_str())
        .tls("127.0.0.1:0", file("cert"), file("key"))
        .bind()
        .await
        .unwrap();
    let remote = format!("tls:localhost:{}", gateway.local_addr().unwrap().port());
    let running = tokio::spawn(gateway.run(std::future::pending()));
    let client = |address: &str| Client::builder().address(address).min_workers(0);
    for (name, client) in [
        ("unix socket", client(&local).build().unwrap()),
        ("gateway", client(&remote).tls_ca(file("cert")).build().unwrap()),
    ] {
        let mut times = Vec::new();
        for _ in 0..calls {
            times.push(cancel(&client).await);
        }
        times.sort_unstable();
        let at = |share: usize| times[(times.len() - 1) * share / 100];
        println!("{name}: median {:?}, 99th percentile {:?}", at(50), at(99));
    }
    running.abort();
}

/// How long a worker lives after its call was dropped.
async fn cancel(client: &Client) -> Duration {
    let checkout = client.checkout();
    let pid: u32 = checkout.call("pid", ()).await.unwrap();
    let pid = Pid::from_raw(pid.cast_signed()).unwrap();
    let process = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    let ended = tokio::task::spawn_blocking(move || {
        poll(&mut [PollFd::new(&process, PollFlags::IN)], None).unwrap();
        Instant::now()
    });
    let mut call = Box::pin(checkout.call::<()>("hang", ()));
    // The call is sent, and its worker runs it.
    let _ = tokio::time::timeout(Duration::from_millis(5), &mut call).await;
    let start = Instant::now();
    drop((call, checkout));
    ended.await.unwrap() - start
}
