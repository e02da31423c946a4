//! What is answered to whom, without a browser.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use taskfork_dashboard::{Dashboard, METRICS};

use crate::Test;
use crate::fixture::{TOKEN, TestDashboard, TestServer, until};

pub(crate) const TESTS: &[Test] = &[
    ("metrics_and_health_are_those_of_the_server", metrics_and_health),
    ("everything_but_the_page_needs_the_token", token),
    ("unknown_hosts_are_refused_and_answers_are_protected", hosts_and_headers),
    ("bad_requests_and_too_many_connections_are_bounded", bounds),
    ("open_pages_leave_room_for_probes", many_pages),
    ("events_begin_with_everything", events),
];

fn metrics_and_health() {
    let server = TestServer::start("plain");
    let folder = tempfile::tempdir().unwrap();
    let gone = folder.path().join("none.status");
    let dashboard = TestDashboard::start(
        Dashboard::builder().server("documents", server.status_socket()).server("gone", gone),
    );
    let client = server.client(&dashboard.runtime, 1);
    dashboard.runtime.block_on(async {
        for _ in 0..3 {
            client.call::<u64>("render", (3_u64,)).await.unwrap();
        }
        client.call::<()>("check", ("it",)).await.unwrap_err();
        client.call::<()>("import", ("",)).await.unwrap_err();
    });
    let lines = [
        "taskfork_server_up{pool=\"documents\"} 1",
        "taskfork_server_up{pool=\"gone\"} 0",
        "taskfork_server_call_seconds_count{pool=\"documents\",method=\"render\"} 3",
        "taskfork_server_call_errors_total{pool=\"documents\",method=\"check\"} 1",
        "taskfork_server_deaths_total{pool=\"documents\",cause=\"signaled\"} 1",
        "taskfork_server_workers_max{pool=\"documents\"} 4",
        "taskfork_server_wait_seconds_bucket{pool=\"documents\",le=\"+Inf\"} ",
    ];
    let page = || dashboard.get("/metrics", &[]).1;
    until("all figures", || {
        let page = page();
        lines.iter().all(|line| page.lines().any(|it| it.starts_with(line)))
    });
    let page = page();
    for (name, kind, _) in METRICS {
        assert!(page.contains(&format!("# TYPE {name} {kind}\n")), "{name}");
    }
    // The series that the alert rules select are there, even if nothing has happened.
    let rules = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/deploy/prometheus-rules.yaml");
    let rules = std::fs::read_to_string(rules).unwrap();
    for causes in rules.split("cause=~\"").skip(1) {
        for cause in causes.split('"').next().unwrap().split('|') {
            let series =
                format!("taskfork_server_deaths_total{{pool=\"documents\",cause=\"{cause}\"}} ");
            assert!(page.contains(&series), "{cause}");
        }
    }
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    for name in rules.split(|c| !is_part(c)).filter(|it| it.starts_with("taskfork_")) {
        let series = format!("{name}{{pool=\"documents\"");
        assert!(page.contains(&series), "{name} of the rules is not in {page}");
    }
    // Calls of 3 ms and a bit: the ranges end at 2.56 ms and 40.96 ms, for a busy machine.
    let count = |le: &str| {
        let start = format!(
            "taskfork_server_call_seconds_bucket{{pool=\"documents\",method=\"render\",le=\"{le}\"}} "
        );
        page.lines().find_map(|line| line.strip_prefix(&start)).unwrap().parse::<u64>().unwrap()
    };
    assert_eq!((count("0.00256"), count("+Inf")), (0, 3));
    assert_eq!(dashboard.get("/healthz", &[]).0, 200);
    let (status, said) = dashboard.get("/readyz", &[]);
    assert_eq!((status, &*said), (503, "1 of 2 servers answer and accept connections\n"));
    let missing = &dashboard.status().pools[1];
    assert_eq!(missing.state, "gone");
    assert!(missing.error.as_ref().unwrap().contains("none.status: No such file"), "{missing:?}");
}

fn token() {
    let server = TestServer::start("plain");
    let builder = Dashboard::builder().server("documents", server.status_socket());
    let dashboard = TestDashboard::start(builder.token(TOKEN));
    for path in ["/metrics", "/api/status", "/api/events"] {
        let (status, said) = dashboard.get(path, &[]);
        assert_eq!((status, said.contains("needs a token")), (401, true), "{path}");
        let (status, said) =
            dashboard.get(path, &[("Authorization", "Bearer 0123456789abcdef-tokem")]);
        assert_eq!((status, said.contains("is wrong")), (401, true), "{path}");
    }
    let right = format!("Bearer {TOKEN}");
    for path in ["/metrics", "/api/status"] {
        assert_eq!(dashboard.get(path, &[("Authorization", &right)]).0, 200, "{path}");
    }
    for path in ["/", "/main.js", "/style.css", "/healthz"] {
        let (status, said) = dashboard.get(path, &[]);
        assert_eq!((status, said.contains("documents\"")), (200, false), "{path}");
    }
    assert!(!dashboard.get("/readyz", &[]).1.contains("documents"));
}

fn hosts_and_headers() {
    let server = TestServer::start("plain");
    let builder = Dashboard::builder().server("documents", server.status_socket());
    let dashboard = TestDashboard::start(builder.allow_host("pools.example"));
    for path in ["/", "/api/status", "/metrics", "/healthz", "/nothing"] {
        assert_eq!(dashboard.get(path, &[("Host", "evil.example")]).0, 421, "{path}");
    }
    assert_eq!(dashboard.get("/api/status", &[("Host", "pools.example:80")]).0, 200);
    for (path, expected) in [("/", "200"), ("/nothing", "404"), ("/api/actions", "405")] {
        let answer = raw(
            &dashboard,
            &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"),
        );
        assert!(answer.starts_with(&format!("HTTP/1.1 {expected}")), "{answer}");
        let head = answer.split("\r\n\r\n").next().unwrap().to_ascii_lowercase();
        for header in [
            "content-security-policy: default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'",
            "x-content-type-options: nosniff",
            "referrer-policy: no-referrer",
            "cache-control: no-store",
            "cross-origin-resource-policy: same-origin",
        ] {
            assert!(head.contains(header), "{header} in {head}");
        }
        assert!(!head.contains("unsafe") && !head.contains("access-control"), "{head}");
    }
    let page = dashboard.get("/", &[]).1;
    assert!(
        !page.contains("http") && !page.contains("style=") && !page.contains("onclick"),
        "{page}"
    );
}

/// Sends a request as it is, and returns everything that comes.
fn raw(dashboard: &TestDashboard, request: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", dashboard.port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => {}
        // The rest of the request was not read.
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        Err(error) => panic!("{error}"),
    }
    String::from_utf8_lossy(&answer).into_owned()
}

fn bounds() {
    let server = TestServer::start("plain");
    let dashboard = TestDashboard::of(&server);
    let answer = raw(
        &dashboard,
        &format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(40_000)),
    );
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    let many: String = (0..100).map(|number| format!("X-{number}: 1\r\n")).collect();
    let answer = raw(&dashboard, &format!("GET / HTTP/1.1\r\nHost: localhost\r\n{many}\r\n"));
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    assert!(raw(&dashboard, "\0\0\0\0\r\n\r\n").starts_with("HTTP/1.1 400"));
    // A request whose headers do not end is closed after a while.
    assert_eq!(raw(&dashboard, "GET / HTTP/1.1\r\nHost: local"), "");

    // Connections beyond the limit are closed at once, and the others are served.
    let mut all: Vec<_> =
        (0..80).map(|_| TcpStream::connect(("127.0.0.1", dashboard.port)).unwrap()).collect();
    let ask = |stream: &mut TcpStream| {
        let _ = stream
            .write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer
    };
    assert_eq!(ask(&mut all[79]), "");
    assert!(ask(&mut all[0]).contains("200 OK"));
    drop(all);
    until("an answer", || {
        TcpStream::connect(("127.0.0.1", dashboard.port))
            .is_ok_and(|mut it| ask(&mut it).contains("200 OK"))
    });
}

fn many_pages() {
    let server = TestServer::start("plain");
    let dashboard = TestDashboard::of(&server);
    let open = || {
        let mut stream = TcpStream::connect(("127.0.0.1", dashboard.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(b"GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let mut begin = [0; 12];
        stream.read_exact(&mut begin).unwrap();
        (stream, String::from_utf8_lossy(&begin).into_owned())
    };
    let pages: Vec<_> = (0..32).map(|_| open()).collect();
    assert!(pages.iter().all(|(_, begin)| begin == "HTTP/1.1 200"));
    assert_eq!(open().1, "HTTP/1.1 503");
    // Probes and metrics have room beside them.
    assert_eq!((dashboard.get("/healthz", &[]).0, dashboard.get("/metrics", &[]).0), (200, 200));
    drop(pages);
    until("a page has room again", || open().1 == "HTTP/1.1 200");
}

fn events() {
    let server = TestServer::start("plain");
    let dashboard = TestDashboard::of(&server);
    until("a first answer", || dashboard.status().pools[0].state == "serving");
    let mut stream = TcpStream::connect(("127.0.0.1", dashboard.port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.write_all(b"GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let (mut text, mut piece) = (String::new(), [0; 4096]);
    while !text.contains("event: update\n") {
        let length = stream.read(&mut piece).unwrap();
        assert!(length > 0, "{text}");
        text += &String::from_utf8_lossy(&piece[..length]);
    }
    let (full, update) =
        (text.find("event: full\n").unwrap(), text.find("event: update\n").unwrap());
    assert!(full < update && text.contains("content-type: text/event-stream"), "{text}");
}
