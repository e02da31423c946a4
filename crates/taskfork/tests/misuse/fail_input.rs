use taskfork::Receiver;

// A stream that is none has a text too, but the compiler then lists all streams that it knows.
#[taskfork::interface]
trait Orders {
    fn import(&mut self, rows: &mut Receiver<u64>);
}

fn no_iterator(client: &taskfork::blocking::Client) {
    let _ = client.import(5);
}

fn main() {}
