use taskfork::{Client, Receiver};

#[taskfork::interface]
trait Orders {
    fn import(&mut self, rows: &mut Receiver<u64>);
}

async fn no_stream(client: &Client) {
    let _ = client.import(5).await;
}

fn no_iterator(client: &taskfork::blocking::Client) {
    let _ = client.import(5);
}

fn main() {}
