//! The Grafana dashboard and the alert rules use metrics and labels that exist.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;

use taskfork_dashboard::METRICS;

/// The metrics that a text names.
fn named(text: &str) -> BTreeSet<&str> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = text.split(|c: char| !is_part(c));
    words.filter(|word| word.starts_with("taskfork_")).collect()
}

/// The series that there are: a histogram has three.
fn series() -> BTreeSet<String> {
    let of = METRICS.iter().flat_map(|(name, kind, _)| {
        let suffixes: &[_] = match *kind {
            "histogram" => &["_bucket", "_sum", "_count"],
            _ => &[""],
        };
        suffixes.iter().map(move |suffix| format!("{name}{suffix}"))
    });
    of.collect()
}

fn read(name: &str) -> String {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/deploy/");
    std::fs::read_to_string(format!("{folder}{name}")).unwrap()
}

#[test]
fn rules_and_panels_use_metrics_that_exist() {
    let (rules, panels) = (read("prometheus-rules.yaml"), read("grafana.json"));
    for text in [&rules, &panels] {
        let unknown: Vec<_> =
            named(text).into_iter().filter(|name| !series().contains(*name)).collect();
        assert_eq!(unknown, [""; 0]);
    }
    // Each metric is in a panel.
    let shown = named(&panels);
    for (name, ..) in METRICS {
        assert!(shown.iter().any(|it| it.starts_with(name)), "no panel shows {name}");
    }
    let panels: serde_json::Value = serde_json::from_str(&panels).unwrap();
    assert!(panels["panels"].as_array().unwrap().iter().all(|it| it["title"].is_string()));
}

#[test]
fn causes_in_the_rules_are_those_of_servers() {
    // The documentation of the field lists them, and a test compares that list with the source.
    let status = concat!(env!("CARGO_MANIFEST_DIR"), "/../taskfork/src/server/status.rs");
    let status = std::fs::read_to_string(status).unwrap();
    let rules = read("prometheus-rules.yaml");
    let causes = rules
        .split("cause=~\"")
        .skip(1)
        .flat_map(|rest| rest.split('"').next().unwrap().split('|'));
    let causes: Vec<_> = causes.collect();
    assert!(causes.len() > 3);
    for cause in causes {
        assert!(status.contains(&format!("| `{cause}` |")), "{cause}");
    }
}
