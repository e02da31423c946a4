//! Configuration that cannot work, told before anything is tried, or by the server that tried.

use taskfork::Client;
use taskfork::client::{Address, AddressError, ConfigError};

use crate::support::{programs, trial};

trial!(a_too_long_socket_path_is_an_error, async || {
    let address = format!("unix:/tmp/{}", "long/".repeat(30));
    let said = programs::output(&["serve", &address]);
    assert!(said.contains("155 bytes long") && said.contains("at most 107"), "{said}");
    let error = Client::builder().address(address).build().unwrap_err();
    assert!(matches!(error, ConfigError::Address(AddressError::PathTooLong { .. })), "{error}");
});

trial!(a_socket_path_that_is_not_utf8_works, async || {
    let folder = tempfile::tempdir().unwrap();
    let said = programs::output(&["fork_at_bytes", folder.path().to_str().unwrap()]);
    let (sum, address) = said.trim().split_once(' ').unwrap();
    assert_eq!(sum, "5");
    assert!(address.starts_with("unix-percent:") && address.ends_with("/s%FF%25"), "{address}");
});

trial!(a_socket_path_that_is_a_file, async || {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    std::fs::write(&path, "precious").unwrap();
    let said = programs::output(&["serve", &format!("unix:{}", path.display())]);
    assert!(said.contains("exists and is no socket"), "{said}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
});

trial!(a_socket_path_in_a_missing_folder, async || {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("missing/s");
    let said = programs::output(&["serve", &format!("unix:{}", path.display())]);
    assert!(said.contains("/missing of the socket cannot be used: No such file"), "{said}");
});

trial!(an_invalid_address_is_an_error, async || {
    let said = programs::output(&["serve", "/tmp/s"]);
    assert!(said.contains("`/tmp/s` is not an address: write unix:PATH"), "{said}");
    let error = Client::builder().address("/tmp/s").build().unwrap_err();
    assert!(error.to_string().contains("write unix:PATH"), "{error}");
});

trial!(a_client_of_a_listening_descriptor, async || {
    let error = Client::builder().address(Address::inherited(3)).build().unwrap_err();
    assert_eq!(error, ConfigError::NotConnectable { address: "fd:3".into() });
});

trial!(a_client_without_an_address, async || {
    assert_eq!(Client::builder().build().unwrap_err(), ConfigError::NoAddress);
});

trial!(contradictory_worker_counts_are_an_error, async || {
    let client = Client::builder().address("unix:/nonexistent/s");
    assert_eq!(client.clone().max_workers(0).build().unwrap_err(), ConfigError::NoWorkers);
    let error = client.clone().min_workers(5).max_workers(4).build().unwrap_err();
    assert_eq!(error, ConfigError::MaxBelowMin { min_workers: 5, max_workers: 4 });
    assert_eq!(error.to_string(), "max_workers is 4, which is less than min_workers, 5");
    assert_eq!(client.max_checkouts(0).build().unwrap_err(), ConfigError::NoCheckouts);
});

trial!(fewer_workers_than_the_default_minimum_are_fine, async || {
    Client::builder().address("unix:/nonexistent/s").max_workers(1).build().unwrap();
});

trial!(a_client_outside_a_runtime, async || {
    let build = || Client::builder().address("unix:/nonexistent/s").build().map(drop);
    let error = std::thread::spawn(build).join().unwrap().unwrap_err();
    assert_eq!(error, ConfigError::NoRuntime);
});
