//! Ending workers: only with a token, and after a question.

use serde_json::json;
use taskfork_dashboard::Dashboard;

use crate::Test;
use crate::browser::Browser;
use crate::fixture::{TOKEN, TestDashboard, TestServer, until};

pub(crate) const TESTS: &[Test] = &[
    ("a_worker_is_killed_after_a_question", killed_in_the_browser),
    ("actions_need_a_token_and_are_off_by_default", off_by_default),
];

const JSON: (&str, &str) = ("Content-Type", "application/json");

fn killed_in_the_browser() {
    let server = TestServer::start("plain");
    let builder = Dashboard::builder().server("documents", server.status_socket());
    let dashboard = TestDashboard::start(builder.token(TOKEN).allow_actions(true));
    let client = server.client(&dashboard.runtime, 1);
    let hanging = dashboard.runtime.spawn(async move { client.call::<()>("convert", ()).await });
    let browser = Browser::open(&dashboard.url);
    browser.wait_for("login", &["This dashboard needs a token"]);
    browser.type_into("#token", "a wrong token, which is long enough\u{e007}");
    browser.wait_for("login-error", &["this token is wrong"]);
    // No header can have these characters.
    browser.type_into("#token", "ein Token mit Zeichen wie \u{20ac} und \u{4e2d}\u{e007}");
    browser.wait_for("login-error", &["only visible ASCII characters"]);
    browser.run("document.getElementById('token').value = ''", &[]);
    assert_eq!(browser.text("content"), "");
    // The field has the focus again, so the keyboard is enough.
    browser.type_into("#token", &format!("{TOKEN}\u{e007}"));
    browser.wait_for("slow", &["convert", "Kill"]);

    let busy = || {
        let workers = server.handle.status().unwrap().workers;
        workers.iter().filter(|worker| worker.state == "busy").count()
    };
    browser.click("#slow button.danger");
    let question = browser.wait_for(
        "ask",
        &["Kill worker ", " of documents?", "Its call of convert fails.", "No", "Yes"],
    );
    assert!(question.contains("process "), "{question}");
    // No has the focus: whoever presses a key too much kills nothing.
    browser.press("\u{e007}");
    until("the question is gone", || browser.text("ask").is_empty());
    assert_eq!(busy(), 1);
    browser.click("#slow button.danger");
    browser.wait_for("ask", &["Kill worker "]);
    // The answer to a question that was closed says nothing about the next one.
    let is_open = browser.run(
        "const id = (name) => document.getElementById(name);
        const real = window.fetch;
        let answer;
        window.fetch = (...it) => it[1]?.method !== 'POST' ? real(...it)
            : new Promise((done) => { answer = () => done(new Response('late')); });
        id('ask-yes').click();
        id('ask-no').click();
        document.querySelector('#slow button.danger').click();
        answer();
        return new Promise((done) => setTimeout(done, 200)).then(() => {
            window.fetch = real;
            return id('ask').open && !id('ask-yes').disabled;
        });",
        &[],
    );
    assert_eq!(is_open, true);
    // A double click is one request.
    browser.run(
        "const real = window.fetch;
        window.posts = 0;
        window.fetch = (...it) => {
            window.posts += it[1]?.method === 'POST' ? 1 : 0;
            return real(...it);
        };
        document.getElementById('ask-yes').click();
        document.getElementById('ask-yes').click();",
        &[],
    );
    let error = dashboard.runtime.block_on(hanging).unwrap().unwrap_err();
    assert!(error.to_string().contains("SIGKILL"), "{error}");
    browser.wait_for("deaths", &["signaled", "SIGKILL", "convert"]);
    assert_eq!(browser.text("ask"), "");
    assert_eq!(browser.run("return window.posts", &[]), 1);
}

fn off_by_default() {
    let server = TestServer::start("plain");
    let source = || Dashboard::builder().server("documents", server.status_socket());
    let without = TestDashboard::of(&server);
    let client = server.client(&without.runtime, 1);
    without.runtime.block_on(client.call::<u64>("render", (1_u64,))).unwrap();
    until("a worker is shown", || without.status().pools[0].workers.len() == 1);
    let worker = without.status().pools[0].workers[0].clone();
    let body = |pid: u32| {
        json!({ "action": "kill", "pool": "documents", "worker": worker.number, "pid": pid })
            .to_string()
    };
    let (status, said) = without.post("/api/actions", &[JSON], &body(worker.pid));
    assert_eq!((status, said.contains("start it with actions allowed")), (403, true));

    let dashboard = TestDashboard::start(source().token(TOKEN).allow_actions(true));
    let bearer = format!("Bearer {TOKEN}");
    let token = ("Authorization", &*bearer);
    until("the worker is shown", || {
        dashboard.get("/api/status", &[token]).1.contains(&format!("\"pid\":{}", worker.pid))
    });
    let post =
        |headers: &[(&str, &str)], body: &str| dashboard.post("/api/actions", headers, body).0;
    let right = body(worker.pid);
    assert_eq!(post(&[JSON], &right), 401);
    assert_eq!(post(&[JSON, ("Authorization", "Bearer wrong")], &right), 401);
    assert_eq!(post(&[token, ("Content-Type", "text/plain")], &right), 415);
    assert_eq!(post(&[token, JSON, ("Origin", "http://evil.example")], &right), 403);
    assert_eq!(post(&[token, JSON], "{}"), 400);
    assert_eq!(post(&[token, JSON], &" ".repeat(5000)), 413);
    // Another process may have this number by now.
    assert_eq!(post(&[token, JSON], &body(1)), 409);
    // No GET changes anything.
    for path in ["/api/actions", "/api/actions?action=kill&pool=documents&worker=1"] {
        assert_eq!(dashboard.get(path, &[token]).0, 405, "{path}");
    }
    assert_eq!(server.handle.status().unwrap().deaths.len(), 0);
    assert_eq!(post(&[token, JSON, ("Origin", &dashboard.url)], &right), 200);
    until("the worker is killed", || {
        server.handle.status().unwrap().deaths.contains_key("signaled")
    });
}
