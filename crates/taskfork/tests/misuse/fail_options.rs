#[taskfork::interface(name = "other")]
trait Arguments {
    fn work(&mut self);
}

#[taskfork::interface]
struct NoTrait;

#[taskfork::interface]
trait Options {
    #[taskfork(retry = 3)]
    fn wrong(&mut self);
    #[taskfork(idempotent = true)]
    fn value(&mut self);
    #[taskfork(name = "")]
    fn empty(&mut self);
    #[taskfork(name)]
    fn nothing(&mut self);
    #[taskfork]
    fn bare(&mut self);
    fn tuple(&mut self, a: impl Into<String>);
}

fn main() {}
