//! zlib, a library in C, with hostile input. The workers run under `Sandbox::compute()`: if a fault of the
//! library let its input take the worker over, it could still open no file and reach no network.
//!
//! The program compresses a text, damages the result in each of its bits, and has each copy decompressed. It
//! also sends a "bomb": few bytes that would become many.
//!
//! In a crate of your own it needs:
//!
//! ```sh
//! cargo add taskfork
//! cargo add libz-sys --no-default-features --features libc,static
//! cargo add tokio --features full
//! ```

use std::collections::BTreeMap;

use libz_sys::{Z_BUF_ERROR, Z_DATA_ERROR, Z_OK, compress, compressBound, uLong, uncompress};
use taskfork::sandbox::Sandbox;
use taskfork::{Blob, BoxError, Client, Methods, Server, ServerBuilder, ServerError};

/// The most bytes that a worker decompresses to.
const MAX_OUTPUT: usize = 1 << 20;

fn archives(server: ServerBuilder) -> Result<(), ServerError> {
    let methods = Methods::new()
        .function("inflate", |compressed: Blob| Ok(Blob::from(inflate(&compressed)?)))
        .function("connect", |address: String| {
            Ok(std::net::TcpStream::connect(address)?.local_addr()?.to_string())
        });
    server
        .name("archives")
        .sandbox(Sandbox::compute().max_result(2 * MAX_OUTPUT))
        .interface(methods)
        .run()
}

#[allow(unsafe_code, reason = "zlib is a library in C")]
fn inflate(compressed: &[u8]) -> Result<Vec<u8>, BoxError> {
    let mut out = vec![0; MAX_OUTPUT];
    let mut length = out.len() as uLong;
    // SAFETY: both lengths are those of the buffers, and zlib writes no more than `length` bytes.
    let status = unsafe {
        uncompress(out.as_mut_ptr(), &mut length, compressed.as_ptr(), compressed.len() as uLong)
    };
    match status {
        Z_OK => {
            out.truncate(length as usize);
            Ok(out)
        }
        Z_DATA_ERROR => Err("the data is damaged".into()),
        Z_BUF_ERROR => Err("the data is cut, or becomes too long".into()),
        other => Err(format!("zlib returns {other}").into()),
    }
}

#[allow(unsafe_code, reason = "zlib is a library in C")]
fn deflate(plain: &[u8]) -> Result<Vec<u8>, BoxError> {
    // SAFETY: the function computes with its argument only.
    let mut length = unsafe { compressBound(plain.len() as uLong) };
    let mut out = vec![0; length as usize];
    // SAFETY: both lengths are those of the buffers, and zlib writes no more than `length` bytes.
    let status =
        unsafe { compress(out.as_mut_ptr(), &mut length, plain.as_ptr(), plain.len() as uLong) };
    out.truncate(length as usize);
    if status == Z_OK { Ok(out) } else { Err(format!("zlib returns {status}").into()) }
}

fn main() -> Result<(), BoxError> {
    // A spawned server is a new process: its workers are no copies of this one and of what it knows.
    taskfork::init(&[("archives", archives)]);
    tokio::runtime::Runtime::new()?.block_on(run())
}

async fn run() -> Result<(), BoxError> {
    let server = Server::spawn("archives")?;
    let client = Client::builder()
        .address(server.address())
        .copy_shared_memory(true)
        .max_workers(2)
        .reuse_after_error(true)
        .build()?;
    let text = "A worker decompresses what a stranger has sent. ".repeat(20).into_bytes();
    let compressed = deflate(&text)?;
    let plain: Blob = client.call("inflate", (Blob::from(compressed.clone()),)).await?;
    println!("{} bytes become {}", compressed.len(), plain.len());

    let copies: Vec<_> = (0..compressed.len() * 8)
        .map(|bit| {
            let mut copy = compressed.clone();
            copy[bit / 8] ^= 1 << (bit % 8);
            client.call::<Blob>("inflate", (Blob::from(copy),))
        })
        .collect();
    let mut results = BTreeMap::new();
    for copy in copies {
        let result = match copy.await {
            Ok(plain) if plain[..] == text[..] => "the same text".to_owned(),
            Ok(_) => return Err("damaged data gives another text".into()),
            Err(error) => error.to_string(),
        };
        *results.entry(result).or_insert(0) += 1;
    }
    println!("with one bit changed: {results:?}");

    let bomb = deflate(&vec![0; 64 << 20])?;
    match client.call::<Blob>("inflate", (Blob::from(bomb.clone()),)).await {
        Ok(_) => return Err("the bomb has gone off".into()),
        Err(error) => println!("a bomb of {} bytes: {error}", bomb.len()),
    }
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    match client.call::<String>("connect", (listener.local_addr()?.to_string(),)).await {
        Ok(address) => return Err(format!("the worker has connected from {address}").into()),
        Err(error) => println!("a worker that wants to connect: {error}"),
    }
    server.close();
    Ok(())
}
