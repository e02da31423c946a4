//! SQLite behind an untyped interface. A checkout has a database connection of its own, so it can hold
//! a transaction. An open transaction is rolled back before the next checkout gets the worker.
//!
//! In a crate of your own it needs:
//!
//! ```sh
//! cargo add taskfork
//! cargo add rusqlite --features bundled
//! cargo add tempfile
//! cargo add tokio --features full
//! ```

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::Connection;
use taskfork::server::ServerHandle;
use taskfork::{BoxError, Client, Methods, Server, ServerBuilder, ServerError};

fn database(server: ServerBuilder, path: PathBuf) -> Result<(), ServerError> {
    server
        .name("database")
        .setup(move || open(&path))
        .checkout_done(|database: &mut Connection| {
            if !database.is_autocommit() {
                eprintln!("worker: rolling back what the last checkout left open");
                database.execute_batch("ROLLBACK")?;
            }
            Ok::<_, rusqlite::Error>(())
        })
        .interface(
            Methods::new()
                .method("execute", |database: &mut Connection, sql: String| {
                    Ok(database.execute(&sql, ())?)
                })
                .method("insert", |database: &mut Connection, name: String, balance: i64| {
                    database.execute("INSERT INTO account VALUES (?1, ?2)", (name, balance))?;
                    Ok(database.last_insert_rowid())
                })
                .method("balance", |database: &mut Connection, name: String| {
                    let sql = "SELECT balance FROM account WHERE name = ?1";
                    Ok(database.query_row(sql, [name], |row| row.get::<_, i64>(0))?)
                })
                .method("count", |database: &mut Connection| {
                    Ok(database.query_row("SELECT count(*) FROM account", (), |row| {
                        row.get::<_, i64>(0)
                    })?)
                })
                .method(
                    "in_transaction",
                    |database: &mut Connection| Ok(!database.is_autocommit()),
                ),
        )
        .run()
}

fn open(path: &Path) -> rusqlite::Result<Connection> {
    let database = Connection::open(path)?;
    database.busy_timeout(Duration::from_secs(5))?;
    database.execute_batch(
        "CREATE TABLE IF NOT EXISTS account (name TEXT PRIMARY KEY, balance INTEGER NOT NULL)",
    )?;
    Ok(database)
}

fn main() -> Result<(), BoxError> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("accounts.sqlite");
    // The server is forked before the runtime starts, and inherits the state of this program.
    let server = Server::fork(|server| database(server, path))?;
    tokio::runtime::Runtime::new()?.block_on(run(&server))?;
    server.close();
    Ok(())
}

async fn run(server: &ServerHandle) -> Result<(), BoxError> {
    // The client keeps its one worker after errors, so the second checkout gets the connection of the first.
    let client = Client::builder()
        .address(server.address())
        .min_workers(1)
        .max_workers(1)
        .reuse_after_error(true)
        .build()?;

    let checkout = client.checkout();
    checkout.call::<usize>("execute", ("BEGIN",)).await?;
    let row: i64 = checkout.call("insert", ("alice", 100)).await?;
    println!("alice is row {row}, in a transaction");
    // An error inside the transaction leaves the checkout usable, to roll back.
    match checkout.call::<i64>("insert", ("alice", 200)).await {
        Ok(row) => println!("a second alice became row {row}"),
        Err(error) => {
            println!("a second alice is refused: {error}");
            checkout.call::<usize>("execute", ("ROLLBACK",)).await?;
        }
    }
    println!("rows after the rollback: {}", checkout.call::<i64>("count", ()).await?);

    // This transaction is left open: `checkout_done` ends it.
    checkout.call::<usize>("execute", ("BEGIN",)).await?;
    checkout.call::<i64>("insert", ("bob", 50)).await?;
    drop(checkout);

    let checkout = client.checkout();
    let open: bool = checkout.call("in_transaction", ()).await?;
    let count: i64 = checkout.call("count", ()).await?;
    println!("the next checkout: in a transaction: {open}, rows: {count}");
    let row: i64 = checkout.call("insert", ("carol", 70)).await?;
    let balance: i64 = checkout.call("balance", ("carol",)).await?;
    println!("carol is row {row} with a balance of {balance}");

    Ok(())
}
