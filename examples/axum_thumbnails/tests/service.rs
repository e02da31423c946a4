//! Drives the service over HTTP, as its own process.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::{BufRead, BufReader, Cursor, Read};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use image::{ImageFormat, Rgb, RgbImage};
use rustix::process::{Pid, Signal, kill_process};

/// How long the test waits for anything at most.
const LONG: Duration = Duration::from_secs(60);

/// A picture of which the left half is red and the right one blue.
fn picture(format: ImageFormat) -> Vec<u8> {
    let picture =
        RgbImage::from_fn(
            400,
            200,
            |x, _| {
                if x < 200 { Rgb([250, 0, 0]) } else { Rgb([0, 0, 250]) }
            },
        );
    let mut encoded = Cursor::new(Vec::new());
    picture.write_to(&mut encoded, format).unwrap();
    encoded.into_inner()
}

/// A PNG of a few bytes that states to have 400 million pixels.
fn bomb() -> Vec<u8> {
    let mut header = b"IHDR".to_vec();
    header.extend(20_000_u32.to_be_bytes());
    header.extend(20_000_u32.to_be_bytes());
    header.extend([8, 6, 0, 0, 0]);
    let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\x0d".to_vec();
    png.extend(&header);
    png.extend(crc(&header).to_be_bytes());
    // An empty chunk of pixels, so that the decoder begins.
    png.extend(b"\0\0\0\0IDAT\x35\xaf\x06\x1e\0\0\0\0IEND\xae\x42\x60\x82");
    png
}

/// The checksum of PNG.
fn crc(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 0 { crc >> 1 } else { (crc >> 1) ^ 0xedb8_8320 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

struct Answer {
    status: u16,
    retry_after: Option<String>,
    body: Vec<u8>,
}

impl Answer {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A service that runs, and its log.
struct Service {
    child: Child,
    url: String,
    /// All its processes run this file, which is a link of this test's own.
    program: PathBuf,
    log: Receiver<String>,
    lines: Vec<String>,
    _folder: tempfile::TempDir,
}

impl Service {
    fn start(workers: usize, queue: usize) -> Self {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let program = folder.path().join("service");
        fs::hard_link(env!("CARGO_BIN_EXE_axum_thumbnails"), &program).unwrap();
        let mut child = Command::new(&program)
            .env("LISTEN", "127.0.0.1:0")
            .env("WORKERS", workers.to_string())
            .env("QUEUE", queue.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, log) = mpsc::channel();
        thread::spawn(move || {
            stdout.lines().map_while(Result::ok).for_each(|line| drop(sender.send(line)))
        });
        let mut service =
            Self { child, url: String::new(), program, log, lines: Vec::new(), _folder: folder };
        let line = service.line("listening at ");
        service.url = line.split_once("listening at ").unwrap().1.to_owned();
        service
    }

    /// Waits for a line of the log with this text, and removes it.
    fn line(&mut self, text: &str) -> String {
        loop {
            if let Some(place) = self.lines.iter().position(|line| line.contains(text)) {
                return self.lines.remove(place);
            }
            let line = self.log.recv_timeout(LONG);
            self.lines.push(line.unwrap_or_else(|_| panic!("no {text:?} in {:#?}", self.lines)));
        }
    }

    fn thumbnail(&self, picture: Vec<u8>, longest: u32) -> Answer {
        upload(&self.url, &picture, longest)
    }

    /// The same on a thread, which also sends the answer.
    fn thumbnail_on_thread(&self, answers: mpsc::Sender<Answer>) -> JoinHandle<()> {
        let url = self.url.clone();
        thread::spawn(move || {
            answers.send(upload(&url, &picture(ImageFormat::Png), 64)).unwrap();
        })
    }

    fn metrics(&self) -> String {
        let page = agent().get(format!("{}/metrics", self.url)).call().unwrap();
        page.into_body().read_to_string().unwrap()
    }

    /// The processes of the service, and their titles.
    fn processes(&self) -> Vec<(Pid, String)> {
        let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| {
            let folder = entry.ok()?.path();
            let pid = Pid::from_raw(folder.file_name()?.to_str()?.parse().ok()?)?;
            let program = fs::read_link(folder.join("exe")).ok()?;
            let title = fs::read_to_string(folder.join("cmdline")).ok()?;
            (program == self.program).then_some((pid, title))
        });
        processes.collect()
    }

    fn signal_workers(&self, signal: Signal) {
        let workers = self.processes().into_iter();
        let workers: Vec<_> =
            workers.filter(|(_, title)| title.starts_with("taskfork-worker")).collect();
        assert!(!workers.is_empty(), "{:?}", self.processes());
        workers.iter().for_each(|(pid, _)| kill_process(*pid, signal).unwrap());
    }

    fn terminate(&self) {
        let pid = Pid::from_raw(self.child.id().try_into().unwrap()).unwrap();
        kill_process(pid, Signal::TERM).unwrap();
    }

    fn end(&mut self) -> ExitStatus {
        self.line("ended");
        self.child.wait().unwrap()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn agent() -> ureq::Agent {
    let options = ureq::Agent::config_builder().http_status_as_error(false);
    options.timeout_global(Some(LONG)).build().into()
}

fn upload(url: &str, picture: &[u8], longest: u32) -> Answer {
    let answer = agent().post(format!("{url}/thumbnail?longest={longest}")).send(picture).unwrap();
    let retry_after = answer.headers().get("retry-after");
    let retry_after = retry_after.map(|value| value.to_str().unwrap().to_owned());
    let status = answer.status().as_u16();
    let mut body = Vec::new();
    answer.into_body().into_reader().read_to_end(&mut body).unwrap();
    Answer { status, retry_after, body }
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn pictures_become_thumbnails_and_the_log_and_the_figures_show_them() {
    let mut service = Service::start(2, 20);
    for format in [ImageFormat::Png, ImageFormat::Jpeg] {
        let answer = service.thumbnail(picture(format), 100);
        assert_eq!(answer.status, 200, "{}", answer.text());
        let thumbnail = image::load_from_memory(&answer.body).unwrap().to_rgb8();
        assert_eq!(thumbnail.dimensions(), (100, 50));
        for (x, expected) in [(10, [250, 0, 0]), (90, [0, 0, 250])] {
            let pixel = thumbnail.get_pixel(x, 25).0;
            let differs = pixel.iter().zip(expected).any(|(is, want)| is.abs_diff(want) > 8);
            assert!(!differs, "{pixel:?} at {x} is not {expected:?}");
        }
    }
    // An event of the worker, in the span of the request.
    let event = service.line("decoded");
    assert!(event.contains("request{method=POST path=\"/thumbnail\"}"), "{event}");
    assert!(event.contains("width=400 height=200") && event.contains("worker.pid="), "{event}");

    let metrics = service.metrics();
    let calls =
        "taskfork_call_seconds_count{client=\"thumbnails\",method=\"thumbnail\",outcome=\"ok\"} 2";
    assert!(metrics.contains(calls), "{metrics}");
    assert!(metrics.contains("taskfork_server_workers{server=\"thumbnails\""), "{metrics}");
}

#[test]
fn hostile_input_is_refused_and_the_service_lives() {
    let mut service = Service::start(1, 20);
    let answer = service.thumbnail(b"no picture".to_vec(), 100);
    assert_eq!(answer.status, 422);
    assert!(answer.text().starts_with("this is no picture"), "{}", answer.text());

    let answer = service.thumbnail(bomb(), 100);
    assert_eq!(answer.status, 422);
    assert!(answer.text().starts_with("this picture cannot be decoded"), "{}", answer.text());
    let warning = service.line("was too much");
    assert!(warning.contains("SIGABRT"), "{warning}");
    let metrics = service.metrics();
    let deaths = "taskfork_worker_deaths_total{client=\"thumbnails\",cause=\"killed\"} 1";
    assert!(metrics.contains(deaths), "{metrics}");

    let too_long = vec![0; (16 << 20) + 1];
    assert_eq!(service.thumbnail(too_long, 100).status, 413);
    assert_eq!(service.thumbnail(picture(ImageFormat::Png), 100).status, 200);
}

#[test]
fn overload_is_answered_at_once() {
    let service = Service::start(1, 1);
    assert_eq!(service.thumbnail(picture(ImageFormat::Png), 64).status, 200);
    service.signal_workers(Signal::STOP);
    // One runs, one waits, and the third is refused, whichever that is.
    let (sender, answers) = mpsc::channel();
    let threads: Vec<_> = (0..3).map(|_| service.thumbnail_on_thread(sender.clone())).collect();
    // A thread that fails sends nothing.
    drop(sender);
    let refused = answers.recv_timeout(LONG).unwrap();
    assert_eq!((refused.status, refused.retry_after.as_deref()), (503, Some("1")));
    service.signal_workers(Signal::CONT);
    for _ in 0..2 {
        assert_eq!(answers.recv_timeout(LONG).unwrap().status, 200);
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let refusals = "taskfork_checkouts_refused_total{client=\"thumbnails\"} 1";
    assert!(service.metrics().contains(refusals), "{}", service.metrics());
}

#[test]
fn requests_end_before_the_service_and_nothing_is_left() {
    let mut service = Service::start(1, 20);
    assert_eq!(service.thumbnail(picture(ImageFormat::Png), 64).status, 200);
    service.line("received");
    service.signal_workers(Signal::STOP);
    let (sender, answers) = mpsc::channel();
    let request = service.thumbnail_on_thread(sender);
    service.line("received");

    service.terminate();
    service.line("shutting down");
    service.signal_workers(Signal::CONT);
    assert_eq!(answers.recv_timeout(LONG).unwrap().status, 200);
    request.join().unwrap();
    assert!(service.end().success());
    wait_until("processes are left", || service.processes().is_empty());
}
