//! Times of every size for every option that is a time, on real servers, and values with which nothing could
//! be served.

use std::time::Duration;

use taskfork::client::{ClientBuilder, ConfigError, Value};
use taskfork::{Client, Server, ServerError};

use crate::support::processes::signal;
use crate::support::raw::{Raw, map, text};
use crate::support::{address_in, programs, start, start_with, trial, until};

/// All but 0.
const EXTREMES: [(&str, Duration); 3] = [
    ("max", Duration::MAX),
    ("u64_max", Duration::from_nanos(u64::MAX)),
    ("least", Duration::from_nanos(1)),
];

/// The test program that is a server with this option set.
pub(crate) fn serve(option: &str, value: &str, address: &str) -> Result<(), ServerError> {
    let known = EXTREMES.into_iter().find(|(name, _)| *name == value);
    let time = known.map_or(Duration::ZERO, |(_, time)| time);
    let server = Server::builder().listen(address);
    super::deadlines::server(match option {
        "hung_worker_timeout" => server.hung_worker_timeout(time),
        "shutdown_grace" => server.shutdown_grace(time),
        "stall_timeout" => server.stall_timeout(time),
        "handshake_timeout" => server.handshake_timeout(time),
        "max_age" => server.max_age(time),
        "max_idle" => server.max_idle(time),
        "spare_age" => server.spare_workers(1).max_age(time),
        "max_handshakes" => server.max_handshakes(0),
        "max_workers" => server.max_workers(0),
        "max_calls" => server.max_calls(0),
        "max_frame" => server.max_frame(255),
        other => panic!("no such option: {other}"),
    })
}

/// The test program that is a server whose workers take longer for `setup` than they may live.
pub(crate) fn serve_slow_setup(address: &str) -> Result<(), ServerError> {
    let methods = taskfork::Methods::new().function("nothing", || Ok(()));
    Server::builder()
        .listen(address)
        .max_age(Duration::from_millis(20))
        .setup(|| {
            std::thread::sleep(Duration::from_millis(100));
            Ok::<_, taskfork::BoxError>(())
        })
        .interface(methods)
        .run()
}

trial!(a_server_serves_with_times_of_every_size, async || {
    let options = [
        "hung_worker_timeout",
        "shutdown_grace",
        "stall_timeout",
        "handshake_timeout",
        "max_age",
        "max_idle",
        "spare_age",
    ];
    for option in options {
        for (value, _) in EXTREMES {
            let folder = tempfile::tempdir().unwrap();
            let address = address_in(&folder);
            let program = programs::start(&["serve_with", option, value, &address]);
            let client = Client::builder().address(&address).min_workers(0).max_workers(1);
            let client = client.timeout(Duration::from_secs(50)).build().unwrap();
            for milliseconds in [1_u64, 30, 1] {
                let called = client.call::<bool>("late", (milliseconds,)).await;
                match (option, value, called) {
                    // A call that takes longer than this is killed, as it should be.
                    ("hung_worker_timeout", "least", Err(error)) => {
                        assert!(error.to_string().contains("hung_worker_timeout"), "{error}");
                    }
                    (_, _, called) => assert!(!called.unwrap(), "{option} {value}"),
                }
            }
            drop(client);
            signal(program.pid(), libc::SIGTERM);
            let ended = program.end().await;
            let may_kill = (option, value) == ("shutdown_grace", "least");
            assert!(ended.success() || may_kill, "{option} {value}: {ended}");
        }
    }
});

trial!(a_long_shutdown_grace_lets_a_call_finish, async || {
    let folder = tempfile::tempdir().unwrap();
    let address = address_in(&folder);
    let program = programs::start(&["serve_with", "shutdown_grace", "max", &address]);
    let client = Client::builder().address(&address).min_workers(0).max_workers(1);
    let client = client.build().unwrap();
    let checkout = client.checkout();
    checkout.call::<bool>("late", (1_u64,)).await.unwrap();
    let running = checkout.call::<bool>("late", (300_u64,));
    signal(program.pid(), libc::SIGTERM);
    assert!(!running.await.unwrap());
    drop(checkout);
    assert!(program.end().await.success());
});

trial!(a_server_refuses_options_with_which_nothing_could_be_served, async || {
    let options = [
        "hung_worker_timeout",
        "stall_timeout",
        "handshake_timeout",
        "max_age",
        "max_idle",
        "max_handshakes",
        "max_workers",
        "max_calls",
        "max_frame",
    ];
    for option in options {
        let folder = tempfile::tempdir().unwrap();
        let said = programs::output(&["serve_with", option, "zero", &address_in(&folder)]);
        assert!(said.contains(&format!("the option `{option}` cannot be so: ")), "{said}");
    }
});

trial!(a_worker_older_than_its_age_after_setup_serves_all_the_same, async || {
    let folder = tempfile::tempdir().unwrap();
    let address = address_in(&folder);
    let _program = programs::start(&["serve_slow_setup", &address]);
    let client = Client::builder().address(&address).min_workers(0).max_workers(1);
    let client = client.build().unwrap();
    for _ in 0..3 {
        client.call::<()>("nothing", ()).await.unwrap();
    }
});

trial!(a_client_calls_with_times_of_every_size, async || {
    type Set = fn(ClientBuilder, Duration) -> ClientBuilder;
    let options: [(&str, Set); 3] = [
        ("timeout", |client, time| client.timeout(time)),
        ("grace", |client, time| client.grace(time)),
        ("connect_timeout", |client, time| client.connect_timeout(time)),
    ];
    for (option, set) in options {
        for (value, time) in EXTREMES {
            let is_too_short = value == "least" && option != "grace";
            let (_server, client) = start_with("deadlines", |client| set(client, time));
            let checkout = match is_too_short {
                true => client.checkout().timeout(Duration::from_millis(100)),
                false => client.checkout(),
            };
            let called = checkout.call::<super::deadlines::Left>("left", ()).await;
            // It may be late with the least time, and never fails in another way.
            let Ok((left, until, is_cancelled)) = called else {
                assert!(is_too_short, "{option} {value}: {called:?}");
                continue;
            };
            assert!(!is_cancelled || is_too_short, "{option} {value}");
            if option == "timeout" && !is_too_short {
                assert_eq!((left, until), (None, None), "{value}");
            }
        }
    }
    let (_server, client) = start("deadlines");
    for (value, time) in EXTREMES {
        let checkout = client.checkout().timeout(time);
        let called = checkout.call::<super::deadlines::Left>("left", ()).await;
        assert!(called.is_ok() || value == "least", "{value}: {called:?}");
    }
    let none = client.checkout().timeout(Duration::ZERO);
    // It has an answer only if that was there at once.
    let _: Result<Value, _> = none.call("left", ()).await;
    // 30,000 years, which no 64 bits of nanoseconds hold.
    let long = client.checkout().timeout(Duration::from_secs(1_000_000_000_000));
    assert_eq!(long.call::<super::deadlines::Left>("left", ()).await.unwrap(), (None, None, false));
});

trial!(a_grace_without_end_lets_a_late_call_finish, async || {
    let (_server, client) =
        start_with("deadlines", |client| client.grace(Duration::MAX).max_workers(2));
    let checkout = client.checkout();
    checkout.call::<bool>("late", (0_u64,)).await.unwrap();
    let checkout = checkout.timeout(Duration::from_millis(50));
    assert!(checkout.call::<bool>("late", (1500_u64,)).await.unwrap());
    // What connects workers and keeps the time goes on.
    assert!(!client.call::<bool>("late", (0_u64,)).await.unwrap());
});

trial!(the_largest_sizes_are_accepted, async || {
    let most = usize::MAX;
    let (_server, client) = start_with("unbounded", |client| {
        client.max_frame(most).max_blob(most).shared_memory(most).max_queue(most)
    });
    let bytes = vec![7_u8; 1 << 20];
    for _ in 0..50 {
        let value = Value::Binary(bytes.clone());
        assert_eq!(client.call::<Value>("echo", (&value,)).await.unwrap(), value);
    }
});

trial!(a_client_refuses_options_with_which_nothing_could_be_served, async || {
    let client = || Client::builder().address("unix:/nonexistent/s");
    let option_of = |client: ClientBuilder| match client.build() {
        Err(ConfigError::Option { option, .. }) => option,
        other => panic!("{other:?}"),
    };
    assert_eq!(option_of(client().timeout(Duration::ZERO)), "timeout");
    assert_eq!(option_of(client().connect_timeout(Duration::ZERO)), "connect_timeout");
    assert_eq!(option_of(client().max_frame(255)), "max_frame");
    let error = client().timeout(Duration::ZERO).build().unwrap_err().to_string();
    assert!(error.starts_with("the option `timeout` cannot be so: with 0, "), "{error}");
});

trial!(a_worker_accepts_times_of_every_size_from_the_wire, async || {
    let folder = tempfile::tempdir().unwrap();
    let _program =
        programs::start(&["serve_with", "hung_worker_timeout", "max", &address_in(&folder)]);
    let path = folder.path().join("s");
    until("the server listens", || path.exists()).await;
    let (mut raw, _) = Raw::greeted(&path).await;
    for timeout in [u64::MAX, i64::MAX as u64, 1 << 62, u64::MAX / 1000, u64::MAX / 1000 - 1] {
        for grace in [u64::MAX, 1 << 62, 0] {
            let meta = map(&[("timeout", timeout.into()), ("grace", grace.into())]);
            raw.send_message(vec![1.into(), meta, text("late"), Value::Array(vec![20.into()])]);
            let answer = raw.receive().unwrap();
            assert_eq!(answer[0], Value::from(1), "{timeout} {grace}: {answer}");
            assert_eq!(answer[2], Value::from(false), "{timeout} {grace}: {answer}");
        }
    }
});
