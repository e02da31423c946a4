//! The goals of the project, each a ratio within one run, and whether the run meets them.

use std::fmt::Write;

use crate::python;
use crate::report::{Row, Value};

/// What a figure must be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

/// A goal with the figure of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Goal {
    pub name: String,
    pub bound: Bound,
    pub figure: f64,
}

impl Goal {
    pub fn is_met(&self) -> bool {
        match self.bound {
            Bound::AtMost(most) => self.figure <= most,
            Bound::AtLeast(least) => self.figure >= least,
        }
    }
}

/// The figures that goals are about.
struct Figures<'a>(&'a [Row]);

impl Figures<'_> {
    fn row(&self, work: &str, candidate: &str) -> Option<&Row> {
        self.0.iter().find(|row| row.work == work && row.candidate == candidate)
    }

    fn median(&self, work: &str, candidate: &str) -> Option<f64> {
        self.row(work, candidate)?.median
    }

    /// The median of one candidate by that of another.
    fn ratio(&self, work: &str, ours: &str, theirs: &str) -> Option<f64> {
        Some(self.median(work, ours)? / self.median(work, theirs)?)
    }

    /// The same for a median in two works.
    fn growth(&self, work: &str, base: &str, candidate: &str) -> Option<f64> {
        Some(self.median(work, candidate)? / self.median(base, candidate)?)
    }

    /// The same for another value than the median.
    fn ratio_of(&self, value: Value, work: &str, [ours, theirs]: [&str; 2]) -> Option<f64> {
        Some(value(self.row(work, ours)?)? / value(self.row(work, theirs)?)?)
    }
}

/// The goals whose figures the run has.
pub fn goals(rows: &[Row]) -> Vec<Goal> {
    let figures = Figures(rows);
    let mut goals = Vec::new();
    let mut add = |name: &str, bound: Bound, figure: Option<f64>| {
        goals.extend(figure.map(|figure| Goal { name: name.to_owned(), bound, figure }));
    };
    let (most, least) = (Bound::AtMost, Bound::AtLeast);

    for (rate, shown) in [("50", "50"), ("1000", "1,000"), ("10000", "10,000")] {
        for threads in ["1", "2"] {
            let work = format!("arrivals_{rate}_on_{threads}");
            let both = ["taskfork", "hand-written pool"];
            let values: [(&str, f64, Value); 4] = [
                ("p50", 1.1, |row| row.median),
                ("p90", 1.2, |row| row.p90),
                ("p99", 1.3, |row| row.p99),
                ("processor time", 1.5, |row| row.processor),
            ];
            for (value, bound, of) in values {
                let name = format!(
                    "{shown} requests/s at random, runtime threads {threads}: {value} by the hand-written pool's"
                );
                add(&name, most(bound), figures.ratio_of(of, &work, both));
            }
        }
    }
    let pause = figures.ratio("after_pause", "taskfork", "floor tokio");
    add("a call after a pause of 1 ms by the bare one", most(1.3), pause);
    let instructions = figures.median("instructions", "taskfork");
    add("instructions outside the kernel of one call, both sides", most(8000.0), instructions);
    for (side, bound) in [("client", 3.0), ("worker", 2.0)] {
        let name = format!("system calls of the {side} for a call, both sides asleep");
        add(&name, most(bound), figures.median(&format!("system_calls_{side}"), "taskfork asleep"));
    }
    for (work, tasks) in [("tasks_10", "10"), ("tasks_100", "100"), ("tasks_1000", "1,000")] {
        let name = format!("calls/s of {tasks} tasks on 2 threads by the same on 1");
        let figure = figures.ratio(work, "taskfork on 2 threads", "taskfork on 1 thread");
        add(&name, least(0.9), figure);
    }
    for (work, live) in [("one_more_4000", "4,000"), ("one_more_10000", "10,000")] {
        let name = format!("one more worker with {live} live by with none");
        add(&name, most(1.3), figures.growth(work, "one_more_0", "taskfork"));
    }
    let among = figures.growth("death_among_4000", "death_among_0", "taskfork");
    add("one death among 4,000 until the next result by among none", most(1.3), among);
    let all = figures.ratio("thousand_deaths", "taskfork", "floor fork");
    add("a thousand deaths until all are replaced by a bare fork loop", most(2.0), all);
    let replace = figures.ratio("replace", "taskfork", "floor kill and fork");
    add("from kill to the next result by bare kill, end, fork and round trip", most(1.4), replace);
    let spare = figures.ratio("replace", "taskfork spares", "floor kill with a spare");
    add("the same with spare workers by bare kill, end and round trip", most(1.5), spare);
    let new_worker = figures.ratio("new_worker", "taskfork", "floor fork");
    add("first answer of a new worker by bare connect, fork and round trip", most(1.5), new_worker);
    add("cold start by procspawn's", most(1.0), figures.ratio("cold", "taskfork", "procspawn"));
    let remote = figures.ratio("remote_latency", "taskfork tls", "floor tls");
    add("one call through a gateway by a bare exchange by TLS", most(1.3), remote);
    let remote = figures.ratio("remote_payload_16m", "taskfork tls", "floor tls");
    add("16 MiB through a gateway by a bare exchange by TLS", least(0.8), remote);
    let nats = figures.ratio("nats_latency", "taskfork nats", "floor nats");
    add("one call through a session at NATS by a bare request and its reply", most(1.3), nats);
    let nats = figures.ratio("nats_payload_16m", "taskfork nats", "floor nats");
    add("16 MiB through a session at NATS by a bare request and its reply", least(0.8), nats);
    let nodes = figures.ratio("nats_nodes", "taskfork on 3 nodes", "taskfork on 1 node");
    add("calls/s of 3 nodes by 1, on work that sleeps", least(2.5), nodes);
    let server = figures.median("memory_server", "taskfork");
    add("KiB of the server for each live worker", most(1.0), server);
    let client = figures.median("memory_client", "taskfork");
    add("KiB of the client for each idle connection", most(4.0), client);

    let asleep = ["taskfork asleep", "floor tokio"];
    add(
        "one call on one core by the bare one",
        most(1.4),
        figures.ratio("latency_pinned", "taskfork", "floor tokio"),
    );
    add(
        "one call, both sides asleep, by the bare one",
        most(1.2),
        figures.ratio_of(|row| row.median, "latency", asleep),
    );
    add("the same, p99", most(2.0), figures.ratio_of(|row| row.p99, "latency", asleep));
    add(
        "one call in close succession by the bare one",
        most(0.3),
        figures.ratio("latency", "taskfork", "floor tokio"),
    );
    add(
        "blocking facade, both sides asleep, by bare blocking processes",
        most(1.2),
        figures.ratio("latency", "taskfork blocking asleep", "floor blocking"),
    );
    add(
        "blocking facade in close succession by bare blocking processes",
        most(0.15),
        figures.ratio("latency", "taskfork blocking", "floor blocking"),
    );
    let one_by_one = figures.median("latency", "taskfork asleep").map(|micros| 1e6 / micros);
    let queued = figures.median("queued", "taskfork");
    add(
        "queued calls by calls one after the other",
        least(10.0),
        queued.zip(one_by_one).map(|(queued, single)| queued / single),
    );
    add(
        "queued calls by bare batches",
        least(0.33),
        figures.ratio("queued", "taskfork", "floor batches"),
    );
    let processes = ["procspawn", "futures", "pebble", "loky", "workerpool"];
    let rates = processes.iter().filter_map(|name| figures.median("throughput", name));
    let ours = figures.median("throughput", "taskfork");
    add(
        "calls outstanding by the best other pool of processes",
        least(5.0),
        ours.zip(rates.reduce(f64::max)).map(|(ours, best)| ours / best),
    );
    for (candidate, name, bound) in [
        ("taskfork", "16 MiB sent by a bare socket", 0.9),
        ("taskfork lent", "16 MiB copied to shared memory by a bare socket", 5.0),
        ("taskfork shared", "16 MiB filled in place by a bare socket", 5.0),
    ] {
        add(name, least(bound), figures.ratio("payload_16m", candidate, "floor socket"));
    }
    let idle = figures.median("pss", "taskfork").map(|kib| kib / 1024.0);
    add("MiB of an idle worker", most(0.5), idle);
    let hashes = figures.ratio("bcrypt", "taskfork", "spawn_blocking");
    add("bcrypt by threads", least(0.95), hashes);
    let growth = figures.median("queue_growth", "taskfork");
    add("a checkout with 100,000 waiting by with 100", most(1.25), growth);
    goals.extend(python::goals(rows));
    goals
}

/// A table of the goals, and how many are met.
pub fn table(goals: &[Goal]) -> String {
    let mut text = "| goal | | figure | |\n|---|---|---|---|\n".to_owned();
    for goal in goals {
        let bound = match goal.bound {
            Bound::AtMost(most) => format!("at most {most}"),
            Bound::AtLeast(least) => format!("at least {least}"),
        };
        let met = if goal.is_met() { "met" } else { "**not met**" };
        let _ = writeln!(text, "| {} | {bound} | {:.2} | {met} |", goal.name, goal.figure);
    }
    let met = goals.iter().filter(|goal| goal.is_met()).count();
    let _ = writeln!(text, "\n{met} of {} goals met", goals.len());
    text
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
    fn a_goal_without_a_figure_is_left_out() {
        assert!(goals(&[row("cold", "taskfork", 1.0)]).is_empty());
    }

    #[test]
    fn a_goal_is_a_ratio_of_two_rows() {
        let rows = [row("cold", "taskfork", 3.0), row("cold", "procspawn", 2.0)];
        let [goal] = &goals(&rows)[..] else { panic!("one goal") };
        assert_eq!((goal.figure, goal.is_met()), (1.5, false));
        let text = table(std::slice::from_ref(goal));
        assert!(
            text.contains("| cold start by procspawn's | at most 1 | 1.50 | **not met** |"),
            "{text}"
        );
        assert!(text.ends_with("\n0 of 1 goals met\n"), "{text}");
    }

    #[test]
    fn growth_compares_two_works() {
        let rows = [row("one_more_0", "taskfork", 2.0), row("one_more_4000", "taskfork", 2.4)];
        let [goal] = &goals(&rows)[..] else { panic!("one goal") };
        assert!((goal.figure - 1.2).abs() < 1e-9 && goal.is_met());
    }

    #[test]
    fn every_name_in_a_goal_is_a_work_and_a_candidate() {
        // With a value for each candidate, each goal has a figure.
        let all = crate::works::WORKS.iter().flat_map(|work| {
            work.candidates.iter().map(|candidate| Row {
                p90: Some(1.0),
                p99: Some(1.0),
                processor: Some(1.0),
                ..row(work.name, candidate, 1.0)
            })
        });
        let mut rows: Vec<Row> = all.collect();
        rows.push(row("instructions", "taskfork", 1.0));
        assert_eq!(goals(&rows).len(), 81);
    }
}
