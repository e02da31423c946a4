//! What must hold in every run.

use std::time::Duration;

use super::Record;
use super::plan::Plan;

/// How long after its timeout a call may end: the grace, the wait for the notice of a death, and a tick of the
/// clock for each.
const MAX_DELAY: Duration = Duration::from_millis(100 + 2000 + 10);

pub(super) fn check(plan: &Plan, record: &Record) {
    let complain = |what: &str| -> ! { panic!("{what}: {plan:#?}\n{record:#?}") };
    let begun = &record.begun;
    let mut once = begun.clone();
    once.sort_unstable();
    once.dedup();
    if once.len() != begun.len() {
        complain("a call was begun twice");
    }
    if record.most_open > plan.workers {
        complain("there were more workers than allowed");
    }
    if record.workers_left > 0 {
        complain("workers are left");
    }
    for (ended, first) in record.ended.iter().zip((0..).step_by(plan.calls as usize)) {
        let own = first..first + plan.calls;
        let ran: Vec<_> = begun.iter().filter(|call| own.contains(call)).copied().collect();
        if !ran.is_sorted() {
            complain("calls of a checkout were begun in another order");
        }
        let mut has_failed = false;
        for (ended, call) in ended.iter().zip(own) {
            let is_begun = ran.contains(&call);
            if is_begun && has_failed {
                complain("a call behind a failed one was begun");
            }
            match &ended.result {
                Some(Ok(answer)) if *answer != call => complain("a call has another one's answer"),
                Some(Ok(_)) if has_failed => complain("a call behind a failed one succeeds"),
                Some(Ok(_)) if !is_begun => complain("a call that was not begun has an answer"),
                Some(Err(_)) if !plan.has_faults => complain("a call failed without a reason"),
                Some(Err(error)) if is_begun && !error.may_have_run() => {
                    complain("a call was begun, and its error says that it was not")
                }
                Some(Err(_)) => has_failed = true,
                Some(Ok(_)) | None => {}
            }
            if ended.result.is_some() && ended.after > plan.timeout + MAX_DELAY {
                complain("a call ends late");
            }
        }
    }
}
