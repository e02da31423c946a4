//! Hashes passwords in worker processes. bcrypt takes tens of milliseconds of a core, which would
//! block an async task's thread. This program starts the server itself.
//!
//! In a crate of your own it needs:
//!
//! ```sh
//! cargo add taskfork
//! cargo add bcrypt
//! cargo add serde --features derive
//! cargo add thiserror
//! cargo add tokio --features full
//! ```

use std::time::Instant;

use serde::{Deserialize, Serialize};
use taskfork::{BoxError, Client, Server, ServerBuilder, ServerError};

/// bcrypt's work factor: each step doubles the time.
const COST: u32 = 10;

#[taskfork::interface]
trait Passwords {
    fn hash(&mut self, plain: String) -> Result<String, HashError>;
    fn verify(&mut self, hash: String, plain: String) -> Result<bool, HashError>;
}

#[derive(Debug, thiserror::Error, Serialize, Deserialize)]
#[error("bcrypt: {0}")]
struct HashError(String);

impl From<bcrypt::BcryptError> for HashError {
    fn from(error: bcrypt::BcryptError) -> Self {
        Self(error.to_string())
    }
}

struct Bcrypt;

impl Passwords for Bcrypt {
    fn hash(&mut self, plain: String) -> Result<String, HashError> {
        Ok(bcrypt::hash(plain, COST)?)
    }

    fn verify(&mut self, hash: String, plain: String) -> Result<bool, HashError> {
        Ok(bcrypt::verify(plain, &hash)?)
    }
}

fn passwords(server: ServerBuilder) -> Result<(), ServerError> {
    server.name("passwords").setup(|| Ok::<_, BoxError>(Bcrypt)).interface(PasswordsInterface).run()
}

fn main() -> Result<(), BoxError> {
    // In the server's process, this line does not return.
    taskfork::init(&[("passwords", passwords)]);
    tokio::runtime::Runtime::new()?.block_on(run())
}

async fn run() -> Result<(), BoxError> {
    let server = Server::spawn("passwords")?;
    println!("server: process {}", server.pid());
    let client = Client::builder().address(server.address()).build()?;

    let checkout = client.checkout();
    let hash = checkout.hash("correct horse battery staple").await?;
    println!("hash:   {hash}");
    for guess in ["correct horse battery staple", "Tr0ub4dor&3"] {
        let fits = checkout.verify(&hash, guess).await?;
        println!("verify: {guess:?} {}", if fits { "fits" } else { "does not fit" });
    }

    // The method's own error arrives as its own type.
    if let Err(error) = checkout.verify("no hash at all", "secret").await {
        println!("error:  {error}");
    }
    drop(checkout);

    // Two calls of the client, and not of one checkout, run in two workers at the same time.
    let start = Instant::now();
    let (first, second) = tokio::join!(client.hash("one"), client.hash("two"));
    first?;
    second?;
    println!("two more hashes side by side: {:.0?}", start.elapsed());

    drop(client);
    server.close();
    Ok(())
}
