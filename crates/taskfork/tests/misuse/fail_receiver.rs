#[taskfork::interface]
trait Service {
    fn none(plain: String) -> String;
    fn shared(&self) -> u8;
    fn owned(self) -> u8;
    fn boxed(self: Box<Self>) -> u8;
}

fn main() {}
