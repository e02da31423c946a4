//! A worker, and its server as far as a client notices it.

use std::future::poll_fn;
use std::io::IoSlice;

use bytes::{Bytes, BytesMut};

use super::plan::{Deed, WorkerPlan};
use super::{MAX_FRAME, SharedRecord};
use crate::client::io::transport::Transport;
use crate::client::io::transport::memory::Memory;
use crate::sync::lock;
use crate::wire::death_notice::DeathNotice;
use crate::wire::error_body::{ErrorBody, kind};
use crate::wire::frame::{self, PREAMBLE};
use crate::wire::hello::WorkerHello;
use crate::wire::native::{self, CallMode, FromClient};

/// A worker. The result of a call is its argument, which is a number.
pub(super) struct Worker {
    stream: Memory,
    inbox: BytesMut,
    plan: WorkerPlan,
    record: SharedRecord,
}

impl Worker {
    pub(super) fn new(stream: Memory, plan: WorkerPlan, record: SharedRecord) -> Self {
        Self { stream, inbox: BytesMut::new(), plan, record }
    }

    pub(super) async fn serve(mut self) {
        // `None` is the end of the connection, from either side.
        let _: Option<()> = self.serve_client().await;
        lock(&self.record).workers -= 1;
    }

    async fn serve_client(&mut self) -> Option<()> {
        while !frame::take_preamble(&mut self.inbox).unwrap() {
            self.receive().await?;
        }
        self.take().await?;
        let mut hello = PREAMBLE.to_vec();
        if self.plan.is_queued {
            frame::put(&mut hello, |out| native::put_queued(out, "all workers are in use"));
            self.send(&std::mem::take(&mut hello)).await?;
        }
        tokio::time::sleep(self.plan.greets_after).await;
        if self.plan.dies_before_its_hello {
            return None;
        }
        let pipeline_window = self.plan.pipeline_window;
        let contents = WorkerHello { version: 1, pid: 1, pipeline_window, ..Default::default() };
        frame::put(&mut hello, |out| contents.put(out));
        self.send(&hello).await?;
        self.serve_calls().await
    }

    async fn serve_calls(&mut self) -> Option<()> {
        let (mut number, mut has_failed) = (0, false);
        loop {
            let message = self.take().await?;
            let (mode, args) = match FromClient::decode(&message).unwrap() {
                FromClient::Call { mode, args, .. } => (mode, args),
                _ => continue,
            };
            number += 1;
            let mut answer = Vec::new();
            if has_failed && mode == CallMode::Pipelined {
                frame::put(&mut answer, |out| native::put_skipped(out, Some(number)));
                self.send(&answer).await?;
                continue;
            }
            has_failed = false;
            lock(&self.record).begun.push(rmp_serde::from_slice(args.encoded()).unwrap());
            if self.plan.random.once_in(3) {
                tokio::time::sleep(self.plan.random.milliseconds_below(30)).await;
            }
            match self.plan.deed() {
                Deed::Answers => frame::put(&mut answer, |out| {
                    native::put_ok(out, Some(number), args.format());
                    out.extend_from_slice(args.encoded());
                }),
                Deed::Fails => {
                    has_failed = true;
                    let error =
                        ErrorBody { kind: kind::INTERFACE, message: "no", ..Default::default() };
                    frame::put(&mut answer, |out| native::put_error(out, Some(number), &error));
                }
                Deed::Hangs => loop {
                    // It does not look at its connection, so the kernel's copy of it stays open.
                    self.receive().await?;
                },
                Deed::Dies => return None,
                Deed::DiesWithNotice => {
                    let notice = DeathNotice { pid: 1, calls: number, ..Default::default() };
                    frame::put(&mut answer, |out| notice.put(out));
                    self.send(&answer).await?;
                    return None;
                }
            }
            self.send(&answer).await?;
        }
    }

    /// Takes the next message.
    async fn take(&mut self) -> Option<Bytes> {
        loop {
            if let Some(message) = frame::take(&mut self.inbox, MAX_FRAME).unwrap() {
                return Some(message);
            }
            self.receive().await?;
        }
    }

    async fn receive(&mut self) -> Option<()> {
        self.inbox.reserve(100);
        let (stream, inbox) = (&mut self.stream, &mut self.inbox);
        let mut files = Vec::new();
        let length = poll_fn(|context| stream.poll_read(context, inbox, &mut files)).await.ok()?;
        (length > 0).then_some(())
    }

    async fn send(&mut self, mut bytes: &[u8]) -> Option<()> {
        while !bytes.is_empty() {
            let slices = [IoSlice::new(bytes)];
            let write = poll_fn(|context| self.stream.poll_write(context, &slices, &[]));
            bytes = &bytes[write.await.ok()?..];
        }
        Some(())
    }
}
