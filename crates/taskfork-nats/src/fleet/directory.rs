//! The nodes that a client knows.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_nats::{Client, StatusCode};
use bytes::Bytes;
use futures_util::StreamExt;
use serde::Deserialize;
use tokio::time::timeout;

use super::rendezvous;
use crate::error::Error;
use crate::names::{Labels, Name, Subjects};
use crate::token;

/// How long the first answer may take.
const FIRST: Duration = Duration::from_secs(1);

/// How long after an answer another one may come.
const NEXT: Duration = Duration::from_millis(400);

/// How long all answers may take.
const ALL: Duration = Duration::from_secs(2);

/// After so many bytes of answers no more are taken.
const MOST_BYTES: usize = 32 << 20;

/// After this time the nodes are asked again, while the known ones are still used.
const STALE: Duration = Duration::from_secs(5);

/// More nodes than this are not kept.
pub(super) const MAX_NODES: usize = 10_000;

/// A node as it describes itself.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct NodeInfo {
    /// The node's name.
    pub name: String,
    /// The id of this instance as a NATS micro service. A node that is started again has another one.
    pub id: String,
    /// The version of the node's service.
    pub version: String,
    /// How many workers the node has, if it says so.
    pub workers: Option<u64>,
    /// For how many more sessions it has room.
    pub free: Option<u64>,
    /// The methods that its workers have.
    pub methods: Vec<String>,
    /// Its labels, as `KEY=VALUE`.
    pub labels: Vec<String>,
}

#[derive(Clone, Debug)]
pub(super) struct Directory {
    client: Client,
    subjects: Subjects,
    known: Arc<Mutex<Known>>,
    /// When a node last answered, for [`Directory::has_nodes`]. Tasks that want to know take turns, because all nodes
    /// answer each question.
    answered: Arc<tokio::sync::Mutex<Option<Instant>>>,
}

#[derive(Debug, Default)]
struct Known {
    nodes: Vec<NodeInfo>,
    asked: Option<Instant>,
}

impl Directory {
    pub(super) fn new(client: Client, subjects: Subjects) -> Self {
        Self { client, subjects, known: Arc::default(), answered: Arc::default() }
    }

    /// The nodes with these labels, in the order in which the key prefers them.
    pub(super) async fn preferred(&self, key: &str, labels: &Labels) -> Result<Vec<Name>, Error> {
        let wanted = labels.texts();
        let names = self
            .known()
            .await?
            .into_iter()
            .filter(|node| wanted.iter().all(|label| node.labels.contains(label)))
            .filter_map(|node| Name::node(&node.name).ok())
            .collect();
        Ok(rendezvous::order(key, names))
    }

    async fn known(&self) -> Result<Vec<NodeInfo>, Error> {
        let (nodes, asked) = {
            let mut known = self.lock();
            let asked = known.asked;
            if asked.is_none_or(|asked| asked.elapsed() >= STALE) {
                // One of several tasks asks.
                known.asked = Some(Instant::now());
            }
            (known.nodes.clone(), asked)
        };
        match asked {
            Some(asked) if asked.elapsed() < STALE && !nodes.is_empty() => Ok(nodes),
            Some(_) if !nodes.is_empty() => {
                let directory = self.clone();
                tokio::spawn(async move { directory.ask().await });
                Ok(nodes)
            }
            _ => self.ask().await,
        }
    }

    /// Whether nodes run. An answer holds for a few seconds. Silence is no answer: the nodes may hang, or the user of NATS
    /// may not ask.
    pub(super) async fn has_nodes(&self) -> Result<bool, Error> {
        let mut answered = self.answered.lock().await;
        if answered.is_some_and(|at| at.elapsed() < STALE) {
            return Ok(true);
        }
        let [_, subject, _] = self.subjects.micro("INFO", "");
        let inbox = token::inbox(&self.client)?;
        let mut messages = self.client.subscribe(inbox.clone()).await.map_err(Error::closed)?;
        let sent = self.client.publish_with_reply(subject, inbox, Bytes::new());
        sent.await.map_err(Error::closed)?;
        match timeout(FIRST, messages.next()).await {
            Ok(Some(message)) if message.status == Some(StatusCode::NO_RESPONDERS) => Ok(false),
            Ok(Some(_)) => {
                *answered = Some(Instant::now());
                Ok(true)
            }
            Ok(None) | Err(_) => Ok(true),
        }
    }

    /// Asks all nodes.
    pub(super) async fn ask(&self) -> Result<Vec<NodeInfo>, Error> {
        let [_, subject, _] = self.subjects.micro("INFO", "");
        let answers = gather(&self.client, subject, Bytes::new(), MAX_NODES).await?;
        let mut nodes: Vec<_> = answers.iter().filter_map(|answer| read(answer)).collect();
        nodes.sort_by(|a: &NodeInfo, b| a.name.cmp(&b.name));
        let mut known = self.lock();
        known.nodes.clone_from(&nodes);
        known.asked = Some(Instant::now());
        Ok(nodes)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Publishes a question, and takes the answers of all that give one in time, at most `most`, and [`MOST_BYTES`] of them.
pub(super) async fn gather(
    client: &Client,
    subject: String,
    payload: Bytes,
    most: usize,
) -> Result<Vec<Bytes>, Error> {
    let inbox = token::inbox(client)?;
    let mut messages = client.subscribe(inbox.clone()).await.map_err(Error::closed)?;
    let sent = client.publish_with_reply(subject, inbox, payload);
    sent.await.map_err(Error::closed)?;
    let began = Instant::now();
    let (mut answers, mut bytes) = (Vec::new(), 0);
    while let Some(left) = ALL.checked_sub(began.elapsed())
        && answers.len() < most
        && bytes < MOST_BYTES
    {
        let wait = if answers.is_empty() { FIRST } else { NEXT };
        match timeout(wait.min(left), messages.next()).await {
            Ok(Some(message)) if message.status == Some(StatusCode::NO_RESPONDERS) => break,
            // Copied, because it keeps the read buffer of the NATS client.
            Ok(Some(message)) => {
                bytes += message.payload.len();
                answers.push(Bytes::copy_from_slice(&message.payload));
            }
            Ok(None) | Err(_) => break,
        }
    }
    Ok(answers)
}

/// Publishes a question, and takes the first answer, if one comes in time.
pub(super) async fn ask_one(
    client: &Client,
    subject: String,
    payload: Bytes,
    wait: Duration,
) -> Result<Option<Bytes>, Error> {
    let inbox = token::inbox(client)?;
    let mut messages = client.subscribe(inbox.clone()).await.map_err(Error::closed)?;
    let sent = client.publish_with_reply(subject, inbox, payload);
    sent.await.map_err(Error::closed)?;
    let answer = timeout(wait, messages.next()).await.ok().flatten();
    Ok(answer.filter(|answer| answer.status.is_none()).map(|answer| answer.payload))
}

/// What a node has answered. Other services with this name are no nodes.
fn read(payload: &[u8]) -> Option<NodeInfo> {
    #[derive(Deserialize)]
    struct Info {
        id: String,
        version: String,
        #[serde(default)]
        metadata: HashMap<String, String>,
    }
    let Info { id, version, mut metadata } = serde_json::from_slice(payload).ok()?;
    let list = |text: Option<String>| {
        let text = text.unwrap_or_default();
        text.split(',').filter(|part| !part.is_empty()).map(str::to_owned).collect()
    };
    Some(NodeInfo {
        name: metadata.remove("node")?,
        id,
        version,
        workers: metadata.get("workers").and_then(|number| number.parse().ok()),
        free: metadata.get("free").and_then(|number| number.parse().ok()),
        methods: list(metadata.remove("methods")),
        labels: list(metadata.remove("labels")),
    })
}
