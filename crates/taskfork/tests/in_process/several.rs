//! Streams of servers with several interfaces.

use taskfork::{Client, Emitter};

#[taskfork::interface]
trait Other {
    fn numbers(&mut self) -> u64;
    fn only(&mut self) -> u64;
}

struct Both;

impl Other for Both {
    fn numbers(&mut self) -> u64 {
        7
    }

    fn only(&mut self) -> u64 {
        8
    }
}

#[taskfork::interface]
trait Counts {
    fn numbers(&mut self, count: u64, out: &mut Emitter<u64>) -> u64;
}

impl Counts for Both {
    fn numbers(&mut self, count: u64, out: &mut Emitter<u64>) -> u64 {
        (0..count).take_while(|number| out.send(number).is_ok()).count() as u64
    }
}

#[tokio::test]
async fn a_stream_finds_its_method_among_several_interfaces() {
    let client = Client::in_process(|| ((OtherInterface, CountsInterface), Both)).unwrap();
    assert_eq!(CountsClient::from(client.clone()).numbers(3).finish().await.unwrap(), 3);
    let stream = |method: &'static str| {
        let stream = client.stream::<u64, u64>(method, (3,));
        async { stream.finish().await.map_err(|error| error.to_string()) }
    };
    assert_eq!(stream("Counts.numbers").await.unwrap(), 3);
    let unknown = "there is Other.numbers, only, Counts.numbers";
    for method in ["numbers", "Other.nubmers"] {
        let error = stream(method).await.unwrap_err();
        assert_eq!(error, format!("unknown method `{method}`: {unknown}"));
    }
    for method in ["only", "Other.only", "Other.numbers"] {
        let error = stream(method).await.unwrap_err();
        assert!(error.contains(&format!("`{method}` streams no items")), "{error}");
    }
}
