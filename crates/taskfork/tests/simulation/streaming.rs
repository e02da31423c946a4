//! A call of a worker process that streams.

use std::collections::VecDeque;

use taskfork::Blob;

use super::caller::{fill, has_only};
use super::plan::Fault;
use super::worker::{Exit, MAX_FRAME, Outcome, Worker};
use crate::blob;
use crate::wire::WireError;
use crate::wire::credit::{Allowance, WINDOW, Window, item_cost};
use crate::wire::frame::{self, ATOMIC_WRITE, HEADER_LEN};
use crate::wire::gather_frame::GatherFrame;
use crate::wire::native::{self, CallMeta, FromClient};
use crate::wire::values::{self, ValueFormat};
use crate::worker::scoreboard::Phase;

/// What the method does: it sends so many items, takes so many at most, and its items have this length.
pub(super) struct Streaming {
    pub(super) sends: u64,
    pub(super) takes: u64,
    pub(super) length: u64,
}

/// The state of such a call.
struct Running {
    number: u64,
    id: u64,
    allowance: Allowance,
    window: Window,
    /// The items that were not taken: whether they are right, and their costs.
    queue: VecDeque<(bool, u64)>,
    received: u64,
    has_ended: bool,
    is_cancelled: bool,
}

impl Worker {
    /// Runs a call that streams.
    pub(super) async fn stream(
        &mut self,
        number: u64,
        id: u64,
        streaming: Streaming,
        meta: &CallMeta<'_>,
    ) -> Result<Outcome, Exit> {
        let Streaming { sends, takes, length } = streaming;
        let takes = if meta.input { takes } else { 0 };
        let mut running = Running {
            number,
            id,
            allowance: Allowance::new(meta.items.unwrap_or_default()),
            window: Window::default(),
            queue: VecDeque::new(),
            received: 0,
            has_ended: false,
            is_cancelled: false,
        };
        if meta.input {
            self.give_credit(number, WINDOW).await?;
        }
        let worker = self.process.number;
        let (mut sent, mut taken) = (0, 0);
        while !running.is_cancelled {
            let may_come = !running.has_ended || !running.queue.is_empty();
            if sent == sends && (taken == takes || !may_come) {
                break;
            }
            // In the middle.
            if sent + taken > (sends + takes) / 2
                && self.has(Fault::DieRunning { worker, call: number })
            {
                return Err(Exit::CRASH);
            }
            if taken < takes
                && let Some((is_right, cost)) = running.queue.pop_front()
            {
                taken += 1;
                if !is_right {
                    self.process.monitor.complain(format!("call {id} gets a wrong item"));
                }
                if let Some(credit) = running.window.take(cost) {
                    self.give_credit(number, credit).await?;
                }
            } else if sent < sends && running.allowance.allows() {
                let cost = self.send_item(&running, sent, length).await?;
                running.allowance.spend(cost);
                sent += 1;
            } else {
                let message = self.take().await?;
                let files = self.link.take_files()?;
                match FromClient::decode(&message) {
                    Ok(FromClient::Item(item)) => {
                        let attachments = self.link.attachments(files)?;
                        let files = attachments.files.len();
                        let is_right = blob::within(Some(&message), attachments, || {
                            running.is_right(item.value)
                        });
                        let received = running.window.receive(item.cost, message.len(), files);
                        if item.call != Some(number) || running.has_ended || received.is_err() {
                            return Err(Exit::PROTOCOL);
                        }
                        running.received += 1;
                        running.queue.push_back((is_right, item.cost));
                    }
                    Ok(FromClient::Files(count)) => self.link.announce_files(count),
                    Ok(FromClient::Shm(message)) => self.link.handle_shared(message)?,
                    Ok(message) => running.handle(&message)?,
                    Err(_) => return Err(Exit::PROTOCOL),
                }
            }
        }
        Ok(Outcome::Number(id))
    }

    async fn give_credit(&mut self, number: u64, credit: u64) -> Result<(), Exit> {
        let mut out = GatherFrame::default();
        self.link.put_released(&mut out.bytes);
        frame::put(&mut out.bytes, |out| native::put_credit(out, number, credit));
        self.send(&out).await
    }

    /// Sends an item. Returns its cost.
    async fn send_item(&mut self, running: &Running, sent: u64, length: u64) -> Result<u64, Exit> {
        let mut out = GatherFrame::default();
        let bytes = Blob::from(vec![fill(running.id); length as usize]);
        let written = out.write::<WireError>(MAX_FRAME, |out| {
            native::put_item(out);
            let encoded = values::encode(&(sent, &bytes), out);
            encoded.map_err(|error| WireError::malformed(error.to_string()))
        });
        let cost = item_cost(out.len() - HEADER_LEN, out.files.len());
        native::set_item_call(&mut out.bytes[HEADER_LEN..], running.number);
        native::set_item_cost(&mut out.bytes[HEADER_LEN..], cost);
        if written.is_err() || !self.link.fit(&mut out) {
            self.process.monitor.complain("an item is too long");
        }
        let is_long = out.len() > ATOMIC_WRITE;
        if is_long {
            self.process.slot.check_deadline();
            self.enter(Phase::SendingItem).await?;
        }
        self.send(&out).await?;
        self.link.answered(&out);
        if is_long {
            self.process.slot.resume_call().map_err(Exit::from)?;
            self.process.slot.wake_server();
            if self.process.slot.is_client_gone() {
                return Err(Exit::REGULAR);
            }
        }
        Ok(cost)
    }
}

impl Running {
    /// Whether an item is the next one of the call.
    fn is_right(&self, item: &[u8]) -> bool {
        let decoded = values::decode::<(u64, Blob)>(item, ValueFormat::MessagePack);
        decoded
            .is_ok_and(|(place, bytes)| place == self.received && has_only(&bytes, fill(self.id)))
    }

    fn handle(&mut self, message: &FromClient<'_>) -> Result<(), Exit> {
        match message {
            FromClient::Credit { call, credit } if *call == self.number => {
                self.allowance.grant(*credit).map_err(|_| Exit::PROTOCOL)?;
            }
            FromClient::InputEnd(end) if end.call == self.number => self.has_ended = true,
            FromClient::Cancel(call) => self.is_cancelled |= *call == self.number,
            FromClient::QueueLength(_) | FromClient::Credit { .. } => {}
            _ => return Err(Exit::PROTOCOL),
        }
        Ok(())
    }
}
