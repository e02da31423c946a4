//! After which errors a worker is replaced.

use taskfork::worker::ReplaceAfter;
use taskfork::{BoxError, Client, Methods, Server, ServerBuilder, ServerError};

use crate::support::trial;

#[taskfork::interface]
pub(crate) trait Failing {
    fn pid(&mut self) -> u32;
    fn fail(&mut self) -> Result<(), String>;
    fn panic(&mut self);
}

struct State;

impl Failing for State {
    fn pid(&mut self) -> u32 {
        std::process::id()
    }

    fn fail(&mut self) -> Result<(), String> {
        Err("no".to_owned())
    }

    fn panic(&mut self) {
        panic!("no");
    }
}

/// A typed server with an option, or with the default.
pub(crate) fn typed(server: ServerBuilder) -> Result<(), ServerError> {
    let option: Option<String> = server.config()?;
    with(server, option.as_deref())
        .setup(|| Ok::<_, BoxError>(State))
        .interface(FailingInterface)
        .run()
}

/// The same, untyped.
pub(crate) fn untyped(server: ServerBuilder) -> Result<(), ServerError> {
    let option: Option<String> = server.config()?;
    let methods = Methods::new()
        .function("pid", || Ok(std::process::id()))
        .function("fail", || -> Result<(), BoxError> { Err("no".into()) })
        .function("panic", || -> Result<(), BoxError> { panic!("no") });
    with(server, option.as_deref()).interface(methods).run()
}

fn with(server: ServerBuilder, option: Option<&str>) -> ServerBuilder {
    match option {
        Some("panic") => server.replace_after(ReplaceAfter::Panic),
        Some("any") => server.replace_after(ReplaceAfter::AnyError),
        Some("never") => server.replace_after(ReplaceAfter::Never),
        _ => server,
    }
}

/// Whether a worker of `entry` is kept after an error of a method, after wrong arguments, and after a panic.
async fn kept(entry: &str, option: Option<&str>) -> [bool; 3] {
    let server = Server::spawn_with(entry, &option).unwrap();
    let client = Client::builder().address(server.address()).min_workers(0).max_workers(1);
    let client = client.build().unwrap();
    let mut kept = [false; 3];
    let errors = [("fail", vec![]), ("fail", vec![1]), ("panic", vec![])];
    for (kept, (method, arguments)) in kept.iter_mut().zip(errors) {
        let pid: u32 = client.call("pid", ()).await.unwrap();
        client.call::<()>(method, arguments).await.unwrap_err();
        *kept = client.call::<u32>("pid", ()).await.unwrap() == pid;
        let stats = client.stats();
        assert_eq!((stats.busy, stats.idle), (0, 1), "the pool counts its workers");
    }
    kept
}

trial!(a_typed_interface_keeps_its_worker_after_an_error_and_not_after_a_panic, async || {
    assert_eq!(kept("replace_after_typed", None).await, [true, true, false]);
    assert_eq!(kept("replace_after_untyped", Some("panic")).await, [true, true, false]);
});

trial!(an_untyped_interface_replaces_its_worker_after_any_error, async || {
    assert_eq!(kept("replace_after_untyped", None).await, [false; 3]);
    assert_eq!(kept("replace_after_typed", Some("any")).await, [false; 3]);
});

trial!(never_keeps_the_worker, async || {
    assert_eq!(kept("replace_after_typed", Some("never")).await, [true; 3]);
});

trial!(two_hundred_errors_cost_no_worker, async || {
    let server = Server::spawn_with("replace_after_typed", &None::<String>).unwrap();
    let client = Client::builder().address(server.address()).min_workers(0).max_workers(1);
    let client: FailingClient = client.build_as().unwrap();
    let pid = client.pid().await.unwrap();
    for _ in 0..200 {
        assert_eq!(client.fail().await.unwrap_err().to_string(), "no");
    }
    assert_eq!(client.pid().await.unwrap(), pid);
    assert_eq!(client.stats().connected, 1);
});

trial!(the_worst_error_of_a_checkout_decides, async || {
    let server = Server::spawn_with("replace_after_typed", &None::<String>).unwrap();
    let client = Client::builder().address(server.address()).min_workers(0).max_workers(1);
    let client: FailingClient = client.build_as().unwrap();
    let checkout = client.checkout();
    let pid = checkout.pid().await.unwrap();
    // Calls behind an error are dropped, and the checkout goes on.
    let (failed, dropped) = (checkout.fail(), checkout.pid());
    assert_eq!(failed.await.unwrap_err().to_string(), "no");
    assert!(dropped.await.unwrap_err().to_string().starts_with("not run because"));
    assert_eq!(checkout.pid().await.unwrap(), pid);
    drop(checkout);
    assert_eq!(client.pid().await.unwrap(), pid);

    let checkout = client.checkout();
    checkout.panic().await.unwrap_err();
    checkout.fail().await.unwrap_err();
    assert_eq!(checkout.pid().await.unwrap(), pid);
    drop(checkout);
    assert_ne!(client.pid().await.unwrap(), pid);
});
