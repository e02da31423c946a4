//! What workers and peers write is text, and never markup.

use taskfork_dashboard::Dashboard;

use crate::Test;
use crate::browser::Browser;
use crate::fixture::{TestDashboard, TestServer};
use crate::workers::{MARKUP, MARKUP_METHOD};

pub(crate) const TESTS: &[Test] = &[("names_that_look_like_markup_are_text", markup)];

fn markup() {
    let server = TestServer::start("named_as_markup");
    let dashboard =
        TestDashboard::start(Dashboard::builder().server(MARKUP, server.status_socket()));
    let client = server.client(&dashboard.runtime, 4);
    let caller = client.clone();
    let _hanging =
        dashboard.runtime.spawn(async move { caller.call::<()>(MARKUP_METHOD, ()).await });
    dashboard.runtime.block_on(async {
        client.call::<()>("import", (MARKUP,)).await.unwrap_err();
    });
    let browser = Browser::open(&dashboard.url);
    // Details are behind a click, so the text of the elements is asked for.
    browser.wait_for("overview", &[MARKUP]);
    browser.wait_for("slow", &[MARKUP_METHOD]);
    browser.wait_for("workers", &[MARKUP_METHOD]);
    browser.wait_for("deaths", &[MARKUP]);
    browser.wait_for("slow-summary", &[MARKUP_METHOD]);
    let made = browser.run(
        "return [document.querySelectorAll('main script, main img').length, document.title, document.scripts.length]",
        &[],
    );
    assert_eq!(made, serde_json::json!([0, "taskfork", 1]));
    assert_eq!(browser.complaints(), [""; 0]);

    // A script in the page itself would not run: the policy has no exception.
    let blocked = browser.run(
        "const it = document.createElement('div'); try { it.innerHTML = '<b></b>'; return 'set'; } catch (error) { return error.name; }",
        &[],
    );
    assert_eq!(blocked, "TypeError");
    let (_, text) = dashboard.get("/metrics", &[]);
    let label = format!("pool=\"{}\"", MARKUP.replace('"', "\\\""));
    assert!(text.contains(&label), "{text}");
}
