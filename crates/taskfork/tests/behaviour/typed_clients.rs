//! Clients of one typed interface, and what happens if the server serves another one.

use std::time::{Duration, Instant};

use taskfork::blocking;
use taskfork::error::FatalError;
use taskfork::{BoxError, Client, Error, Methods, Server, ServerBuilder, ServerError};

use crate::support::{start, trial, until};

/// The version of the server.
mod new {
    #[taskfork::interface]
    pub(crate) trait Passwords {
        /// Joins its parameters.
        fn hash(&mut self, plain: String, salt: Option<String>) -> String;
        fn check(&mut self, plain: &str) -> Result<bool, String>;
        fn added(&mut self) -> u32;
        fn pid(&mut self) -> u32;
    }
}

/// An older version, which fits.
mod old {
    #[taskfork::interface]
    pub(crate) trait Passwords {
        fn hash(&mut self, text: &str) -> String;
        fn check(&mut self, plain: String) -> std::io::Result<bool>;
        fn pid(&mut self) -> u32;
    }
}

/// Another version, which does not fit.
mod other {
    #[taskfork::interface]
    pub(crate) trait Passwords {
        fn hash(&mut self, plain: String, salt: Vec<u8>) -> String;
        fn check(&mut self, plain: String) -> Result<u8, String>;
        fn removed(&mut self);
    }
}

struct State;

impl new::Passwords for State {
    fn hash(&mut self, plain: String, salt: Option<String>) -> String {
        format!("{plain}+{}", salt.as_deref().unwrap_or("none"))
    }

    fn check(&mut self, plain: &str) -> Result<bool, String> {
        if plain.is_empty() { Err("it is empty".to_owned()) } else { Ok(true) }
    }

    fn added(&mut self) -> u32 {
        7
    }

    fn pid(&mut self) -> u32 {
        std::process::id()
    }
}

pub(crate) fn server(server: ServerBuilder) -> Result<(), ServerError> {
    server.setup(|| Ok::<_, BoxError>(State)).interface(new::PasswordsInterface).run()
}

const DIFFERENCE: &str = "the interface `Passwords` differs: method `hash`: the server takes (plain: String, \
                          salt: Option<String>), this client gives (plain: String, salt: Vec<u8>); method \
                          `check`: the server returns bool, this client expects u8; method `removed`: the \
                          server does not have it";

fn difference<E>(error: Error<E>) -> String {
    match error {
        Error::Fatal {
            cause: FatalError::WrongInterface { difference, .. },
            may_have_run: false,
            ..
        } => difference,
        error => panic!("another error: {}", error.map(|_| taskfork::error::Failure::new("own"))),
    }
}

trial!(a_typed_client_has_the_methods_of_its_interface, async || {
    let server = Server::spawn("typed_clients").unwrap();
    let passwords: new::PasswordsClient =
        Client::builder().address(server.address()).build_as().unwrap();
    assert_eq!(passwords.hash("a", Some("b".to_owned())).await.unwrap(), "a+b");
    assert_eq!(passwords.check("").await.unwrap_err().to_string(), "it is empty");
    let checkout = passwords.checkout().timeout(Duration::from_secs(60));
    checkout.ready().await.unwrap();
    assert_eq!(checkout.pid().await.unwrap(), checkout.pid().await.unwrap());
    drop(checkout);

    // Code for anything that makes such calls takes it as well.
    async fn added(passwords: &impl new::PasswordsCalls) -> u32 {
        passwords.added().await.unwrap()
    }
    assert_eq!(added(&passwords).await, 7);
    assert_eq!(added(&passwords.checkout()).await, 7);
    assert_eq!(added(passwords.untyped()).await, 7);
    assert!(passwords.stats().connected > 0);
    passwords.close().await;
    assert!(passwords.is_closed());
});

trial!(an_older_client_fits_a_server_with_more, async || {
    let server = Server::spawn("typed_clients").unwrap();
    let passwords: old::PasswordsClient =
        Client::builder().address(server.address()).build_as().unwrap();
    assert_eq!(passwords.hash("a").await.unwrap(), "a+none");
    assert!(passwords.check("a").await.unwrap());
});

trial!(a_client_that_does_not_fit_learns_the_difference_at_once, async || {
    let server = Server::spawn("typed_clients").unwrap();
    let builder = Client::builder().address(server.address()).timeout(None).min_workers(0);
    let passwords: other::PasswordsClient = builder.build_as().unwrap();
    let waiting = [passwords.hash("a", Vec::new()), passwords.hash("b", Vec::new())];
    for call in waiting {
        assert_eq!(difference(call.await.unwrap_err()), DIFFERENCE);
    }
    // Later ones as well, and those of a checkout.
    for _ in 0..5 {
        assert_eq!(difference(passwords.removed().await.unwrap_err()), DIFFERENCE);
    }
    let checkout = passwords.checkout();
    assert_eq!(difference(checkout.check("").await.unwrap_err()), DIFFERENCE);
    assert!(
        difference(passwords.untyped().call::<u32>("pid", ()).await.unwrap_err())
            .contains("`hash`")
    );
});

trial!(a_refused_client_tries_again_when_the_server_may_be_another, async || {
    let folder = tempfile::tempdir().unwrap();
    let address = crate::support::address_in(&folder);
    let server = Server::spawn_with("typed_clients_listening", &(&address, false)).unwrap();
    let builder = Client::builder().address(&*address).timeout(Duration::from_secs(60));
    let passwords: new::PasswordsClient = builder.min_workers(0).build_as().unwrap();
    assert!(difference(passwords.added().await.unwrap_err()).contains("`Numbers`"));
    drop(server);
    let _server = Server::spawn_with("typed_clients_listening", &(&address, true)).unwrap();
    let mut answer = passwords.added().await;
    let until = Instant::now() + Duration::from_secs(60);
    while answer.is_err() && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(10)).await;
        answer = passwords.added().await;
    }
    assert_eq!(answer.unwrap(), 7);
});

#[taskfork::interface]
pub(crate) trait Numbers {
    fn added(&mut self) -> u32;
}

impl Numbers for State {
    fn added(&mut self) -> u32 {
        9
    }
}

/// A server at an address, with the interface of the clients or with another one.
pub(crate) fn listening(server: ServerBuilder) -> Result<(), ServerError> {
    let (address, fits): (String, bool) = server.config()?;
    let server = server.listen(address).setup(|| Ok::<_, BoxError>(State));
    match fits {
        true => server.interface(new::PasswordsInterface).run(),
        false => server.interface(NumbersInterface).run(),
    }
}

trial!(a_typed_client_of_an_existing_client_uses_checked_workers_only, async || {
    let (_server, client) = start("typed_clients");
    let pid: u32 = client.call("pid", ()).await.unwrap();
    let held = client.checkout();
    let held_pid: u32 = held.call("pid", ()).await.unwrap();

    // It has the same pool, but no worker that was connected before.
    let passwords = new::PasswordsClient::from(client.clone());
    let checked = passwords.pid().await.unwrap();
    assert!(checked != pid && checked != held_pid);
    assert_eq!(held.call::<u32>("pid", ()).await.unwrap(), held_pid);
    drop(held);
    until("the workers that were not checked to leave", || client.stats().idle == 1).await;
    // A second one of the same interface replaces nothing.
    let again = new::PasswordsClient::from(client.clone());
    assert_eq!(again.pid().await.unwrap(), checked);

    let wrong = other::PasswordsClient::from(client.clone());
    assert_eq!(difference(wrong.removed().await.unwrap_err()), DIFFERENCE);
});

trial!(an_untyped_server_is_not_compared, async || {
    let server = Server::spawn("typed_clients_untyped").unwrap();
    let passwords: new::PasswordsClient =
        Client::builder().address(server.address()).build_as().unwrap();
    assert_eq!(passwords.added().await.unwrap(), 5);
    let error = passwords.pid().await.unwrap_err();
    assert_eq!(error.to_string(), "unknown method `pid`: there is added");
});

pub(crate) fn untyped(server: ServerBuilder) -> Result<(), ServerError> {
    server.interface(Methods::new().function("added", || Ok(5))).run()
}

trial!(blocking_clients_are_typed_too, async || {
    let server = Server::spawn("typed_clients").unwrap();
    let address = server.address();
    let test = move || {
        let builder = || blocking::Client::builder().address(address.clone());
        let passwords: new::PasswordsBlockingClient = builder().build_blocking_as().unwrap();
        let checkout = passwords.checkout();
        assert_eq!(checkout.hash("a", None).unwrap(), "a+none");
        checkout.ready().unwrap();
        let wrong: other::PasswordsBlockingClient = builder().build_blocking_as().unwrap();
        assert_eq!(difference(wrong.removed().unwrap_err()), DIFFERENCE);
        let shared = other::PasswordsBlockingClient::from(passwords.untyped().clone());
        assert_eq!(difference(shared.removed().unwrap_err()), DIFFERENCE);
    };
    tokio::task::spawn_blocking(test).await.unwrap();
});
