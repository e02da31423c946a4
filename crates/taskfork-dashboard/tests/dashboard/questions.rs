//! Each question of somebody on call is answered by the page alone, about a server that was brought into that state.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use serde_json::json;
use taskfork::Client;
use taskfork_dashboard::Dashboard;

use crate::Test;
use crate::browser::Browser;
use crate::fixture::{TOKEN, TestDashboard, TestServer, until};

pub(crate) const TESTS: &[Test] = &[
    ("what_hangs_since_when_and_where_in_the_code", what_hangs),
    ("who_waits_and_why", who_waits),
    ("why_workers_died_and_what_they_said", why_workers_died),
    ("whether_calls_get_slower_and_memory_grows", slower_and_growing),
    ("a_server_goes_away_and_returns", gone_and_back),
    ("a_call_that_is_seen_again_is_one_row_with_its_buttons", seen_again),
    ("a_page_without_answers_does_not_look_live", stale),
    ("sentences_are_true_with_more_workers_and_other_days", sentences),
];

fn what_hangs() {
    let server = TestServer::start("plain");
    let dashboard = TestDashboard::of(&server);
    let client = server.client(&dashboard.runtime, 4);
    let _hanging = dashboard.runtime.spawn({
        let client = client.clone();
        async move { client.call::<()>("convert", ()).await }
    });
    let _exporting =
        dashboard.runtime.spawn(async move { client.call::<()>("export", (5_u64,)).await });
    let browser = Browser::open(&dashboard.url);
    browser.wait_for("slow-summary", &["2 calls run for longer than 1.0 s", "The longest is "]);
    // Since when, who called, how far it is, and the function in which it is.
    let pid = format!("process {}", std::process::id());
    let shown = browser.wait_for(
        "slow",
        &["convert", "export", "5 of 12 pages", &pid, "wait_for_a_lock_that_nobody_frees"],
    );
    assert!(shown.matches(':').count() > 4, "no time of the beginning in {shown}");
    let rows = browser.run("return [...document.querySelectorAll('#slow tbody tr')].map((it) => it.cells[2].textContent)", &[]);
    assert!(
        rows.as_array().unwrap().iter().all(|it| it.as_str().unwrap().ends_with('s')),
        "{rows}"
    );
    let stacks = || browser.text("slow").matches("wait_for_a_lock_that_nobody_frees").count();
    until("both stacks", || stacks() == 2);
    browser.wait_for("workers", &["busy", "convert", "export"]);
    browser.take_pictures("hanging", "overview", "queue");
    assert_eq!(browser.complaints(), [""; 0]);
}

/// Answers at a status socket. The first answer has a call that runs, the second one has none, the others have it again.
fn answer(listener: &UnixListener) {
    for (turn, stream) in (1_u64..).zip(listener.incoming()) {
        let busy = json!({ "number": 7, "pid": 70, "state": "busy", "seconds": 60.0 + turn as f64, "method": "convert",
            "calls": 3, "checkouts": 0, "stack": "   0: std::thread::park\n   1: read_rows::all\n             at ./rows.rs:7\n   2: serve\n" });
        let workers = if turn == 2 { json!([]) } else { json!([busy]) };
        let status = json!({
            "name": "n", "pid": 1, "seconds": turn, "accepting": true, "max_workers": 4, "forked": 1, "refused": 0,
            "deaths": {}, "workers": workers,
        });
        let mut stream = stream.unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
        let _ = stream.write_all(status.to_string().as_bytes());
    }
}

fn seen_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.status");
    let listener = UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || answer(&listener));
    let builder = Dashboard::builder().server("documents", &path).token(TOKEN).allow_actions(true);
    let dashboard = TestDashboard::start(builder);
    let browser = Browser::open(&dashboard.url);
    browser.wait_for("login", &["This dashboard needs a token"]);
    browser.type_into("#token", &format!("{TOKEN}\u{e007}"));
    let points = || {
        let token = format!("Bearer {TOKEN}");
        let status = dashboard.get("/api/status", &[("Authorization", &token)]).1;
        serde_json::from_str::<serde_json::Value>(&status).unwrap()["pools"][0]["points"]
            .as_array()
            .unwrap()
            .len()
    };
    until("the call has gone and come back", || points() >= 4);
    // One row, which runs, and has its buttons. A function whose name begins like one of the system is the program's.
    browser.wait_for("slow", &["convert", "Kill", "read_rows::all at ./rows.rs:7"]);
    let rows = browser.run(
        "return [...document.querySelectorAll('#slow tbody tr')].map((it) => it.cells[9].textContent)",
        &[],
    );
    assert_eq!(rows, json!(["DismissKill"]));
    // A table takes no two rows for one.
    let shown = browser.run(
        "return import('/tables.js').then(({ Table }) => {
            const element = document.createElement('table');
            const table = new Table(element, '', [{ name: 'a' }], '');
            table.update([{ key: 'k', cells: ['first'] }, { key: 'k', cells: ['second'] }]);
            return element.tBodies[0].textContent;
        })",
        &[],
    );
    assert_eq!(shown, "first");
}

fn stale() {
    let server = TestServer::start("plain");
    let dashboard = TestDashboard::of(&server);
    let browser = Browser::open(&dashboard.url);
    browser.wait_for("connection", &["Live"]);
    drop(dashboard);
    browser
        .wait_for("connection", &["The dashboard does not answer", "What is shown was true at "]);
    let shown =
        browser.run("return [document.title, document.getElementById('content').className]", &[]);
    assert_eq!(shown, json!(["(no answer) taskfork", "stale"]));
}

fn sentences() {
    let server = TestServer::start("plain");
    let dashboard = TestDashboard::of(&server);
    let browser = Browser::open(&dashboard.url);
    let said = browser.run(
        "return Promise.all([import('/curves.js'), import('/format.js')]).then(([{ grows }, { clock, plain }]) => {
            const MIB = 1024 * 1024;
            const points = (memory) => Array.from({ length: 40 }, (_, at) => ({ at: at * 1000, memory: memory(at), workers: 1 + at }));
            const day = new Date(2024, 0, 31, 12).getTime();
            return [
                grows(points((at) => (1 + at) * 20 * MIB)),
                grows(points((at) => (1 + at) * (20 + at) * MIB)),
                clock(day, day + 1000) === clock(day, day + 86400000),
                clock(day, day + 86400000).includes('31'),
                plain('a\\u202eb'),
            ];
        })",
        &[],
    );
    let text = |at: usize| said[at].as_str().unwrap();
    assert!(text(0).starts_with("Memory does not grow"), "more workers: {said}");
    assert!(text(1).starts_with("Memory grows"), "{said}");
    assert_eq!((&said[2], &said[3]), (&json!(false), &json!(true)), "{said}");
    assert_eq!(text(4), "a\\u202eb");
    assert_eq!(browser.complaints(), [""; 0]);
}

fn who_waits() {
    let server = TestServer::start("plain");
    let dashboard = TestDashboard::of(&server);
    let (first, second) =
        (server.client(&dashboard.runtime, 4), server.client(&dashboard.runtime, 4));
    let runtime = &dashboard.runtime;
    let call = |client: &Client, method: &'static str| {
        let client = client.clone();
        runtime.spawn(async move { client.call::<()>(method, ()).await })
    };
    let _calls: Vec<_> = (0..4).map(|_| call(&first, "convert")).collect();
    until("four busy workers", || {
        let workers = server.handle.status().unwrap().workers;
        workers.iter().filter(|it| it.state == "busy").count() == 4
    });
    let _waiting = call(&second, "render");
    let browser = Browser::open(&dashboard.url);
    let why = "because all 4 workers that documents may have are in use. 4 of them are busy with convert, for ";
    browser.wait_for("queue-summary", &[" at documents, ", why]);
    let client = format!("process {}", std::process::id());
    browser.wait_for("queue", &[&client, "a connection"]);
    assert_eq!(browser.complaints(), [""; 0]);
}

fn why_workers_died() {
    let server = TestServer::start("plain");
    let dashboard = TestDashboard::of(&server);
    let client = server.client(&dashboard.runtime, 1);
    dashboard.runtime.block_on(async {
        client.call::<()>("import", ("the header is broken",)).await.unwrap_err();
        let hanging = client.checkout().run_timeout(Duration::from_millis(100));
        hanging.call::<()>("convert", ()).await.unwrap_err();
    });
    let browser = Browser::open(&dashboard.url);
    browser.wait_for("deaths-summary", &["Died in the last hour: ", "1 signaled", "1 timed_out"]);
    let shown = [
        "SIGABRT",
        "import",
        "reading row 4711",
        "the header is broken",
        "timed_out",
        "convert",
        "wait_for_a_lock_that_nobody_frees",
    ];
    browser.wait_for("deaths", &shown);
    browser.take_pictures("deaths", "deaths", "deaths");
    assert_eq!(browser.complaints(), [""; 0]);
}

fn slower_and_growing() {
    let server = TestServer::start("plain");
    let dashboard = TestDashboard::of(&server);
    let (milliseconds, grows, ends) = (
        Arc::new(AtomicU64::new(2)),
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicBool::new(false)),
    );
    let client = server.client(&dashboard.runtime, 2);
    let load = {
        let (milliseconds, grows, ends) =
            (Arc::clone(&milliseconds), Arc::clone(&grows), Arc::clone(&ends));
        dashboard.runtime.spawn(async move {
            let checkout = client.checkout();
            while !ends.load(SeqCst) {
                checkout.call::<u64>("render", (milliseconds.load(SeqCst),)).await.unwrap();
                if grows.load(SeqCst) {
                    checkout.call::<()>("remember", (1_usize,)).await.unwrap();
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
    };
    let browser = Browser::open(&dashboard.url);
    browser.wait_for("trend-memory", &["Memory does not grow"]);
    // Two dozen points, so that there is something to compare with.
    until("some curves", || dashboard.status().pools[0].points.len() >= 20);
    milliseconds.store(40, SeqCst);
    grows.store(true, SeqCst);
    browser.wait_for(
        "trend-slower",
        &["Calls are getting slower: the median time of a call is ", " times)"],
    );
    browser.wait_for("trend-memory", &["Memory grows: from ", " a worker at ", " MiB now"]);
    grows.store(false, SeqCst);
    let labels = browser.run("return [...document.querySelectorAll('#curves svg')].map((it) => it.getAttribute('aria-label')).join(' ')", &[]);
    for part in
        ["Calls per second: now ", "Time of calls: now median ", "Memory of all workers: now "]
    {
        assert!(labels.as_str().unwrap().contains(part), "{labels}");
    }
    browser.wait_for("methods", &["render", "remember"]);
    browser.take_pictures("slower", "curves", "curves");
    ends.store(true, SeqCst);
    dashboard.runtime.block_on(load).unwrap();
    assert_eq!(browser.complaints(), [""; 0]);
}

fn gone_and_back() {
    let mut server = TestServer::start("plain");
    let dashboard = TestDashboard::of(&server);
    let browser = Browser::open(&dashboard.url);
    browser.wait_for("overview", &["documents", "serving"]);
    assert_eq!(dashboard.get("/readyz", &[]).0, 200);
    let address = server.address.clone();
    server.handle.close();
    browser.wait_for("overview", &["gone since ", "cannot read "]);
    browser.wait_for("connection", &["Gone: documents"]);
    assert_eq!((dashboard.get("/readyz", &[]).0, dashboard.get("/healthz", &[]).0), (503, 200));
    server.handle = taskfork::Server::spawn_with("plain", &address).unwrap();
    browser.wait_for("overview", &["documents", "serving"]);
    until("a restart is counted", || dashboard.status().pools[0].restarts == 1);
    // Chromium may have noted a request that failed, but nothing else does.
    assert_eq!(browser.text("connection"), "Live");
}
