//! `taskfork sandbox`: what the kernel offers for the sandbox of workers.

use std::fmt::Write;

use serde_json::json;
use taskfork::sandbox::{Feature, KernelSupport, Level, PrepareError, Sandbox};

use crate::error::CommandError;
use crate::output;

/// What to do about sandboxes.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Print what this kernel supports, and which levels `taskfork serve --sandbox LEVEL` can use. Changes nothing
    Check {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

pub(crate) fn run(options: &Options) -> Result<(), CommandError> {
    let Action::Check { json } = options.action;
    let support = KernelSupport::detect();
    let levels = Level::ALL.map(|level| (level, lacking(level)));
    match json {
        true => output::line(&as_json(&support, &levels)),
        false => output::text(&as_text(&support, &levels)),
    }
}

/// What the kernel lacks for a level. Openings of a level can need more: `unix_socket` does.
fn lacking(level: Level) -> Vec<Feature> {
    match Sandbox::of_level(level).prepare() {
        Err(PrepareError::Lacking { features, .. }) => features,
        _ => Vec::new(),
    }
}

fn as_text(support: &KernelSupport, levels: &[(Level, Vec<Feature>)]) -> String {
    let mut out = format!("{support}\n\n");
    for (level, lacking) in levels {
        let lacking: Vec<_> = lacking.iter().map(Feature::to_string).collect();
        // Writing to a string does not fail.
        let _ = match lacking.is_empty() {
            true => writeln!(out, "yes  level {level}"),
            false => writeln!(out, "no   level {level}: the kernel lacks {}", lacking.join(", ")),
        };
    }
    out
}

fn as_json(support: &KernelSupport, levels: &[(Level, Vec<Feature>)]) -> serde_json::Value {
    let features: Vec<_> = Feature::ALL
        .into_iter()
        .map(|feature| json!({ "feature": feature.to_string(), "supported": support.has(feature) }))
        .collect();
    let levels: Vec<_> = levels
        .iter()
        .map(|(level, lacking)| {
            let lacking: Vec<_> = lacking.iter().map(Feature::to_string).collect();
            json!({ "level": level.name(), "supported": lacking.is_empty(), "lacking": lacking })
        })
        .collect();
    json!({
        "landlock_abi": support.landlock_abi,
        "features": features,
        "cgroup_controllers": support.cgroup_controllers,
        "levels": levels,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn without_landlock() -> (KernelSupport, Vec<(Level, Vec<Feature>)>) {
        let mut support = KernelSupport::detect();
        (support.landlock_abi, support.seccomp) = (None, true);
        support.cgroup_controllers = vec!["memory".to_owned()];
        (support, vec![(Level::Off, Vec::new()), (Level::Compute, vec![Feature::FileRules])])
    }

    #[test]
    fn the_table_names_what_a_level_lacks() {
        let (support, levels) = without_landlock();
        let text = as_text(&support, &levels);
        assert!(text.contains("no   rules for files (Landlock 3, Linux 6.2)\n"), "{text}");
        assert!(text.contains("delegated controllers of cgroup v2: memory\n"), "{text}");
        let end = "\n\nyes  level off\nno   level compute: the kernel lacks rules for files (Landlock 3, Linux 6.2)\n";
        assert!(text.ends_with(end), "{text}");
    }

    #[test]
    fn json_has_the_same() {
        let (support, levels) = without_landlock();
        let value = as_json(&support, &levels);
        assert_eq!(value["landlock_abi"], json!(null));
        assert_eq!(value["features"][0]["supported"], true);
        assert_eq!(value["features"][1]["supported"], false);
        assert_eq!(value["levels"][0], json!({ "level": "off", "supported": true, "lacking": [] }));
        let lacking = json!(["rules for files (Landlock 3, Linux 6.2)"]);
        assert_eq!(value["levels"][1]["lacking"], lacking);
    }
}
