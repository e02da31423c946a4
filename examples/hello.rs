//! A server and a client as two programs, for two terminals:
//!
//! ```text
//! cargo run --example hello -- serve unix:/tmp/hello.sock
//! cargo run --example hello -- call unix:/tmp/hello.sock
//! ```
//!
//! In a crate of your own it needs:
//!
//! ```sh
//! cargo add taskfork
//! cargo add tokio --features full
//! ```

use std::process::ExitCode;

use taskfork::{BoxError, Client, Methods, Server};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve", address] => serve(address),
        ["call", address] => call(address),
        _ => Err("usage: hello serve ADDRESS | hello call ADDRESS, \
                  ADDRESS being unix:PATH or tcp:HOST:PORT"
            .into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hello: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(address: &str) -> Result<(), BoxError> {
    println!("serving at {address}; stop with Ctrl-C");
    Server::builder()
        .listen(address)
        .name("hello")
        .interface(Methods::new().function("greet", |name: String| {
            Ok(format!("Hello, {name}, from worker process {}!", std::process::id()))
        }))
        .run()?;
    println!("stopped");
    Ok(())
}

fn call(address: &str) -> Result<(), BoxError> {
    tokio::runtime::Runtime::new()?.block_on(async {
        let client = Client::builder().address(address).build()?;
        let greeting: String = client.call("greet", ("world",)).await?;
        println!("{greeting}");
        Ok(())
    })
}
