//! Calls of all kinds, and checks of their results against the recorded faults.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fastrand::Rng;
use taskfork::error::{Activity, CallError, Death, End, FatalError};
use taskfork::{Blob, Checkout, Client, Error};

use super::injection::Record;

/// What has come of calls.
#[derive(Debug)]
pub(crate) struct Counts {
    ends: BTreeMap<String, u64>,
    wrong: Vec<String>,
    record: Arc<Mutex<Record>>,
}

/// Calls until told to stop.
pub(crate) async fn call(
    mut counts: Counts,
    client: Client,
    seed: u64,
    stop: Arc<AtomicBool>,
) -> Counts {
    let mut random = Rng::with_seed(seed ^ 0x5eed);
    let mut serial = seed << 20;
    let mut kept = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        serial += 1;
        let checkout = client.checkout();
        match random.u32(0..100) {
            0..15 => counts.queue(&checkout, &mut random, serial).await,
            15..50 => {
                let several: Vec<_> = (0..random.u64(1..5))
                    .map(|n| (serial + n, checkout.call("echo", (serial + n,))))
                    .collect();
                for (value, call) in several {
                    counts.expect("echo", call.await, &value);
                }
            }
            50..60 => {
                let time = random.u64(0..30);
                counts.expect("sleep", checkout.call("sleep", (time,)).await, &time);
            }
            60..65 => {
                let time = random.u64(0..10);
                counts.expect("spin", checkout.call("spin", (time,)).await, &time);
            }
            65..70 => counts.lend(&checkout, &mut random, &mut kept).await,
            70..75 => {
                let (length, fill) = (random.usize(..300_000), random.u8(..));
                let blob = checkout.call("blob", (length, fill)).await;
                counts.expect("blob", blob, &vec![fill; length]);
            }
            75..80 => {
                let call = checkout.call::<u64>("sleep", (1000,));
                let cancelled =
                    tokio::time::timeout(Duration::from_millis(random.u64(0..20)), call);
                match cancelled.await {
                    Err(_) => counts.count("cancelled", "cancelled"),
                    Ok(ended) => counts.expect("cancelled", ended, &1000),
                }
            }
            80..85 => {
                let checkout = checkout.timeout(Duration::from_millis(random.u64(1..30)));
                let late = checkout.call::<u64>("sleep", (5000,)).await;
                counts.expect("late", late, &5000);
            }
            85..90 => {
                let failed = checkout.call::<()>("fail", (serial.to_string(),)).await;
                match failed {
                    Err(Error::Call { error: CallError::Interface(failure), .. }) => {
                        counts
                            .check_that(failure.message() == serial.to_string(), "another's error");
                        counts.count("fail", "its own error");
                    }
                    other => counts.expect("fail", other.map(|()| 0), &1),
                }
            }
            90..95 => {
                let child = checkout.call("child", (serial,)).await;
                counts.expect("child", child, &serial);
            }
            _ => {
                let died = checkout.call::<()>("abort", ()).await;
                match died {
                    Ok(()) => counts.check_that(false, "it survived an abort"),
                    Err(error) => counts.failed("abort", &error),
                }
            }
        }
        if random.u32(0..20) == 0 {
            tokio::time::sleep(Duration::from_millis(random.u64(0..50))).await;
        }
    }
    counts
}

/// The cause of an error by the record of injected faults. Empty if there is none.
fn kind(what: &str, error: &Error, record: &Record) -> &'static str {
    let in_setup = |death: &Death| death.during == Some(Activity::Setup);
    match error {
        Error::Fatal { cause: FatalError::WorkerDied(death), .. } => match death.end {
            End::Signaled(libc::SIGABRT) if what == "abort" || in_setup(death) => "worker aborted",
            End::Signaled(libc::SIGKILL) if death.reason.is_some() => "killed by the server",
            End::Signaled(libc::SIGKILL) if record.killed.contains(&death.pid) => "worker killed",
            End::Signaled(libc::SIGSEGV) if record.segfaulted.contains(&death.pid) => {
                "worker segfaulted"
            }
            End::Unknown if record.servers_ended => "connection ended",
            // In the middle of a long answer nothing can be told.
            End::Unknown if what == "blob" || what == "lent" => "connection ended",
            _ => "",
        },
        Error::Fatal { cause: FatalError::TimedOut { .. }, .. }
            if what == "late" || record.stopped =>
        {
            "timed out"
        }
        Error::Fatal { cause: FatalError::CannotConnect { .. }, .. } => "no server",
        Error::Call { error: CallError::Setup { .. }, .. }
            if error.to_string().contains("the setup fails") =>
        {
            "setup failed"
        }
        Error::Call { error: CallError::Dropped { .. }, .. } => "dropped behind another",
        Error::Call { error: CallError::Interface(own), .. }
            if what == "child" && own.to_string().contains("os error 11") =>
        {
            "could not fork either"
        }
        _ => "",
    }
}

impl Counts {
    pub(crate) fn new(record: Arc<Mutex<Record>>) -> Self {
        Self { ends: BTreeMap::new(), wrong: Vec::new(), record }
    }

    /// Calls queued at once, of which one may fail and some are dropped before they are over.
    async fn queue(&mut self, checkout: &Checkout, random: &mut Rng, serial: u64) {
        let length = random.u64(2..60);
        let failing = random.u64(0..2 * length);
        let calls: Vec<_> = (0..length)
            .map(|n| {
                let method = if n == failing { "fail_with" } else { "echo" };
                (n, checkout.call::<u64>(method, (serial + n,)))
            })
            .collect();
        for (n, call) in calls {
            if n != failing && random.u32(0..10) == 0 {
                drop(call);
                continue;
            }
            match call.await {
                Err(Error::Call { error: CallError::Interface(failure), .. }) if n == failing => {
                    self.check_that(failure.message() == (serial + n).to_string(), "another's");
                    self.count("queued", "its own error");
                }
                Err(Error::Call { error: CallError::Dropped { .. }, .. }) if n > failing => {
                    self.count("queued", "dropped behind another");
                }
                ended => {
                    self.check_that(ended.is_err() || n < failing, "it ran behind a failed one");
                    self.expect("queued", ended, &(serial + n));
                }
            }
        }
        self.expect("queued", checkout.call("echo", (serial,)).await, &serial);
    }

    /// Echoes blobs, some of them in shared memory, and keeps some of the results for a while.
    async fn lend(&mut self, checkout: &Checkout, random: &mut Rng, kept: &mut Vec<(Blob, u8)>) {
        let calls: Vec<_> = (0..random.u32(1..12))
            .map(|_| {
                let (length, fill) = (random.usize(16_384..200_000), random.u8(..));
                let method = if random.bool() { "there_and_back" } else { "copy" };
                match kept.last() {
                    Some((blob, fill)) if random.u32(0..4) == 0 => {
                        (blob.len(), *fill, checkout.call::<Blob>(method, (blob,)))
                    }
                    _ => {
                        let blob = Blob::from(vec![fill; length]);
                        (length, fill, checkout.call::<Blob>(method, (blob,)))
                    }
                }
            })
            .collect();
        for (length, fill, call) in calls {
            if random.u32(0..10) == 0 {
                drop(call);
                continue;
            }
            let ended = call.await;
            if let (Ok(blob), true) = (&ended, random.u32(0..4) == 0) {
                kept.push((blob.clone(), fill));
            }
            self.expect("lent", ended, &vec![fill; length].into());
        }
        let same = |(blob, fill): &(Blob, u8)| blob.iter().all(|byte| byte == fill);
        self.check_that(kept.iter().all(same), "what was kept has changed");
        if kept.len() > 8 {
            kept.drain(..random.usize(1..=kept.len()));
        }
    }

    fn expect<T: PartialEq>(&mut self, what: &str, ended: Result<T, Error>, expected: &T) {
        match ended {
            Ok(answer) => {
                self.check_that(answer == *expected, &format!("{what} got another's answer"));
                self.count(what, "answered");
            }
            Err(error) => self.failed(what, &error),
        }
    }

    /// An error must be of a kind that something here can bring about, and that has been done.
    fn failed(&mut self, what: &str, error: &Error) {
        let kind = kind(what, error, &self.record.lock().unwrap());
        self.check_that(!kind.is_empty(), &format!("{what}: {error:?}"));
        self.count(what, kind);
    }

    fn check_that(&mut self, holds: bool, otherwise: &str) {
        if !holds {
            self.wrong.push(otherwise.to_owned());
        }
    }

    fn count(&mut self, what: &str, end: &str) {
        *self.ends.entry(format!("{what}: {end}")).or_default() += 1;
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (end, count) in &other.ends {
            *self.ends.entry(end.clone()).or_default() += count;
        }
        self.wrong.extend(other.wrong.iter().cloned());
    }

    /// That nothing was wrong, and that there was something that could have been.
    pub(crate) fn check(&self) {
        assert!(self.wrong.is_empty(), "{:#?}", &self.wrong[..self.wrong.len().min(10)]);
        let answered = self.ends.get("echo: answered").copied().unwrap_or_default();
        assert!(answered > 100, "only {answered} calls of echo were answered");
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (end, count) in &self.ends {
            writeln!(out, "{count:>8} {end}")?;
        }
        Ok(())
    }
}
