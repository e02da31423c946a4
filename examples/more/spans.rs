//! A worker's spans and events of `tracing` appear in the subscriber of the program that calls it,
//! within the span that made the call.
//!
//! In a crate of your own it needs:
//!
//! ```sh
//! cargo add taskfork --features spans
//! cargo add tracing
//! cargo add tracing-subscriber
//! cargo add tokio --features full
//! ```

use std::time::Duration;

use taskfork::{BoxError, Client, Methods, Server, ServerBuilder, ServerError};
use tracing::Instrument;

fn resizer(server: ServerBuilder) -> Result<(), ServerError> {
    let methods = Methods::new().function("resize", |path: String, width: u32| {
        let _span = tracing::info_span!("decode", path).entered();
        std::thread::sleep(Duration::from_millis(20));
        tracing::warn!(width, "the picture has no colour profile");
        Ok(width * 3 / 4)
    });
    server.name("resizer").interface(methods).run()
}

fn main() -> Result<(), BoxError> {
    taskfork::init(&[("resizer", resizer)]);
    tracing_subscriber::fmt().with_ansi(false).with_max_level(tracing::Level::INFO).init();
    tokio::runtime::Runtime::new()?.block_on(run())
}

async fn run() -> Result<(), BoxError> {
    let server = Server::spawn("resizer")?;
    let client = Client::builder().address(server.address()).build()?;
    let call = async { client.call::<u32>("resize", ("cat.jpg", 640)).await };
    let height = call.instrument(tracing::info_span!("request", user = 17)).await?;
    tracing::info!(height, "done");
    Ok(())
}
