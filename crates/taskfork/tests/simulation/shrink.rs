//! Makes a plan that fails as short as possible.

use super::plan::Plan;

/// The most runs that this takes.
const MAX_RUNS: usize = 3000;

/// Removes from a plan what is not needed for `fails` to hold. Returns the plan and the number of runs.
pub(crate) fn shrink(plan: &Plan, fails: impl Fn(&Plan) -> bool) -> (Plan, usize) {
    let mut search = Search { best: plan.clone(), fails, runs: 0 };
    loop {
        let before = search.best.len();
        search
            .remove(|plan| plan.callers.len(), |plan, from, to| drop(plan.callers.drain(from..to)));
        search.remove(|plan| plan.faults.len(), |plan, from, to| drop(plan.faults.drain(from..to)));
        for caller in 0..search.best.callers.len() {
            search.remove(
                |plan| plan.callers[caller].steps.len(),
                |plan, from, to| drop(plan.callers[caller].steps.drain(from..to)),
            );
        }
        search.remove_unused_clients();
        if search.best.len() == before || search.runs >= MAX_RUNS {
            return (search.best, search.runs);
        }
    }
}

struct Search<F> {
    best: Plan,
    fails: F,
    runs: usize,
}

impl<F: Fn(&Plan) -> bool> Search<F> {
    /// Keeps a plan if it still fails. Returns whether it does.
    fn attempt(&mut self, plan: Plan) -> bool {
        self.runs += 1;
        let fails = (self.fails)(&plan);
        if fails {
            self.best = plan;
        }
        fails
    }

    /// Removes parts of a list, first large ones and then smaller ones.
    fn remove(&mut self, length: impl Fn(&Plan) -> usize, drain: impl Fn(&mut Plan, usize, usize)) {
        let mut size = length(&self.best);
        while size > 0 {
            let mut from = 0;
            while from < length(&self.best) && self.runs < MAX_RUNS {
                let mut plan = self.best.clone();
                drain(&mut plan, from, (from + size).min(length(&self.best)));
                if !self.attempt(plan) {
                    from += size;
                }
            }
            size /= 2;
        }
    }

    /// Callers name clients by number, so the last ones go first.
    fn remove_unused_clients(&mut self) {
        while self.best.clients.len() > 1
            && self.best.callers.iter().all(|caller| caller.client + 1 < self.best.clients.len())
        {
            let mut plan = self.best.clone();
            plan.clients.pop();
            if !self.attempt(plan) {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulation::plan::{Fault, Step};

    /// A rule that is wrong: it fails for a plan with two steps and a fault that have nothing to do with the others.
    #[test]
    fn a_plan_shrinks_to_the_steps_that_fail() {
        let fails = |plan: &Plan| {
            let mut steps = plan.callers.iter().flat_map(|caller| &caller.steps);
            steps.clone().any(|step| *step == Step::Fail {})
                && steps.any(|step| matches!(step, Step::Sleep { .. }))
                && plan.faults.iter().any(|fault| matches!(fault, Fault::Stream { .. }))
        };
        let (mut tried, mut runs) = (0, 0);
        for plan in (0..50).map(Plan::of).filter(fails) {
            let (shrunk, count) = shrink(&plan, fails);
            assert!(fails(&shrunk) && shrunk.len() == 3 && shrunk.callers.len() <= 2, "{shrunk}");
            (tried, runs) = (tried + 1, runs + count);
        }
        assert!(tried > 10 && runs < tried * 300, "{runs} runs for {tried} plans");
    }
}
