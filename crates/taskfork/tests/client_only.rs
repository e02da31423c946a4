//! A program that only calls servers. It needs none of the feature `server`, and CI compiles it without.

use std::time::Duration;

use taskfork::Client;
use taskfork::error::Error;

#[taskfork::interface]
trait Adder {
    fn add(&mut self, left: i64, right: i64) -> i64;
}

#[tokio::test]
async fn a_client_needs_no_server_in_its_program() {
    let folder = tempfile::tempdir().unwrap();
    let address = format!("unix:{}", folder.path().join("none.sock").display());
    let client = Client::builder().address(address).timeout(Duration::from_millis(50));
    let error = client.build().unwrap().add(2, 3).await.unwrap_err();
    assert!(matches!(error, Error::Fatal { may_have_run: false, .. }), "{error}");
    assert!(error.to_string().contains("none.sock"), "{error}");
}
