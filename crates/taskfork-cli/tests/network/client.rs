//! A client: tasks that call until they are told to stop.

use std::io::BufRead;
use std::time::Duration;

use taskfork::Client;
use taskfork::client::NatsRoute;
use taskfork::error::{Error, FatalError, Stage};
use tokio::sync::watch;

use crate::random::Random;

/// How many calls a client has at a time. Two clients have more than all nodes have workers.
const TASKS: usize = 6;

/// How long a call may take. What happens to the fleet is over much sooner.
const TIMEOUT: Duration = Duration::from_secs(30);

/// More than the longest arguments with what JSON adds.
const MAX_FRAME: usize = 256 << 20;

/// Calls until a line comes at standard input, then some more, which must succeed. Prints for each call when it
/// begins and how it has ended.
pub(crate) fn run(url: &str, name: &str, record: &str, long: bool, route: &str) {
    let route = match route {
        "auto" => NatsRoute::Auto,
        "direct" => NatsRoute::Direct,
        _ => NatsRoute::Relayed,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (stop, stopped) = watch::channel(false);
    std::thread::spawn(move || {
        let _ = std::io::stdin().lock().read_line(&mut String::new());
        stop.send_replace(true);
    });
    runtime.block_on(async {
        let client = Client::builder().address(url).name(name).min_workers(0).max_workers(TASKS);
        let client =
            client.timeout(TIMEOUT).max_frame(MAX_FRAME).nats_route(route).build().unwrap();
        let calls = (0..TASKS).map(|task| {
            let caller = Caller {
                client: client.clone(),
                name: format!("{name}-{task}"),
                record: record.into(),
                random: Random::new(task as u64),
                number: 0,
            };
            tokio::spawn(caller.run(stopped.clone(), long && task == 0))
        });
        for call in calls.collect::<Vec<_>>() {
            call.await.unwrap();
        }
    });
    println!("end");
}

struct Caller {
    client: Client,
    name: String,
    record: String,
    random: Random,
    number: usize,
}

impl Caller {
    async fn run(mut self, stopped: watch::Receiver<bool>, long: bool) {
        if long {
            self.call(100 << 20, 2 * TIMEOUT).await;
        }
        while !*stopped.borrow() {
            let length = if self.random.below(20) == 0 { 300_000 } else { self.random.below(3000) };
            self.call(length, TIMEOUT).await;
        }
        // A session with a node that was killed just now may still seem to be there.
        for _ in 0..3 {
            if self.call(100, TIMEOUT).await {
                return;
            }
        }
        println!("no call of {} succeeds any more", self.name);
    }

    /// Whether the call has succeeded.
    async fn call(&mut self, length: usize, timeout: Duration) -> bool {
        self.number += 1;
        let id = format!("{}-{}", self.name, self.number);
        println!("begin {id}");
        let mut text = id.clone();
        while text.len() < length.min(4096) {
            text.push_str(&format!("{:x}", self.random.next()));
        }
        text.push_str(&"x".repeat(length.saturating_sub(text.len())));
        let milliseconds = self.random.below(30);
        let arguments = (&self.record, &id, &text, milliseconds);
        let answer: Result<String, _> =
            self.client.checkout().timeout(timeout).call("record", arguments).await;
        match answer {
            Ok(answer) if answer == text => {
                println!("end {id} ok");
                return true;
            }
            Ok(_) => println!("end {id} wrong answer"),
            Err(error) => println!("end {id} {}", describe(&error)),
        }
        false
    }
}

/// The first word says whether the error fits to what happens here, the second one whether the call may have run.
fn describe(error: &Error) -> String {
    let text = error.to_string().replace('\n', " ");
    match error {
        Error::Fatal { cause, may_have_run, .. } => {
            let fits = match cause {
                FatalError::NodeLost { .. }
                | FatalError::WorkerDied(_)
                | FatalError::CannotConnect { .. } => true,
                // Who has a worker gets its answer or learns that it gets none.
                FatalError::TimedOut { stage, .. } => *stage == Stage::Waiting,
                // Messages are lost when a NATS server is killed.
                FatalError::Protocol { .. } => text.contains("has lost messages on the way"),
                _ => false,
            };
            let ran = if *may_have_run { "maybe" } else { "unrun" };
            format!("{} {ran} {text}", if fits { "error" } else { "misfit" })
        }
        _ => format!("misfit maybe {text}"),
    }
}
