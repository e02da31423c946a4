//! Tests of when a checkout wakes the driver.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use super::core::Core;
use super::shared_session::SharedSession;
use super::time;
use crate::Client;

/// Whether the driver has been woken since the last question.
fn was_woken(core: &Core) -> bool {
    let woken = pin!(core.driver_queue.woken());
    woken.poll(&mut Context::from_waker(Waker::noop())) == Poll::Ready(())
}

#[test]
fn a_checkout_in_the_queue_wakes_the_driver_only_for_a_worker_that_is_wanted() {
    // The runtime never runs, so the driver takes no wake away.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _entered = runtime.enter();
    let client = Client::builder().address("unix:/nonexistent").timeout(None);
    let client = client.min_workers(0).max_workers(1).build().unwrap();
    let core: Arc<Core> = client.core().clone();
    let options = core.config.checkout_options();
    was_woken(&core);

    let _first = SharedSession::new(core.clone(), options);
    assert!(was_woken(&core), "no worker is connected");
    let permit = core.pool().permit(time::now()).expect("a worker is wanted");
    let _second = SharedSession::new(core.clone(), options);
    assert!(!was_woken(&core), "the only worker is being connected");
    core.pool().cancelled(permit);
    let _third = SharedSession::new(core.clone(), options);
    assert!(was_woken(&core), "a worker is wanted again");
}
