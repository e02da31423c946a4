use taskfork::{Methods, Server};

#[taskfork::interface]
trait One {
    fn one(&mut self);
}

struct State;

impl One for State {
    fn one(&mut self) {}
}

fn main() {
    let server = Server::builder().setup(|| Ok::<_, taskfork::BoxError>(State));
    server.interface((OneInterface, Methods::new()));
}
