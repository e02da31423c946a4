#[taskfork::interface]
trait Service {
    fn get(&mut self) -> u8;
    fn get(&mut self, other: u8) -> u8;
    #[taskfork(name = "get")]
    fn renamed(&mut self);
}

fn main() {}
