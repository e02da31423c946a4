//! A program that only calls servers. It needs none of the feature `server`, and CI compiles it without.

use std::time::Duration;

use taskfork::error::{Error, FatalError};
use taskfork::{Client, Emitter};

#[taskfork::interface]
trait Numbers {
    fn add(&mut self, left: i64, right: i64) -> i64;
    fn squares(&mut self, up_to: u64, out: &mut Emitter<u64>) -> u64;
}

#[tokio::test]
async fn a_client_needs_no_server_in_its_program() {
    let folder = tempfile::tempdir().unwrap();
    let address = format!("unix:{}", folder.path().join("none.sock").display());
    let client = Client::builder().address(address).timeout(Duration::from_millis(50));
    let client: NumbersClient = client.build_as().unwrap();
    let error = client.add(2, 3).await.unwrap_err();
    assert!(matches!(error, Error::Fatal { may_have_run: false, .. }), "{error}");
    assert!(error.to_string().contains("none.sock"), "{error}");

    let mut squares = client.checkout().squares(3);
    let error = squares.next().await.unwrap_err();
    let Error::Fatal { cause, may_have_run: false, .. } = error else { panic!("{error:?}") };
    assert!(matches!(cause, FatalError::CannotConnect { .. }), "{cause:?}");
    assert_eq!(squares.next().await.unwrap(), None);
}

/// A crate that shares its trait with servers can have the state of their workers, and test it.
#[test]
fn a_method_that_streams_is_tested_without_a_server() {
    struct State;
    impl Numbers for State {
        fn add(&mut self, left: i64, right: i64) -> i64 {
            left + right
        }

        fn squares(&mut self, up_to: u64, out: &mut Emitter<u64>) -> u64 {
            (1..=up_to).take_while(|number| out.send(&(number * number)).is_ok()).count() as u64
        }
    }
    let (sender, squares) = std::sync::mpsc::channel();
    let mut out = Emitter::new(move |square: &u64| sender.send(*square).unwrap());
    assert_eq!(State.squares(3, &mut out), 3);
    drop(out);
    assert_eq!(squares.iter().collect::<Vec<_>>(), [1, 4, 9]);
    assert_eq!(State.add(2, 3), 5);
}
