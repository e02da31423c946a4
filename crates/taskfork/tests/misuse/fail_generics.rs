#[taskfork::interface]
trait Service<T> {
    fn get(&mut self) -> T;
}

#[taskfork::interface]
trait Methods {
    fn any<T>(&mut self, value: T);
    fn some(&mut self, value: impl ToString);
    fn object(&mut self, value: Box<dyn ToString>);
}

fn main() {}
