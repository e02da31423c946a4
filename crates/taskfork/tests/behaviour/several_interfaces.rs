//! Servers with several typed interfaces.

use taskfork::error::CallError;
use taskfork::{BoxError, Client, Error, Server, ServerBuilder, ServerError};

use crate::support::{start, trial};

#[taskfork::interface]
pub(crate) trait Passwords {
    fn hash(&mut self, plain: &str) -> String;
    fn pid(&mut self) -> u32;
}

#[taskfork::interface]
pub(crate) trait Files {
    fn hash(&mut self, length: u64) -> Result<u64, String>;
    #[taskfork(name = "file.size")]
    fn size(&mut self) -> u64;
}

struct State;

impl Passwords for State {
    fn hash(&mut self, plain: &str) -> String {
        format!("hash of {plain}")
    }

    fn pid(&mut self) -> u32 {
        std::process::id()
    }
}

impl Files for State {
    fn hash(&mut self, length: u64) -> Result<u64, String> {
        if length == 0 { Err("it is empty".to_owned()) } else { Ok(length * 2) }
    }

    fn size(&mut self) -> u64 {
        3
    }
}

pub(crate) fn server(server: ServerBuilder) -> Result<(), ServerError> {
    let server = server.setup(|| Ok::<_, BoxError>(State));
    server.interface((PasswordsInterface, FilesInterface)).run()
}

trial!(methods_of_the_same_name_do_not_collide, async || {
    let server = Server::spawn("several_interfaces").unwrap();
    let client = Client::builder().address(server.address()).max_workers(1).min_workers(0);
    let passwords: PasswordsClient = client.build_as().unwrap();
    let files = FilesClient::from(passwords.untyped().clone());
    assert_eq!(passwords.hash("a").await.unwrap(), "hash of a");
    assert_eq!(files.hash(4).await.unwrap(), 8);
    assert_eq!(files.size().await.unwrap(), 3);
    // Both have the same worker, which is kept after an error of a method.
    let pid = passwords.pid().await.unwrap();
    assert_eq!(files.checkout().hash(0).await.unwrap_err().to_string(), "it is empty");
    assert_eq!(passwords.checkout().pid().await.unwrap(), pid);
});

trial!(the_traits_of_callers_name_their_interface, async || {
    let (_server, client) = start("several_interfaces");
    let checkout = client.checkout();
    assert_eq!(PasswordsCalls::hash(&checkout, "a").await.unwrap(), "hash of a");
    assert_eq!(FilesCalls::hash(&checkout, 4).await.unwrap(), 8);
});

trial!(untyped_callers_write_the_interface_in_front, async || {
    let (_server, client) = start("several_interfaces");
    assert_eq!(client.call::<String>("Passwords.hash", ("a",)).await.unwrap(), "hash of a");
    assert_eq!(client.call::<u64>("Files.hash", (4,)).await.unwrap(), 8);
    assert_eq!(client.call::<u64>("file.size", ()).await.unwrap(), 3);
    assert_eq!(client.call::<u64>("Files.file.size", ()).await.unwrap(), 3);
    assert!(client.call::<u32>("pid", ()).await.unwrap() > 0);
    for unknown in ["hash", "Files.pid", "Other.hash", "fly"] {
        let error = client.call::<()>(unknown, ()).await.unwrap_err();
        let Error::Call { error: CallError::UnknownMethod { known, .. }, .. } = error else {
            panic!("{error}")
        };
        assert_eq!(known, ["Passwords.hash", "pid", "Files.hash", "file.size"]);
    }
});

/// Traits that clients have and the server does not.
mod unknown {
    #[taskfork::interface]
    pub(crate) trait Others {
        fn pid(&mut self) -> u32;
    }
}

trial!(an_interface_that_the_server_lacks_is_refused, async || {
    let (_server, client) = start("several_interfaces");
    assert!(unknown::OthersCalls::pid(&client).await.unwrap() > 0);
    let others = unknown::OthersClient::from(client);
    let error = others.pid().await.unwrap_err().to_string();
    let expected = "does not serve the interface `Others`: it serves `Passwords`, `Files`";
    assert!(error.contains(expected), "{error}");
});
