//! A task that makes the calls of one checkout.

use std::time::Duration;

use tokio::time::Instant;

use super::plan::{Plan, Random};
use crate::client::Client;
use crate::error::Error;

/// The end of a call.
#[derive(Debug)]
pub(super) struct Ended {
    /// `None` if the caller dropped the call.
    pub(super) result: Option<Result<u64, Error>>,
    /// How long it took.
    pub(super) after: Duration,
}

/// Makes the calls of the checkout with this number. Their arguments are consecutive.
pub(super) async fn call_all(client: Client, plan: Plan, number: u64) -> Vec<Ended> {
    let mut random = Random::new(plan.seed, 3000 + number);
    let drops = plan.has_faults && random.once_in(3);
    if random.once_in(2) {
        tokio::time::sleep(random.milliseconds_below(20)).await;
    }
    let checkout = client.checkout();
    let (first, mut calls, mut ended) = (number * plan.calls, Vec::new(), Vec::new());
    for call in first..first + plan.calls {
        calls.push((checkout.call::<u64>("echo", (call,)), Instant::now()));
        if random.once_in(4) {
            tokio::time::sleep(random.milliseconds_below(40)).await;
        }
    }
    if random.once_in(2) {
        drop(checkout);
    }
    for (call, since) in calls {
        let result = match drops && random.once_in(3) {
            true => {
                drop(call);
                None
            }
            false => Some(call.await),
        };
        ended.push(Ended { result, after: since.elapsed() });
    }
    ended
}
