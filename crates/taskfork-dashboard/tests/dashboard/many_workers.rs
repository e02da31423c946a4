//! A server with a thousand workers. It is not a real one: a test does not need a thousand processes.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;

use serde_json::json;
use taskfork_dashboard::Dashboard;

use crate::Test;
use crate::browser::Browser;
use crate::fixture::{TestDashboard, until};

pub(crate) const TESTS: &[Test] = &[("a_thousand_workers_are_shown", a_thousand)];

/// Answers at a status socket for ever. All workers do something else in each answer.
fn answer(listener: &UnixListener) {
    for (turn, stream) in (1_u64..).zip(listener.incoming()) {
        let worker = |number: u64| {
            let state = if (number + turn).is_multiple_of(2) { "busy" } else { "held" };
            json!({ "number": number, "pid": 100 + number, "state": state, "seconds": 0.1, "method": "render",
                "calls": turn, "checkouts": 0, "memory": 1_000_000 + turn, "cpu_seconds": turn as f64 / 2.0 })
        };
        let method = |number: u64| {
            let times = json!({ "seconds": turn * number, "counts": [turn] });
            (format!("method {number}"), json!({ "errors": 0, "times": times }))
        };
        let methods: serde_json::Map<_, _> = (1..=120).map(method).collect();
        let workers: Vec<_> = (1..=1000).map(worker).collect();
        let status = json!({
            "name": "many", "pid": 1, "seconds": turn, "accepting": true, "max_workers": 1000, "forked": 1000,
            "refused": 0, "deaths": {}, "workers": workers, "calls": methods,
        });
        let mut stream = stream.unwrap();
        // The end of the connection would be a reset if the request was not read. The reader may have gone.
        let _ = stream.read_to_end(&mut Vec::new());
        let _ = stream.write_all(status.to_string().as_bytes());
    }
}

fn a_thousand() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("many.status");
    let listener = UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || answer(&listener));
    let dashboard = TestDashboard::start(Dashboard::builder().server("many", &path));
    let browser = Browser::open(&dashboard.url);
    browser.wait_for(
        "workers-summary",
        &["1000 workers: 500 busy, 500 held. The first 100 are shown."],
    );
    let rows = || browser.run("return document.querySelectorAll('#workers tbody tr').length", &[]);
    assert_eq!(rows(), 100);
    browser.click("#more");
    until("more rows", || rows() == 200);

    // Those methods are left out that have taken least time.
    browser.wait_for("methods-summary", &["The 100 of 120 methods that have taken most time"]);
    let names = "return [...document.querySelectorAll('#methods tbody tr')].map((it) => it.cells[1].textContent)";
    let names = browser.run(names, &[]);
    let names: Vec<_> = names.as_array().unwrap().iter().map(|it| it.as_str().unwrap()).collect();
    assert_eq!(names.len(), 100);
    assert!(names.contains(&"method 120") && !names.contains(&"method 20"), "{names:?}");

    // Updates keep the focus, what was typed and the rows.
    browser.type_into("#filter", "110");
    browser.wait_for("workers-summary", &["2 match."]);
    browser.run("document.querySelector('#workers tbody tr').dataset.mark = 'kept'", &[]);
    let points = || dashboard.status().pools[0].points.len();
    let before = points();
    until("some more updates", || points() > before + 3);
    let kept = browser.run(
        "return [document.activeElement.id, document.getElementById('filter').value, document.querySelectorAll('[data-mark]').length]",
        &[],
    );
    assert_eq!(kept, json!(["filter", "110", 1]));
    assert_eq!(browser.complaints(), [""; 0]);
}
