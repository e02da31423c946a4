//! The nodes of a service at NATS, of which one is different.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use futures_util::StreamExt;
use serde_json::{Value, json};
use taskfork_dashboard::Dashboard;
use taskfork_gateway::{Gateway, NatsOptions};
use taskfork_nats::{Fleet, FleetOptions};
use tokio::runtime::Runtime;

use crate::Test;
use crate::browser::Browser;
use crate::fixture::{TestDashboard, TestServer, runtime, until};
use crate::nats_server::NatsServer;

pub(crate) const TESTS: &[Test] = &[
    ("which_node_of_the_fleet_is_different", different_node),
    ("a_node_that_answers_late_keeps_no_other_from_being_asked", late_answer),
    ("nodes_tell_deaths_and_stacks_as_far_as_their_servers_share_them", deaths_and_stacks),
];

fn start_node(runtime: &Runtime, nats: &NatsServer, name: &str, server: &TestServer) {
    let options = NatsOptions::new(nats.url(), "documents", name).sessions(4);
    let gateway = Gateway::builder().server(server.address.clone()).nats(options);
    let gateway = runtime.block_on(gateway.bind()).unwrap();
    runtime.spawn(gateway.run(std::future::pending::<()>()));
}

fn different_node() {
    let nats = NatsServer::start();
    let runtime = runtime();
    let servers = ["plain", "plain", "slow"].map(TestServer::start);
    let ends = Arc::new(AtomicBool::new(false));
    let mut tasks = Vec::new();
    for (name, server) in ["north", "south", "west"].into_iter().zip(&servers) {
        start_node(&runtime, &nats, name, server);
        let (client, ends) = (server.client(&runtime, 1), Arc::clone(&ends));
        tasks.push(runtime.spawn(async move {
            while !ends.load(SeqCst) {
                client.call::<u64>("render", (5_u64,)).await.unwrap();
            }
        }));
    }
    let url = nats.url();
    let fleet = Fleet::connect(&url, "documents", FleetOptions::new());
    let fleet = runtime.block_on(fleet).unwrap();
    let dashboard = TestDashboard::start(Dashboard::builder().fleet("documents", fleet));
    let browser = Browser::open(&dashboard.url);
    browser.wait_for("overview", &["documents/north", "documents/south", "documents/west"]);
    browser.wait_for(
        "differences",
        &["Different: ", "documents/west: median time ", "the middle of all is "],
    );
    let marked = browser.run(
        "return [...document.querySelectorAll('#overview td.mark')].map((it) => it.parentElement.cells[0].textContent)",
        &[],
    );
    let marked = marked.as_array().unwrap();
    assert!(!marked.is_empty() && marked.iter().all(|it| it == "documents/west"), "{marked:?}");
    browser.take_pictures("fleet", "overview", "overview");
    assert_eq!(browser.complaints(), [""; 0]);
    ends.store(true, SeqCst);
    tasks.into_iter().for_each(|task| runtime.block_on(task).unwrap());
}

/// Answers as a node that tells what happened lately only after a further question for the status of all.
async fn answer_late(client: async_nats::Client) {
    let mut questions = client.subscribe("documents.status.>").await.unwrap();
    let mut of_all = client.subscribe("documents.status").await.unwrap();
    let server = json!({
        "name": "late", "pid": 1, "instance": 1, "seconds": 100.0, "accepting": true, "max_workers": 1, "forked": 1,
        "refused": 0, "deaths": { "signaled": 1 }, "last_death": 1, "workers": [],
    });
    let answer = |details: Value| {
        let answer = json!({
            "node": "late", "id": "late", "version": "1.0.0", "labels": [], "sessions": 1, "free": 1, "draining": false,
            "details": details,
        });
        answer.to_string()
    };
    let mut asked = Vec::new();
    loop {
        tokio::select! {
            Some(question) = questions.next() => asked.push((question.reply.unwrap(), 0)),
            Some(question) = of_all.next() => {
                let status = answer(json!({ "server": server, "workers": 0 }));
                client.publish(question.reply.unwrap(), status.into()).await.unwrap();
                asked.iter_mut().for_each(|(_, others)| *others += 1);
            }
        }
        for (reply, _) in asked.extract_if(.., |(_, others)| *others == 1) {
            let recent = answer(json!({
                "pid": 1, "instance": 1,
                "recent_deaths": [{ "number": 1, "at": 90.0, "worker": 1, "pid": 7, "cause": "signaled", "text": "",
                    "calls": 1 }],
            }));
            client.publish(reply, recent.into()).await.unwrap();
        }
    }
}

fn late_answer() {
    let nats = NatsServer::start();
    let runtime = runtime();
    let client = runtime.block_on(nats.client());
    runtime.spawn(answer_late(client));
    let url = nats.url();
    let fleet = Fleet::connect(&url, "documents", FleetOptions::new());
    let fleet = runtime.block_on(fleet).unwrap();
    let dashboard = TestDashboard::start(Dashboard::builder().fleet("documents", fleet));
    // A question that the loop waited for would end without an answer, each time.
    until("its death", || {
        dashboard.status().pools.iter().any(|pool| pool.recent_deaths.len() == 1)
    });
}

fn deaths_and_stacks() {
    let nats = NatsServer::start();
    let runtime = runtime();
    let servers = ["shared", "plain"].map(TestServer::start);
    let mut hanging = Vec::new();
    for (name, server) in ["open", "closed"].into_iter().zip(&servers) {
        start_node(&runtime, &nats, name, server);
        let client = server.client(&runtime, 2);
        let died = client.call::<()>("import", (format!("said at {name}"),));
        runtime.block_on(died).unwrap_err();
        hanging.push(runtime.spawn(async move { client.call::<()>("convert", ()).await }));
    }
    let url = nats.url();
    let fleet = Fleet::connect(&url, "documents", FleetOptions::new());
    let fleet = runtime.block_on(fleet).unwrap();
    let builder = Dashboard::builder().fleet("documents", fleet);
    let dashboard = TestDashboard::start(builder.slow_after(Duration::from_millis(100)));
    let browser = Browser::open(&dashboard.url);
    browser.wait_for("deaths-summary", &["Died in the last hour: 2 signaled"]);
    let shown = ["documents/open", "documents/closed", "SIGABRT", "said at open", "not shared"];
    browser.wait_for("deaths", &shown);
    browser.wait_for("slow", &["wait_for_a_lock_that_nobody_frees", "not shared"]);
    let status = dashboard.status();
    let pool = |node: &str| {
        status.pools.iter().find(|pool| pool.id == format!("documents/{node}")).unwrap()
    };
    let (open, closed) = (pool("open"), pool("closed"));
    assert_eq!((open.recent_deaths.len(), closed.recent_deaths.len()), (1, 1));
    let closed = serde_json::to_string(closed).unwrap();
    assert!(!closed.contains("said at") && !closed.contains("nobody_frees"), "{closed}");
    assert_eq!(browser.complaints(), [""; 0]);
}
