use taskfork::Emitter;

#[taskfork::interface]
trait Streams {
    #[taskfork(idempotent)]
    fn again(&mut self, out: &mut Emitter<u64>);
    fn two(&mut self, numbers: &mut Emitter<u64>, texts: &mut Emitter<String>);
    fn by_value(&mut self, out: Emitter<u64>);
    fn shared(&mut self, out: &Emitter<u64>);
    fn borrowed(&mut self, out: &mut Emitter<&str>);
}

fn main() {}
