//! The picture of the results: a panel for each question, in a light and a dark variant.

mod axis;
mod bars;
mod curves;
mod panel;
mod svg;
mod theme;

use axis::Spread::{Linear, Logarithmic};
use bars::{Bar, Bars};
use curves::{Curve, Curves, Spreads};
use panel::{PANEL_WIDTH, Place};
use svg::{Anchor, Font, Svg};
pub use theme::{DARK, LIGHT, Theme};

use crate::report::Row;

const WIDTH: f64 = 800.0;
const MARGIN: f64 = 16.0;
const TOP: f64 = 62.0;
/// Between rows of panels.
const GAP: f64 = 26.0;
const TITLE: &str = "taskfork beside other ways to run blocking code";

/// One of the panels.
enum Panel {
    Bars(Bars),
    Curves(Curves),
}

impl Panel {
    /// `None` if the rows have nothing for it.
    fn height(&self, rows: &[Row]) -> Option<f64> {
        match self {
            Self::Bars(bars) => bars.height(rows),
            Self::Curves(curves) => curves.height(rows),
        }
    }

    fn draw(&self, svg: &mut Svg, place: Place, rows: &[Row], theme: &Theme) {
        match self {
            Self::Bars(bars) => bars.draw(svg, place, rows, theme),
            Self::Curves(curves) => curves.draw(svg, place, rows, theme),
        }
    }
}

/// Draws the panels that the rows have values for, two beside each other.
pub fn draw(rows: &[Row], theme: &Theme) -> String {
    let panels: Vec<(&Panel, f64)> =
        PANELS.iter().filter_map(|panel| Some((panel, panel.height(rows)?))).collect();
    let lines: Vec<&[(&Panel, f64)]> = panels.chunks(2).collect();
    let height_of =
        |line: &[(&Panel, f64)]| line.iter().map(|(_, height)| *height).fold(0.0, f64::max);
    let height = TOP + lines.iter().map(|line| height_of(line) + GAP).sum::<f64>();
    let mut svg = Svg::new(WIDTH, height, TITLE, theme);
    let font = Font { size: 18.0, bold: true, color: theme.text, anchor: Anchor::Start };
    svg.text([MARGIN, 28.0], font, TITLE);
    let font = Font { size: 11.0, bold: false, color: theme.explanation, anchor: Anchor::Start };
    let how = "Medians of all rounds of one run on one machine, each candidate in turn. \
               Shorter bars and lower curves are better, except for rates.";
    svg.text([MARGIN, 46.0], font, how);
    let mut y = TOP;
    for line in lines {
        for (column, (panel, _)) in line.iter().enumerate() {
            let x = MARGIN + column as f64 * (WIDTH - 2.0 * MARGIN - PANEL_WIDTH);
            panel.draw(&mut svg, Place { x, y }, rows, theme);
        }
        y += height_of(line) + GAP;
    }
    svg.finish()
}

macro_rules! bars {
    ($($candidate:literal, $name:literal, $language:literal;)*) => {
        &[$(Bar { candidate: $candidate, name: $name, language: $language },)*]
    };
}

const POOLS: &[Bar] = bars! {
    "taskfork", "taskfork", "Rust";
    "procspawn", "procspawn", "Rust";
    "spawn_blocking", "spawn_blocking", "Rust, threads";
    "futures", "concurrent.futures", "Python";
    "pebble", "pebble", "Python";
    "loky", "loky", "Python";
    "workerpool", "workerpool", "Node";
    "piscina", "piscina", "Node, threads";
};

/// Those that have processes.
const PROCESSES: &[Bar] = bars! {
    "taskfork", "taskfork", "Rust";
    "taskfork spares", "taskfork", "spare workers";
    "procspawn", "procspawn", "Rust";
    "futures", "concurrent.futures", "Python";
    "pebble", "pebble", "Python";
    "loky", "loky", "Python";
    "workerpool", "workerpool", "Node";
    "floor kill and fork", "bare fork", "no pool";
};

const CALLS: &[Bar] = bars! {
    "taskfork", "taskfork", "Rust";
    "procspawn", "procspawn", "Rust";
    "spawn_blocking", "spawn_blocking", "Rust, threads";
    "futures", "concurrent.futures", "Python";
    "pebble", "pebble", "Python";
    "loky", "loky", "Python";
    "workerpool", "workerpool", "Node";
    "piscina", "piscina", "Node, threads";
    "floor tokio", "bare socket", "no pool";
};

const COPIES: &[Bar] = bars! {
    "taskfork", "taskfork", "Rust";
    "taskfork lent", "taskfork", "shared memory";
    "procspawn", "procspawn", "Rust";
    "spawn_blocking", "spawn_blocking", "Rust, no copy";
    "futures", "concurrent.futures", "Python";
    "pebble", "pebble", "Python";
    "loky", "loky", "Python";
    "workerpool", "workerpool", "Node";
    "piscina", "piscina", "Node, threads";
    "floor socket", "bare socket", "no pool";
};

const SERVICES: &[Bar] = bars! {
    "taskfork", "taskfork", "Rust";
    "hand-written pool", "hand-written pool", "Rust";
    "procspawn", "procspawn", "Rust";
    "spawn_blocking", "spawn_blocking", "Rust, threads";
};

const CURVES: &[Curve] = &[
    Curve { candidate: "taskfork", name: "taskfork", language: "Rust", color: None },
    Curve {
        candidate: "hand-written pool",
        name: "hand-written pool",
        language: "Rust",
        color: Some(0),
    },
    Curve { candidate: "procspawn", name: "procspawn", language: "Rust", color: Some(1) },
    Curve {
        candidate: "spawn_blocking",
        name: "spawn_blocking",
        language: "threads",
        color: Some(2),
    },
];

const FORKS: &[Curve] = &[
    Curve { candidate: "taskfork", name: "taskfork", language: "Rust", color: None },
    Curve { candidate: "floor fork", name: "bare fork", language: "no pool", color: Some(2) },
];

const RATES: &[(&str, f64)] = &[
    ("arrivals_50_on_2", 50.0),
    ("arrivals_300_on_2", 300.0),
    ("arrivals_1000_on_2", 1000.0),
    ("arrivals_3000_on_2", 3000.0),
    ("arrivals_10000_on_2", 10_000.0),
];

const LIVE: &[(&str, f64)] = &[
    ("one_more_0", 0.0),
    ("one_more_500", 500.0),
    ("one_more_1000", 1000.0),
    ("one_more_2000", 2000.0),
    ("one_more_4000", 4000.0),
    ("one_more_10000", 10_000.0),
];

const PANELS: &[Panel] = &[
    Panel::Curves(Curves {
        question: "How long does a request take under load?",
        explanation: "p50 of random arrivals, 4 workers, µs; both axes logarithmic",
        below: "requests a second (× does not keep up)",
        works: RATES,
        candidates: CURVES,
        spreads: Spreads { below: Logarithmic, left: Logarithmic },
        value: |row| row.median,
        unit: 1.0,
    }),
    Panel::Curves(Curves {
        question: "And the slowest in a hundred?",
        explanation: "p99 of the same requests, µs; both axes logarithmic",
        below: "requests a second (× does not keep up)",
        works: RATES,
        candidates: CURVES,
        spreads: Spreads { below: Logarithmic, left: Logarithmic },
        value: |row| row.p99,
        unit: 1.0,
    }),
    Panel::Bars(Bars {
        question: "How long does one call take?",
        explanation: "64 bytes, one call after the other, µs; logarithmic",
        work: "latency",
        candidates: CALLS,
        spread: Logarithmic,
        value: |row| row.median,
        unit: 1.0,
    }),
    Panel::Bars(Bars {
        question: "How many calls a second?",
        explanation: "outstanding on 2 workers, calls/s, more is better; logarithmic",
        work: "throughput",
        candidates: POOLS,
        spread: Logarithmic,
        value: |row| row.median,
        unit: 1.0,
    }),
    Panel::Bars(Bars {
        question: "How fast are large values?",
        explanation: "16 MiB there and back, MB/s, more is better; logarithmic",
        work: "payload_16m",
        candidates: COPIES,
        spread: Logarithmic,
        value: |row| row.median,
        unit: 1.0,
    }),
    Panel::Bars(Bars {
        question: "What does a worker's death cost?",
        explanation: "from the kill to the next result, ms; logarithmic",
        work: "replace",
        candidates: PROCESSES,
        spread: Logarithmic,
        value: |row| row.median,
        unit: 1000.0,
    }),
    Panel::Bars(Bars {
        question: "How long does the start take?",
        explanation: "from nothing to the first result, ms; logarithmic",
        work: "cold",
        candidates: POOLS,
        spread: Logarithmic,
        value: |row| row.median,
        unit: 1000.0,
    }),
    Panel::Bars(Bars {
        question: "How much memory does a worker take?",
        explanation: "idle, with its share of what it shares (PSS), MiB",
        work: "pss",
        candidates: POOLS,
        spread: Linear,
        value: |row| row.median,
        unit: 1024.0,
    }),
    Panel::Curves(Curves {
        question: "What does one more worker cost among many?",
        explanation: "connect, fork and first answer, ms; left axis logarithmic",
        below: "workers that live already",
        works: LIVE,
        candidates: FORKS,
        spreads: Spreads { below: Linear, left: Logarithmic },
        value: |row| row.median,
        unit: 1000.0,
    }),
    Panel::Bars(Bars {
        question: "How much processor time does a request take?",
        explanation: "1,000 random arrivals/s, all processes together, µs",
        work: "arrivals_1000_on_2",
        candidates: SERVICES,
        spread: Linear,
        value: |row| row.processor,
        unit: 1.0,
    }),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::works::WORKS;

    /// A value for each candidate of each work.
    fn all_rows() -> Vec<Row> {
        let rows = WORKS.iter().flat_map(|work| {
            work.candidates.iter().map(|candidate| Row {
                work: work.name.into(),
                candidate: (*candidate).into(),
                median: Some(2000.0),
                p99: Some(9000.0),
                processor: Some(70.0),
                ..Row::default()
            })
        });
        rows.collect()
    }

    #[test]
    fn every_panel_shows_each_of_its_candidates() {
        let rows = all_rows();
        for panel in PANELS {
            assert!(panel.height(&rows).is_some());
            let (works, candidates): (Vec<&str>, Vec<&str>) = match panel {
                Panel::Bars(bars) => {
                    (vec![bars.work], bars.candidates.iter().map(|bar| bar.candidate).collect())
                }
                Panel::Curves(curves) => (
                    curves.works.iter().map(|(work, _)| *work).collect(),
                    curves.candidates.iter().map(|curve| curve.candidate).collect(),
                ),
            };
            for work in works {
                let work = WORKS.iter().find(|known| known.name == work).expect("a work");
                // Threads have no process whose memory could be shown.
                for candidate in candidates.iter().filter(|_| work.name != "pss") {
                    assert!(work.candidates.contains(candidate), "{candidate} at {}", work.name);
                }
            }
        }
    }

    #[test]
    fn a_panel_without_values_is_left_out() {
        let all = draw(&all_rows(), &LIGHT);
        assert!(all.contains("under load?") && all.contains("How long does one call take?"));
        let rows: Vec<Row> = all_rows().into_iter().filter(|row| row.work == "latency").collect();
        let one = draw(&rows, &LIGHT);
        assert!(!one.contains("under load?") && one.contains("How long does one call take?"));
    }

    #[test]
    fn the_variants_differ_in_colours_only() {
        let rows = all_rows();
        let without_colors = |text: String| {
            let parts = text
                .split('#')
                .map(|part| part.trim_start_matches(|c: char| c.is_ascii_hexdigit()));
            parts.collect::<String>()
        };
        assert_eq!(without_colors(draw(&rows, &LIGHT)), without_colors(draw(&rows, &DARK)));
    }
}
