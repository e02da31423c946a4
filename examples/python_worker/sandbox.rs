//! Workers in Python under `Sandbox::python()`: Pillow decodes pictures that this program has damaged. The
//! interpreter can read its own files and the script, and nothing else.
//!
//! ```text
//! python3 -m venv target/venv && target/venv/bin/pip install ./python pillow
//! PATH="$PWD/target/venv/bin:$PATH" cargo run --example python_sandbox
//! ```
//!
//! In a crate of your own it needs:
//!
//! ```sh
//! cargo add taskfork
//! cargo add tokio --features full
//! ```

use std::path::Path;
use std::process::Command;

use taskfork::sandbox::Sandbox;
use taskfork::worker::Executable;
use taskfork::{Blob, BoxError, Client, Server, ServerBuilder, ServerError};

/// Every so many bytes of a picture, one is changed.
const STEP: usize = 97;

fn pictures(server: ServerBuilder) -> Result<(), ServerError> {
    let (python, folders): (String, Vec<String>) = server.config()?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("python_worker/untrusted.py");
    let mut sandbox = Sandbox::python().execute(&python).read(&script).max_result(1 << 20);
    for folder in folders {
        sandbox = sandbox.read(folder);
    }
    server
        .name("pictures")
        .sandbox(sandbox)
        .clear_env(["PATH", "LANG"])
        .executable(Executable::new(python).arg(script))
        .run()
}

/// The interpreter, and the folders that it reads modules from.
fn interpreter() -> Result<(String, Vec<String>), BoxError> {
    let ask =
        "import sys; print(sys.executable, sys.prefix, *filter(None, sys.path[1:]), sep='\\n')";
    let output = Command::new("python3").args(["-c", ask]).output()?;
    let text = String::from_utf8(output.stdout)?;
    let mut lines = text.lines().map(str::to_owned);
    let python = lines.next().ok_or("there is no python3")?;
    Ok((python, lines.filter(|folder| Path::new(folder).exists()).collect()))
}

fn main() -> Result<(), BoxError> {
    // A spawned server is a new process: its workers are no copies of this one and of what it knows.
    taskfork::init(&[("pictures", pictures)]);
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(run())
}

async fn run() -> Result<(), BoxError> {
    let server = Server::spawn_with("pictures", &interpreter()?)?;
    let client = Client::builder()
        .address(server.address())
        .copy_shared_memory(true)
        .max_workers(1)
        .reuse_after_error(true)
        .build()?;
    for kind in ["PNG", "JPEG", "GIF"] {
        let picture: Blob = client.call("gradient", (300, 200, kind)).await?;
        let (mut thumbnails, mut refused) = (0, 0);
        for place in (0..picture.len()).step_by(STEP) {
            let mut damaged = picture.to_vec();
            damaged[place] ^= 0xff;
            match client.call::<Blob>("thumbnail", (Blob::from(damaged), 64)).await {
                Ok(_) => thumbnails += 1,
                Err(error) if error.is_fatal() => return Err(error.into()),
                Err(_) => refused += 1,
            }
        }
        println!("{kind}: {thumbnails} damaged pictures give a thumbnail, {refused} are refused");
    }
    match client.call::<Blob>("steal", ("/etc/passwd",)).await {
        Ok(_) => return Err("the worker has read /etc/passwd".into()),
        Err(error) => println!("a worker that wants /etc/passwd: {error}"),
    }
    server.close();
    Ok(())
}
