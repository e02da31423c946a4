//! An integration test, which sees the crate as its users do.
#![forbid(unsafe_code)]

use taskfork::error::FatalError;
use taskfork::{BoxError, Client, Error, Server};
use tests_in_your_crate::{PasswordsBlockingCalls, PasswordsCalls, server};

taskfork::test_support!(("passwords", server));

#[tokio::test]
async fn a_crash_costs_one_call() -> Result<(), BoxError> {
    let server = Server::spawn("passwords")?;
    let client = Client::builder().address(server.address()).build()?;
    let error = client.crash().await.err().ok_or("the worker has survived")?;
    assert!(matches!(error, Error::Fatal { cause: FatalError::WorkerDied { .. }, .. }), "{error}");
    assert!(error.to_string().contains("SIGABRT"), "{error}");
    client.hash("password", b"salt").await?;
    Ok(())
}

#[test]
fn programs_without_async_are_tested_in_the_same_way() -> Result<(), BoxError> {
    let server = Server::spawn("passwords")?;
    let client = Client::builder().address(server.address()).build_blocking()?;
    assert_eq!(client.hash("password", b"salt")?, client.hash("password", b"salt")?);
    Ok(())
}
