//! Checking at startup whether workers can apply their settings.

use rustix::process::getrlimit;

use super::error::ServerError;
use super::limits::{Setting, SettingError, WorkerLimits};
use super::probe::probe;
use crate::sys::ThreadCount;

impl WorkerLimits {
    /// Checks whether the values are in their ranges.
    pub(crate) fn check(&self) -> Result<(), ServerError> {
        let wrong = |option, reason: String| Err(ServerError::option(option, reason));
        if let Some(niceness) = self.niceness.filter(|value| !(-20..20).contains(value)) {
            return wrong("niceness", format!("{niceness} is not between -20 and 19"));
        }
        if let Some(score) = self.oom_score_adj.filter(|value| !(-1000..=1000).contains(value)) {
            return wrong("oom_score_adj", format!("{score} is not between -1000 and 1000"));
        }
        for &(limit, value) in &self.limits {
            let Some(resource) = limit.resource() else {
                if self.group.is_none() {
                    return wrong(
                        "limit",
                        format!("{limit:?} needs a control group: set `cgroup`"),
                    );
                }
                continue;
            };
            let most = getrlimit(resource).maximum;
            if let Some(most) =
                most.filter(|&most| most < value && !rustix::process::geteuid().is_root())
            {
                let reason =
                    format!("{value} for {limit:?} is over this process's own limit, {most}");
                return wrong("limit", reason);
            }
        }
        Ok(())
    }

    /// Checks whether the system lets a worker apply the settings.
    pub(crate) fn probe(&self, threads: &ThreadCount) -> Result<(), ServerError> {
        if self.settings().next().is_none() {
            return Ok(());
        }
        let probed = probe(threads, "cannot try out the limits of workers", || {
            self.apply().map_err(|SettingError { setting, source }| {
                (self.settings().position(|it| it == setting).unwrap_or_default(), source)
            })
        })?;
        let refused = probed.failed.and_then(|(step, source)| {
            self.settings().nth(step).map(|setting| SettingError { setting, source })
        });
        refused.map_or(Ok(()), |error| Err(explain(error)))
    }
}

fn explain(SettingError { setting, source }: SettingError) -> ServerError {
    let privilege = match setting {
        Setting::Niceness(_) => "a lower niceness than the server's own needs CAP_SYS_NICE",
        Setting::OomScoreAdj(_) => "a lower score than the server's own needs CAP_SYS_RESOURCE",
        Setting::Limit(..) => "a higher limit than the server's own needs CAP_SYS_RESOURCE",
    };
    let reason = format!(
        "a worker may not set {setting} ({source}): {privilege}; if the program drops its privileges, it should do that \
         by `user` or in `setup`, which come later"
    );
    ServerError::Option { option: setting.option(), reason, source: Some(source) }
}
