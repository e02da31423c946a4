//! The configuration that a program passes to a server which it starts, and what a replacement inherits.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use taskfork::error::Failure;
use taskfork::{Client, Server, ServerBuilder, ServerError};

use crate::spawned::{client_of, kill};
use crate::support::{programs, servers, trial, until};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Config {
    pub(crate) listen: Option<String>,
    /// While there is such a file, the server does not come up.
    pub(crate) obstacle: Option<PathBuf>,
    pub(crate) names: BTreeMap<String, Option<i64>>,
    pub(crate) long: String,
}

impl Config {
    pub(crate) fn new() -> Self {
        let names = [("one".to_owned(), Some(-1)), ("none".to_owned(), None)].into();
        Self { listen: None, obstacle: None, names, long: String::new() }
    }
}

pub(crate) fn configured(server: ServerBuilder) -> Result<(), ServerError> {
    let config: Config = server.config()?;
    if config.obstacle.as_ref().is_some_and(|path| path.exists()) {
        return Err(ServerError::Startup { source: Failure::new("there is an obstacle") });
    }
    let server = match &config.listen {
        Some(address) => server.listen(address),
        None => server,
    };
    let methods = servers::methods().function("config", move || Ok(config.clone()));
    server.setup(|| Ok::<_, taskfork::BoxError>(Default::default())).interface(methods).run()
}

trial!(a_configuration_of_any_size_arrives_also_after_a_replacement, async || {
    for length in [0, 1 << 10, 5 << 20] {
        let config = Config { long: "ü".repeat(length), ..Config::new() };
        let server = Server::spawn_with("configured", &config).unwrap();
        let client = client_of(&server);
        assert!(client.call::<Config>("config", ()).await.unwrap() == config);
        kill(&server);
        until("the server's end", || !server.is_alive()).await;
        assert!(client.call::<Config>("config", ()).await.unwrap() == config);
    }
});

trial!(a_missing_or_wrong_configuration_is_named, async || {
    let error = Server::spawn("configured").unwrap_err().to_string();
    assert!(error.contains("without a configuration"), "{error}");
    let wrong = BTreeMap::from([("listen", 1)]);
    let error = Server::spawn_with("configured", &wrong).unwrap_err();
    let ServerError::Misconfigured { expected, source } = &error else { panic!("{error}") };
    assert!(expected.ends_with("Config") && !source.message().is_empty(), "{error}");
    let tree = (0..1000).fold(serde_json::Value::Null, |inner, _| serde_json::json!([inner]));
    let error = Server::spawn_with("configured", &tree).unwrap_err();
    assert!(matches!(error, ServerError::UnencodableConfig { .. }), "{error}");
    // A server that reads no configuration ignores it.
    let _ = Server::spawn_with("general", &1).unwrap();
});

trial!(a_replacement_inherits_what_the_first_one_did, async || {
    let said = programs::output(&["inherit"]);
    assert_eq!(said, "first /usr\nfirst /usr\n");
});

/// A program without threads, which changes what it has after it has started a server.
pub(crate) fn inherit() {
    let set = |value: &str, folder: &Path| {
        // SAFETY: this is the only thread.
        #[allow(unsafe_code)]
        unsafe {
            std::env::set_var("TASKFORK_TEST_VALUE", value);
        }
        std::env::set_current_dir(folder).unwrap();
    };
    set("first", Path::new("/usr"));
    let server = Server::spawn("general").unwrap();
    set("second", Path::new("/"));
    let options = Client::builder().address(server.address());
    let client = options.build_blocking().unwrap();
    for _ in 0..2 {
        let variables: Vec<String> = client.call("variables", ()).unwrap();
        assert!(variables.contains(&"TASKFORK_TEST_VALUE".to_owned()));
        let value: String = client.call("variable", ("TASKFORK_TEST_VALUE",)).unwrap();
        println!("{value} {}", client.call::<String>("folder", ()).unwrap());
        kill(&server);
        while server.is_alive() {
            std::thread::yield_now();
        }
    }
    drop(client);
    server.close();
}
