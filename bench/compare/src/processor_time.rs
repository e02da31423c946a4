//! Processor time of this program and of all processes that it has started.

use std::time::Duration;

/// The processor time of this process and of all its descendants that live, in user space and in the
/// kernel. It is exact: `/proc/PID/stat` counts in steps of 10 milliseconds, the clock of a process in
/// nanoseconds.
pub fn of_all_processes() -> Duration {
    let mut found = vec![std::process::id()];
    let mut next = 0;
    while let Some(&pid) = found.get(next) {
        found.extend(children(pid));
        next += 1;
    }
    found.into_iter().filter_map(of_process).sum()
}

fn children(pid: u32) -> Vec<u32> {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let lists = threads
        .flatten()
        .filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    lists.flat_map(|list| parse(&list)).collect()
}

fn parse(list: &str) -> Vec<u32> {
    list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// `None` if the process has ended.
fn of_process(pid: u32) -> Option<Duration> {
    let mut clock = 0;
    // SAFETY: `clock` is valid for writing.
    if unsafe { libc::clock_getcpuclockid(pid.cast_signed(), &raw mut clock) } != 0 {
        return None;
    }
    read(clock)
}

pub fn of_this_thread() -> Duration {
    read(libc::CLOCK_THREAD_CPUTIME_ID).expect("a clock of each thread")
}

fn read(clock: libc::clockid_t) -> Option<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid for writing.
    if unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
        return None;
    }
    Some(Duration::new(time.tv_sec.try_into().ok()?, time.tv_nsec.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_children_is_read() {
        assert_eq!(parse("12 345 \n"), [12, 345]);
        assert!(parse("").is_empty());
    }

    #[test]
    fn a_process_that_computes_takes_processor_time() {
        let before = of_all_processes();
        while of_all_processes() == before {
            std::hint::spin_loop();
        }
        assert!(of_this_thread() <= of_all_processes());
    }
}
