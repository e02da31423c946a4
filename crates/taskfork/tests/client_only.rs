//! A program that only calls servers. It needs none of the feature `server`, and CI compiles it without.

use std::time::Duration;

use taskfork::Client;
use taskfork::error::{Error, FatalError};

/// No program serves at it.
fn address(folder: &tempfile::TempDir) -> String {
    format!("unix:{}", folder.path().join("none.sock").display())
}

#[tokio::test]
async fn a_client_of_untyped_calls_needs_no_feature() {
    let folder = tempfile::tempdir().unwrap();
    let client = Client::builder().address(address(&folder)).timeout(Duration::from_millis(50));
    let client = client.build().unwrap();
    let error = client.call::<i64>("add", (2, 3)).await.unwrap_err();
    let Error::Fatal { cause, may_have_run: false, .. } = error else { panic!("{error:?}") };
    assert!(matches!(cause, FatalError::CannotConnect { .. }), "{cause:?}");
}

/// Typed calls need the feature `macros`.
#[cfg(feature = "macros")]
mod typed {
    use taskfork::error::Failure;
    use taskfork::{Call, Emitter, StreamCall};

    use super::*;

    #[taskfork::interface]
    trait Numbers {
        fn add(&mut self, left: i64, right: i64) -> i64;
        fn squares(&mut self, up_to: u64, out: &mut Emitter<u64>) -> u64;
    }

    #[tokio::test]
    async fn a_client_needs_no_server_in_its_program() {
        let folder = tempfile::tempdir().unwrap();
        let client = Client::builder().address(address(&folder)).timeout(Duration::from_millis(50));
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

    /// Items and a result as the test wants them.
    struct Mock;

    impl NumbersCalls for Mock {
        fn add(&self, left: i64, right: i64) -> Call<i64> {
            Call::ready(Ok(left + right))
        }

        fn squares(&self, up_to: u64) -> StreamCall<u64, u64> {
            let result = if up_to < 10 { Ok(up_to) } else { Err(Failure::new("too many")) };
            StreamCall::ready((1..=up_to).map(|number| number * number), result)
        }
    }

    #[tokio::test]
    async fn a_type_of_a_test_takes_the_place_of_workers() {
        assert_eq!(Mock.add(2, 3).await.unwrap(), 5);
        let mut squares = Mock.squares(2);
        assert_eq!(squares.progress().latest(), None);
        assert_eq!(squares.next().await.unwrap(), Some(1));
        assert_eq!(squares.next().await.unwrap(), Some(4));
        assert_eq!(squares.next().await.unwrap(), None);
        assert_eq!(squares.next().await.unwrap(), None);
        assert_eq!(squares.finish().await.unwrap(), 2);
        // Items that nobody has read are discarded.
        assert_eq!(Mock.squares(9).finish().await.unwrap(), 9);

        // An error comes once, behind the items.
        let mut squares = Mock.squares(10);
        for number in 1..=10 {
            assert_eq!(squares.next().await.unwrap(), Some(number * number));
        }
        assert_eq!(squares.next().await.unwrap_err().to_string(), "too many");
        assert_eq!(squares.next().await.unwrap(), None);
        assert_eq!(Mock.squares(11).finish().await.unwrap_err().to_string(), "too many");

        let endless: StreamCall<u32, ()> = StreamCall::ready(std::iter::repeat(7), Ok(()));
        let mut endless = tokio::spawn(async move {
            let mut endless = endless;
            (endless.next().await.unwrap(), endless)
        });
        assert_eq!((&mut endless).await.unwrap().0, Some(7));
    }
}
