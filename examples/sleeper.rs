//! A worker logs, and its lines and timers appear in the log of the request that it worked for. The
//! merged message is printed as one line of JSON; `log_view` draws it:
//!
//!     cargo run --example sleeper | cargo run --example log_view
//!
//! In a crate of your own it needs:
//!
//! ```sh
//! cargo add taskfork
//! cargo add log-defer
//! cargo add tokio --features full
//! ```

use std::time::Duration;

use log_defer::{JsonLines, Log};
use taskfork::worker::{Function, logger};
use taskfork::{BoxError, Client, Server, ServerBuilder, ServerError};

fn sleeper(server: ServerBuilder) -> Result<(), ServerError> {
    let interface = Function::new(|_: &mut (), _, _| {
        logger().info("about to compute some operation");
        {
            let _timer = logger().timer("computing some operation");
            std::thread::sleep(Duration::from_secs(1));
        }
        Ok(())
    });
    server.name("sleeper").interface(interface).run()
}

fn main() -> Result<(), BoxError> {
    taskfork::init(&[("sleeper", sleeper)]);
    tokio::runtime::Runtime::new()?.block_on(run())
}

async fn run() -> Result<(), BoxError> {
    let server = Server::spawn("sleeper")?;
    let client = Client::builder().address(server.address()).build()?;

    let log = Log::new(JsonLines::new(std::io::stdout()).callback());
    log.info("going to compute some operation in a worker");
    client.checkout().log(&log).invoke::<()>(()).await?;
    log.info("finished some operation");
    Ok(())
}
