//! One run of a plan.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::caller::Caller;
use super::kernel::{Event, Kernel};
use super::monitor::Monitor;
use super::plan::{ClientPlan, Fault, Plan};
use super::record::{Complaint, Counts, Trouble};
use super::worker::MAX_FRAME;
use crate::address::{Address, AddressKind, MemoryServer};
use crate::client::{BusyPoll, Client, Overload};

/// No plan takes longer, in virtual time.
const MAX_TIME: Duration = Duration::from_secs(24 * 3600);

/// How long workers may take to notice that all is over.
const MAX_END: Duration = Duration::from_secs(60);

/// How long a stranger keeps its connection.
const STRANGER_STAYS: Duration = Duration::from_millis(300);

/// What came of a run.
pub(crate) struct Outcome {
    pub(crate) complaint: Option<Complaint>,
    pub(crate) counts: Counts,
    pub(crate) trace: Vec<String>,
}

/// Runs a plan, and keeps the steps if `has_trace`.
pub(crate) fn run(plan: &Plan, has_trace: bool) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without I/O needs nothing");
    let monitor = runtime.block_on(async { Monitor::new(true, has_trace) });
    let plan = Arc::new(plan.clone());
    let watched = monitor.clone();
    let finished = catch_unwind(AssertUnwindSafe(|| {
        runtime.block_on(async move {
            tokio::select! {
                biased;
                () = watched.complained() => {}
                ended = timeout(MAX_TIME, run_all(plan, watched.clone())) => {
                    if ended.is_err() {
                        watched.complain("it never ends");
                    }
                }
            }
        });
        // What still runs is dropped here, which may panic as well.
        drop(runtime);
    }));
    if finished.is_err() {
        monitor.complain("it panics");
    }
    Outcome { complaint: monitor.complaint(), counts: monitor.counts(), trace: monitor.trace() }
}

async fn run_all(plan: Arc<Plan>, monitor: Monitor) {
    let kernel = Kernel::new(plan.clone(), monitor.clone());
    kernel.start_next_server();
    let disturber = tokio::spawn(disturb(kernel.clone()));
    monitor.register_plan(&plan);
    let (mut clients, mut cores) = (Vec::new(), Vec::new());
    for (number, client) in plan.clients.iter().enumerate() {
        let ClientPlan::Client { workers, .. } = *client;
        let listener = kernel.listener(number, workers as usize);
        // What the client and its sessions share has the address, and lives as long as any of them.
        cores.push(Arc::downgrade(&listener));
        clients.push(build(listener, *client));
    }
    for (number, client) in plan.clients.iter().enumerate() {
        monitor.register(number, *client);
    }
    let callers: Vec<_> = plan
        .callers
        .iter()
        .zip(0..)
        .map(|(caller, number)| {
            let ClientPlan::Client { timeout, .. } = plan.clients[caller.client];
            let (client, timeout) =
                (clients[caller.client].clone(), Duration::from_millis(timeout));
            let task = Caller::new(number, client, caller.client, timeout, monitor.clone());
            tokio::spawn(task.run(caller.clone()))
        })
        .collect();
    for caller in callers {
        if caller.await.is_err() {
            monitor.complain("a caller panics");
        }
    }
    monitor.finish(&[]);
    disturber.abort();
    for (number, client) in clients.iter().enumerate() {
        monitor.close(number, client).await;
    }
    drop(clients);
    kernel.signal_all(Event::Terminate);
    let end = tokio::time::Instant::now() + MAX_END;
    while let Some(left) = kernel.left() {
        if tokio::time::Instant::now() > end {
            monitor.complain(left);
            return;
        }
        sleep(Duration::from_millis(100)).await;
    }
    if cores.iter().any(|core| core.strong_count() > 0) {
        monitor.complain("a client's sessions, timers and buffers are left");
    }
    monitor.check_pipes();
    monitor.step(|| "all is over".to_owned());
}

fn build(listener: Arc<dyn MemoryServer>, plan: ClientPlan) -> Client {
    let ClientPlan::Client { workers, checkouts, queue, overload, timeout, reuse, polls } = plan;
    Client::builder()
        .address(Address(AddressKind::Memory(listener)))
        .max_workers(workers as usize)
        .min_workers(0)
        .max_frame(MAX_FRAME)
        .busy_poll(BusyPoll::Times(polls as u32))
        .max_checkouts((checkouts > 0).then_some(checkouts))
        .max_queue((queue > 0).then_some(queue as usize))
        .overload(if overload == 1 { Overload::DropOldest } else { Overload::RefuseNewest })
        .reuse_after_error(reuse == 1)
        .timeout(Duration::from_millis(timeout))
        .build()
        .expect("the options are right")
}

/// Carries out the faults that happen at a time.
async fn disturb(kernel: Kernel) {
    let mut faults: Vec<_> = kernel
        .plan
        .faults
        .iter()
        .filter_map(|fault| match *fault {
            Fault::Jump { at, .. }
            | Fault::Restart { at, .. }
            | Fault::Shutdown { at, .. }
            | Fault::Crash { at, .. }
            | Fault::Stranger { at, .. } => Some((at, *fault)),
            _ => None,
        })
        .collect();
    faults.sort_by_key(|(at, _)| *at);
    let mut restarts = JoinSet::new();
    for (at, fault) in faults {
        tokio::time::sleep_until(kernel.start + Duration::from_millis(at)).await;
        match fault {
            Fault::Jump { time, .. } => {
                let time = Duration::from_millis(time);
                kernel.monitor.clock_jumps(time);
                kernel.monitor.step(|| format!("the clock jumps by {time:?}"));
                tokio::time::advance(time).await;
            }
            Fault::Restart { fails, .. } => {
                kernel.signal_server(Event::Hangup { successor_fails: fails == 1 });
            }
            Fault::Shutdown { time, .. } => {
                kernel.monitor.step(|| format!("the server is told to end, for {time} ms"));
                kernel.signal_all(Event::Terminate);
                kernel.monitor.happened(Trouble::WorkerEnded);
                restarts.spawn(restart(kernel.clone(), time));
            }
            Fault::Crash { time, .. } => {
                kernel.monitor.step(|| format!("the server is killed, for {time} ms"));
                kernel.kill_servers();
                restarts.spawn(restart(kernel.clone(), time));
            }
            Fault::Stranger { kind, .. } => {
                if let Some(stranger) = kernel.connect_stranger(kind) {
                    restarts.spawn(async move {
                        sleep(STRANGER_STAYS).await;
                        drop(stranger);
                    });
                }
            }
            _ => {}
        }
    }
    while restarts.join_next().await.is_some() {}
}

/// Starts a server after some time, unless there is one.
async fn restart(kernel: Kernel, time: u64) {
    sleep(Duration::from_millis(time)).await;
    if !kernel.has_listener() {
        kernel.start_next_server();
    }
}
