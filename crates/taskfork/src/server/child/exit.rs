//! Reaping a worker, and finding out why it exited.

use std::time::Instant;

use rustix::process::{Signal, WaitId, WaitIdOptions, waitid};

use super::{Child, Role};
use crate::clock::now;
use crate::error::End;
use crate::server::log_limit::LogLimit;
use crate::server::process;
use crate::server::stderr::{StderrOutput, StderrTail};
use crate::server::supervisor::{self, Exit, KillCause, KillReason, Leaving, NoStack};
use crate::server::worker_exit::{
    DeathNotification, ExitLogEntry, WorkerExit, WorkerRules, cause, classify_exit, has_peer_closed,
};
use crate::wire::death_notice::DeathNotice;
use crate::worker::scoreboard::{MAX_COUNT, Phase, SlotView};

impl Child {
    /// Reaps a dead worker. The kernel may reuse its process id after this. So the caller must kill
    /// its group first, and must tell the guardian first. `known` is what the supervisor knew of it.
    pub(crate) fn reap(
        mut self,
        known: &Exit,
        output: &mut StderrOutput,
        log_limit: &mut LogLimit,
        rules: &WorkerRules<'_>,
    ) -> WorkerExit {
        let status = waitid(WaitId::Pid(self.pid), WaitIdOptions::EXITED).ok().flatten();
        let end = status.as_ref().map(process::end_of).unwrap_or_default();
        let pid = self.pid();
        let stderr = self.stderr.take().map(|stderr| stderr.finish(pid, output));
        let StderrTail { text: stderr, allocation_failed } = stderr.unwrap_or_default();
        let corruption = self.slot.read().err();
        let last = self.slot.last_read();
        let reason = known.kill.or_else(|| self.alarm_reason(known, last, end));
        let (cause, text) = match (reason, corruption) {
            (Some(reason), _) => (reason.cause.name(), reason.cause.text()),
            (None, Some(corruption)) => (cause::CORRUPT, corruption.to_string()),
            (None, None) => match self.role.setup_failure() {
                Some(failure) => (cause::SETUP_FAILED, failure),
                None => {
                    let (cause, text) = classify_exit(end, &self.slot, allocation_failed, rules);
                    (cause, text.into_owned())
                }
            },
        };
        let view = reason.and_then(|reason| reason.view).unwrap_or(last);
        let ran = reason.and_then(|reason| reason.ran);
        let no_stack = reason.and_then(|reason| reason.no_stack).map(NoStack::text);
        let reason = Some(text).filter(|text| !text.is_empty());
        let is_over = known.leaving != Leaving::Staying
            || self.slot.retirement().is_some()
            || view.phase == Phase::Retired;
        // Whether the peer has closed is a system call, which only an orderly exit needs.
        let is_regular = end == End::Exited(0)
            && reason.is_none()
            && (is_over || has_peer_closed(self.role.descriptor()));
        if is_regular || log_limit.acquire(Instant::now()) {
            ExitLogEntry {
                worker: self.number,
                pid,
                connection: self.connection(),
                end,
                phase: view.phase,
                slot: &self.slot,
                reason: reason.as_deref(),
                is_regular,
            }
            .log();
        }
        let is_spare = known.role == supervisor::Role::Spare;
        let has_left = known.leaving != Leaving::Staying && end == End::Exited(0);
        let spare_failure = (is_spare && !has_left)
            .then(|| reason.clone().unwrap_or_else(|| format!("the worker {end}")));
        // With a corrupt slot it is unknown which calls have begun. Any of them may have run.
        let is_corrupt = cause == cause::CORRUPT;
        let calls = match is_corrupt {
            true => MAX_COUNT,
            false => view.calls.saturating_add(self.slot.skipped()),
        };
        let notice = match view.phase {
            // A spare worker has no client.
            _ if is_spare || !self.slot.is_death_reportable() => None,
            // The client would take a notice in the middle of an answer for the rest of that answer.
            Phase::AnsweringLong | Phase::Handshake | Phase::Spare if !is_corrupt => None,
            phase => Some(DeathNotice {
                pid,
                end,
                reason,
                during: phase.activity().filter(|_| !is_corrupt),
                calls,
                stderr,
                ran: ran.map(|ran| ran.as_secs_f64()),
                stack: None,
                no_stack,
                timed_out: cause == cause::TIMED_OUT,
            }),
        };
        let (Role::Client(connection) | Role::Spare(connection)) = self.role;
        let stack = ran.and_then(|_| self.slot.stack());
        let notification = DeathNotification { connection, notice };
        WorkerExit { slot: self.slot, notification, stack, cause, spare_failure }
    }

    /// The reason for a worker that SIGALRM has ended at its call's deadline. The server sends that
    /// signal, and so may the worker itself. It ends code that has reset the signal's action, and
    /// programs that have been executed.
    fn alarm_reason(&self, known: &Exit, view: SlotView, end: End) -> Option<KillReason> {
        let is_alarm = end == End::Signaled(Signal::ALARM.as_raw());
        let has_passed = known.alarmed_call == view.calls
            || self.slot.deadline().is_some_and(|deadline| deadline <= now());
        if !is_alarm || view.phase != Phase::Busy || !has_passed {
            return None;
        }
        let ran = Some(now().saturating_sub(view.since));
        Some(KillReason { ran, view: Some(view), ..KillReason::new(KillCause::TimedOut) })
    }
}
