//! Which processes are in which process group, and when they started.

use rustix::process::Pid;
use rustix::time::{ClockId, clock_gettime};

/// A time since boot, in the kernel's unit for times of processes.
pub(crate) type Ticks = u64;

/// A process and its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) pid: Pid,
    pub(crate) group: Pid,
    pub(crate) started: Ticks,
}

/// Lists all visible processes.
pub(crate) fn members() -> Vec<Member> {
    let listed = std::fs::read_dir("/proc").into_iter().flatten();
    let names = listed.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    names.filter_map(Pid::from_raw).filter_map(member).collect()
}

fn member(pid: Pid) -> Option<Member> {
    parse(pid, &std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse(pid: Pid, stat: &str) -> Option<Member> {
    // The name of the program is in parentheses and can contain blanks and parentheses. The state
    // follows it.
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_whitespace();
    let group = Pid::from_raw(fields.nth(2)?.parse().ok()?)?;
    // The group is field 5, the start time field 22.
    let started = fields.nth(16)?.parse().ok()?;
    Some(Member { pid, group, started })
}

/// The current time.
pub(crate) fn now() -> Ticks {
    let time = clock_gettime(ClockId::Boottime);
    let each_second = rustix::param::clock_ticks_per_second();
    let nanoseconds = time.tv_nsec.unsigned_abs() * each_second / 1_000_000_000;
    time.tv_sec.unsigned_abs() * each_second + nanoseconds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_listed_with_its_group_and_its_start() {
        let (pid, group) = (rustix::process::getpid(), rustix::process::getpgrp());
        let members = members();
        let own = members.iter().find(|member| member.pid == pid).unwrap();
        assert_eq!(own.group, group);
        assert!(own.started <= now() && now() - own.started < 1_000_000, "{own:?}");
    }

    #[test]
    fn a_program_can_have_any_name() {
        let pid = Pid::from_raw(7).unwrap();
        let rest = "S 1 5 5 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 9 9";
        for name in ["sleep", "a) S 9 9 (b", ") ) )", ""] {
            let member = parse(pid, &format!("7 ({name}) {rest}")).unwrap();
            assert_eq!((member.group.as_raw_nonzero().get(), member.started), (5, 4242));
        }
        assert_eq!(parse(pid, "7 (sleep) S 1"), None);
        assert_eq!(parse(pid, ""), None);
    }
}
