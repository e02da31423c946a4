#[taskfork::interface]
trait Service {
    fn get(&mut self) -> u8;
    fn get(&mut self, other: u8) -> u8;
}

fn main() {}
