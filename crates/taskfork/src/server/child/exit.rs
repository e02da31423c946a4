//! Reaping a worker, and finding out what its end was.

use std::time::Instant;

use rustix::process::{Signal, WaitId, WaitIdOptions, waitid};

use super::{Child, Role};
use crate::clock::now;
use crate::error::{Activity, End};
use crate::server::log_limit::LogLimit;
use crate::server::process;
use crate::server::status::DeathStatus;
use crate::server::stderr::{StderrOutput, StderrTail};
use crate::server::supervisor::{Exit, ExitFacts, Explanation};
use crate::server::worker_exit::{
    DeathNotification, ExitLogEntry, WorkerExit, WorkerRules, cause, classify_exit, has_peer_closed,
};

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
        let writer = self.writer();
        let stderr = self.stderr.take().map(|stderr| stderr.finish(writer, output));
        let StderrTail { text: stderr, allocation_failed } = stderr.unwrap_or_default();
        let corruption = self.slot.read().err();
        let facts = ExitFacts {
            pid,
            program: writer.program,
            end,
            is_alarm: end == End::Signaled(Signal::ALARM.as_raw()),
            last: self.slot.last_read(),
            corruption,
            deadline: self.slot.deadline(),
            skipped: self.slot.skipped(),
            is_retired: self.slot.retirement().is_some(),
            is_reportable: self.slot.is_death_reportable(),
            stderr,
        };
        let classify = || match self.role.setup_failure() {
            Some(failure) => (cause::SETUP_FAILED, failure),
            None if self.is_killed_on_request && end == End::Signaled(Signal::KILL.as_raw()) => {
                (cause::SIGNALED, "it was killed through the status socket".to_owned())
            }
            None => {
                let (cause, text) = classify_exit(end, &self.slot, allocation_failed, rules);
                (cause, text.into_owned())
            }
        };
        let mut explained = known.explain(&facts, classify, now());
        // Whether the peer has closed is a system call, which only an orderly exit needs.
        let is_regular = end == End::Exited(0)
            && explained.reason.is_none()
            && (explained.is_over || has_peer_closed(self.role.descriptor()));
        if is_regular || log_limit.acquire(Instant::now()) {
            ExitLogEntry {
                worker: self.number,
                pid,
                connection: self.connection(),
                relayed_peer: self.relayed_peer.as_deref(),
                end,
                phase: explained.phase,
                slot: &self.slot,
                reason: explained.reason.as_deref(),
                is_regular,
            }
            .log();
        }
        let cause = explained.cause;
        let death = (!is_regular).then(|| self.death(&facts, &explained));
        let spare_failure = explained.spare_failure.take();
        let stack = explained.has_hung().then(|| self.slot.stack()).flatten();
        let notice = explained.notice(facts);
        let (Role::Client(connection) | Role::Spare(connection)) = self.role;
        let notification = DeathNotification { connection, notice };
        WorkerExit { slot: self.slot, notification, stack, cause, spare_failure, death }
    }

    /// What is kept of a worker that did not leave in order. Its number, its time and its stack are added later.
    fn death(&self, facts: &ExitFacts, explained: &Explanation) -> DeathStatus {
        let reason = explained.reason.as_deref();
        let reason = reason.map(|reason| format!(": {reason}")).unwrap_or_default();
        let activity = explained.phase.activity();
        let during = activity.map(|activity| format!(" {activity}")).unwrap_or_default();
        let method = Some(self.slot.method()).filter(|_| activity == Some(Activity::Call));
        DeathStatus {
            number: 0,
            at: 0.0,
            worker: self.number,
            pid: facts.pid,
            program: facts.program,
            cause: explained.cause.to_owned(),
            text: format!("{}{during}{reason}", facts.end),
            method: method.filter(|method| !method.is_empty()),
            calls: facts.last.calls,
            peer: self.peer(),
            stderr: facts.stderr.clone(),
            stack: None,
        }
    }
}
