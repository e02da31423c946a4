#[taskfork::interface]
trait Service {
    fn call(&mut self) -> u8;
    fn timeout(&mut self, (a, b): (u8, u8)) -> u8;
}

fn main() {}
