//! Why a worker has exited, and what its client learns.

use std::time::Duration;

use super::kill::{KillCause, KillReason, NoStack};
use super::worker::{Leaving, Role};
use crate::error::End;
use crate::server::worker_exit::cause;
use crate::wire::death_notice::DeathNotice;
use crate::worker::scoreboard::{Corruption, MAX_COUNT, Phase, SlotView};

/// What was known of a worker before it exited.
#[derive(Debug)]
pub(crate) struct Exit {
    pub(crate) role: Role,
    /// Why the server has killed it, or was about to.
    pub(crate) kill: Option<KillReason>,
    pub(crate) leaving: Leaving,
    /// The number of the last call whose worker has been sent SIGALRM at its deadline.
    pub(crate) alarmed_call: u64,
    pub(crate) age: Duration,
}

/// What the loop has found after the worker exited.
#[derive(Debug)]
pub(crate) struct ExitFacts {
    pub(crate) pid: u32,
    /// The process id of the program that was the worker.
    pub(crate) program: Option<u32>,
    pub(crate) end: End,
    /// SIGALRM has ended it.
    pub(crate) is_alarm: bool,
    /// The last valid view of its slot, and what in the slot cannot be.
    pub(crate) last: SlotView,
    pub(crate) corruption: Option<Corruption>,
    /// The deadline of its last call.
    pub(crate) deadline: Option<Duration>,
    /// How many calls it has skipped.
    pub(crate) skipped: u64,
    /// It has been ordered to leave, or has decided to.
    pub(crate) is_retired: bool,
    /// Its client's protocol has a message that reports a death.
    pub(crate) is_reportable: bool,
    /// The end of what it wrote to standard error.
    pub(crate) stderr: Option<String>,
}

/// Why a worker has exited.
#[derive(Debug)]
pub(crate) struct Explanation {
    /// The name under which such deaths are counted.
    pub(crate) cause: &'static str,
    /// What the log says.
    pub(crate) reason: Option<String>,
    /// What it was doing.
    pub(crate) phase: Phase,
    /// The server had asked it to leave, or its client had gone.
    pub(crate) is_over: bool,
    /// Why a spare worker failed before it got a client.
    pub(crate) spare_failure: Option<String>,
    is_spare: bool,
    calls: u64,
    ran: Option<Duration>,
    no_stack: Option<NoStack>,
}

impl Exit {
    /// Explains the exit. `classify` finds the cause if the server did not bring the exit about.
    pub(crate) fn explain(
        &self,
        facts: &ExitFacts,
        classify: impl FnOnce() -> (&'static str, String),
        now: Duration,
    ) -> Explanation {
        let kill = self.kill.or_else(|| self.alarm_reason(facts, now));
        let (cause, text) = match (kill, facts.corruption) {
            (Some(kill), _) => (kill.cause.name(), kill.cause.text()),
            (None, Some(corruption)) => (cause::CORRUPT, corruption.to_string()),
            (None, None) => classify(),
        };
        let view = kill.and_then(|kill| kill.view).unwrap_or(facts.last);
        let reason = Some(text).filter(|text| !text.is_empty());
        let has_left = self.leaving != Leaving::Staying && facts.end == End::Exited(0);
        let is_spare = self.role == Role::Spare;
        let failure = || reason.clone().unwrap_or_else(|| format!("the worker {}", facts.end));
        Explanation {
            cause,
            phase: view.phase,
            is_over: self.leaving != Leaving::Staying
                || facts.is_retired
                || view.phase == Phase::Retired,
            spare_failure: (is_spare && !has_left).then(failure),
            is_spare,
            // With a corrupt slot it is unknown which calls have begun. Any of them may have run.
            calls: match cause == cause::CORRUPT {
                true => MAX_COUNT,
                false => view.calls.saturating_add(facts.skipped),
            },
            ran: kill.and_then(|kill| kill.ran),
            no_stack: kill.and_then(|kill| kill.no_stack),
            reason,
        }
    }

    /// The reason for a worker that SIGALRM has ended at its call's deadline. The server sends that
    /// signal, and so may the worker itself. It ends code that has reset the signal's action, and
    /// programs that have been executed.
    fn alarm_reason(&self, facts: &ExitFacts, now: Duration) -> Option<KillReason> {
        let view = facts.last;
        let has_passed = self.alarmed_call == view.calls
            || facts.deadline.is_some_and(|deadline| deadline <= now);
        if !facts.is_alarm || view.phase != Phase::Busy || !has_passed {
            return None;
        }
        let ran = Some(now.saturating_sub(view.since));
        Some(KillReason { ran, view: Some(view), ..KillReason::new(KillCause::TimedOut) })
    }
}

impl Explanation {
    /// Whether the worker was killed because something took too long. Its stack says where it hung.
    pub(crate) fn has_hung(&self) -> bool {
        self.ran.is_some()
    }

    /// The notice for the worker's client, if the client gets one.
    pub(crate) fn notice(self, facts: ExitFacts) -> Option<DeathNotice> {
        let is_corrupt = self.cause == cause::CORRUPT;
        match self.phase {
            // A spare worker has no client.
            _ if self.is_spare || !facts.is_reportable => None,
            // The client would take a notice in the middle of a message for the rest of that message.
            Phase::AnsweringLong | Phase::SendingItem | Phase::Handshake | Phase::Spare
                if !is_corrupt =>
            {
                None
            }
            phase => Some(DeathNotice {
                pid: facts.pid,
                program: facts.program,
                end: facts.end,
                reason: self.reason,
                during: phase.activity().filter(|_| !is_corrupt),
                calls: self.calls,
                stderr: facts.stderr,
                ran: self.ran.map(|ran| ran.as_secs_f64()),
                stack: None,
                no_stack: self.no_stack.map(NoStack::text),
                timed_out: self.cause == cause::TIMED_OUT,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fair_share::ClientId;
    use super::*;

    const NOW: Duration = Duration::from_secs(100);

    fn exit(kill: Option<KillReason>) -> Exit {
        let role = Role::Client(ClientId::default());
        Exit { role, kill, leaving: Leaving::Staying, alarmed_call: 0, age: NOW }
    }

    fn facts(phase: Phase, calls: u64) -> ExitFacts {
        ExitFacts {
            pid: 1,
            program: None,
            end: End::Exited(3),
            is_alarm: false,
            last: SlotView { phase, calls, since: NOW },
            corruption: None,
            deadline: None,
            skipped: 0,
            is_retired: false,
            is_reportable: true,
            stderr: None,
        }
    }

    fn exited() -> (&'static str, String) {
        (cause::EXITED, String::new())
    }

    fn notice(exit: &Exit, facts: ExitFacts) -> Option<DeathNotice> {
        exit.explain(&facts, exited, NOW).notice(facts)
    }

    #[test]
    fn a_notice_counts_the_calls_that_had_begun_when_the_worker_could_not_go_on() {
        assert_eq!(notice(&exit(None), facts(Phase::Busy, 7)).unwrap().calls, 7);
        let skipped = ExitFacts { skipped: 2, ..facts(Phase::Held, 7) };
        assert_eq!(notice(&exit(None), skipped).unwrap().calls, 9);

        // It was killed whatever it did, so it may have begun one more.
        let shutdown = exit(Some(KillReason::new(KillCause::GraceOver)));
        assert_eq!(notice(&shutdown, facts(Phase::Busy, 8)).unwrap().calls, 8);
        let judged = SlotView { phase: Phase::Busy, calls: 7, since: NOW };
        let ran = Some(NOW);
        let hung = KillReason { view: Some(judged), ran, ..KillReason::new(KillCause::TimedOut) };
        let notice = notice(&exit(Some(hung)), facts(Phase::KillPending, 7)).unwrap();
        assert!(notice.timed_out && notice.during == Phase::Busy.activity());
        assert_eq!((notice.calls, notice.ran), (7, Some(100.0)));
    }

    #[test]
    fn a_corrupt_slot_proves_nothing() {
        let corrupt = |phase| {
            let corruption = Some(Corruption::Future);
            notice(&exit(None), ExitFacts { corruption, ..facts(phase, 0) }).unwrap()
        };
        for phase in [Phase::Idle, Phase::Handshake, Phase::AnsweringLong] {
            assert_eq!((corrupt(phase).calls, corrupt(phase).during), (MAX_COUNT, None));
        }
    }

    #[test]
    fn there_is_no_notice_where_it_would_be_taken_for_something_else() {
        for phase in [Phase::AnsweringLong, Phase::SendingItem, Phase::Handshake, Phase::Spare] {
            assert_eq!(notice(&exit(None), facts(phase, 1)), None);
        }
        let facts_of_json = ExitFacts { is_reportable: false, ..facts(Phase::Busy, 1) };
        assert_eq!(notice(&exit(None), facts_of_json), None);
        let spare = Exit { role: Role::Spare, ..exit(None) };
        let explained = spare.explain(&facts(Phase::Setup, 0), exited, NOW);
        assert_eq!(explained.spare_failure.as_deref(), Some("the worker exited with status 3"));
        assert_eq!(explained.notice(facts(Phase::Setup, 0)), None);
    }

    #[test]
    fn an_alarm_after_the_deadline_is_a_timeout() {
        let cause = |alarmed_call, deadline, phase| {
            let facts = ExitFacts { is_alarm: true, deadline, ..facts(phase, 4) };
            Exit { alarmed_call, ..exit(None) }.explain(&facts, exited, NOW).cause
        };
        assert_eq!(cause(4, None, Phase::Busy), cause::TIMED_OUT);
        assert_eq!(cause(3, Some(NOW), Phase::Busy), cause::TIMED_OUT);
        assert_eq!(cause(3, Some(NOW * 2), Phase::Busy), cause::EXITED);
        assert_eq!(cause(4, Some(NOW), Phase::Idle), cause::EXITED);
    }
}
