//! A program in Rust whose workers are a program in Python: `worker.py` beside this file.
//!
//! ```text
//! python3 -m venv target/venv && target/venv/bin/pip install ./python
//! PATH="$PWD/target/venv/bin:$PATH" cargo run --example python_worker
//! ```
//!
//! In a crate of your own it needs:
//!
//! ```sh
//! cargo add taskfork
//! cargo add log-defer
//! cargo add serde --features derive
//! cargo add tokio --features full
//! ```

use std::path::Path;

use log_defer::{Log, Style, timeline};
use serde::Deserialize;
use taskfork::blob::BlobMut;
use taskfork::worker::Executable;
use taskfork::{Blob, BoxError, Client, Server};

#[derive(Debug, Deserialize)]
struct Found {
    name: String,
    digest: String,
}

fn main() -> Result<(), BoxError> {
    let worker = Path::new(env!("CARGO_MANIFEST_DIR")).join("python_worker/worker.py");
    // A process with threads cannot be forked safely. The server starts a Python for each worker.
    let server = Server::fork(|server| {
        let python = Executable::new("python3").arg(worker);
        server.name("documents").spare_workers(1).executable(python).run()
    })?;
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let client = Client::builder().address(server.address()).max_workers(4).build()?;
        if let Err(error) = client.call::<()>("clear", ()).await {
            return Err(error.report().to_string().into());
        }

        let log = Log::new(|message| print!("{}", timeline(&message, Style::for_stdout())));
        let checkout = client.checkout().log(&log);
        checkout.call::<()>("begin", ()).await?;
        for name in ["one", "two", "three"] {
            let data = Blob::from(name.repeat(1000).into_bytes());
            let digest: String = checkout.call("put", (name, data)).await?;
            println!("{name}: {digest}");
        }
        // Python maps this memory, so its length does not matter.
        let mut large = BlobMut::new(8 << 20)?;
        large.fill(7);
        let digest: String = checkout.call("put", ("large", large.freeze()?)).await?;
        println!("large: {digest}");
        checkout.call::<()>("commit", ()).await?;
        drop((checkout, log));

        // The end of the checkout rolls back what was not committed.
        let checkout = client.checkout();
        checkout.call::<()>("begin", ()).await?;
        checkout.call::<String>("put", ("four", "not for long")).await?;
        drop(checkout);

        match client.call::<()>("commit", ()).await {
            Ok(()) => println!("there was a transaction"),
            Err(error) => println!("\nan exception: {error}\n{}", error.report()),
        }
        let found: Vec<Found> = client.call("find", ("",)).await?;
        let names: Vec<_> =
            found.iter().map(|one| format!("{} {:.8}", one.name, one.digest)).collect();
        println!("\nthere is {}", names.join(", "));
        let data: Blob = client.call("get", ("two",)).await?;
        println!("two has {} bytes", data.len());

        // A generator streams.
        let mut documents = client.stream::<(String, Blob), usize>("export", ("t",));
        let mut total = 0;
        while let Some((name, data)) = documents.next().await? {
            println!("{name} is exported");
            total += data.len();
        }
        println!("{} documents have {total} bytes", documents.finish().await?);
        Ok(())
    })
}
