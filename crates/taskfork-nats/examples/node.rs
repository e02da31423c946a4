//! Offers what listens on a unix socket as a node of a service:
//!
//! ```sh
//! cargo run -p taskfork-nats --example node nats://localhost:4222 resize node-1 /run/resize.sock
//! ```
//!
//! At SIGTERM it takes no more sessions, gives the others ten seconds, and ends.

use std::time::Duration;

use taskfork_nats::{Label, Node};
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [url, service, name, socket, labels @ ..] = &arguments[..] else {
        return Err("arguments: URL SERVICE NODE SOCKET [KEY=VALUE…]".into());
    };
    let labels = labels.iter().map(|label| label.parse()).collect::<Result<Vec<Label>, _>>()?;
    let path = socket.clone();
    let node = Node::builder(service, name, move |_| UnixStream::connect(path.clone()))
        .labels(&labels)
        .heartbeat(Duration::from_millis(500))
        .start(url)
        .await?;
    println!("ready");
    signal(SignalKind::terminate())?.recv().await;
    node.drain(Duration::from_secs(10)).await;
    Ok(())
}
