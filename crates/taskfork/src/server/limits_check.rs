//! Checking at startup whether workers can apply their settings.

use std::fs::File;
use std::io::{self, Read, Write};

use rustix::io::retry_on_intr;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, WaitOptions, getrlimit, waitpid};

use super::error::ServerError;
use super::limits::{Setting, SettingError, WorkerLimits};
use crate::sys::{self, Forked, ThreadCount};

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
            let most = getrlimit(limit.resource()).maximum;
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

    /// Checks whether the system lets a worker apply the settings, by applying them in a process
    /// that exits at once. The result depends on privileges, limits and the container. The server
    /// cannot try it itself, because a process cannot undo all of them.
    #[expect(unsafe_code, reason = "a caller of an unsafe function of `sys`")]
    pub(crate) fn probe(&self, threads: &ThreadCount) -> Result<(), ServerError> {
        if self.settings().next().is_none() {
            return Ok(());
        }
        let cannot = "cannot try out the limits of workers";
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)
            .map_err(|errno| ServerError::System { what: cannot, source: errno.into() })?;
        // SAFETY: the child writes only to its pipe, and leaves by `exit_now`.
        match unsafe { sys::fork(threads) } {
            Ok(Forked::Parent { child }) => {
                drop(writer);
                let mut message = [0; 8];
                let refused = File::from(reader).read_exact(&mut message);
                if let Some(pid) = Pid::from_raw(child.as_raw()) {
                    // A program that ignores SIGCHLD has nothing to reap.
                    let _ = retry_on_intr(|| waitpid(Some(pid), WaitOptions::empty()));
                }
                let (index, errno) = decode(message);
                // A child that could apply everything writes nothing.
                match refused.ok().and_then(|()| self.settings().nth(index)) {
                    Some(setting) => {
                        let source = io::Error::from_raw_os_error(errno);
                        Err(explain(SettingError { setting, source }))
                    }
                    None => Ok(()),
                }
            }
            Ok(Forked::Child) => {
                drop(reader);
                if let Err(SettingError { setting, source }) = self.apply() {
                    let index = self.settings().position(|it| it == setting).unwrap_or_default();
                    let errno = source.raw_os_error().unwrap_or_default();
                    // The server waits for this message.
                    let _ = File::from(writer).write_all(&encode(index, errno));
                }
                sys::exit_now(0);
            }
            Err(error) => {
                Err(ServerError::System { what: cannot, source: io::Error::other(error) })
            }
        }
    }
}

fn encode(index: usize, errno: i32) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&(index as u32).to_ne_bytes());
    bytes[4..].copy_from_slice(&errno.to_ne_bytes());
    bytes
}

fn decode([a, b, c, d, e, f, g, h]: [u8; 8]) -> (usize, i32) {
    (u32::from_ne_bytes([a, b, c, d]) as usize, i32::from_ne_bytes([e, f, g, h]))
}

fn explain(SettingError { setting, source }: SettingError) -> ServerError {
    let privilege = match setting {
        Setting::Niceness(_) => "a lower niceness than the server's own needs CAP_SYS_NICE",
        Setting::OomScoreAdj(_) => "a lower score than the server's own needs CAP_SYS_RESOURCE",
        Setting::Limit(..) => "a higher limit than the server's own needs CAP_SYS_RESOURCE",
    };
    let reason = format!(
        "a worker may not set {setting} ({source}): {privilege}; if the program drops its privileges, it should do that \
         in `setup`, which comes later"
    );
    ServerError::Option { option: setting.option(), reason, source: Some(source) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_of_the_child_is_decoded() {
        for message in [(0, 0), (3, 13), (1 << 20, i32::MAX), (0, -1)] {
            assert_eq!(decode(encode(message.0, message.1)), message);
        }
    }
}
