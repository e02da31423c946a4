//! One trial for each attempt: under each confinement a worker makes the attempt, and what comes of it is compared with
//! the table.

use crate::attempt::{Attempt, Unconfined};
use crate::confinement::Confinement;
use crate::server::{Outcome, running};
use crate::surroundings::refresh;

/// The numbers by which a sandbox refuses.
const REFUSED: [i32; 2] = [libc::EACCES, libc::EPERM];

pub(crate) fn run(attempt: &Attempt) -> Result<(), String> {
    let mut wrong = Vec::new();
    for confinement in Confinement::all() {
        if confinement == Confinement::NoNetwork && !attempt.needs_network {
            continue;
        }
        refresh();
        let server = running(confinement);
        let server = server.get().ok_or("no server")?;
        let result = server.attempt(attempt.name);
        if confinement == Confinement::Kill && result.as_ref().is_err_and(|it| is_kill(it)) {
            continue;
        }
        let result = result.and_then(|mut outcome| {
            if outcome.0 == 0 && attempt.effect.is_some_and(|effect| !effect(&server.with)) {
                outcome = (libc::EPERM, "it returns, but has no effect".to_owned());
            }
            judge(attempt, confinement, &outcome)
        });
        if let Err(error) = result {
            wrong.push(format!("{confinement}: {error}"));
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
}

fn judge(attempt: &Attempt, confinement: Confinement, outcome: &Outcome) -> Result<(), String> {
    let (number, text) = outcome;
    let succeeds = *number == 0;
    if confinement != Confinement::Off {
        let is_open = confinement.opening().is_some_and(|one| attempt.opened_by.contains(&one));
        let is_open = is_open || attempt.not_promised.is_some();
        return match (is_open, succeeds) {
            (true, true) => Ok(()),
            (true, false) if is_excused(attempt, *number) => Ok(()),
            (true, false) => {
                let why = attempt.not_promised.unwrap_or_default();
                Err(format!("it is refused, although it should not be ({why}): {text}"))
            }
            (false, true) => Err("it succeeds".to_owned()),
            (false, false) if REFUSED.contains(number) => Ok(()),
            (false, false) if attempt.refused_with.contains(number) => Ok(()),
            // What fails in any case may fail as it does then.
            (false, false) if matches!(attempt.unconfined, Unconfined::Fails(_)) => Ok(()),
            (false, false) => Err(format!("it is not refused, but fails: {text}")),
        };
    }
    let is_root = rustix::process::geteuid().is_root();
    match attempt.unconfined {
        Unconfined::Fails(why) if succeeds => {
            Err(format!("it succeeds, although it should not, as {why}"))
        }
        Unconfined::Succeeds if !succeeds => Err(format!("it fails: {text}")),
        Unconfined::SucceedsForRoot if is_root && !succeeds => Err(format!("it fails: {text}")),
        Unconfined::MayFail(_, why) if !succeeds && !is_excused(attempt, *number) => {
            Err(format!("it fails, but not because {why}: {text}"))
        }
        _ => Ok(()),
    }
}

/// Whether a call failed because the sandbox ended the worker.
fn is_kill(error: &str) -> bool {
    error.contains("SIGSYS") && error.contains("its sandbox forbids")
}

/// Whether it may fail with this number because of the machine.
fn is_excused(attempt: &Attempt, number: i32) -> bool {
    matches!(attempt.unconfined, Unconfined::MayFail(numbers, _) if numbers.contains(&number))
}
