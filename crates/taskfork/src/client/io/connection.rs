//! A connection of the pool: the state of its protocol, and the stream that carries it out.

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use tokio::runtime::is_rt_shutdown_err;
use tokio::task::{coop, unconstrained};

use super::spin::{ReplySpin, SpinGuard};
use super::transport::Transport;
use super::waker::ConnectionWaker;
use crate::client::now::Now;
use crate::client::proto::connection as proto;
use crate::client::proto::disconnect::{Disconnect, RuntimeShutDown};
use crate::client::proto::io_types::{End, Event, Need, Transmit};
use crate::sys::TOO_MANY_FILES;

/// Calls that follow each other within this time are quick.
const QUICK: Duration = Duration::from_micros(250);

/// After this many quick calls in a row, others are likely to follow.
const QUICK_CALLS: u32 = 8;

/// Both halves are boxed, so that a connection that changes hands moves two pointers.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) proto: Box<proto::Connection>,
    pub(crate) link: Box<Link>,
}

/// The stream of a connection, and who is woken by it.
#[derive(Debug)]
pub(crate) struct Link {
    stream: Box<dyn Transport>,
    pub(crate) notifier: Arc<ConnectionWaker>,
    waker: Waker,
    spin: ReplySpin,
    /// A task spins for the next message.
    is_spinning: bool,
    /// When the last call was sent, and how many calls in a row followed soon after others.
    last_sent: Option<Instant>,
    quick_calls: u32,
    /// A long message has been sent, so the stream's send buffer is large.
    has_large_send_buffer: bool,
}

/// What a read has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Received {
    Something,
    /// Nothing more: the connection has ended, or all has been read that arrived.
    End,
}

impl Connection {
    pub(crate) fn new(
        stream: Box<dyn Transport>,
        proto: proto::Connection,
        notifier: Arc<ConnectionWaker>,
        spin: ReplySpin,
    ) -> Self {
        let waker = Waker::from(notifier.clone());
        let link = Link {
            stream,
            notifier,
            waker,
            spin,
            is_spinning: false,
            last_sent: None,
            quick_calls: 0,
            has_large_send_buffer: false,
        };
        Self { proto: Box::new(proto), link: Box::new(link) }
    }

    /// Sends as much of the outbox as it can without waiting. It is short, and the task's budget of the runtime does not
    /// limit it: nobody would send the rest of a connection that is closed next.
    pub(crate) fn flush(&mut self) -> Result<(), Disconnect> {
        if !self.proto.has_to_send() {
            return Ok(());
        }
        let waker = self.link.waker.clone();
        let flush = pin!(unconstrained(poll_fn(|_| Poll::Ready(self.flush_in_turn()))));
        match flush.poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(flushed) => flushed,
            Poll::Pending => Ok(()),
        }
    }

    fn flush_in_turn(&mut self) -> Result<(), Disconnect> {
        while let Some(transmit) = self.proto.poll_transmit(None) {
            if let Transmit::Ring = transmit {
                if self.link.poll_ring_turn().is_pending() {
                    break;
                }
                self.proto.put_in_ring();
                continue;
            }
            match self.link.poll_write(&transmit) {
                Poll::Ready(Ok(sent)) => {
                    self.proto.handle_sent(sent);
                }
                Poll::Ready(Err(error)) => return Err(self.proto.handle_write_error(error)),
                Poll::Pending => {
                    self.proto.handle_blocked();
                    break;
                }
            }
        }
        Ok(())
    }

    /// Receives the next event that is of interest to others.
    pub(crate) fn poll_event(&mut self, now: &Now) -> Poll<Event> {
        loop {
            ready!(self.link.poll_turn(&mut self.proto));
            match self.proto.poll_event(now) {
                Some(Event::Handled) => {}
                Some(event) => return Poll::Ready(event),
                None => {
                    ready!(self.link.poll_receive(&mut self.proto));
                }
            }
        }
    }
}

impl Link {
    /// Sends some of this.
    #[inline]
    pub(crate) fn poll_write(&mut self, transmit: &Transmit<'_>) -> Poll<io::Result<usize>> {
        if let Transmit::Socket { call: Some((frame, 0)), .. } = transmit
            && frame.is_large()
            && !std::mem::replace(&mut self.has_large_send_buffer, true)
        {
            self.stream.enlarge_send_buffer();
        }
        let mut context = Context::from_waker(&self.waker);
        let written = transmit
            .with_slices(|slices, files| self.stream.poll_write(&mut context, slices, files));
        written.map_err(named)
    }

    /// A call is sent at this time. Watches for room from here on if calls follow each other quickly, and no longer if
    /// not.
    pub(crate) fn prepare_call(&mut self, now: Instant) {
        let last = self.last_sent.replace(now);
        let is_quick = last.is_some_and(|last| now.saturating_duration_since(last) < QUICK);
        self.quick_calls = if is_quick { self.quick_calls.saturating_add(1) } else { 0 };
        if self.spin.has_other_cores() {
            self.stream.watch_writable(self.quick_calls >= QUICK_CALLS);
        }
    }

    /// Waits until the task may put messages into a ring. As a write to a socket does, this charges the task's budget
    /// of the runtime.
    pub(crate) fn poll_ring_turn(&self) -> Poll<()> {
        ready!(coop::poll_proceed(&mut Context::from_waker(&self.waker))).made_progress();
        Poll::Ready(())
    }

    /// Waits until this task may handle more messages. A worker may send without end, and other tasks must run
    /// in between.
    #[inline]
    pub(crate) fn poll_turn(&self, proto: &mut proto::Connection) -> Poll<()> {
        let is_batch = proto.is_next_in_ring();
        let read_budget = proto.read_budget();
        if !is_batch && !read_budget.is_over() && !read_budget.is_charge_due() {
            return Poll::Ready(());
        }
        let mut context = Context::from_waker(&self.waker);
        if read_budget.is_over() {
            // This makes the runtime poll its timers and sockets before it wakes the task.
            let _ = pin!(tokio::task::yield_now()).poll(&mut context);
            return Poll::Pending;
        }
        ready!(coop::poll_proceed(&mut context)).made_progress();
        read_budget.charge();
        Poll::Ready(())
    }

    /// Does what the connection needs. While nothing has come, the connection's waker is registered.
    #[inline]
    pub(crate) fn poll_receive(&mut self, proto: &mut proto::Connection) -> Poll<Received> {
        match proto.need() {
            Need::InputStop => {
                let mut context = Context::from_waker(&self.waker);
                proto.handle_input_stopped(self.stream.stop_input(&mut context));
            }
            Need::ArrivedInput => return Poll::Ready(self.receive_arrived(proto)),
            Need::Input => return self.poll_read(proto),
        }
        Poll::Ready(Received::Something)
    }

    #[inline]
    fn poll_read(&mut self, proto: &mut proto::Connection) -> Poll<Received> {
        let is_established = proto.is_established();
        let mut context = Context::from_waker(&self.waker);
        let (inbox, room, files) = proto.buffer();
        let Poll::Ready(read) = self.stream.poll_read(&mut context, inbox, room, files) else {
            // A message may have come through a ring.
            return match self.is_spinning || self.notifier.is_watched() || proto.prepare_sleep() {
                true => Poll::Pending,
                false => Poll::Ready(Received::Something),
            };
        };
        Poll::Ready(match read {
            Ok(0) => {
                if !self.stream.can_lose_answers() {
                    proto.record_complete();
                }
                proto.handle_end(End::Closed { has_unread: self.stream.has_unread() });
                Received::End
            }
            Ok(received) => {
                proto.handle_input(received);
                if is_established {
                    self.spin.record_sleep();
                }
                Received::Something
            }
            Err(error) => {
                proto.handle_end(End::Failed(named(error)));
                Received::End
            }
        })
    }

    /// Receives what the stream has, without asking the reactor, which may not have reported it yet.
    fn receive_arrived(&mut self, proto: &mut proto::Connection) -> Received {
        match self.receive_now(proto) {
            Ok(received) if received > 0 => proto.handle_input(received),
            Err(Errno::INTR) => {}
            _ if proto.has_ring_message() => {}
            Err(TOO_MANY_FILES) => {
                proto.handle_end(End::Failed(TOO_MANY_FILES.into()));
                return Received::End;
            }
            Ok(_) | Err(_) => {
                proto.handle_no_input();
                return Received::End;
            }
        }
        Received::Something
    }

    fn receive_now(&mut self, proto: &mut proto::Connection) -> rustix::io::Result<usize> {
        let (inbox, room, files) = proto.buffer();
        self.stream.receive_now(inbox, room, files)
    }

    /// Records that a call was sent.
    pub(crate) fn record_sent(&mut self) {
        self.spin.record_sent();
    }

    /// Records that an answer came. `is_another_due` says whether a pipelined call waits for its own.
    pub(crate) fn record_answer(&mut self, is_another_due: bool) {
        if self.is_spinning {
            self.spin.record_found();
            self.clear_spinning();
        }
        self.spin.record_answer(is_another_due);
    }

    /// Starts to spin for an answer, if the policy allows it.
    pub(crate) fn start_spin(&mut self, proto: &mut proto::Connection) -> Option<SpinGuard> {
        let spin_guard = if proto.is_established() { self.spin.begin() } else { None };
        if spin_guard.is_some() {
            self.set_spinning(proto);
        }
        spin_guard
    }

    /// Whether a message, or the end of the connection, can be read now.
    pub(crate) fn try_receive(
        &mut self,
        proto: &mut proto::Connection,
        spin_guard: &SpinGuard,
    ) -> bool {
        self.has_arrived(proto, spin_guard.checks_socket())
    }

    /// `checks_socket` matters only if there are rings.
    fn has_arrived(&mut self, proto: &mut proto::Connection, checks_socket: bool) -> bool {
        if proto.has_ring_message() {
            return true;
        }
        if proto.has_rings() && !checks_socket {
            return false;
        }
        match self.receive_now(proto) {
            Err(Errno::AGAIN | Errno::INTR) => false,
            Ok(received) if received > 0 => {
                proto.handle_input(received);
                true
            }
            // The next read finds the end, or the error, again.
            Ok(_) | Err(_) => true,
        }
    }

    /// Whether an event loop, which looks again soon, can read a message, or the end of the connection, now. It announces no
    /// sleep meanwhile.
    pub(super) fn look(&mut self, proto: &mut proto::Connection, checks_socket: bool) -> bool {
        self.notifier.set_watched(true);
        proto.set_looking();
        self.has_arrived(proto, checks_socket)
    }

    /// Ends a spin. `found` says whether the answer came.
    pub(crate) fn finish_spin(&mut self, spin_guard: &SpinGuard, found: bool) {
        self.spin.finish(spin_guard, found);
        self.clear_spinning();
    }

    /// Records that a task spins for the next message, so the worker need not wake this side.
    pub(super) fn set_spinning(&mut self, proto: &mut proto::Connection) {
        self.is_spinning = true;
        proto.set_awake();
    }

    /// Records that no task spins any more. A task that waits must poll once more before it sleeps.
    pub(crate) fn clear_spinning(&mut self) {
        self.is_spinning = false;
    }
}

/// Marks the error that a reactor returns after its runtime has been shut down.
fn named(error: io::Error) -> io::Error {
    match is_rt_shutdown_err(&error) {
        true => io::Error::other(RuntimeShutDown),
        false => error,
    }
}
