//! Password hashing in worker processes, and the code that uses it. A slow, simple hash stands for a real one.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};
use taskfork::{BoxError, Error, ServerBuilder, ServerError};

/// Why a password is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("a password of {length} bytes is too short")]
pub struct TooShort {
    /// Its length in bytes.
    pub length: usize,
}

/// What the workers do.
#[taskfork::interface]
pub trait Passwords {
    /// Hashes a password with a salt.
    fn hash(&mut self, password: &str, salt: &[u8]) -> Result<String, TooShort>;
    /// Ends the worker, for a test of what then happens.
    fn crash(&mut self) -> Result<(), TooShort>;
}

/// The state of a worker.
#[derive(Debug)]
pub struct Worker {
    rounds: u32,
}

impl Worker {
    /// A worker that hashes in so many rounds.
    pub fn new(rounds: u32) -> Self {
        Self { rounds }
    }
}

impl Passwords for Worker {
    fn hash(&mut self, password: &str, salt: &[u8]) -> Result<String, TooShort> {
        if password.len() < 8 {
            return Err(TooShort { length: password.len() });
        }
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for _ in 0..self.rounds {
            for byte in password.bytes().chain(salt.iter().copied()) {
                hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            }
        }
        Ok(format!("{hash:016x}"))
    }

    fn crash(&mut self) -> Result<(), TooShort> {
        std::process::abort()
    }
}

/// The server, for `taskfork::init` in `main` and for `taskfork::test_support!` in tests.
pub fn server(server: ServerBuilder) -> Result<(), ServerError> {
    server.setup(|| Ok::<_, BoxError>(Worker::new(1000))).interface(PasswordsInterface).run()
}

/// Whether a password has this hash. It gets whatever makes the calls, so that a test needs no worker.
///
/// # Errors
/// Those of the call, but for passwords that are too short: these have no hash.
pub async fn verify(
    passwords: &impl PasswordsCalls,
    password: &str,
    salt: &[u8],
    expected: &str,
) -> Result<bool, Error<TooShort>> {
    match passwords.hash(password, salt).await {
        Ok(hash) => Ok(hash == expected),
        Err(Error::Call {
            error: taskfork::error::CallError::Interface(TooShort { .. }), ..
        }) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use taskfork::{Call, Client, Server};

    use super::*;

    // Once in a module of the tests: now `Server::spawn` works in all of them.
    taskfork::test_support!(("passwords", server));

    #[test]
    fn the_methods_need_no_process() {
        let mut worker = Worker::new(1);
        assert_eq!(worker.hash("short", b""), Err(TooShort { length: 5 }));
        assert_ne!(worker.hash("longer than", b"1"), worker.hash("longer than", b"2"));
    }

    /// Stands for a client.
    struct Mock;

    impl PasswordsCalls for Mock {
        fn hash(&self, password: &str, _salt: &[u8]) -> Call<String, TooShort> {
            match password {
                "short" => Call::ready(Err(TooShort { length: 5 })),
                other => Call::ready(Ok(other.to_uppercase())),
            }
        }

        fn crash(&self) -> Call<(), TooShort> {
            Call::ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn code_that_calls_workers_needs_none_either() {
        assert_eq!(verify(&Mock, "password", b"", "PASSWORD").await.ok(), Some(true));
        assert_eq!(verify(&Mock, "password", b"", "another").await.ok(), Some(false));
        assert_eq!(verify(&Mock, "short", b"", "SHORT").await.ok(), Some(false));
    }

    #[tokio::test]
    async fn real_workers_answer() -> Result<(), BoxError> {
        let server = Server::spawn("passwords")?;
        let client = Client::builder().address(server.address()).build()?;
        let hash = client.hash("password", b"salt").await?;
        assert!(verify(&client, "password", b"salt", &hash).await?);
        Ok(())
    }
}
