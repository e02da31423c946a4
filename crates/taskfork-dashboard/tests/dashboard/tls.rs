//! HTTPS: with and without certificates of clients, new files, and the page in a browser.

use std::path::{Path, PathBuf};
use std::process::Command;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use taskfork_dashboard::{Dashboard, DashboardBuilder};

use crate::Test;
use crate::browser::Browser;
use crate::fixture::{TOKEN, TestDashboard, TestServer, until};

pub(crate) const TESTS: &[Test] = &[
    ("only_clients_with_a_certificate_are_served", clients_with_certificates),
    ("new_certificates_are_used_and_wrong_ones_are_not", new_certificates),
    ("the_page_works_by_https", page_by_https),
];

/// An authority, a certificate for 127.0.0.1 and one of a client.
struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        let files = Self { folder: tempfile::tempdir().unwrap() };
        files.write("ca");
        files
    }

    /// Writes an authority to `NAME.pem`, and what it has issued to `page.pem` and `client.pem`, with their keys.
    fn write(&self, name: &str) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // Otherwise it has the name of those that it issues, which would be their own authorities.
        let own = format!("authority {name} in {}", self.folder.path().display());
        params.distinguished_name.push(DnType::CommonName, own);
        self.replace(&format!("{name}.pem"), &params.self_signed(&key).unwrap().pem());
        let issuer = Issuer::new(params, key);
        for (file, host) in [("client", "on-call.example"), ("page", "127.0.0.1")] {
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new([host.to_owned()]).unwrap();
            let certificate = params.signed_by(&key, &issuer).unwrap();
            self.replace(&format!("{file}.key"), &key.serialize_pem());
            self.replace(&format!("{file}.pem"), &certificate.pem());
        }
    }

    /// Puts a file into the place of another, so that nobody reads a half of it.
    fn replace(&self, name: &str, text: &str) {
        let new = self.path("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, self.path(name)).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn tls(&self, builder: DashboardBuilder) -> DashboardBuilder {
        builder.tls(self.path("page.pem"), self.path("page.key"))
    }
}

/// The status of an answer by HTTPS. 0 if there is none.
fn ask(dashboard: &TestDashboard, path: &str, authority: &Path, client: Option<&Files>) -> u16 {
    let mut command = Command::new("curl");
    command.args([
        "--silent",
        "--output",
        "/dev/null",
        "--write-out",
        "%{http_code}",
        "--max-time",
        "30",
    ]);
    command.arg("--cacert").arg(authority);
    if let Some(files) = client {
        command.arg("--cert").arg(files.path("client.pem"));
        command.arg("--key").arg(files.path("client.key"));
    }
    let out = command.arg(format!("https://127.0.0.1:{}{path}", dashboard.port)).output().unwrap();
    String::from_utf8(out.stdout).unwrap().parse().unwrap()
}

fn clients_with_certificates() {
    let server = TestServer::start("plain");
    let (files, others) = (Files::new(), Files::new());
    let builder = Dashboard::builder().server("documents", server.status_socket());
    let builder = files.tls(builder).client_ca(files.path("ca.pem"));
    let dashboard = TestDashboard::start(builder);
    let ask = |path: &str, client| ask(&dashboard, path, &files.path("ca.pem"), client);
    for path in ["/metrics", "/", "/healthz"] {
        assert_eq!(ask(path, Some(&files)), 200, "{path}");
        assert_eq!(ask(path, None), 0, "{path} without a certificate");
        assert_eq!(ask(path, Some(&others)), 0, "{path} with that of another authority");
    }
    // Nor is HTTP without TLS answered.
    let plain = ureq::get(format!("http://127.0.0.1:{}/healthz", dashboard.port)).call();
    assert!(plain.is_err(), "{plain:?}");
}

fn new_certificates() {
    let server = TestServer::start("plain");
    let files = Files::new();
    let builder = Dashboard::builder().server("documents", server.status_socket());
    let dashboard = files.tls(builder).build().unwrap();
    let reloader = dashboard.reloader();
    let dashboard = TestDashboard::serve(dashboard);
    let ask = |authority: &str| ask(&dashboard, "/metrics", &files.path(authority), None);
    assert_eq!(ask("ca.pem"), 200);
    files.write("next");
    until("the new certificate", || ask("next.pem") == 200);
    assert_eq!(ask("ca.pem"), 0, "the old certificate is not used any more");
    files.replace("page.key", "no key");
    let error = reloader.reload().unwrap_err().to_string();
    assert!(error.contains("page.key") && error.contains("no private key"), "{error}");
    assert_eq!(ask("next.pem"), 200);
}

fn page_by_https() {
    let server = TestServer::start("plain");
    let files = Files::new();
    let builder = Dashboard::builder().server("documents", server.status_socket());
    let builder = files.tls(builder).token(TOKEN).allow_actions(true);
    let dashboard = TestDashboard::start(builder);
    let client = server.client(&dashboard.runtime, 1);
    let hanging = dashboard.runtime.spawn(async move { client.call::<()>("convert", ()).await });
    let browser = Browser::open(&format!("https://127.0.0.1:{}", dashboard.port));
    browser.wait_for("login", &["This dashboard needs a token"]);
    browser.type_into("#token", &format!("{TOKEN}\u{e007}"));
    browser.wait_for("slow", &["convert", "Kill"]);
    // The origin of the page has another scheme than by HTTP.
    browser.click("#slow button.danger");
    browser.click("#ask-yes");
    browser.wait_for("deaths", &["signaled", "SIGKILL", "convert"]);
    dashboard.runtime.block_on(hanging).unwrap().unwrap_err();
}
