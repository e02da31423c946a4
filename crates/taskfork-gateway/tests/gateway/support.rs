//! What the tests share: a server, certificates, a gateway, clients, and waiting for conditions.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType, date_time_ymd,
};
use taskfork::blob::OpenFile;
use taskfork::client::ClientBuilder;
use taskfork::error::FatalError;
use taskfork::server::{Entry, ServerHandle};
use taskfork::worker::logger;
use taskfork::{Blob, BoxError, Client, Error, Methods, Server, ServerBuilder, ServerError};
use taskfork_gateway::{Gateway, GatewayBuilder, Reloader};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// The time limit of a test. A test that takes longer hangs. It is long because a busy machine may be slow by any
/// factor.
const LIMIT: Duration = Duration::from_secs(300);

/// A test of this binary.
pub(crate) struct Trial {
    pub(crate) name: &'static str,
    pub(crate) run: fn() -> Result<(), libtest_mimic::Failed>,
}

/// All tests. The linker collects what [`trial!`] declares.
#[linkme::distributed_slice]
pub(crate) static TRIALS: [Trial];

/// Declares a test: its name and its body, which runs in a runtime of its own.
macro_rules! trial {
    ($name:ident, async || $body:block) => {
        async fn $name() $body

        const _: () = {
            #[linkme::distributed_slice(crate::support::TRIALS)]
            #[allow(unsafe_code, reason = "the attribute names a section of the program")]
            static TRIAL: crate::support::Trial = crate::support::Trial {
                name: concat!(module_path!(), "::", stringify!($name)),
                run: || crate::support::run($name),
            };
        };
    };
}
pub(crate) use trial;

/// All tests, in the order of their names.
pub(crate) fn trials() -> Vec<libtest_mimic::Trial> {
    let mut tests: Vec<_> = TRIALS.iter().collect();
    tests.sort_unstable_by_key(|test| test.name);
    let trial =
        |test: &Trial| libtest_mimic::Trial::test(test.name.replacen("gateway::", "", 1), test.run);
    tests.into_iter().map(trial).collect()
}

pub(crate) fn run<F: Future<Output = ()>>(test: fn() -> F) -> Result<(), libtest_mimic::Failed> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let outcome = runtime.block_on(async { tokio::time::timeout(LIMIT, test()).await });
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome.map_err(|_| format!("not done after {LIMIT:?}").into())
}

/// Polls `condition` every 2 milliseconds until it holds.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let waited = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    if tokio::time::timeout(LIMIT / 2, waited).await.is_err() {
        panic!("timed out waiting for {what}");
    }
}

pub(crate) const ENTRIES: &[(&str, Entry)] = &[("served", serve)];

/// Serves at the address that is its configuration.
fn serve(server: ServerBuilder) -> Result<(), ServerError> {
    let address: String = server.config()?;
    let methods = Methods::new()
        .function("add", |a: i64, b: i64| Ok(a + b))
        .function("echo", |blob: Blob| Ok(blob))
        .function("pid", || Ok(std::process::id()))
        .function("exit", |code: i32| -> Result<(), BoxError> { std::process::exit(code) })
        .function("fail", || Err::<(), _>("it failed".into()))
        .function("hang", || -> Result<(), BoxError> {
            loop {
                std::thread::park();
            }
        })
        .function("hang_after", |path: PathBuf| -> Result<(), BoxError> {
            std::fs::write(path, "")?;
            loop {
                std::thread::park();
            }
        })
        .function("make_after", |runs: PathBuf, go: PathBuf, length: usize| {
            std::fs::write(runs, "")?;
            while !go.exists() {
                std::thread::sleep(Duration::from_millis(2));
            }
            Ok(Blob::from(vec![0; length]))
        })
        .function("work", |text: String| {
            logger().info(text);
            Ok(())
        })
        .function("trace", |text: String| {
            tracing::info!("{text}");
            Ok(())
        })
        .function("length", |file: OpenFile| {
            Ok(std::fs::File::from(file.try_into_owned()?).metadata()?.len())
        })
        .function("open", |path: PathBuf| Ok(OpenFile::from(std::fs::File::open(path)?)));
    server.listen(address).max_frame(256 << 20).interface(methods).run()
}

/// A server whose setups wait for the file `go` beside its socket. Its address is its configuration.
pub(crate) fn serve_slowly(server: ServerBuilder) -> Result<(), ServerError> {
    let address: String = server.config()?;
    let go = Path::new(address.trim_start_matches("unix:")).with_file_name("go");
    let setup = move || {
        while !go.exists() {
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok::<_, BoxError>(())
    };
    let methods = Methods::new().function("add", |a: i64, b: i64| Ok(a + b));
    server.listen(address).setup(setup).interface(methods).run()
}

/// Calls such a server, whose socket is in `folder`: before `go` is there, and then.
pub(crate) async fn assert_a_late_setup_shows(client: &Client, folder: &Path) {
    let short = client.with_timeout(Duration::from_millis(500));
    for _ in 0..2 {
        match short.call::<i64>("add", (1, 2)).await.unwrap_err() {
            Error::Fatal { cause: FatalError::TimedOut { stage, .. }, may_have_run, .. } => {
                assert!(!may_have_run, "{stage:?}");
            }
            error => panic!("{error:?}"),
        }
    }
    let waiting = client.call::<i64>("add", (1, 2));
    std::fs::write(folder.join("go"), "").unwrap();
    assert_eq!(waiting.await.unwrap(), 3);
}

/// An authority that issues certificates, and files for them.
pub(crate) struct Authority {
    folder: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
    /// The file with its certificate.
    pub(crate) file: PathBuf,
}

/// The files of a certificate and its key.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

/// When certificates are valid.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Validity {
    Now,
    Past,
    Future,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // Authorities with different names are different issuers.
        let name = format!("authority in {}", folder.path().display());
        params.distinguished_name.push(DnType::CommonName, name);
        let file = folder.path().join("ca.pem");
        std::fs::write(&file, params.self_signed(&key).unwrap().pem()).unwrap();
        Self { folder, issuer: Issuer::new(params, key), file }
    }

    /// Issues a certificate for these names, of which those with a colon are URIs.
    pub(crate) fn issue(&self, names: &[&str]) -> Identity {
        self.issue_for(names, Validity::Now)
    }

    pub(crate) fn issue_for(&self, names: &[&str], validity: Validity) -> Identity {
        let key = KeyPair::generate().unwrap();
        let (uris, hosts): (Vec<_>, Vec<_>) =
            names.iter().map(|name| (*name).to_owned()).partition(|name| name.contains(':'));
        let mut params = CertificateParams::new(hosts).unwrap();
        let uris = uris.into_iter().map(|uri| SanType::URI(uri.try_into().unwrap()));
        params.subject_alt_names.extend(uris);
        match validity {
            Validity::Now => {}
            Validity::Past => params.not_after = date_time_ymd(2020, 1, 1),
            Validity::Future => params.not_before = date_time_ymd(2999, 1, 1),
        }
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let number = std::fs::read_dir(self.folder.path()).unwrap().count();
        let file = |kind| self.folder.path().join(format!("{number}.{kind}.pem"));
        let identity = Identity { certificate: file("cert"), key: file("key") };
        std::fs::write(&identity.certificate, certificate.pem()).unwrap();
        std::fs::write(&identity.key, key.serialize_pem()).unwrap();
        identity
    }
}

/// A server with a gateway in this process.
pub(crate) struct Served {
    pub(crate) server: ServerHandle,
    pub(crate) gateway: Running,
    /// It has issued the gateway's certificate.
    pub(crate) authority: Authority,
    pub(crate) folder: tempfile::TempDir,
}

impl Served {
    pub(crate) async fn start() -> Self {
        Self::start_with(|gateway, _| gateway).await
    }

    /// Starts a gateway with these options; they may use the authority.
    pub(crate) async fn start_with(
        options: impl FnOnce(GatewayBuilder, &Authority) -> GatewayBuilder,
    ) -> Self {
        Self::start_entry("served", options).await
    }

    /// The same, with another server of [`ENTRIES`].
    pub(crate) async fn start_entry(
        entry: &str,
        options: impl FnOnce(GatewayBuilder, &Authority) -> GatewayBuilder,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let address = address_in(&folder);
        let server = Server::spawn_with(entry, &address).unwrap();
        let authority = Authority::new();
        let identity = authority.issue(&["localhost"]);
        let builder = builder(&address, &identity);
        let gateway = Running::start(options(builder, &authority)).await;
        Self { server, gateway, authority, folder }
    }

    /// A client's options, but the identity.
    pub(crate) fn client_builder(&self) -> ClientBuilder {
        client_builder(self.gateway.address, &self.authority)
    }

    pub(crate) fn client(&self) -> Client {
        self.client_builder().build().unwrap()
    }
}

/// The address of a server's socket in `folder`.
pub(crate) fn address_in(folder: &tempfile::TempDir) -> String {
    format!("unix:{}", folder.path().join("s").display())
}

/// A gateway's options for a server and a certificate.
pub(crate) fn builder(server: &str, identity: &Identity) -> GatewayBuilder {
    Gateway::builder().server(server).tls("127.0.0.1:0", &identity.certificate, &identity.key)
}

/// A client's options for a gateway in this process or another one.
pub(crate) fn client_builder(gateway: SocketAddr, authority: &Authority) -> ClientBuilder {
    let address = format!("tls:localhost:{}", gateway.port());
    Client::builder()
        .address(address)
        .tls_ca(&authority.file)
        .min_workers(0)
        .max_workers(4)
        .max_frame(256 << 20)
}

/// A gateway that runs in this process.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) reloader: Reloader,
    stop: Option<oneshot::Sender<()>>,
    pub(crate) task: JoinHandle<()>,
}

impl Running {
    pub(crate) async fn start(builder: GatewayBuilder) -> Self {
        let gateway = builder.bind().await.unwrap();
        let (address, reloader) = (gateway.local_addr().unwrap(), gateway.reloader());
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(gateway.run(async { drop(stopped.await) }));
        Self { address, reloader, stop: Some(stop), task }
    }

    /// Asks it to end.
    pub(crate) fn stop(&mut self) {
        drop(self.stop.take());
    }
}

/// What a call says that never got a worker. The client goes on trying until the time of the call is over.
pub(crate) async fn reason(client: &Client) -> String {
    let outcome = outcome(client).await;
    outcome.expect_err("a call that gets no worker")
}

/// The same, or the sum that the call has returned.
pub(crate) async fn reason_or_sum(client: &Client) -> String {
    outcome(client).await.map_or_else(|reason| reason, |sum| sum.to_string())
}

async fn outcome(client: &Client) -> Result<i64, String> {
    let mut limit = Duration::from_millis(500);
    loop {
        let checkout = client.checkout().timeout(limit);
        let error = match checkout.call::<i64>("add", (1, 2)).await {
            Ok(sum) => return Ok(sum),
            Err(error) => error,
        };
        match &error {
            Error::Fatal { cause: FatalError::CannotConnect { reason, .. }, .. } => {
                return Err(reason.to_string());
            }
            // The machine is busy.
            Error::Fatal { cause: FatalError::TimedOut { .. }, .. } => limit *= 2,
            _ => panic!("{error:?}"),
        }
    }
}

/// A process that is not there, or is dead and waits to be reaped by its parent.
pub(crate) fn is_gone(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(')').next().and_then(|rest| rest.trim_start().chars().next());
    state.is_none_or(|state| state == 'Z')
}

pub(crate) fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

/// Replaces the files of one identity by those of another, each at once.
pub(crate) fn replace(old: &Identity, new: &Identity) {
    for (old, new) in [(&old.certificate, &new.certificate), (&old.key, &new.key)] {
        let beside = Path::new(old).with_extension("new");
        std::fs::copy(new, &beside).unwrap();
        std::fs::rename(beside, old).unwrap();
    }
}
