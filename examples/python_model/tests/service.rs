//! Drives the service over HTTP, as its own process.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader, Lines};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::{Value, json};

/// A service that runs.
struct Service {
    child: Child,
    stdout: Lines<BufReader<ChildStdout>>,
    url: String,
}

impl Service {
    fn start() -> Self {
        let python = std::env::var_os("PYTHON").unwrap_or_else(|| "python3".into());
        let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../python/src");
        let mut import = Command::new(&python);
        let import = import.args(["-c", "import taskfork._native"]).env("PYTHONPATH", &package);
        let missing =
            "python/src/taskfork has no native module: see the table of tests in CONTRIBUTING.md";
        assert!(import.status().unwrap().success(), "{missing}");
        let mut child = Command::new(env!("CARGO_BIN_EXE_python_model"))
            .env("LISTEN", "127.0.0.1:0")
            .env("PYTHONPATH", package)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap()).lines();
        let first = stdout.next().unwrap().unwrap();
        let url = first.strip_prefix("listening at ").unwrap().to_owned();
        Self { child, stdout, url }
    }

    /// Asks for the language of a text. Returns the status and the answer.
    fn language(&self, text: &str) -> (u16, String) {
        let agent = ureq::Agent::config_builder().http_status_as_error(false);
        let agent: ureq::Agent = agent.timeout_global(Some(Duration::from_secs(60))).build().into();
        let url = format!("{}/language", self.url);
        let answer = agent.post(url).send_json(json!({ "text": text })).unwrap();
        (answer.status().as_u16(), answer.into_body().read_to_string().unwrap())
    }

    /// The answer to a text of which the model knows the language.
    fn known(&self, text: &str) -> Value {
        let (status, answer) = self.language(text);
        assert_eq!(status, 200, "{answer}");
        serde_json::from_str(&answer).unwrap()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn pid(value: &Value) -> Pid {
    Pid::from_raw(value.as_u64().unwrap().try_into().unwrap()).unwrap()
}

#[test]
fn a_model_in_python_answers_over_http() {
    let mut service = Service::start();
    let first = service.known("the dog runs through the forest");
    assert_eq!(first["language"], "en");
    let worker = pid(&first["worker"]);
    // The same worker, with the model that it has loaded.
    for (answered, language, text) in
        [(2, "de", "der hund läuft durch den wald"), (3, "fr", "le chien court dans la forêt")]
    {
        let answer = service.known(text);
        assert_eq!(answer["language"], language, "{answer}");
        assert!(answer["probability"].as_f64().unwrap() > 0.5, "{answer}");
        assert_eq!((pid(&answer["worker"]), &answer["answered"]), (worker, &json!(answered)));
    }

    let (status, answer) = service.language("too short");
    assert_eq!(status, 422, "{answer}");
    assert!(answer.contains("a text needs three words or more"), "{answer}");
    assert_eq!(
        pid(&service.known("the old dog")["worker"]),
        worker,
        "a wrong text costs no worker"
    );

    // A worker that has died is replaced.
    let worker = pid(&service.known("the old dog")["worker"]);
    kill_process(worker, Signal::KILL).unwrap();
    let mut answers = (0..100).map(|_| service.language("the old dog"));
    let (_, answer) = answers.find(|(status, _)| *status == 200).unwrap();
    let other = pid(&serde_json::from_str::<Value>(&answer).unwrap()["worker"]);
    assert_ne!(other, worker);

    let own = Pid::from_raw(service.child.id().try_into().unwrap()).unwrap();
    kill_process(own, Signal::TERM).unwrap();
    assert_eq!(service.stdout.next().unwrap().unwrap(), "ended");
    assert!(service.child.wait().unwrap().success());
    assert!(test_kill_process(other).is_err(), "the worker lives");
}
