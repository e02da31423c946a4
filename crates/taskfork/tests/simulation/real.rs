//! One run of a plan against a real server.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use taskfork::Client;
use taskfork::client::Overload;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::caller::Caller;
use super::monitor::Monitor;
use super::plan::{CallerPlan, ClientPlan, Fault, Plan, Step};
use super::program::{Program, signal, title};
use super::record::{Counts, Trouble};

/// No plan takes longer than this, also on a machine that is busy. Nobody waits for ever.
const MAX_TIME: Duration = Duration::from_secs(120);

/// Real time is dear: no call and no fault takes longer, in milliseconds.
const MAX_TIMEOUT: u64 = 1000;
const MAX_PAUSE: u64 = 200;

/// Runs a plan, and prints its steps if `has_trace`. Returns what was wrong, and how often things came about.
pub(crate) fn run(plan: &Plan, has_trace: bool) -> (Option<String>, Counts) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let monitor = runtime.block_on(async { Monitor::new(false, has_trace) });
    runtime.block_on(async {
        if timeout(MAX_TIME, run_all(plan, folder.path(), &monitor)).await.is_err() {
            monitor.complain("it never ends");
        }
    });
    drop(runtime);
    if has_trace {
        println!("{plan}\n{}", monitor.trace().join("\n"));
    }
    let complaint = monitor
        .complaint()
        .map(|complaint| format!("{} (step {})\n{plan}", complaint.text, complaint.step));
    (complaint, monitor.counts())
}

async fn run_all(plan: &Plan, folder: &Path, monitor: &Monitor) {
    // A server that has no free place, or is busy, counts as out of reach.
    monitor.happened(Trouble::Unreachable);
    if plan.callers.iter().any(|caller| caller.steps.contains(&Step::Die {})) {
        monitor.happened(Trouble::WorkerEnded);
    }
    let mut program = Program::start(folder, plan.server);
    let clients: Vec<_> = plan.clients.iter().map(|client| build(&program, *client)).collect();
    for (number, client) in plan.clients.iter().enumerate() {
        monitor.register(number, *client);
    }
    let mut callers = JoinSet::new();
    for (caller, number) in plan.callers.iter().zip(0..) {
        let ClientPlan::Client { timeout, .. } = plan.clients[caller.client];
        let limit = Duration::from_millis(timeout.min(MAX_TIMEOUT));
        let client = clients[caller.client].clone();
        let task = Caller::new(number, client, caller.client, limit, monitor.clone());
        callers.spawn(task.run(without_streams(caller)));
    }
    let mut stopped = Vec::new();
    disturb(plan, &mut program, monitor, &mut callers, &mut stopped).await;
    while let Some(ended) = callers.join_next().await {
        if ended.is_err() {
            monitor.complain("a caller panics");
        }
    }
    stopped.into_iter().for_each(|pid| signal(pid, libc::SIGCONT));
    monitor.finish(&program.begun());
    for (number, client) in clients.iter().enumerate() {
        monitor.close(number, client).await;
    }
    drop(clients);
    program.end(libc::SIGTERM);
    monitor.check_pipes();
    let files: Vec<_> =
        std::fs::read_dir(folder).unwrap().flatten().map(|it| it.file_name()).collect();
    if files != ["begun"] {
        monitor.complain(format!("files are left: {files:?}"));
    }
}

/// The same steps for a server whose interface cannot stream.
fn without_streams(caller: &CallerPlan) -> CallerPlan {
    let steps = caller.steps.iter().map(|step| match step {
        Step::Stream { .. } => Step::Echo {},
        other => *other,
    });
    CallerPlan { steps: steps.collect(), ..*caller }
}

fn build(program: &Program, plan: ClientPlan) -> Client {
    let ClientPlan::Client { workers, checkouts, queue, overload, timeout, reuse, .. } = plan;
    Client::builder()
        .address(format!("unix:{}", program.socket().display()))
        .max_workers(workers as usize)
        .min_workers(0)
        .max_checkouts((checkouts > 0).then_some(checkouts))
        .max_queue((queue > 0).then_some(queue as usize))
        .overload(if overload == 1 { Overload::DropOldest } else { Overload::RefuseNewest })
        .reuse_after_error(reuse == 1)
        .timeout(Duration::from_millis(timeout.min(MAX_TIMEOUT)))
        .build()
        .unwrap()
}

/// Carries out the faults that a real kernel lets a test cause, until all callers have ended.
async fn disturb(
    plan: &Plan,
    program: &mut Program,
    monitor: &Monitor,
    callers: &mut JoinSet<()>,
    stopped: &mut Vec<u32>,
) {
    let start = Instant::now();
    let mut faults: Vec<_> =
        plan.faults.iter().filter_map(|fault| at(fault).zip(Some(*fault))).collect();
    faults.sort_by_key(|(at, _)| *at);
    for (at, fault) in faults {
        sleep_until(start + Duration::from_millis(at)).await;
        // Without calls a fault shows nothing.
        while callers.try_join_next().is_some_and(|ended| ended.is_ok()) {}
        if callers.is_empty() {
            return;
        }
        monitor.step(|| format!("fault: {fault}"));
        inject(fault, program, monitor, stopped).await;
    }
}

/// When a fault happens, if a test can cause it.
fn at(fault: &Fault) -> Option<u64> {
    let at = match *fault {
        Fault::Kill { at, .. }
        | Fault::Stop { at, .. }
        | Fault::Restart { at, fails: 0 }
        | Fault::Shutdown { at, .. }
        | Fault::Crash { at, .. }
        | Fault::Stranger { at, .. } => at,
        Fault::Refuse { fork, .. } => 10 * fork,
        Fault::Exhaust { connection, .. } => 10 * connection,
        _ => return None,
    };
    Some(at.min(MAX_PAUSE))
}

async fn inject(fault: Fault, program: &mut Program, monitor: &Monitor, stopped: &mut Vec<u32>) {
    let worker = |number: u64| {
        let mut workers = program.processes();
        workers.retain(|pid| title(*pid).starts_with("taskfork-worker:"));
        (!workers.is_empty()).then(|| workers[number as usize % workers.len()])
    };
    match fault {
        Fault::Kill { worker: number, .. } => {
            monitor.happened(Trouble::WorkerEnded);
            worker(number).into_iter().for_each(|pid| signal(pid, libc::SIGKILL));
        }
        Fault::Stop { worker: number, time, .. } => {
            // The server may kill it, if it does not leave in time.
            monitor.happened(Trouble::WorkerEnded);
            if let Some(pid) = worker(number) {
                signal(pid, libc::SIGSTOP);
                stopped.push(pid);
                sleep(Duration::from_millis(time.min(MAX_PAUSE))).await;
                signal(pid, libc::SIGCONT);
            }
        }
        Fault::Restart { .. } => {
            program.pid().into_iter().for_each(|pid| signal(pid, libc::SIGHUP));
        }
        Fault::Shutdown { time, .. } | Fault::Crash { time, .. } => {
            monitor.happened(Trouble::WorkerEnded);
            let is_orderly = matches!(fault, Fault::Shutdown { .. });
            // A process that stands still does not end in order.
            stopped.drain(..).for_each(|pid| signal(pid, libc::SIGCONT));
            tokio::task::block_in_place(|| {
                program.end(if is_orderly { libc::SIGTERM } else { libc::SIGKILL });
            });
            sleep(Duration::from_millis(time.min(MAX_PAUSE))).await;
            tokio::task::block_in_place(|| program.start_again());
        }
        // Without control groups no fork can be refused.
        Fault::Refuse { .. } if program.refuse_forks(true) => {
            sleep(Duration::from_millis(50)).await;
            program.refuse_forks(false);
        }
        Fault::Exhaust { .. } => {
            let path = program.socket();
            let idle: Vec<_> = (0..60).map_while(|_| UnixStream::connect(&path).ok()).collect();
            sleep(Duration::from_millis(50)).await;
            drop(idle);
        }
        Fault::Stranger { kind, .. } => {
            let Ok(mut stranger) = UnixStream::connect(program.socket()) else { return };
            let whole =
                b"taskfork\x1e\x00\x00\x00\x92\x00\x82\xa8versions\x91\x01\xa4name\xa6broken";
            let bytes: &[u8] = match kind {
                0 => &[],
                1 => b"GET / HTTP/1.1\r\n\r\n",
                2 => &whole[..20],
                _ => whole,
            };
            // The server may have closed the connection already.
            let _ = stranger.write_all(bytes);
        }
        _ => {}
    }
}
