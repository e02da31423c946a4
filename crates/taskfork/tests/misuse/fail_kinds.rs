#[taskfork::interface(name = "x")]
trait Service {
    const LIMIT: usize;
    type State;
    async fn later(&mut self) -> u8;
    fn aliased(&mut self) -> std::io::Result<u8>;
}

fn main() {}
