//! What a run has found: rows for programs, tables for people.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use crate::Results;
use crate::sample::{Sample, median};
use crate::works::{WORKS, Work};

/// What one candidate has achieved at one kind of work, over all rounds. Values are medians.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Row {
    pub work: String,
    pub candidate: String,
    pub unit: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub median: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub least: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub most: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p90: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p99: Option<f64>,
    /// Microseconds of processor time for each call, of all processes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub processor: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

/// One of the values of a row.
pub type Value = fn(&Row) -> Option<f64>;

/// The rows of a run, in the order of the works.
pub fn rows(results: &Results) -> Vec<Row> {
    let row = |(&(work, candidate), samples): (&(usize, usize), &Vec<Sample>)| {
        summary(&WORKS[work], WORKS[work].candidates[candidate], samples)
    };
    results.iter().map(row).collect()
}

/// The rows of a run, with those of another run in place of all rows of the same works.
pub fn updated(known: Vec<Row>, new: Vec<Row>) -> Vec<Row> {
    let mut rows = known;
    rows.retain(|row| new.iter().all(|other| other.work != row.work));
    rows.extend(new);
    // What is not a work here, such as counted instructions, stays behind all others.
    let place = |row: &Row| WORKS.iter().position(|work| work.name == row.work);
    rows.sort_by_key(|row| place(row).unwrap_or(WORKS.len()));
    rows
}

fn summary(work: &Work, candidate: &str, samples: &[Sample]) -> Row {
    let all =
        |of: fn(&Sample) -> Option<f64>| -> Vec<f64> { samples.iter().filter_map(of).collect() };
    let values = all(|sample| sample.value);
    Row {
        work: work.name.to_owned(),
        candidate: candidate.to_owned(),
        unit: work.unit.to_owned(),
        least: values.iter().copied().reduce(f64::min),
        most: values.iter().copied().reduce(f64::max),
        p90: median(all(|sample| sample.p90)),
        p99: median(all(|sample| sample.p99)),
        processor: median(all(|sample| sample.processor)),
        failed: values
            .is_empty()
            .then(|| samples.iter().find_map(|sample| sample.failed.clone()).unwrap_or_default()),
        median: median(values),
    }
}

/// A table for each work.
pub fn tables(rows: &[Row]) -> String {
    let mut text = String::new();
    for work in WORKS {
        let found: Vec<&Row> = rows.iter().filter(|row| row.work == work.name).collect();
        if !found.is_empty() {
            table(&mut text, work, &found);
        }
    }
    text.trim_start().to_owned()
}

fn table(text: &mut String, work: &Work, rows: &[&Row]) {
    let better = if work.more_is_better { "more is better" } else { "less is better" };
    let _ = writeln!(text, "\n### {} ({}; {better})\n", work.title, work.unit);
    // Columns that no candidate has anything in are left out.
    let optional: [(&str, Value); 3] = [
        ("p90", |row| row.p90),
        ("p99", |row| row.p99),
        ("processor time of a call, µs", |row| row.processor),
    ];
    let columns: Vec<_> = optional
        .into_iter()
        .filter(|(_, value)| rows.iter().any(|row| value(row).is_some()))
        .collect();
    let names: String = columns.iter().map(|(name, _)| format!(" {name} |")).collect();
    let _ = writeln!(text, "| | median | least to most |{names}");
    let _ = writeln!(text, "|---|---|---|{}", "---|".repeat(columns.len()));
    for row in rows {
        let _ = write!(text, "| {} |", row.candidate);
        if let (Some(median), Some(least), Some(most)) = (row.median, row.least, row.most) {
            let _ = write!(text, " {median:.1} | {least:.1} to {most:.1} |");
        } else {
            let _ = write!(text, " {} | |", row.failed.as_deref().unwrap_or_default());
        }
        for (_, value) in &columns {
            let value = value(row).map(|value| format!("{value:.1}")).unwrap_or_default();
            let _ = write!(text, " {value} |");
        }
        let _ = writeln!(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_the_median_of_all_rounds_or_a_reason() {
        let work = &WORKS[0];
        let samples = [3.0, 1.0, 2.0].map(Sample::of);
        let row = summary(work, "taskfork", &samples);
        assert_eq!((row.median, row.least, row.most), (Some(2.0), Some(1.0), Some(3.0)));
        assert_eq!(row.failed, None);
        let row = summary(work, "taskfork", &[Sample::failed("why")]);
        assert_eq!((row.median, row.failed.as_deref()), (None, Some("why")));
    }

    #[test]
    fn another_run_replaces_all_rows_of_its_works() {
        let row = |work: &str, candidate: &str, median: f64| Row {
            work: work.into(),
            candidate: candidate.into(),
            median: Some(median),
            ..Row::default()
        };
        let known = vec![
            row("python_call", "taskfork asyncio", 1.0),
            row("python_call", "loky", 2.0),
            row("queue_growth", "taskfork", 3.0),
            row("instructions", "taskfork", 4.0),
        ];
        let new = vec![row("python_call", "loky", 5.0), row("latency", "taskfork", 6.0)];
        let medians: Vec<_> = updated(known, new).iter().filter_map(|row| row.median).collect();
        assert_eq!(medians, [6.0, 5.0, 3.0, 4.0]);
    }

    #[test]
    fn a_table_has_only_columns_with_values() {
        let row = Row {
            work: "latency".into(),
            candidate: "taskfork".into(),
            median: Some(2.0),
            least: Some(1.0),
            most: Some(3.0),
            p99: Some(4.0),
            ..Row::default()
        };
        let failed = Row { candidate: "loky".into(), failed: Some("why".into()), ..row.clone() };
        let failed = Row { median: None, p99: None, ..failed };
        let text = tables(&[row, failed]);
        assert_eq!(
            text.lines().skip(2).collect::<Vec<_>>(),
            [
                "| | median | least to most | p99 |",
                "|---|---|---|---|",
                "| taskfork | 2.0 | 1.0 to 3.0 | 4.0 |",
                "| loky | why | |  |"
            ]
        );
    }
}
