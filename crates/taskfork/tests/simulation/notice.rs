//! The notice of a worker's death, as the real server makes it from the slot and from what it knows.

use super::slot::Slot;
use crate::error::End;
use crate::server::supervisor::{Exit, KillCause, Role};
use crate::wire::death_notice::DeathNotice;
use crate::worker::scoreboard::{MAX_COUNT, Phase};

/// Returns `None` if the client cannot be told.
pub(super) fn notice(process: u64, end: End, slot: &Slot, known: &Exit) -> Option<DeathNotice> {
    let cause = known.kill.map(|reason| reason.cause);
    let view = known.kill.and_then(|reason| reason.view).unwrap_or(slot.view());
    let is_corrupt =
        matches!(cause, Some(KillCause::Corrupt(_))) || slot.observe().corruption.is_some();
    let calls = match is_corrupt {
        true => MAX_COUNT,
        false => view.calls.saturating_add(slot.skipped()),
    };
    match view.phase {
        _ if known.role == Role::Spare => None,
        Phase::AnsweringLong | Phase::Handshake | Phase::Spare if !is_corrupt => None,
        phase => Some(DeathNotice {
            pid: process as u32,
            end,
            reason: cause.map(KillCause::text),
            during: phase.activity().filter(|_| !is_corrupt),
            calls,
            ran: known.kill.and_then(|reason| reason.ran).map(|ran| ran.as_secs_f64()),
            timed_out: cause == Some(KillCause::TimedOut),
            ..DeathNotice::default()
        }),
    }
}
