//! What a run has found: a table, a file for programs, a plot, and a line for each goal.

use std::fmt::Write;

use plotters::prelude::*;
use serde_json::json;

use crate::{Results, WORKS, Work};

/// The medians of one contestant at one work.
struct Figure {
    name: &'static str,
    value: f64,
    /// The least and the most of all rounds.
    spread: (f64, f64),
    p99: Option<f64>,
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

fn figures(
    results: &Results,
    number: usize,
    work: &Work,
) -> Vec<Result<Figure, (&'static str, String)>> {
    let mut all = Vec::new();
    for (place, &name) in work.contestants.iter().enumerate() {
        let Some(samples) = results.get(&(number, place)) else { continue };
        let values: Vec<f64> = samples.iter().filter_map(|sample| sample.value).collect();
        let fold = |start: f64, pick: fn(f64, f64) -> f64| values.iter().copied().fold(start, pick);
        let spread = (fold(f64::MAX, f64::min), fold(f64::MIN, f64::max));
        let p99 = median(samples.iter().filter_map(|sample| sample.p99).collect());
        all.push(match median(values.clone()) {
            Some(value) => Ok(Figure { name, value, spread, p99 }),
            None => {
                let why = samples.iter().find_map(|sample| sample.failed.clone());
                Err((name, why.unwrap_or_default()))
            }
        });
    }
    all
}

/// Prints the table and the goals; writes them beside the program if `keep`.
pub fn write(results: &Results, keep: bool) -> std::io::Result<()> {
    let (mut table, mut data) = (String::new(), Vec::new());
    for (number, work) in WORKS.iter().enumerate() {
        let found = figures(results, number, work);
        if found.is_empty() {
            continue;
        }
        let better = if work.more_is_better { "more is better" } else { "less is better" };
        let _ = writeln!(table, "\n### {} ({}; {better})\n", work.title, work.unit);
        let _ = writeln!(table, "| | median | least to most | p99 |\n|---|---|---|---|");
        for figure in found {
            match figure {
                Ok(Figure { name, value, spread: (least, most), p99 }) => {
                    let p99 = p99.map(|value| format!("{value:.1}")).unwrap_or_default();
                    let _ = writeln!(
                        table,
                        "| {name} | {value:.1} | {least:.1} to {most:.1} | {p99} |"
                    );
                    data.push(json!({
                        "work": work.name, "contestant": name, "unit": work.unit,
                        "median": value, "least": least, "most": most, "p99": p99,
                    }));
                }
                Err((name, why)) => {
                    let _ = writeln!(table, "| {name} | {why} | | |");
                    data.push(json!({ "work": work.name, "contestant": name, "failed": why }));
                }
            }
        }
    }
    println!("{table}");
    if keep {
        std::fs::write("results.md", table.trim_start())?;
        std::fs::write("results.json", serde_json::to_string_pretty(&data)?)?;
        plot(results).map_err(std::io::Error::other)?;
    }
    goals(results).iter().for_each(|line| println!("{line}"));
    Ok(())
}

/// A row of bars for each of the works that all take part in.
fn plot(results: &Results) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let shown: Vec<_> = WORKS
        .iter()
        .enumerate()
        .filter(|(_, work)| matches!(work.name, "latency" | "throughput" | "payload_16m" | "cold"))
        .collect();
    let area = SVGBackend::new("results.svg", (900, 260 * shown.len() as u32)).into_drawing_area();
    area.fill(&WHITE).map_err(|error| error.to_string())?;
    for (part, (number, work)) in area.split_evenly((shown.len(), 1)).iter().zip(shown) {
        let found: Vec<Figure> =
            figures(results, number, work).into_iter().filter_map(Result::ok).collect();
        let most = found.iter().map(|figure| figure.value).fold(1.0, f64::max);
        let least = found.iter().map(|figure| figure.value).fold(most, f64::min) / 2.0;
        let names: Vec<&str> = found.iter().map(|figure| figure.name).collect();
        let label = |place: &SegmentValue<usize>| match place {
            SegmentValue::CenterOf(place) => {
                names.get(*place).copied().unwrap_or_default().to_owned()
            }
            _ => String::new(),
        };
        let title = format!("{} ({}, logarithmic)", work.title, work.unit);
        let mut chart = ChartBuilder::on(part)
            .caption(title, ("sans-serif", 16))
            .margin(8)
            .x_label_area_size(24)
            .y_label_area_size(150)
            .build_cartesian_2d(
                (least..most * 1.1).log_scale(),
                (0..names.len().max(1)).into_segmented(),
            )
            .map_err(|error| error.to_string())?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .y_labels(names.len().max(1))
            .y_label_formatter(&label)
            .draw()
            .map_err(|error| error.to_string())?;
        let bars = found.iter().enumerate().map(|(place, figure)| {
            let color = match figure.name {
                name if name.starts_with("taskfork") => BLUE.mix(0.7),
                name if name.starts_with("floor") => BLACK.mix(0.3),
                _ => RED.mix(0.5),
            };
            let from = (least, SegmentValue::Exact(place));
            let mut bar = Rectangle::new(
                [from, (figure.value, SegmentValue::Exact(place + 1))],
                color.filled(),
            );
            bar.set_margin(2, 2, 0, 0);
            bar
        });
        chart.draw_series(bars).map_err(|error| error.to_string())?;
    }
    area.present().map_err(|error| error.to_string())?;
    Ok(())
}

/// One line a goal whose figures are there.
fn goals(results: &Results) -> Vec<String> {
    let figure = |work: &str, name: &str| {
        let number = WORKS.iter().position(|known| known.name == work)?;
        let found = figures(results, number, &WORKS[number]);
        found.into_iter().filter_map(Result::ok).find(|figure| figure.name == name)
    };
    let value = |work: &str, name: &str| figure(work, name).map(|figure| figure.value);
    let p99 = |work: &str, name: &str| figure(work, name)?.p99;
    let ratio = |ours: Option<f64>, theirs: Option<f64>| Some(ours? / theirs?);
    let best = |work: &str, names: &[&str]| {
        names.iter().filter_map(|name| value(work, name)).reduce(f64::max)
    };
    let processes = ["procspawn", "futures", "pebble", "loky", "workerpool"];
    let one_by_one = value("latency", "taskfork asleep").map(|micros| 1e6 / micros);
    let goals = [
        (
            "latency_pinned",
            ratio(value("latency_pinned", "taskfork"), value("latency_pinned", "floor tokio")),
            "1.4",
        ),
        (
            "latency_asleep",
            ratio(value("latency", "taskfork asleep"), value("latency", "floor tokio")),
            "1.2",
        ),
        (
            "latency_asleep_p99",
            ratio(p99("latency", "taskfork asleep"), p99("latency", "floor tokio")),
            "2",
        ),
        (
            "latency_busy_polling",
            ratio(value("latency", "taskfork"), value("latency", "floor tokio")),
            "0.3",
        ),
        (
            "blocking_asleep",
            ratio(value("latency", "taskfork blocking asleep"), value("latency", "floor blocking")),
            "1.2",
        ),
        (
            "blocking_busy_polling",
            ratio(value("latency", "taskfork blocking"), value("latency", "floor blocking")),
            "0.15",
        ),
        ("queued_by_one_at_a_time", ratio(value("queued", "taskfork"), one_by_one), "10 or more"),
        (
            "queued_by_bare_batches",
            ratio(value("queued", "taskfork"), value("queued", "floor batches")),
            "0.33 or more",
        ),
        (
            "throughput_by_best_peer",
            ratio(value("throughput", "taskfork"), best("throughput", &processes)),
            "5 or more",
        ),
        (
            "payload_16m_by_socket",
            ratio(value("payload_16m", "taskfork"), value("payload_16m", "floor socket")),
            "0.9 or more",
        ),
        (
            "payload_16m_copied_by_socket",
            ratio(value("payload_16m", "taskfork lent"), value("payload_16m", "floor socket")),
            "5 or more",
        ),
        (
            "payload_16m_filled_in_place_by_socket",
            ratio(value("payload_16m", "taskfork shared"), value("payload_16m", "floor socket")),
            "5 or more",
        ),
        ("replace", ratio(value("replace", "taskfork"), value("replace", "floor fork")), "1.5"),
        (
            "replace_spares",
            ratio(value("replace", "taskfork spares"), value("latency", "floor tokio")),
            "2",
        ),
        ("pss_mib", value("pss", "taskfork").map(|kib| kib / 1024.0), "0.5"),
        (
            "bcrypt_by_threads",
            ratio(value("bcrypt", "taskfork"), value("bcrypt", "spawn_blocking")),
            "0.95 or more",
        ),
        ("queue_growth", value("queue_growth", "taskfork"), "1.25"),
    ];
    let line = |(name, value, goal)| Some(format!("{name} ratio {:.2} goal {goal}", value?));
    goals.into_iter().filter_map(line).collect()
}
