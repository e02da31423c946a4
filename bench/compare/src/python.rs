//! The goals of the package for Python, each for each of its clients.

use crate::goals::{Bound, Goal};
use crate::report::Row;
use crate::works::{WORKS, Work};

/// The pools that programs in Python have otherwise.
const OTHERS: [&str; 3] = ["futures", "pebble", "loky"];

/// The goals whose figures the run has.
pub fn goals(rows: &[Row]) -> Vec<Goal> {
    let works = WORKS.iter().filter(|work| work.name.starts_with("python_"));
    let all = works.flat_map(|work| work.candidates.iter().map(move |name| (work, *name)));
    all.filter_map(|(work, candidate)| goal(rows, work, candidate)).collect()
}

fn median(rows: &[Row], work: &Work, candidate: &str) -> Option<f64> {
    rows.iter().find(|row| row.work == work.name && row.candidate == candidate)?.median
}

/// The goal of one candidate at one work. `None` if it is another pool, the work has none, or the run has no figure.
fn goal(rows: &[Row], work: &Work, candidate: &str) -> Option<Goal> {
    let name = candidate.strip_prefix("taskfork ")?;
    let ours = median(rows, work, candidate)?;
    let others = OTHERS.iter().filter_map(|other| median(rows, work, other));
    let best = || others.reduce(if work.more_is_better { f64::max } else { f64::min });
    let (what, bound, figure) = match work.name {
        "python_call" => (
            "calls one after the other by the best other pool",
            Bound::AtLeast(3.0),
            best()? / ours,
        ),
        "python_gathered" => {
            ("100 calls at a time by the best other pool", Bound::AtLeast(5.0), ours / best()?)
        }
        "python_array" => {
            ("an array of 16 MiB by the best other pool", Bound::AtLeast(10.0), ours / best()?)
        }
        "python_cold" => (
            "cold start by ProcessPoolExecutor's with fork",
            Bound::AtMost(1.0),
            ours / median(rows, work, "futures")?,
        ),
        "python_crash" => ("ms from a crash to the next answer", Bound::AtMost(20.0), ours / 1e3),
        "python_lost" => ("calls that fail by a crash", Bound::AtMost(1.0), ours),
        _ => return None,
    };
    Some(Goal { name: format!("Python, {name}: {what}"), bound, figure })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(work: &str, candidate: &str, median: f64) -> Row {
        Row {
            work: work.into(),
            candidate: candidate.into(),
            median: Some(median),
            ..Row::default()
        }
    }

    #[test]
    fn a_client_is_compared_with_the_best_other_pool() {
        let rows = [
            row("python_call", "taskfork Executor", 100.0),
            row("python_call", "futures", 250.0),
            row("python_call", "loky", 400.0),
            row("python_gathered", "taskfork asyncio", 900.0),
            row("python_gathered", "pebble", 100.0),
            row("python_gathered", "futures", 50.0),
        ];
        let [call, gathered] = &goals(&rows)[..] else { panic!("two goals") };
        assert_eq!(call.name, "Python, Executor: calls one after the other by the best other pool");
        assert_eq!((call.figure, call.is_met()), (2.5, false));
        assert_eq!((gathered.figure, gathered.is_met()), (9.0, true));
    }

    #[test]
    fn a_goal_needs_a_figure_of_each_side() {
        let alone = [row("python_cold", "taskfork Executor", 1.0), row("python_cold", "loky", 2.0)];
        assert!(goals(&alone).is_empty());
        assert!(goals(&[row("python_pss", "taskfork Executor", 1.0)]).is_empty());
    }
}
