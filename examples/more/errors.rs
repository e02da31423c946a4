//! What errors look like, and what a program can do after them. One handler repeats a call, and another
//! rolls back on the checkout in which a call failed. A panic, a segfault and a timeout have reports.
//!
//! In a crate of your own it needs:
//!
//! ```sh
//! cargo add taskfork --features spans
//! cargo add rusqlite --features bundled
//! cargo add tokio --features full
//! cargo add tracing
//! cargo add tracing-error
//! cargo add tracing-subscriber
//! ```

use std::time::Duration;

use rusqlite::Connection;
use taskfork::{BoxError, Checkout, Client, Error, Methods, Server, ServerBuilder, ServerError};

fn accounts(server: ServerBuilder) -> Result<(), ServerError> {
    let methods = Methods::new()
        .method("execute", |database: &mut Connection, statement: String| {
            Ok(database.execute(&statement, ())?)
        })
        .method("count", |database: &mut Connection| {
            Ok(database
                .query_row("SELECT count(*) FROM account", (), |row| row.get::<_, i64>(0))?)
        })
        .method("now_and_then", |database: &mut Connection| {
            // Fails twice and then works, as with a lock that another process holds.
            database.execute("UPDATE attempt SET number = number + 1", ())?;
            let number =
                database.query_row("SELECT number FROM attempt", (), |row| row.get::<_, i64>(0))?;
            if number < 3 { Err(format!("attempt {number} met a lock").into()) } else { Ok(number) }
        })
        .function("transfer", |amount: i64| -> Result<(), BoxError> {
            panic!("{amount} is more than there is")
        })
        .function("segfault", || -> Result<(), BoxError> {
            // SAFETY: none. It does what a bug in a C library does.
            #[allow(unsafe_code)]
            unsafe {
                std::hint::black_box(std::ptr::without_provenance_mut::<u8>(8)).write_volatile(1);
            }
            Ok(())
        })
        .function("sleep", |seconds: u64| {
            std::thread::sleep(Duration::from_secs(seconds));
            Ok(())
        });
    server
        .name("accounts")
        .setup(|| {
            let database = Connection::open_in_memory()?;
            database.execute_batch(
                "CREATE TABLE account (name TEXT UNIQUE);
                 CREATE TABLE attempt (number INTEGER);
                 INSERT INTO attempt VALUES (0);",
            )?;
            Ok::<_, BoxError>(database)
        })
        .interface(methods)
        .run()
}

fn main() -> Result<(), BoxError> {
    taskfork::init(&[("accounts", accounts)]);
    use tracing_subscriber::prelude::*;
    // This layer adds the spans in which an error was made to its report.
    tracing_subscriber::registry().with(tracing_error::ErrorLayer::default()).init();
    tokio::runtime::Runtime::new()?.block_on(run())
}

async fn run() -> Result<(), BoxError> {
    let server = Server::spawn("accounts")?;
    let client = Client::builder().address(server.address()).name("bank").build()?;

    println!("answered: {}\n", retried(&client.checkout()).await?);
    rolled_back(&client).await?;

    println!("--- a panic");
    show(client.call("transfer", (1_000_000,)).await);
    println!("--- a segfault");
    show(client.call("segfault", ()).await);
    println!("--- a timeout");
    let checkout = client.checkout().timeout(Duration::from_millis(200));
    show(checkout.call("sleep", (60,)).await);
    Ok(())
}

/// After a call's own error the checkout is usable, so this repeats the call on the same worker.
async fn retried(checkout: &Checkout) -> Result<i64, Error> {
    loop {
        match checkout.call("now_and_then", ()).await {
            Err(error) if !error.is_fatal() => println!("trying again: {error}"),
            outcome => return outcome,
        }
    }
}

/// After an error in a transaction, this rolls back on the checkout that holds the transaction.
async fn rolled_back(client: &Client) -> Result<(), Error> {
    let checkout = client.checkout();
    let execute = |statement| checkout.call::<usize>("execute", (statement,));
    execute("BEGIN").await?;
    let outcome = async {
        execute("INSERT INTO account VALUES ('anna')").await?;
        execute("INSERT INTO account VALUES ('anna')").await?;
        execute("COMMIT").await
    };
    if let Err(error) = outcome.await {
        println!("rolling back: {error}");
        execute("ROLLBACK").await?;
    }
    println!("accounts: {}\n", checkout.call::<i64>("count", ()).await?);
    Ok(())
}

#[tracing::instrument(skip_all)]
fn show(outcome: Result<(), Error>) {
    match outcome {
        Ok(()) => println!("it worked\n"),
        Err(error) => println!("{}\n", error.report()),
    }
}
