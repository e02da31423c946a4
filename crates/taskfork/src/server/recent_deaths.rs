//! The last deaths of workers, for those who look for causes later.

use std::collections::VecDeque;
use std::time::Duration;

use super::stack::Symbolizer;
use super::status::DeathStatus;

/// How many deaths are kept. Each has up to 4 KiB of standard error and half a KiB of addresses.
const MAX_DEATHS: usize = 50;

/// A death as the server keeps it.
#[derive(Debug, Clone)]
pub(crate) struct RecentDeath {
    /// Without its stack.
    pub(crate) status: DeathStatus,
    /// The addresses of its stack.
    pub(crate) stack: Option<Vec<u64>>,
}

#[derive(Debug, Default)]
pub(crate) struct RecentDeaths {
    kept: VecDeque<RecentDeath>,
    last: u64,
}

impl RecentDeaths {
    /// Adds a death, which happened at this time after the start of the server, and gives it a number.
    pub(crate) fn add(&mut self, mut death: RecentDeath, at: Duration) {
        self.last += 1;
        death.status.number = self.last;
        death.status.at = at.as_secs_f64();
        if self.kept.len() == MAX_DEATHS {
            self.kept.pop_front();
        }
        self.kept.push_back(death);
    }

    /// The number of the last death, or 0.
    pub(crate) fn last(&self) -> u64 {
        self.last
    }

    /// The deaths after the one with this number, oldest first.
    pub(crate) fn after(&self, number: u64) -> Vec<RecentDeath> {
        self.kept.iter().filter(|death| death.status.number > number).cloned().collect()
    }
}

impl RecentDeath {
    /// Its status with the functions on its stack, and whether there was time to find them.
    fn symbolize(self, symbolizer: &Symbolizer) -> (DeathStatus, bool) {
        match self.stack.map(|stack| symbolizer.names(stack)).transpose() {
            Ok(stack) => (DeathStatus { stack: stack.flatten(), ..self.status }, true),
            Err(_) => (self.status, false),
        }
    }
}

/// The deaths with the functions on their stacks, up to the first one for which there is no time. The reader gets the others
/// when it asks for those after the last one that it has got. So that it gets further, there is always one.
pub(crate) fn symbolize(deaths: Vec<RecentDeath>, symbolizer: &Symbolizer) -> Vec<DeathStatus> {
    let mut done = Vec::new();
    for death in deaths {
        let (death, is_whole) = death.symbolize(symbolizer);
        if is_whole || done.is_empty() {
            done.push(death);
        }
        if !is_whole {
            break;
        }
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_deaths_are_kept_and_numbered() {
        let mut deaths = RecentDeaths::default();
        let status: DeathStatus = serde_json::from_str(
            r#"{"number":0,"at":0.0,"worker":1,"pid":2,"cause":"exited","text":"","calls":0}"#,
        )
        .unwrap();
        assert_eq!((deaths.last(), deaths.after(0).len()), (0, 0));
        for second in 1..=60 {
            let death = RecentDeath { status: status.clone(), stack: None };
            deaths.add(death, Duration::from_secs(second));
        }
        let numbers: Vec<_> = deaths.after(0).iter().map(|it| it.status.number).collect();
        assert_eq!(numbers, (11..=60).collect::<Vec<u64>>());
        assert_eq!(deaths.after(59)[0].status.at, 60.0);
        assert_eq!((deaths.last(), deaths.after(60).len()), (60, 0));
    }

    #[test]
    fn a_death_whose_stack_takes_too_long_is_told_with_a_later_request() {
        let death = |number: u64, stack: Option<Vec<u64>>| {
            let text = format!(
                r#"{{"number":{number},"at":0.0,"worker":1,"pid":2,"cause":"hung","text":"","calls":0}}"#
            );
            RecentDeath { status: serde_json::from_str(&text).unwrap(), stack }
        };
        let told = |deaths: Vec<RecentDeath>| {
            let told = symbolize(deaths, &Symbolizer::out_of_time());
            told.into_iter().map(|it| it.number).collect::<Vec<_>>()
        };
        let stack = || Some(vec![1]);
        assert_eq!(told(vec![death(1, None), death(2, stack()), death(3, None)]), [1]);
        assert_eq!(told(vec![death(2, stack()), death(3, None)]), [2]);
        assert_eq!(told(vec![death(3, None)]), [3]);
    }
}
