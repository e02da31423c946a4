use taskfork::{Methods, Server};

mod other {
    #[taskfork::interface]
    pub trait One {
        fn two(&mut self);
    }
}

#[taskfork::interface]
trait One {
    fn one(&mut self);
}

struct State;

impl One for State {
    fn one(&mut self) {}
}

impl other::One for State {
    fn two(&mut self) {}
}

fn main() {
    let server = || Server::builder().setup(|| Ok::<_, taskfork::BoxError>(State));
    server().interface((OneInterface, other::OneInterface));
    server().interface((OneInterface, Methods::new()));
}
