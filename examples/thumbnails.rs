//! Thumbnails of pictures that may be damaged or hostile. The workers run under `Sandbox::compute()`: they
//! open no file, reach no network, and start no program, whatever a picture makes the decoder do.
//!
//! The program damages pictures itself, by changing bytes at random, and has each decoded. Each call ends
//! with a thumbnail or with an error, and the workers go on.
//!
//! In a crate of your own it needs:
//!
//! ```sh
//! cargo add taskfork
//! cargo add image --no-default-features --features png,jpeg
//! cargo add serde --features derive
//! cargo add thiserror
//! cargo add tokio --features full
//! ```

use std::collections::BTreeMap;
use std::io::{self, Cursor};
use std::time::Duration;

use image::{ImageError, ImageFormat, ImageReader, Limits, RgbImage};
use serde::{Deserialize, Serialize};
use taskfork::error::CallError;
use taskfork::sandbox::Sandbox;
use taskfork::{Blob, BoxError, Client, Error, Server, ServerBuilder, ServerError};

/// How many damaged copies of each picture are tried.
const COPIES: u64 = 200;

#[taskfork::interface]
trait Thumbnails {
    /// The picture as PNG, no side longer than `longest`.
    fn thumbnail(&mut self, picture: Blob, longest: u32) -> Result<Blob, PictureError>;
    /// Tries to read a file, as code of an attacker would.
    fn steal(&mut self, path: String) -> Result<Blob, PictureError>;
}

#[derive(Debug, thiserror::Error, Serialize, Deserialize)]
enum PictureError {
    #[error("the picture is damaged: {0}")]
    Damaged(String),
    #[error("the picture is too large: {0}")]
    TooLarge(String),
    #[error("cannot read the file: {0}")]
    File(String),
}

impl From<ImageError> for PictureError {
    fn from(error: ImageError) -> Self {
        match error {
            ImageError::Limits(_) => Self::TooLarge(error.to_string()),
            _ => Self::Damaged(error.to_string()),
        }
    }
}

impl From<io::Error> for PictureError {
    fn from(error: io::Error) -> Self {
        Self::File(error.to_string())
    }
}

struct Decoder;

impl Thumbnails for Decoder {
    fn thumbnail(&mut self, picture: Blob, longest: u32) -> Result<Blob, PictureError> {
        let mut reader = ImageReader::new(Cursor::new(&picture[..])).with_guessed_format()?;
        // The file states the size of the picture, and the decoder allocates what it states.
        let mut limits = Limits::default();
        limits.max_alloc = Some(64 << 20);
        reader.limits(limits);
        let thumbnail = reader.decode()?.thumbnail(longest, longest);
        let mut encoded = Cursor::new(Vec::new());
        thumbnail.write_to(&mut encoded, ImageFormat::Png)?;
        Ok(encoded.into_inner().into())
    }

    fn steal(&mut self, path: String) -> Result<Blob, PictureError> {
        Ok(std::fs::read(path)?.into())
    }
}

fn thumbnails(server: ServerBuilder) -> Result<(), ServerError> {
    server
        .name("thumbnails")
        .sandbox(Sandbox::compute().max_result(1 << 20))
        .hung_worker_timeout(Duration::from_secs(10))
        .setup(|| Ok::<_, BoxError>(Decoder))
        .interface(ThumbnailsInterface)
        .run()
}

fn main() -> Result<(), BoxError> {
    // A spawned server is a new process: its workers are no copies of this one and of what it knows.
    taskfork::init(&[("thumbnails", thumbnails)]);
    tokio::runtime::Runtime::new()?.block_on(run())
}

async fn run() -> Result<(), BoxError> {
    let server = Server::spawn("thumbnails")?;
    // A confined worker may still change bytes that it shares with this process, so they are copied.
    let client = Client::builder()
        .address(server.address())
        .copy_shared_memory(true)
        .max_workers(2)
        .build()?;

    for (name, format) in [("PNG", ImageFormat::Png), ("JPEG", ImageFormat::Jpeg)] {
        let picture = gradient(format)?;
        let thumbnail = client.thumbnail(Blob::from(picture.clone()), 64).await?;
        println!("{name}: {} bytes become {}", picture.len(), thumbnail.len());

        let damaged = (1..=COPIES).map(|seed| damage(picture.clone(), seed));
        let calls: Vec<_> =
            damaged.map(|picture| client.thumbnail(Blob::from(picture), 64)).collect();
        let mut results = BTreeMap::new();
        for call in calls {
            *results.entry(outcome(call.await)).or_insert(0) += 1;
        }
        println!("{name}: of {COPIES} damaged copies {results:?}");
    }

    match client.steal("/etc/passwd").await {
        Ok(_) => return Err("the worker has read /etc/passwd".into()),
        Err(error) => println!("a worker that wants /etc/passwd: {error}"),
    }
    let again = client.thumbnail(Blob::from(gradient(ImageFormat::Png)?), 64).await?;
    println!("and the next picture: {} bytes", again.len());
    server.close();
    Ok(())
}

fn outcome(result: Result<Blob, Error<PictureError>>) -> &'static str {
    match result {
        Ok(_) => "still give a thumbnail",
        Err(Error::Call { error: CallError::Interface(_), .. }) => "are refused by the decoder",
        Err(Error::Call { error: CallError::Panic(_), .. }) => "make the decoder panic",
        Err(_) => "end or hang the worker",
    }
}

/// A picture to damage.
fn gradient(format: ImageFormat) -> Result<Vec<u8>, ImageError> {
    let picture = RgbImage::from_fn(256, 256, |x, y| image::Rgb([x as u8, y as u8, (x ^ y) as u8]));
    let mut encoded = Cursor::new(Vec::new());
    picture.write_to(&mut encoded, format)?;
    Ok(encoded.into_inner())
}

/// Changes up to eight bytes. Each seed changes other ones, the same in each run.
fn damage(mut picture: Vec<u8>, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        // The generator is SplitMix64.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed ^ (mixed >> 27)) as usize
    };
    for _ in 0..=next() % 8 {
        let place = next() % picture.len();
        picture[place] ^= (next() % 255 + 1) as u8;
    }
    picture
}
