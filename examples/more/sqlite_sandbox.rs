//! SQL of strangers, run under `Sandbox::files` with one file: the database. Such a query can ask SQLite for
//! other files, and a fault in SQLite could give it any system call; the kernel refuses both.
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
use rusqlite::types::Value;
use taskfork::sandbox::Sandbox;
use taskfork::{BoxError, Client, Methods, Server, ServerBuilder, ServerError};

fn queries(server: ServerBuilder) -> Result<(), ServerError> {
    let path: PathBuf = server.config()?;
    let sandbox = Sandbox::files([&path]).before_setup();
    let methods = Methods::new().method("query", |database: &mut Connection, sql: String| {
        // One row is enough for an example.
        let row = database.query_row(&sql, (), |row| row.get::<_, Value>(0))?;
        Ok(match row {
            Value::Null => "NULL".to_owned(),
            Value::Integer(number) => number.to_string(),
            Value::Real(number) => number.to_string(),
            Value::Text(text) => text,
            Value::Blob(bytes) => format!("{} bytes", bytes.len()),
        })
    });
    server.name("queries").sandbox(sandbox).setup(move || open(&path)).interface(methods).run()
}

fn open(path: &Path) -> rusqlite::Result<Connection> {
    let database = Connection::open(path)?;
    // SQLite would write its journal and temporary tables to files beside the database.
    database.pragma_update(None, "journal_mode", "MEMORY")?;
    database.pragma_update(None, "temp_store", "MEMORY")?;
    Ok(database)
}

fn main() -> Result<(), BoxError> {
    // A spawned server is a new process: its workers are no copies of this one and of what it knows.
    taskfork::init(&[("queries", queries)]);
    tokio::runtime::Runtime::new()?.block_on(run())
}

async fn run() -> Result<(), BoxError> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("sales.sqlite");
    Connection::open(&path)?.execute_batch(
        "CREATE TABLE sale (item TEXT, price INTEGER);
         INSERT INTO sale VALUES ('pen', 2), ('book', 20), ('lamp', 40);",
    )?;
    let other = folder.path().join("salaries.sqlite");
    Connection::open(&other)?.execute_batch("CREATE TABLE salary (name TEXT, amount INTEGER)")?;

    let server = Server::spawn_with("queries", &path)?;
    let client = Client::builder()
        .address(server.address())
        .copy_shared_memory(true)
        .timeout(Duration::from_secs(5))
        .build()?;
    let copy = folder.path().join("copy.sqlite");
    let queries = [
        "SELECT sum(price) FROM sale".to_owned(),
        "INSERT INTO sale VALUES ('desk', 100) RETURNING item".to_owned(),
        "SELECT count(*) FROM sale".to_owned(),
        format!("ATTACH DATABASE '{}' AS salaries", other.display()),
        format!("VACUUM INTO '{}'", copy.display()),
    ];
    for sql in &queries {
        // The folder has another name in each run.
        let shown = sql.replace(&*folder.path().to_string_lossy(), "");
        match client.call::<String>("query", (sql,)).await {
            Ok(value) => println!("{shown}: {value}"),
            Err(error) => println!("{shown}: refused: {error}"),
        }
    }
    if copy.exists() {
        return Err("SQLite has written a file that it may not write".into());
    }

    // A query without an end costs its worker, and nothing else.
    let endless =
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";
    let checkout = client.checkout().timeout(Duration::from_millis(500));
    match checkout.call::<String>("query", (endless,)).await {
        Ok(count) => return Err(format!("an endless query has ended: {count}").into()),
        Err(error) => println!("an endless query: {error}"),
    }
    let count: String = client.call("query", ("SELECT count(*) FROM sale",)).await?;
    println!("the next query: {count} sales");
    server.close();
    Ok(())
}
