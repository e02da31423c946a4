#[derive(Debug)]
struct Own;

#[taskfork::interface]
trait Service {
    fn get(&mut self) -> Result<u8, Own>;
}

fn main() {}
