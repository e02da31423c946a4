//! A worker that writes into all memory that it shares harms no other process.

use std::io::Write;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use taskfork::error::FatalError;
use taskfork::{BoxError, Client, Error, Methods, ServerBuilder, ServerError};

use crate::support::processes::{Program, children, guardian, is_gone, signal};
use crate::support::{start_with, trial, until};

/// Where the phase stands in a slot, and which word a guardian could once be misled by.
const STATE: usize = 0;

pub(crate) fn server(server: ServerBuilder, as_nobody: bool) -> Result<(), ServerError> {
    let methods = Methods::new()
        .method("scribble", |_: &mut (), seed: u64, milliseconds: u64, numbers: Vec<u64>| {
            scribble(seed, Duration::from_millis(milliseconds), &numbers);
            Ok(())
        })
        .function("write", |word: usize, value: u64| {
            own_slot().for_each(|slot| store(slot, word, value));
            Ok(())
        })
        .function("write_and_hang", |word: usize, value: u64| {
            own_slot().for_each(|slot| store(slot, word, value));
            loop {
                std::thread::sleep(Duration::from_secs(1));
            }
            #[expect(unreachable_code, reason = "it gives the function its type")]
            Ok(())
        })
        .function("slots", || Ok(own_slot().count()))
        .function("pages_of_slots", || Ok(pages_of_slots()))
        .function("wake_without_end", |milliseconds: u64| {
            let until = Instant::now() + Duration::from_millis(milliseconds);
            let mut pipes = writable_pipes();
            let mut written = 0_u64;
            while Instant::now() < until {
                for pipe in &mut pipes {
                    written += pipe.write(&[1; 8]).unwrap_or(0) as u64;
                }
            }
            Ok(written)
        })
        .function("sleep", |milliseconds: u64| {
            std::thread::sleep(Duration::from_millis(milliseconds));
            Ok(milliseconds)
        })
        .function("pid", || Ok(std::process::id()))
        .function("hang", || {
            loop {
                std::thread::sleep(Duration::from_secs(1));
            }
            #[expect(unreachable_code, reason = "it gives the function its type")]
            Ok(())
        })
        .function("add", |a: i64, b: i64| Ok(a + b));
    let setup = move || {
        if as_nobody {
            // SAFETY: a plain system call.
            #[allow(unsafe_code)]
            let changed = unsafe { libc::setresuid(65_534, 65_534, 65_534) };
            if changed != 0 {
                return Err(BoxError::from("cannot become another user"));
            }
        }
        Ok(())
    };
    server.setup(setup).interface(methods).run()
}

/// The writable shared mappings of this process: where they begin, and how many words they have.
fn shared_mappings() -> Vec<(usize, usize, String)> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let mapping = |line: &str| {
        let mut fields = line.split_whitespace();
        let (range, access) = (fields.next()?, fields.next()?);
        let (start, end) = range.split_once('-')?;
        let [start, end] = [start, end].map(|at| usize::from_str_radix(at, 16).unwrap());
        let name = fields.nth(3).unwrap_or_default().to_owned();
        (access == "rw-s").then_some((start, (end - start) / 8, name))
    };
    maps.lines().filter_map(mapping).collect()
}

/// All slots that can be written to.
fn own_slot() -> impl Iterator<Item = usize> {
    let slots =
        shared_mappings().into_iter().filter(|(_, _, name)| name.contains("taskfork-slots"));
    slots.map(|(start, _, _)| start)
}

/// How many pages a worker can reach of the file in which its slot lies, by moving, growing or remapping the mapping.
fn pages_of_slots() -> usize {
    const MOST: usize = 8;
    let page = rustix::param::page_size();
    let memory = std::fs::File::open("/proc/self/mem").unwrap();
    // What cannot be read is an error here, and would be SIGBUS otherwise.
    let can_be_read = |at: usize| FileExt::read_exact_at(&memory, &mut [0; 8], at as u64).is_ok();
    // A sealed slot cannot be copied, so the attempts are made on the slot itself.
    let copy = |slot: usize| {
        // SAFETY: with a length of 0, the mapping is made once more, at an address of the kernel's choice.
        #[allow(unsafe_code)]
        match unsafe { libc::mremap(slot as *mut _, 0, page, libc::MREMAP_MAYMOVE) } {
            libc::MAP_FAILED => slot as *mut _,
            copy => copy,
        }
    };
    let mut reached = 0;
    for slot in own_slot().collect::<Vec<_>>() {
        let remapped = |place: usize| {
            let copy = copy(slot);
            // SAFETY: it replaces the copy only, which nothing else knows of, or a sealed slot, which fails.
            #[allow(unsafe_code)]
            let done =
                unsafe { libc::syscall(libc::SYS_remap_file_pages, copy, page, 0, place, 0) };
            done == 0 && can_be_read(copy.addr())
        };
        let remapped = (0..MOST).filter(|&place| remapped(place)).count();
        // SAFETY: it moves the copy only, or a sealed slot, which fails.
        #[allow(unsafe_code)]
        let grown =
            unsafe { libc::mremap(copy(slot), page, MOST * page, libc::MREMAP_MAYMOVE) }.addr();
        let grown = if grown == libc::MAP_FAILED.addr() { slot } else { grown };
        let grown = (0..MOST).filter(|place| can_be_read(grown + place * page)).count();
        reached += remapped.max(grown);
    }
    reached
}

fn store(start: usize, word: usize, value: u64) {
    // SAFETY: it is mapped for writing, as the list of mappings says.
    #[allow(unsafe_code)]
    unsafe {
        (start as *mut u64).add(word).write_volatile(value);
    }
}

/// Writes random words, ones and `numbers` everywhere. With an odd seed it spares the first words, so that the server
/// does not find the slot corrupt at once.
fn scribble(seed: u64, time: Duration, numbers: &[u64]) {
    let mappings = shared_mappings();
    let until = Instant::now() + time;
    let mut random = fastrand::Rng::with_seed(seed);
    let first = if seed % 2 == 1 { 8 } else { 0 };
    while Instant::now() < until {
        for &(start, words, _) in &mappings {
            for _ in 0..64 {
                let word = random.usize(first..words);
                let value = match random.u8(..4) {
                    0 => random.u64(..),
                    1 => 1,
                    2 => numbers[random.usize(..numbers.len())],
                    _ => random.u64(..16),
                };
                store(start, word, value);
            }
        }
    }
}

/// The pipes that this process can write to, but for its standard outputs.
fn writable_pipes() -> Vec<std::fs::File> {
    let listed = std::fs::read_dir("/proc/self/fd").unwrap();
    let numbers = listed.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    let is_pipe = |number: &i32| {
        let target = std::fs::read_link(format!("/proc/self/fd/{number}")).unwrap_or_default();
        *number > 2 && target.to_string_lossy().contains("pipe:")
    };
    let open = |number: i32| {
        // SAFETY: it is open, and stays so for as long as the worker lives, as nothing closes it twice: it is leaked.
        #[allow(unsafe_code)]
        let pipe = unsafe { <std::fs::File as std::os::fd::FromRawFd>::from_raw_fd(number) };
        let own = pipe.try_clone().unwrap();
        std::mem::forget(pipe);
        own
    };
    numbers.filter(is_pipe).map(open).collect()
}

/// A process that has nothing to do with any server.
fn stranger() -> Program {
    let mut command = Command::new("sleep");
    command.arg("1000").stdin(Stdio::null()).process_group(0);
    Program::new(command.spawn().unwrap())
}

/// Calls of another client of the same server, until it is told to stop. Returns how many there were of each kind.
async fn sibling(client: Client, stop: Arc<AtomicBool>) -> [u32; 3] {
    let mut counts = [0; 3];
    while !stop.load(Ordering::Relaxed) {
        assert_eq!(client.call::<i64>("add", (40, 2)).await.unwrap(), 42);
        counts[0] += 1;
        if counts[0] % 20 == 1 {
            assert_eq!(client.call::<u64>("sleep", (60,)).await.unwrap(), 60);
            counts[1] += 1;
        }
        if counts[0] % 40 == 1 {
            let checkout = client.checkout().timeout(Duration::from_millis(50));
            let began = Instant::now();
            let error = checkout.call::<()>("hang", ()).await.unwrap_err();
            assert!(
                matches!(error, Error::Fatal { cause: FatalError::TimedOut { .. }, .. }),
                "{error}"
            );
            assert!(began.elapsed() >= Duration::from_millis(50), "{:?}", began.elapsed());
            counts[2] += 1;
        }
    }
    counts
}

async fn overwriting_harms_nobody_else(entry: &'static str, seeds: std::ops::Range<u64>) {
    let stranger = stranger();
    let (server, client) = start_with(entry, |client| client.min_workers(0).max_workers(2));
    let siblings = Client::builder().address(server.address()).max_workers(2).build().unwrap();
    let sibling_pid: u32 = siblings.call("pid", ()).await.unwrap();
    let own_guardian = guardian(server.pid()).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let calls = tokio::spawn(sibling(siblings, stop.clone()));
    let numbers = [
        u64::from(stranger.pid()),
        u64::from(server.pid()),
        u64::from(own_guardian),
        u64::from(sibling_pid),
        u64::from(std::process::id()),
        1,
    ];
    for seed in seeds {
        let until = Instant::now() + Duration::from_millis(300);
        while Instant::now() < until {
            // It may end for what it does, and is replaced.
            let _ = client.call::<()>("scribble", (seed, 100, &numbers[..])).await;
        }
    }
    stop.store(true, Ordering::Relaxed);
    let counts = calls.await.unwrap();
    assert!(counts.iter().all(|&count| count > 0), "{counts:?}");
    assert_eq!(guardian(server.pid()), Some(own_guardian));
    // The server ends by force while one still writes.
    let last = client.checkout();
    let _writes = last.call::<()>("scribble", (1_001, 60_000, &numbers[..]));
    until("a worker writes", || !children(server.pid()).is_empty()).await;
    let workers = children(server.pid());
    signal(server.pid(), libc::SIGKILL);
    until("all workers are gone", || workers.iter().all(|&pid| is_gone(pid))).await;
    until("the guardian is gone", || is_gone(own_guardian)).await;
    assert!(!is_gone(stranger.pid()), "a process was ended that has nothing to do with the server");
}

trial!(a_worker_that_overwrites_all_shared_memory_affects_no_other, async || {
    tokio::join!(
        overwriting_harms_nobody_else("scribbling", 0..5),
        overwriting_harms_nobody_else("scribbling", 5..10),
    );
});

trial!(another_users_worker_that_overwrites_all_shared_memory_affects_no_other, async || {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    tokio::join!(
        overwriting_harms_nobody_else("scribbling_as_nobody", 10..15),
        overwriting_harms_nobody_else("scribbling_as_nobody", 15..20),
    );
});

trial!(an_impossible_phase_ends_the_worker_and_is_named, async || {
    let (_server, client) = start_with("scribbling", |client| client.min_workers(0));
    let checkout = client.checkout().timeout(Duration::from_secs(60));
    // The server looks when the call of another client is due.
    let wakes = client.checkout().timeout(Duration::from_millis(50));
    let hangs = checkout.call::<()>("write_and_hang", (STATE, 1_u64 << 8 | 77));
    let looks = async {
        wakes.call::<()>("hang", ()).await.unwrap_err();
    };
    let (error, ()) = tokio::join!(hangs, looks);
    let error = error.unwrap_err();
    let text = format!("{error:#}");
    assert!(text.contains("its slot in shared memory is corrupt: there is no phase 77"), "{text}");
    assert!(matches!(error, Error::Fatal { may_have_run: true, .. }), "{text}");
});

trial!(a_call_that_hides_its_deadline_ends_with_its_client, async || {
    let (server, client) = start_with("scribbling", |client| client.min_workers(0));
    let checkout = client.checkout().timeout(Duration::from_millis(200));
    // The words of both deadlines.
    checkout.call::<()>("write", (4, 0_u64)).await.unwrap();
    let error = checkout.call::<()>("scribble", (1, 60_000, vec![0])).await.unwrap_err();
    assert!(matches!(error, Error::Fatal { .. }), "{error}");
    until("its worker is gone", || children(server.pid()).is_empty()).await;
});

trial!(a_worker_maps_only_its_own_slot, async || {
    let (_server, client) = start_with("scribbling", |client| client.min_workers(3));
    let checkouts: Vec<_> = (0..3).map(|_| client.checkout()).collect();
    for checkout in &checkouts {
        assert_eq!(checkout.call::<usize>("slots", ()).await.unwrap(), 1);
    }
});

trial!(a_worker_cannot_map_more_of_the_memory_of_slots, async || {
    let (_server, client) = start_with("scribbling", |client| client.min_workers(3));
    let checkouts: Vec<_> = (0..3).map(|_| client.checkout()).collect();
    for checkout in &checkouts {
        assert_eq!(checkout.call::<usize>("pages_of_slots", ()).await.unwrap(), 1);
    }
});

/// The processor time that a process has used.
fn processor_time(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second())
}

trial!(a_worker_that_signals_without_end_costs_the_server_little, async || {
    let (server, client) = start_with("scribbling", |client| client.min_workers(0));
    let flooding = client.checkout();
    let (before, began) = (processor_time(server.pid()), Instant::now());
    let floods = flooding.call::<u64>("wake_without_end", (2_000,));
    let others = async {
        let mut late = 0;
        while began.elapsed() < Duration::from_millis(1_900) {
            let checkout = client.checkout().timeout(Duration::from_millis(100));
            let error = checkout.call::<()>("hang", ()).await.unwrap_err();
            assert!(
                matches!(error, Error::Fatal { cause: FatalError::TimedOut { .. }, .. }),
                "{error}"
            );
            late += 1;
        }
        late
    };
    let (written, late) = tokio::join!(floods, others);
    assert!(written.unwrap() > 0 && late > 0);
    let (used, took) = (processor_time(server.pid()) - before, began.elapsed());
    // Part of it is for the workers that were killed and forked meanwhile.
    assert!(used < took / 10, "{used:?} of {took:?}");
});
