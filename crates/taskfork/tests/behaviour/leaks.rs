//! What a thousand replaced workers leave behind: nothing.

use taskfork::Client;

use crate::support::processes::{children, command_line, descriptors, is_gone};
use crate::support::{address_in, programs, trial, until};

trial!(a_thousand_replaced_workers_leave_nothing, async || {
    let folder = tempfile::tempdir().unwrap();
    let address = address_in(&folder);
    let program = programs::start(&["serve", &address]);
    let client = Client::builder().address(&address).min_workers(2).max_workers(2).build().unwrap();
    until("two workers", || client.stats().idle == 2).await;
    until("the server's quiet", || children(program.pid()).len() == 2).await;
    let before = (descriptors(program.pid()), memory(program.pid()));

    for number in 0..1000 {
        // By every means: an error, a death, an end of the checkout.
        match number % 4 {
            0 => client.call::<()>("boom", ("no",)).await.unwrap_err(),
            1 => client.call::<()>("exit", (1,)).await.unwrap_err(),
            2 => client.call::<()>("abort", ()).await.unwrap_err(),
            _ => {
                let checkout = client.checkout();
                checkout.abort("enough");
                checkout.ready().await.unwrap_err()
            }
        };
    }

    until("two workers", || client.stats().idle == 2).await;
    until("the dead to be buried", || children(program.pid()).len() == 2).await;
    // One that was open for a moment at first may be gone.
    until("the descriptors to be closed", || descriptors(program.pid()) <= before.0).await;
    assert!(children(program.pid()).iter().all(|child| !is_gone(*child)), "a zombie");
    // Workers are numbered: no more were made than were needed, so none was hit by the end of one
    // before it.
    let newest = children(program.pid()).into_iter().map(number_of).max().unwrap();
    assert!(newest <= 1010, "{newest} workers for 1000 replacements");
    let grown = memory(program.pid()).saturating_sub(before.1);
    assert!(grown < 2048, "the server has grown by {grown} KiB");
    let mut names: Vec<_> =
        std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["s", "s.status"]);
});

/// The number in `taskfork-worker:NAME(NUMBER)`.
fn number_of(worker: u32) -> u64 {
    let title = command_line(worker);
    let (_, number) = title.rsplit_once('(').unwrap();
    number.trim_end_matches(')').parse().unwrap()
}

/// Resident memory in KiB.
fn memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
