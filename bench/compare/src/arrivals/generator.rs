//! The thread that makes requests arrive, at the time that the schedule says.
//!
//! It stands for the network, so it never waits for an answer. A thread that sleeps is woken late, by
//! 50 to 100 µs if its core sleeps too, which is as long as a call. Therefore it sleeps until shortly
//! before an arrival and spins for the rest of the time, as long as its last wake-ups were late. As it
//! shares the cores with the candidate, it spins for a twentieth of the time at most. That is enough: at
//! a high rate cores do not sleep. (Tokio's timers have steps of a millisecond.)
//!
//! Each arrival is a task that it hands to the runtime. The thread's own processor time does not count
//! as the candidate's.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::Load;
use super::services::Service;
use crate::processor_time;

/// What came of a load.
#[derive(Debug)]
pub struct Served {
    /// From each scheduled arrival to its answer.
    pub times: Vec<Duration>,
    /// The processor time of the generator.
    pub generator: Duration,
}

/// Starts a task for each arrival. A candidate that does not keep up with the load ends it.
pub fn start(
    runtime: &Handle,
    service: Arc<Service>,
    schedule: Vec<Duration>,
    load: Load,
) -> JoinHandle<Result<Served, String>> {
    let (done, generated) = oneshot::channel();
    let handle = runtime.clone();
    std::thread::spawn(move || {
        let calls = generate(&handle, &service, schedule, load);
        let _ = done.send(calls.map(|calls| (calls, processor_time::of_this_thread())));
    });
    runtime.spawn(async move {
        let (calls, generator) = generated.await.map_err(|error| error.to_string())??;
        let mut times = Vec::with_capacity(calls.len());
        for call in calls {
            times.push(call.await.map_err(|error| error.to_string())??);
        }
        Ok(Served { times, generator })
    })
}

type Call = JoinHandle<Result<Duration, String>>;

fn generate(
    runtime: &Handle,
    service: &Arc<Service>,
    schedule: Vec<Duration>,
    load: Load,
) -> Result<Vec<Call>, String> {
    // Without this the kernel may end each sleep 50 µs later.
    let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
    let outstanding = Arc::new(AtomicUsize::new(0));
    let mut calls = Vec::with_capacity(schedule.len());
    let mut lateness = Lateness::new(load.rate);
    let start = Instant::now() + Duration::from_millis(1);
    for offset in schedule {
        let due = start + offset;
        wait_until(due, &mut lateness);
        if outstanding.fetch_add(1, Relaxed) > load.most_outstanding() {
            return Err("does not keep up".to_owned());
        }
        let (service, outstanding) = (service.clone(), outstanding.clone());
        calls.push(runtime.spawn(async move {
            let answer = service.call().await;
            outstanding.fetch_sub(1, Relaxed);
            answer.map(|()| due.elapsed())
        }));
    }
    Ok(calls)
}

fn wait_until(due: Instant, lateness: &mut Lateness) {
    let left = due.saturating_duration_since(Instant::now());
    if let Some(sleep) = left.checked_sub(lateness.expected).filter(|sleep| !sleep.is_zero()) {
        let wake = Instant::now() + sleep;
        std::thread::sleep(sleep);
        lateness.add(wake.elapsed());
    }
    while Instant::now() < due {
        std::hint::spin_loop();
    }
}

/// How late the thread is woken, as far as it makes up for that by spinning.
#[derive(Debug)]
struct Lateness {
    expected: Duration,
    most: Duration,
}

impl Lateness {
    /// A thread that is woken later than this is late for other reasons than a core that sleeps.
    const MOST: Duration = Duration::from_micros(150);

    /// The share of the time for which the thread may spin.
    const SHARE: f64 = 0.05;

    fn new(rate: f64) -> Self {
        let most = Self::MOST.min(Duration::from_secs_f64(Self::SHARE / rate));
        Self { expected: most, most }
    }

    /// It follows a longer lateness at once, and shorter ones slowly: most wake-ups are earlier.
    fn add(&mut self, late: Duration) {
        let late = late.min(self.most);
        let slowly = (self.expected * 15 + late) / 16;
        self.expected = late.max(slowly);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_expected_follows_long_delays_at_once_and_short_ones_slowly() {
        let mut lateness = Lateness::new(50.0);
        (0..200).for_each(|_| lateness.add(Duration::from_micros(10)));
        assert!(lateness.expected < Duration::from_micros(11), "{lateness:?}");
        lateness.add(Duration::from_micros(90));
        assert_eq!(lateness.expected, Duration::from_micros(90));
        lateness.add(Duration::from_micros(10));
        assert_eq!(lateness.expected, Duration::from_micros(85));
        lateness.add(Duration::from_secs(1));
        assert_eq!(lateness.expected, Lateness::MOST);
    }

    #[test]
    fn at_a_high_rate_the_thread_hardly_spins() {
        let mut lateness = Lateness::new(10_000.0);
        lateness.add(Duration::from_millis(1));
        assert_eq!(lateness.expected, Duration::from_micros(5));
    }

    #[test]
    fn no_request_arrives_early() {
        let mut lateness = Lateness::new(1000.0);
        for micros in [0, 10, 300, 1000] {
            let due = Instant::now() + Duration::from_micros(micros);
            wait_until(due, &mut lateness);
            assert!(Instant::now() >= due);
        }
    }
}
