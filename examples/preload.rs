//! A table of 256 MiB, loaded once by the server and shared copy-on-write by eight workers. It
//! prints how much memory each worker occupies, in total and without the table. Memory that several
//! processes share counts in equal parts for each.
//!
//! In a crate of your own it needs:
//!
//! ```sh
//! cargo add taskfork
//! cargo add tokio --features full
//! ```

use taskfork::{BoxError, Client, Methods, Server, ServerBuilder, ServerError};

const WORKERS: usize = 8;
const BYTES: usize = 256 << 20;

type Table = Vec<u64>;

fn tables(server: ServerBuilder) -> Result<(), ServerError> {
    let methods = Methods::new()
        .method("sum", |table: &mut &'static Table| {
            Ok(table.iter().fold(0, |sum: u64, value| sum.wrapping_add(*value)))
        })
        .method("memory", |table: &mut &'static Table| {
            let maps = std::fs::read_to_string("/proc/self/smaps")?;
            Ok(proportional(&maps, table.as_ptr().addr()))
        });
    server
        .name("tables")
        .preload(|| {
            let rows = 0..(BYTES / size_of::<u64>()) as u64;
            Ok::<_, BoxError>(rows.map(|row| row.wrapping_mul(row)).collect::<Table>())
        })
        .setup(Ok::<&'static Table, BoxError>)
        .interface(methods)
        .run()
}

/// The proportional size in KiB of all mappings, and of those from `address` on. The table consists of
/// several mappings, because its huge pages are separate from its ends.
fn proportional(maps: &str, address: usize) -> (u64, u64) {
    let (mut all, mut there, mut is_there) = (0, 0, false);
    for line in maps.lines() {
        let first = line.split_whitespace().next().unwrap_or_default();
        if let Some((start, end)) = first.split_once('-') {
            let bound = |text| usize::from_str_radix(text, 16).unwrap_or(0);
            is_there = bound(start) < address + BYTES && bound(end) > address;
        } else if first == "Pss:" {
            let size = line.split_whitespace().nth(1).and_then(|size| size.parse().ok());
            all += size.unwrap_or(0);
            there += size.filter(|_| is_there).unwrap_or(0);
        }
    }
    (all, there)
}

fn main() -> Result<(), BoxError> {
    taskfork::init(&[("tables", tables)]);
    tokio::runtime::Runtime::new()?.block_on(run())
}

async fn run() -> Result<(), BoxError> {
    let server = Server::spawn("tables")?;
    let client = Client::builder().address(server.address()).max_workers(WORKERS).build()?;
    let checkouts: Vec<_> = (0..WORKERS).map(|_| client.checkout()).collect();
    for checkout in &checkouts {
        checkout.call::<u64>("sum", ()).await?;
    }
    println!("worker  proportional  beyond the table");
    let mut most = 0;
    for (number, checkout) in checkouts.iter().enumerate() {
        let (all, table) = checkout.call::<(u64, u64)>("memory", ()).await?;
        let beyond = all - table;
        most = most.max(beyond);
        println!("{:>6} {:>9} KiB {:>13} KiB", number + 1, all, beyond);
    }
    if most > 3 << 10 {
        return Err(format!("{most} KiB beyond the table are over 3 MiB").into());
    }
    Ok(())
}
