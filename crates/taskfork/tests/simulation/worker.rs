//! A worker process: it speaks the protocol, and dies when the plan says so.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use taskfork::Blob;
use taskfork::blob::OpenFile;
use tokio::sync::oneshot;

use super::caller::{fill, has_only, write_fill};
use super::link::{Link, Options};
use super::monitor::Monitor;
use super::plan::Fault;
use super::slot::Slot;
use super::streaming::Streaming;
use crate::blob;
use crate::client::memory::Memory;
use crate::error::End;
use crate::wire::WireError;
use crate::wire::death_notice::DeathNotice;
use crate::wire::error_body::{ErrorBody, kind};
use crate::wire::frame::{self, ATOMIC_WRITE, PREAMBLE};
use crate::wire::gather_frame::GatherFrame;
use crate::wire::hello::WorkerHello;
use crate::wire::native::{self, CallMeta, CallMode, FromClient};
use crate::wire::values::{self, ValueFormat};
use crate::worker::scoreboard::{Phase, Retirement, StopRequest};

/// The longest frame of either side, in bytes.
pub(super) const MAX_FRAME: usize = 1 << 16;

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
    pub(super) setup_time: Duration,
    pub(super) options: Options,
}

/// A worker process with a client.
pub(super) struct Worker {
    pub(super) process: Process,
    pub(super) link: Link,
}

/// Why a worker process ends: its client or its server wants that, or a fault.
#[derive(PartialEq, Eq)]
pub(super) struct Exit {
    end: End,
    /// Its slot says that it begins nothing more.
    is_retired: bool,
}

impl Exit {
    pub(super) const REGULAR: Self = Self { end: End::Exited(0), is_retired: true };
    pub(super) const CRASH: Self = Self { end: End::Signaled(11), is_retired: false };
    const ABORT: Self = Self { end: End::Signaled(6), is_retired: false };
    /// The client has sent what makes no sense.
    pub(super) const PROTOCOL: Self = Self { end: End::Exited(0), is_retired: false };
}

impl From<StopRequest> for Exit {
    fn from(_: StopRequest) -> Self {
        Self::REGULAR
    }
}

/// What a call asks for.
enum Task {
    Echo,
    Sleep(Duration),
    Hang,
    Die,
    Fail,
    Send(Blob),
    Get(usize),
    Pass(OpenFile),
    Open,
    Stream(Streaming),
}

/// How a call goes on after it has begun.
pub(super) enum Outcome {
    Number(u64),
    Bytes(Blob),
    File(OpenFile),
    Failed,
}

impl Process {
    /// Runs until it ends.
    pub(super) async fn run(self, connection: Connection) -> End {
        let slot = self.slot.clone();
        let Err(Exit { end, is_retired }) = self.serve(connection).await;
        if is_retired {
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
        let link = Link::new(self.options, self.slot.clone(), self.monitor.clone(), stream);
        let mut worker = Worker { process: self, link };
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
        let slower = self.faults.iter().find_map(|fault| match *fault {
            Fault::SlowSetup { time, .. } => Some(Duration::from_millis(time)),
            _ => None,
        });
        let time = self.setup_time + slower.unwrap_or_default();
        if !time.is_zero() {
            tokio::time::sleep(time).await;
        }
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
    pub(super) fn has(&self, fault: Fault) -> bool {
        self.process.has(fault)
    }

    pub(super) async fn enter(&self, phase: Phase) -> Result<(), Exit> {
        self.process.enter(phase).await
    }

    /// The handshake.
    async fn greet(&mut self, is_preamble_sent: bool) -> Result<(), Exit> {
        let worker = self.process.number;
        self.link.take_preamble().await?;
        match FromClient::decode(&self.take().await?) {
            Ok(FromClient::Hello(hello)) => self.link.accept_hello(&hello),
            _ => return Err(Exit::PROTOCOL),
        }
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
            max_files: self.link.max_files(),
            accepts_single_calls: worker.is_multiple_of(2),
            sends_items: true,
            takes_input: true,
            ..Default::default()
        };
        frame::put(&mut hello, |out| contents.put(out));
        self.send(&GatherFrame { bytes: hello, ..GatherFrame::default() }).await?;
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
            let files = self.link.take_files()?;
            match FromClient::decode(&message) {
                Ok(FromClient::Call { mode, method, args, meta }) => {
                    let attachments = self.link.attachments(files)?;
                    let read = || Task::read(method.unwrap_or_default(), args.encoded());
                    self.serve_call(mode, &meta, || {
                        blob::within(Some(&message), attachments, read)
                    })
                    .await?;
                    if mode == CallMode::Single {
                        return self.end_checkout().await;
                    }
                }
                Ok(FromClient::Done) => return self.end_checkout().await,
                Ok(FromClient::Files(count)) => self.link.announce_files(count),
                Ok(FromClient::Shm(message)) => self.link.handle_shared(message)?,
                Ok(FromClient::Rings) => self.link.accept_rings().await?,
                Ok(
                    FromClient::QueueLength(_)
                    | FromClient::Cancel(_)
                    | FromClient::Credit { .. }
                    | FromClient::InputEnd(_),
                ) => {}
                // Of a call that has been answered.
                Ok(FromClient::Item(_)) => drop(self.link.attachments(files)?),
                Ok(FromClient::Hello(_)) | Err(_) => return Err(Exit::PROTOCOL),
            }
        }
    }

    async fn end_checkout(&self) -> Result<(), Exit> {
        self.process.slot.count_checkout();
        self.enter(Phase::CheckoutDone).await
    }

    async fn serve_call(
        &mut self,
        mode: CallMode,
        meta: &CallMeta<'_>,
        read: impl FnOnce() -> Option<(u64, Task)>,
    ) -> Result<(), Exit> {
        self.link.read_ahead();
        let number = self.process.slot.begin_number(mode != CallMode::Pipelined);
        let (worker, call) = (self.process.number, number);
        if self.has(Fault::DieBefore { worker, call }) {
            return Err(Exit::CRASH);
        }
        let mut answer = GatherFrame::default();
        if self.process.slot.is_failing() || self.link.is_cancelled(number) {
            self.process.slot.count_skipped();
            frame::put(&mut answer.bytes, |out| native::put_skipped(out, Some(number)));
        } else {
            self.process.slot.set_call(meta);
            self.enter(Phase::Busy).await?;
            self.process.slot.wake_server();
            if self.process.slot.is_client_gone() {
                return Err(Exit::REGULAR);
            }
            let Some((id, task)) = read() else {
                self.process.monitor.complain(format!("worker {worker} gets a call that is wrong"));
                return Err(Exit::CRASH);
            };
            self.process.monitor.begun(id, worker);
            if self.has(Fault::Corrupt { worker, call }) {
                self.process.slot.corrupt();
            }
            let outcome = match task {
                Task::Stream(streaming) => self.stream(number, id, streaming, meta).await?,
                task => self.run(id, task).await?,
            };
            if self.has(Fault::DieRunning { worker, call }) {
                return Err(Exit::CRASH);
            }
            self.send_garbage(number, id).await?;
            self.encode(&mut answer, number, id, &outcome);
        }
        self.link.put_control(&mut answer);
        self.process.slot.check_deadline();
        let is_long = answer.len() > ATOMIC_WRITE;
        self.enter(if is_long { Phase::AnsweringLong } else { Phase::Answering }).await?;
        if self.has(Fault::DieAnswering { worker, call }) {
            if is_long {
                self.link.send_part(&answer, answer.len() / 2).await?;
            }
            return Err(Exit::CRASH);
        }
        self.send(&answer).await?;
        self.link.answered(&answer);
        if self.has(Fault::DieAfter { worker, call }) {
            return Err(Exit::CRASH);
        }
        self.enter(Phase::Held).await
    }

    async fn run(&self, id: u64, task: Task) -> Result<Outcome, Exit> {
        match task {
            Task::Echo | Task::Stream(_) => {}
            Task::Sleep(time) => tokio::time::sleep(time).await,
            Task::Hang => std::future::pending().await,
            Task::Die => return Err(Exit::ABORT),
            Task::Fail => return Ok(Outcome::Failed),
            Task::Get(length) => return Ok(Outcome::Bytes(vec![fill(id); length].into())),
            Task::Send(blob) => {
                if !has_only(&blob, fill(id)) {
                    self.process.monitor.complain(format!("call {id} has wrong bytes"));
                }
            }
            Task::Pass(file) => write_fill(file, id),
            Task::Open => {
                if let Some(file) = self.process.monitor.pipe(id) {
                    return Ok(Outcome::File(file));
                }
            }
        }
        Ok(Outcome::Number(id))
    }

    /// Encodes an answer. A result that the client cannot get is an error.
    fn encode(&mut self, answer: &mut GatherFrame, number: u64, id: u64, outcome: &Outcome) {
        let written = answer.write(MAX_FRAME, |out| {
            native::put_ok(out, Some(number), ValueFormat::from_json_flag(false));
            let encoded = match outcome {
                Outcome::Number(number) => values::encode(number, out),
                Outcome::Bytes(bytes) => values::encode(bytes, out),
                Outcome::File(file) => values::encode(file, out),
                Outcome::Failed => Ok(()),
            };
            encoded.map_err(|error| WireError::malformed(error.to_string()))
        });
        let (kind, message) = match outcome {
            Outcome::Failed => (kind::INTERFACE, id.to_string()),
            _ if written.is_ok() && self.link.fit(answer) => return,
            _ => (kind::RESULT, "it is too long".to_owned()),
        };
        *answer = GatherFrame::default();
        self.process.slot.set_failing();
        self.process.monitor.failed(id);
        let error = ErrorBody { kind, message: &message, ..ErrorBody::default() };
        frame::put(&mut answer.bytes, |out| native::put_error(out, Some(number), &error));
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
        self.send(&GatherFrame { bytes: out, ..GatherFrame::default() }).await?;
        Err(Exit::CRASH)
    }

    /// Takes the next message.
    pub(super) async fn take(&mut self) -> Result<Bytes, Exit> {
        let message = self.link.take().await?;
        self.process.monitor.step(|| format!("worker {} takes a message", self.process.number));
        Ok(message)
    }

    pub(super) async fn send(&mut self, message: &GatherFrame) -> Result<(), Exit> {
        let number = self.process.number;
        self.process.monitor.step(|| format!("worker {number} sends {} bytes", message.len()));
        self.link.send(message).await
    }
}

impl Task {
    /// Reads the arguments of a call: the first is its number.
    fn read(method: &str, args: &[u8]) -> Option<(u64, Self)> {
        let mut reader = rmp_serde::Deserializer::new(args);
        let id: u64 = serde::Deserialize::deserialize(&mut reader).ok()?;
        let mut number = || serde::Deserialize::deserialize(&mut reader).ok();
        let task = match method {
            "echo" => Self::Echo,
            "sleep" => Self::Sleep(Duration::from_millis(number()?)),
            "hang" => Self::Hang,
            "die" => Self::Die,
            "fail" => Self::Fail,
            "get" => Self::Get(usize::try_from(number()?).ok()?),
            "send" => Self::Send(serde::Deserialize::deserialize(&mut reader).ok()?),
            "pass" => Self::Pass(serde::Deserialize::deserialize(&mut reader).ok()?),
            "open" => Self::Open,
            "stream" => {
                let [sends, takes, length] = [number()?, number()?, number()?];
                Self::Stream(Streaming { sends, takes, length })
            }
            _ => return None,
        };
        Some((id, task))
    }
}
