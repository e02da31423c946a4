//! What answers the requests.

use taskfork::Client;
use taskfork::server::ServerHandle;

use crate::hand_written;
use crate::pools::text;

/// A candidate that answers one request of 64 bytes with as many.
pub enum Service {
    Ours {
        client: Client,
        /// The server ends when this is dropped.
        _server: ServerHandle,
    },
    HandWritten(hand_written::Pool),
    Procspawn(procspawn::Pool),
    Threads,
    /// Makes no call, which shows the time of the arrivals themselves.
    Nothing,
}

impl Service {
    /// Must run in a runtime. `None` if no candidate has that name.
    pub fn start(name: &str, workers: usize) -> Option<Self> {
        Some(match name {
            "taskfork" => {
                let server = taskfork::Server::spawn("plain").expect("a server");
                let client = Client::builder().address(server.address());
                let client = client.min_workers(workers).max_workers(workers).build();
                Self::Ours { client: client.expect("a client"), _server: server }
            }
            "hand-written pool" => {
                Self::HandWritten(hand_written::Pool::new(workers).expect("workers"))
            }
            "procspawn" => Self::Procspawn(procspawn::Pool::new(workers).expect("a pool")),
            "spawn_blocking" => Self::Threads,
            "arrivals alone" => Self::Nothing,
            _ => return None,
        })
    }

    pub async fn call(&self) -> Result<(), String> {
        let length = match self {
            Self::Ours { client, .. } => {
                let answer = client.call::<String>("echo", (text(),)).await;
                answer.map_err(|error| error.to_string())?.len()
            }
            Self::HandWritten(pool) => {
                pool.call(text().as_bytes()).await.map_err(|error| error.to_string())?.len()
            }
            Self::Procspawn(pool) => {
                let call = pool.spawn(text(), |text: String| text);
                // Its handle can only be waited for by a thread.
                let answer = tokio::task::spawn_blocking(move || call.join()).await;
                let answer = answer.map_err(|error| error.to_string())?;
                answer.map_err(|error| error.to_string())?.len()
            }
            Self::Threads => {
                let text = text();
                let answer = tokio::task::spawn_blocking(move || text).await;
                answer.map_err(|error| error.to_string())?.len()
            }
            Self::Nothing => 64,
        };
        assert_eq!(length, 64, "the answer is what was sent");
        Ok(())
    }
}
