//! The subjects where a node is asked for sessions, while it has room.
//!
//! A node joins with a quota: NATS delivers as many requests as there is room, and no more. So the usual way
//! of becoming full loses no request. Each subject has the quota, so together they can deliver more;
//! the node refuses what is too much, and the client asks again.

use std::pin::Pin;
use std::task::{Context, Poll};

use async_nats::{Client, Message, Subscriber};
use futures_util::stream::{SelectAll, Stream, StreamExt};

use crate::error::Error;

/// The subscriptions of a node that can be full.
pub(super) struct Group {
    client: Client,
    /// Subjects, and for each the queue group if there is one.
    subjects: Vec<(String, Option<String>)>,
    members: SelectAll<Member>,
    /// For each subject whether a member delivers requests. It changes only when that is so: what is cancelled is done by the
    /// next call.
    joined: Vec<bool>,
}

/// The subscription to one of the subjects.
struct Member {
    subscriber: Subscriber,
    subject: usize,
    /// How many more requests NATS delivers.
    left: usize,
    /// The node no longer wants requests from it. Some can be on their way.
    leaving: bool,
    ended: bool,
}

/// What a node learns from its subjects.
pub(super) enum Asked {
    /// A client asks for a session. NATS delivers so many more requests to the same subject.
    Session { message: Message, left: usize },
    /// NATS has delivered the quota of a subject, which needs another one.
    Quota,
}

enum Event {
    Request {
        message: Message,
        left: usize,
    },
    /// NATS has delivered the quota.
    Ended {
        subject: usize,
        leaving: bool,
    },
}

impl Group {
    pub(super) fn new(client: Client, subjects: Vec<(String, Option<String>)>) -> Self {
        let joined = vec![false; subjects.len()];
        Self { client, subjects, members: SelectAll::new(), joined }
    }

    /// Joins if there is room, or else leaves. A subject whose quota is used up gets a new one. If this is cancelled, the next
    /// call does the rest.
    pub(super) async fn set_room(&mut self, room: usize) -> Result<(), Error> {
        if room == 0 {
            for member in self.members.iter_mut().filter(|member| !member.leaving) {
                // It delivers what has come meanwhile, unlike `unsubscribe`.
                member.subscriber.drain().await.map_err(Error::closed)?;
                member.leaving = true;
                self.joined[member.subject] = false;
            }
            return Ok(());
        }
        for subject in 0..self.subjects.len() {
            if !self.joined[subject] {
                self.subscribe(subject, room).await?;
            }
        }
        Ok(())
    }

    /// What happens next. Waits for ever if the node has not joined. Cancelling loses nothing.
    pub(super) async fn next(&mut self) -> Asked {
        loop {
            match self.members.next().await {
                None => std::future::pending().await,
                Some(Event::Request { message, left }) => return Asked::Session { message, left },
                Some(Event::Ended { leaving: true, .. }) => {}
                Some(Event::Ended { subject, leaving: false }) => {
                    self.joined[subject] = false;
                    return Asked::Quota;
                }
            }
        }
    }

    async fn subscribe(&mut self, subject: usize, quota: usize) -> Result<(), Error> {
        let (name, queue) = self.subjects[subject].clone();
        let mut subscriber = match queue {
            Some(queue) => self.client.queue_subscribe(name, queue).await,
            None => self.client.subscribe(name).await,
        }
        .map_err(Error::closed)?;
        subscriber.unsubscribe_after(quota as u64).await.map_err(Error::closed)?;
        let member = Member { subscriber, subject, left: quota, leaving: false, ended: false };
        self.members.push(member);
        self.joined[subject] = true;
        Ok(())
    }
}

impl Stream for Member {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        if self.ended {
            return Poll::Ready(None);
        }
        self.subscriber.poll_next_unpin(cx).map(|message| {
            let Some(message) = message else {
                self.ended = true;
                return Some(Event::Ended { subject: self.subject, leaving: self.leaving });
            };
            self.left = self.left.saturating_sub(1);
            Some(Event::Request { message, left: if self.leaving { 0 } else { self.left } })
        })
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    use tokio::net::TcpListener;

    use super::*;

    /// Longer than a busy machine takes for a line.
    const LIMIT: std::time::Duration = std::time::Duration::from_secs(30);

    /// A NATS server that begins when it is asked for its first line, and the lines that it gets.
    struct Server {
        listener: TcpListener,
        lines: Option<BufReader<tokio::net::TcpStream>>,
    }

    impl Server {
        async fn next(&mut self) -> String {
            loop {
                let lines = match &mut self.lines {
                    Some(lines) => lines,
                    None => {
                        let (mut stream, _) = self.listener.accept().await.unwrap();
                        let info = "INFO {\"server_id\":\"\",\"version\":\"2.10.0\",\"host\":\"\",\"port\":1,\
                                    \"headers\":true,\"max_payload\":1048576,\"proto\":1}\r\n";
                        stream.write_all(info.as_bytes()).await.unwrap();
                        self.lines.insert(BufReader::new(stream))
                    }
                };
                let mut line = String::new();
                let read = tokio::time::timeout(LIMIT, lines.read_line(&mut line)).await;
                read.expect("a line").unwrap();
                if line.starts_with("PING") {
                    lines.get_mut().write_all(b"PONG\r\n").await.unwrap();
                } else if line.starts_with("SUB") || line.starts_with("UNSUB") {
                    return line.trim_end().to_owned();
                }
            }
        }

        /// The next lines, sorted.
        async fn next_lines<const N: usize>(&mut self) -> [String; N] {
            let mut lines = [const { String::new() }; N];
            for line in &mut lines {
                *line = self.next().await;
            }
            lines.sort();
            lines
        }
    }

    /// A group with these subjects, whose client has room for so many commands until the server begins.
    async fn group(subjects: usize, commands: usize) -> (Group, Server) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("nats://{}", listener.local_addr().unwrap());
        let options = async_nats::ConnectOptions::new().client_capacity(commands);
        let client = options.retry_on_initial_connect().connect(url).await.unwrap();
        let subjects = (1..=subjects).map(|number| (format!("s{number}"), None)).collect();
        (Group::new(client, subjects), Server { listener, lines: None })
    }

    #[tokio::test]
    async fn a_cancelled_leave_is_done_by_the_next_one() {
        // As many commands as joining needs.
        let (mut group, mut server) = group(2, 4).await;
        group.set_room(1).await.unwrap();
        assert!(group.set_room(0).now_or_never().is_none(), "it waits for NATS");

        let left = async {
            assert_eq!(
                server.next_lines().await,
                ["SUB s1 1", "SUB s2 2", "UNSUB 1 1", "UNSUB 2 1"]
            );
            assert_eq!(server.next_lines().await, ["UNSUB 1", "UNSUB 2"]);
        };
        let (left, ()) = tokio::join!(group.set_room(0), left);
        left.unwrap();
    }

    #[tokio::test]
    async fn a_cancelled_join_is_done_by_the_next_one() {
        // As many commands as the first subject needs.
        let (mut group, mut server) = group(2, 2).await;
        assert!(group.set_room(1).now_or_never().is_none(), "it waits for NATS");

        let joined = async {
            let lines = server.next_lines().await;
            assert_eq!(lines, ["SUB s1 1", "SUB s2 3", "UNSUB 1 1", "UNSUB 3 1"]);
        };
        let (outcome, ()) = tokio::join!(group.set_room(1), joined);
        outcome.unwrap();
    }
}
