//! The status of the nodes of a service, as they tell it.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Fleet;
use super::directory::{MAX_NODES, ask_one, gather};
use super::inbox;
use crate::connect::check_connected;
use crate::error::Error;
use crate::names::Name;
use crate::wire::{Recent, StatusRequest};

/// How long a node may take to say what happened lately: it may have to look functions up.
const RECENT_WAIT: Duration = Duration::from_secs(5);

/// What a node says about itself and its server.
///
/// ```no_run
/// # async fn example(fleet: &taskfork_nats::Fleet) -> Result<(), taskfork_nats::Error> {
/// for node in fleet.status(false).await? {
///     println!("{} has room for {} more sessions", node.node, node.free);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct NodeStatus {
    /// The node's name.
    pub node: String,
    /// The id of this instance as a NATS micro service.
    pub id: String,
    /// The version of the node's service.
    pub version: String,
    /// Its labels, as `KEY=VALUE`.
    pub labels: Vec<String>,
    /// How many sessions it has at most.
    pub sessions: u64,
    /// For how many more sessions it has room.
    pub free: u64,
    /// Whether it takes no more sessions and ends soon.
    pub draining: bool,
    /// What the node's own handler says. `null` if it says nothing.
    #[serde(default)]
    pub details: Value,
    /// Why there are no details.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Fleet {
    /// The status of all nodes that answer within a second, by name. With `full`, the details may be as
    /// long as a message can be. A service without nodes has none. Cancelling this has no effect.
    ///
    /// # Errors
    ///
    /// If there is no connection to the NATS server; [`Error::NoAnswer`] or [`Error::NoInbox`] if there is no answer, and NATS
    /// does not say that the service has no nodes.
    ///
    /// ```no_run
    /// # async fn example(fleet: &taskfork_nats::Fleet) -> Result<(), taskfork_nats::Error> {
    /// println!("{} nodes", fleet.status(false).await?.len());
    /// # Ok(())
    /// # }
    /// ```
    pub async fn status(&self, full: bool) -> Result<Vec<NodeStatus>, Error> {
        let subject = self.inner.subjects.status();
        let nodes = self.ask_status(subject.clone(), full, MAX_NODES).await?;
        let client = &self.inner.common.client;
        if nodes.is_empty() && !inbox::has_answer(client, subject.clone()).await? {
            inbox::check(client).await?;
            let service = self.inner.service.to_string();
            return Err(Error::NoAnswer { service, waited: inbox::WAIT, subject });
        }
        Ok(nodes)
    }

    /// The status of one node. `None` if it does not answer within a second.
    ///
    /// # Errors
    ///
    /// If the name is wrong, or there is no connection to the NATS server.
    ///
    /// ```no_run
    /// # async fn example(fleet: &taskfork_nats::Fleet) -> Result<(), taskfork_nats::Error> {
    /// if let Some(node) = fleet.node_status("node-1", true).await? {
    ///     println!("{}", node.details);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn node_status(&self, node: &str, full: bool) -> Result<Option<NodeStatus>, Error> {
        let subject = self.inner.subjects.status_of(&Name::node(node)?);
        Ok(self.ask_status(subject, full, 1).await?.pop())
    }

    /// What happened lately at one node, as its handler says. `None` if it does not answer within five seconds.
    ///
    /// # Errors
    ///
    /// If the name is wrong, or there is no connection to the NATS server.
    ///
    /// ```no_run
    /// use taskfork_nats::Recent;
    ///
    /// # async fn example(fleet: &taskfork_nats::Fleet) -> Result<(), taskfork_nats::Error> {
    /// if let Some(node) = fleet.node_recent("node-1", Recent::new(0, None)).await? {
    ///     println!("{}", node.details);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn node_recent(
        &self,
        node: &str,
        recent: Recent,
    ) -> Result<Option<NodeStatus>, Error> {
        let subject = self.inner.subjects.status_of(&Name::node(node)?);
        let client = &self.inner.common.client;
        check_connected(client)?;
        let request = StatusRequest { full: false, recent: Some(recent) };
        let answer = ask_one(client, subject, request.encode(), RECENT_WAIT).await?;
        Ok(answer.and_then(|answer| serde_json::from_slice(&answer).ok()))
    }

    async fn ask_status(
        &self,
        subject: String,
        full: bool,
        most: usize,
    ) -> Result<Vec<NodeStatus>, Error> {
        let client = &self.inner.common.client;
        check_connected(client)?;
        let answers =
            gather(client, subject, StatusRequest { full, recent: None }.encode(), most).await?;
        let mut nodes: Vec<NodeStatus> =
            answers.iter().filter_map(|answer| serde_json::from_slice(answer).ok()).collect();
        nodes.sort_by(|a, b| a.node.cmp(&b.node));
        Ok(nodes)
    }
}
