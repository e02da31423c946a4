//! Chromium, driven by chromedriver.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use crate::fixture::{LONG, agent};

/// A browser with one page. It ends with this value.
pub(crate) struct Browser {
    driver: Child,
    session: String,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// Starts a browser and opens this page.
    pub(crate) fn open(url: &str) -> Self {
        let profile = tempfile::tempdir().unwrap();
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("these tests need Debian's packages `chromium` and `chromium-driver`");
        let mut said = BufReader::new(driver.stdout.take().unwrap());
        let port = loop {
            let mut line = String::new();
            assert!(said.read_line(&mut line).unwrap() > 0, "chromedriver has ended");
            if let Some(port) = line.split("successfully on port ").nth(1) {
                break port.trim().trim_end_matches('.').to_owned();
            }
        };
        // It must not wait for somebody who reads.
        std::thread::spawn(move || said.read_to_end(&mut Vec::new()));
        let arguments = [
            "--headless=new",
            // Tests run as root in containers. The pages are those of this program.
            "--no-sandbox",
            "--disable-dev-shm-usage",
            "--disable-gpu",
            "--disable-background-networking",
            "--no-first-run",
            "--hide-scrollbars",
            "--window-size=1280,900",
            // Those of tests come from an authority that nobody knows.
            "--ignore-certificate-errors",
            &format!("--user-data-dir={}", profile.path().display()),
        ];
        let capabilities = json!({ "capabilities": { "alwaysMatch": {
            "browserName": "chrome", "goog:chromeOptions": { "args": arguments },
            "goog:loggingPrefs": { "browser": "ALL" },
        }}});
        let base = format!("http://127.0.0.1:{port}");
        let mut browser = Self { driver, session: base.clone(), _profile: profile };
        let started = browser.post("/session", &capabilities);
        browser.session = format!("{base}/session/{}", started["sessionId"].as_str().unwrap());
        browser.post("/url", &json!({ "url": url }));
        browser
    }

    fn post(&self, path: &str, body: &Value) -> Value {
        let mut response = agent()
            .post(format!("{}{path}", self.session))
            .header("Content-Type", "application/json")
            .send(body.to_string())
            .unwrap();
        let text = response.body_mut().with_config().limit(64 << 20).read_to_string().unwrap();
        let mut answer: Value = serde_json::from_str(&text).unwrap();
        assert!(response.status().is_success(), "{path}: {answer}");
        answer["value"].take()
    }

    /// Runs a script in the page and returns its result.
    pub(crate) fn run(&self, script: &str, arguments: &[Value]) -> Value {
        self.post("/execute/sync", &json!({ "script": script, "args": arguments }))
    }

    /// The text that is seen in the element with this id. Empty if the element is hidden.
    pub(crate) fn text(&self, id: &str) -> String {
        let script = "const it = document.getElementById(arguments[0]); return it?.checkVisibility() ? it.innerText : '';";
        self.run(script, &[id.into()]).as_str().unwrap().to_owned()
    }

    /// Waits until the element shows all of these texts. Returns everything that it shows.
    pub(crate) fn wait_for(&self, id: &str, texts: &[&str]) -> String {
        let end = Instant::now() + LONG;
        loop {
            let seen = self.text(id);
            if texts.iter().all(|text| seen.contains(text)) {
                return seen;
            }
            if Instant::now() > end {
                let all = self.run("return document.body.innerText", &[]);
                let complaints = self.complaints();
                panic!("waited in vain for {texts:?} in {id}: {seen}\n{all}\n{complaints:?}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The element that a CSS selector finds.
    fn element(&self, selector: &str) -> String {
        let found = self.post("/element", &json!({ "using": "css selector", "value": selector }));
        found.as_object().unwrap().values().next().unwrap().as_str().unwrap().to_owned()
    }

    pub(crate) fn click(&self, selector: &str) {
        let element = self.element(selector);
        self.post(&format!("/element/{element}/click"), &json!({}));
    }

    /// Types into an element, or into what has the focus.
    pub(crate) fn type_into(&self, selector: &str, text: &str) {
        let element = self.element(selector);
        self.post(&format!("/element/{element}/value"), &json!({ "text": text }));
    }

    /// Presses a key.
    pub(crate) fn press(&self, key: &str) {
        let keys =
            [json!({ "type": "keyDown", "value": key }), json!({ "type": "keyUp", "value": key })];
        self.post(
            "/actions",
            &json!({ "actions": [{ "type": "key", "id": "keys", "actions": keys }] }),
        );
    }

    /// What the browser has complained about, such as violations of the policy.
    pub(crate) fn complaints(&self) -> Vec<String> {
        let log = self.post("/se/log", &json!({ "type": "browser" }));
        let entries = log.as_array().unwrap().iter();
        entries.map(|entry| entry["message"].as_str().unwrap().to_owned()).collect()
    }

    /// Shows the page as it is with a preference for `light` or `dark`.
    pub(crate) fn prefer(&self, scheme: &str) {
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        let command = json!({ "cmd": "Emulation.setEmulatedMedia", "params": features });
        self.post("/goog/cdp/execute", &command);
    }

    /// Takes pictures in light and dark, from the section of the first element to that of the last, if `SCREENSHOTS` names a
    /// folder for them.
    pub(crate) fn take_pictures(&self, name: &str, first: &str, last: &str) {
        let Some(folder) = std::env::var_os("SCREENSHOTS") else { return };
        for scheme in ["light", "dark"] {
            self.prefer(scheme);
            let script = "const [first, last] = [...arguments].map((id) => document.getElementById(id).closest('section'));
                const top = first.getBoundingClientRect().top + scrollY - 12;
                return { x: 0, y: top, width: innerWidth, height: last.getBoundingClientRect().bottom + scrollY + 12 - top, scale: 1 };";
            let clip = self.run(script, &[first.into(), last.into()]);
            let parameters =
                json!({ "format": "png", "captureBeyondViewport": true, "clip": clip });
            let command = json!({ "cmd": "Page.captureScreenshot", "params": parameters });
            let picture = self.post("/goog/cdp/execute", &command);
            let picture = BASE64_STANDARD.decode(picture["data"].as_str().unwrap()).unwrap();
            let file = PathBuf::from(&folder).join(format!("{name}-{scheme}.png"));
            std::fs::write(file, picture).unwrap();
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // This ends the browser. Without it, chromedriver would leave it behind.
        let _ = agent().delete(&self.session).call();
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
