//! A worker process: it speaks the protocol, and dies when the plan says so.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use taskfork::Blob;
use tokio::sync::oneshot;

use super::caller::{fill, has_only};
use super::check::Monitor;
use super::plan::Fault;
use super::slot::Slot;
use crate::client::memory::Memory;
use crate::error::End;
use crate::wire::death_notice::DeathNotice;
use crate::wire::error_body::{ErrorBody, kind};
use crate::wire::frame::{self, ATOMIC_WRITE, PREAMBLE};
use crate::wire::hello::WorkerHello;
use crate::wire::native::{self, CallMeta, CallMode, FromClient};
use crate::wire::values::ValueFormat;
use crate::worker::scoreboard::{Phase, Retirement, StopRequest};

/// The longest frame of either side, in bytes.
pub(super) const MAX_FRAME: usize = 1 << 16;

/// How many bytes of calls a worker reads ahead to find cancellations.
const READ_AHEAD: usize = 128 << 10;

/// Where a worker has its connection from, and whether the server has sent the preamble on it.
pub(super) enum Connection {
    Given(Memory, bool),
    Awaited(oneshot::Receiver<(Memory, bool)>),
}

/// A worker process.
pub(super) struct Process {
    pub(super) number: u64,
    pub(super) slot: Slot,
    pub(super) monitor: Monitor,
    pub(super) faults: Vec<Fault>,
    pub(super) window: usize,
    pub(super) max_calls: Option<u64>,
}

/// A worker process with a client.
struct Worker {
    process: Process,
    stream: Memory,
    inbox: BytesMut,
    messages: VecDeque<Bytes>,
}

/// Why a worker process ends: its client or its server wants that, or a fault.
pub(super) struct Exit(pub(super) End);

impl Exit {
    const REGULAR: Self = Self(End::Exited(0));
    const CRASH: Self = Self(End::Signaled(11));
}

impl From<StopRequest> for Exit {
    fn from(_: StopRequest) -> Self {
        Self::REGULAR
    }
}

/// How a call goes on after it has begun.
enum Outcome {
    Result(Vec<u8>),
    Error(ErrorBody<'static>, String),
}

impl Process {
    /// Runs until it ends.
    pub(super) async fn run(self, connection: Connection) -> End {
        let slot = self.slot.clone();
        let Err(Exit(end)) = self.serve(connection).await;
        if end == End::Exited(0) {
            // A refusal means that SIGKILL is on its way, or that this was ordered.
            let _ = slot.enter(Phase::Retired);
        }
        end
    }

    async fn serve(self, connection: Connection) -> Result<Infallible, Exit> {
        let (stream, is_preamble_sent, is_spare) = match connection {
            Connection::Given(stream, is_preamble_sent) => (stream, is_preamble_sent, false),
            Connection::Awaited(channel) => {
                self.set_up().await?;
                self.enter(Phase::Spare).await?;
                let (stream, is_preamble_sent) = channel.await.map_err(|_| Exit::REGULAR)?;
                self.enter(Phase::Handshake).await?;
                (stream, is_preamble_sent, true)
            }
        };
        let (inbox, messages) = (BytesMut::new(), VecDeque::new());
        let mut worker = Worker { process: self, stream, inbox, messages };
        worker.greet(is_preamble_sent).await?;
        if worker.process.slot.is_client_gone() {
            return Err(Exit::REGULAR);
        }
        if !is_spare {
            worker.process.set_up().await?;
        }
        worker.serve_checkouts().await
    }

    fn has(&self, fault: Fault) -> bool {
        self.faults.contains(&fault)
    }

    async fn set_up(&self) -> Result<(), Exit> {
        self.enter(Phase::Setup).await?;
        match self.has(Fault::DieInSetup { worker: self.number }) {
            true => Err(Exit::CRASH),
            false => Ok(()),
        }
    }

    /// Enters a phase. Other processes may run before the next one.
    async fn enter(&self, phase: Phase) -> Result<(), Exit> {
        self.slot.running().await;
        let Err(request) = self.slot.enter(phase) else {
            self.monitor.step(|| format!("worker {} is {phase:?}", self.number));
            return Ok(());
        };
        if request == StopRequest::Kill {
            // SIGKILL is on its way.
            std::future::pending::<()>().await;
        }
        Err(request.into())
    }
}

impl Worker {
    fn has(&self, fault: Fault) -> bool {
        self.process.has(fault)
    }

    async fn enter(&self, phase: Phase) -> Result<(), Exit> {
        self.process.enter(phase).await
    }

    /// The handshake.
    async fn greet(&mut self, is_preamble_sent: bool) -> Result<(), Exit> {
        let worker = self.process.number;
        while !frame::take_preamble(&mut self.inbox).map_err(|_| Exit::REGULAR)? {
            self.receive().await?;
        }
        self.take().await?;
        for fault in &self.process.faults {
            if let Fault::Slow { time, .. } = fault {
                tokio::time::sleep(Duration::from_millis(*time)).await;
            }
        }
        if self.has(Fault::DieUngreeted { worker }) {
            return Err(Exit::CRASH);
        }
        let mut hello = if is_preamble_sent { Vec::new() } else { PREAMBLE.to_vec() };
        let contents = WorkerHello {
            version: 1,
            pid: worker as u32,
            worker,
            max_frame: Some(MAX_FRAME),
            pipeline_window: self.process.window,
            ..Default::default()
        };
        frame::put(&mut hello, |out| contents.put(out));
        self.send(&hello).await?;
        if self.has(Fault::DieGreeted { worker }) {
            return Err(Exit::CRASH);
        }
        Ok(())
    }

    async fn serve_checkouts(&mut self) -> Result<Infallible, Exit> {
        loop {
            self.enter(Phase::Idle).await?;
            if self.process.slot.should_retire() {
                return Err(Exit::REGULAR);
            }
            self.serve_checkout().await?;
            let calls = self.process.slot.view().calls;
            if self.process.max_calls.is_some_and(|most| calls >= most) {
                self.process.slot.request_retirement(Retirement::Calls);
                // The phase shows that a call which arrives from here on has not begun.
                self.enter(Phase::Retired).await?;
                return Err(Exit::REGULAR);
            }
        }
    }

    async fn serve_checkout(&mut self) -> Result<(), Exit> {
        loop {
            let message = self.take().await?;
            match FromClient::decode(&message) {
                Ok(FromClient::Call { mode, method, args, meta }) => {
                    let method = method.unwrap_or_default();
                    self.serve_call(mode, method, args.encoded(), &meta).await?;
                }
                Ok(FromClient::Done) => {
                    self.process.slot.count_checkout();
                    return self.enter(Phase::CheckoutDone).await;
                }
                Ok(_) => {}
                Err(_) => return Err(Exit::REGULAR),
            }
        }
    }

    async fn serve_call(
        &mut self,
        mode: CallMode,
        method: &str,
        args: &[u8],
        meta: &CallMeta<'_>,
    ) -> Result<(), Exit> {
        self.read_ahead();
        let number = self.process.slot.begin_number(mode == CallMode::Sequential);
        let (worker, call) = (self.process.number, number);
        if self.has(Fault::DieBefore { worker, call }) {
            return Err(Exit::CRASH);
        }
        let mut answer = Vec::new();
        if self.process.slot.is_failing() || self.is_cancelled(number) {
            self.process.slot.count_skipped();
            frame::put(&mut answer, |out| native::put_skipped(out, Some(number)));
        } else {
            self.process.slot.set_call(meta);
            self.enter(Phase::Busy).await?;
            self.process.slot.wake_server();
            if self.process.slot.is_client_gone() {
                return Err(Exit::REGULAR);
            }
            let mut reader = rmp_serde::Deserializer::new(args);
            let id: u64 = serde::Deserialize::deserialize(&mut reader).map_err(|_| Exit::CRASH)?;
            self.process.monitor.begun(id, worker);
            if self.has(Fault::Corrupt { worker, call }) {
                self.process.slot.corrupt();
            }
            let outcome = self.run(method, id, &mut reader).await?;
            if self.has(Fault::DieRunning { worker, call }) {
                return Err(Exit::CRASH);
            }
            self.send_garbage(number, id).await?;
            self.encode(&mut answer, number, id, outcome);
        }
        self.process.slot.check_deadline();
        let is_long = answer.len() > ATOMIC_WRITE;
        self.enter(if is_long { Phase::AnsweringLong } else { Phase::Answering }).await?;
        if self.has(Fault::DieAnswering { worker, call }) {
            if is_long {
                self.send(&answer[..answer.len() / 2]).await?;
            }
            return Err(Exit::CRASH);
        }
        self.send(&answer).await?;
        if self.has(Fault::DieAfter { worker, call }) {
            return Err(Exit::CRASH);
        }
        self.enter(Phase::Held).await
    }

    async fn run(
        &mut self,
        method: &str,
        id: u64,
        rest: &mut rmp_serde::Deserializer<rmp_serde::decode::ReadReader<&[u8]>>,
    ) -> Result<Outcome, Exit> {
        let mut number = || serde::Deserialize::deserialize(&mut *rest).map_err(|_| Exit::CRASH);
        let mut result = Vec::new();
        match method {
            "sleep" => {
                let time: u64 = number()?;
                tokio::time::sleep(Duration::from_millis(time)).await;
            }
            "hang" => std::future::pending().await,
            "die" => return Err(Exit(End::Signaled(6))),
            "fail" => {
                let body = ErrorBody { kind: kind::INTERFACE, ..ErrorBody::default() };
                return Ok(Outcome::Error(body, id.to_string()));
            }
            "get" => {
                let length: u64 = number()?;
                let bytes = vec![fill(id); length as usize];
                let blob = Blob::from(bytes);
                result = rmp_serde::to_vec(&blob).map_err(|_| Exit::CRASH)?;
            }
            "send" => {
                let blob: Blob =
                    serde::Deserialize::deserialize(&mut *rest).map_err(|_| Exit::CRASH)?;
                if !has_only(&blob, fill(id)) {
                    self.process.monitor.complain(format!("call {id} has wrong bytes"));
                }
            }
            _ => {}
        }
        if result.is_empty() {
            result = rmp_serde::to_vec(&id).map_err(|_| Exit::CRASH)?;
        }
        Ok(Outcome::Result(result))
    }

    /// Encodes an answer. A result that does not fit into a frame is an error.
    fn encode(&mut self, answer: &mut Vec<u8>, number: u64, id: u64, outcome: Outcome) {
        let (body, message) = match outcome {
            Outcome::Result(value) => {
                frame::put(answer, |out| {
                    native::put_ok(out, Some(number), ValueFormat::from_json_flag(false));
                    out.extend_from_slice(&value);
                });
                if answer.len() - frame::HEADER_LEN <= MAX_FRAME {
                    return;
                }
                answer.clear();
                let body = ErrorBody { kind: kind::RESULT, ..ErrorBody::default() };
                (body, "it is too long".to_owned())
            }
            Outcome::Error(body, message) => (body, message),
        };
        self.process.slot.set_failing();
        self.process.monitor.failed(id);
        let error = ErrorBody { message: &message, ..body };
        frame::put(answer, |out| native::put_error(out, Some(number), &error));
    }

    /// Sends wrong bytes, if the plan says so, and ends.
    async fn send_garbage(&mut self, number: u64, id: u64) -> Result<(), Exit> {
        let is_now =
            |fault: &&Fault| matches!(fault, Fault::Garbage { call, .. } if *call == number);
        let Some(&Fault::Garbage { kind, .. }) = self.process.faults.iter().find(is_now) else {
            return Ok(());
        };
        let mut out = Vec::new();
        match kind {
            0 => out.extend([0xff; 40]),
            // The answer of another call.
            1 => frame::put(&mut out, |out| {
                native::put_ok(out, Some(number + 1), ValueFormat::from_json_flag(false));
                out.extend(rmp_serde::to_vec(&(id + 1)).unwrap_or_default());
            }),
            2 => frame::put(&mut out, |out| out.extend([0xc1; 9])),
            3 => {
                let notice = DeathNotice { pid: 1, calls: u64::MAX, ..Default::default() };
                frame::put(&mut out, |out| notice.put(out));
            }
            _ => frame::put(&mut out, |out| WorkerHello::default().put(out)),
        }
        self.send(&out).await?;
        Err(Exit::CRASH)
    }

    /// Takes the next message.
    async fn take(&mut self) -> Result<Bytes, Exit> {
        loop {
            self.process.slot.running().await;
            if let Some(message) = self.messages.pop_front() {
                return Ok(message);
            }
            if let Some(message) = self.take_received()? {
                self.process
                    .monitor
                    .step(|| format!("worker {} takes a message", self.process.number));
                return Ok(message);
            }
            self.receive().await?;
        }
    }

    fn take_received(&mut self) -> Result<Option<Bytes>, Exit> {
        frame::take(&mut self.inbox, MAX_FRAME).map_err(|_| Exit::REGULAR)
    }

    /// Reads what has arrived, so that cancellations are found.
    fn read_ahead(&mut self) {
        let bytes = self.messages.iter().map(Bytes::len).sum::<usize>();
        if bytes < READ_AHEAD {
            self.stream.receive_ready(&mut self.inbox);
            while let Ok(Some(message)) = frame::take(&mut self.inbox, MAX_FRAME) {
                self.messages.push_back(message);
            }
        }
    }

    fn is_cancelled(&self, number: u64) -> bool {
        self.messages.iter().any(|message| native::cancelled_call(message) == Some(number))
    }

    async fn receive(&mut self) -> Result<(), Exit> {
        self.stream.receive(&mut self.inbox).await.map(|_| ()).ok_or(Exit::REGULAR)
    }

    /// Sends bytes: a short message whole or not at all, as the kernel does.
    async fn send(&mut self, bytes: &[u8]) -> Result<(), Exit> {
        self.process.slot.running().await;
        self.process
            .monitor
            .step(|| format!("worker {} sends {} bytes", self.process.number, bytes.len()));
        let sent = match bytes.len() <= ATOMIC_WRITE {
            true => self.stream.send_whole(bytes).await,
            false => self.stream.send(bytes).await,
        };
        sent.ok_or(Exit::REGULAR)
    }
}
