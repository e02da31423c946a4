use taskfork::{Emitter, Receiver};

#[taskfork::interface]
trait Streams {
    #[taskfork(idempotent)]
    fn again(&mut self, out: &mut Emitter<u64>);
    fn two(&mut self, numbers: &mut Emitter<u64>, texts: &mut Emitter<String>);
    fn by_value(&mut self, out: Emitter<u64>);
    fn shared(&mut self, out: &Emitter<u64>);
    fn borrowed(&mut self, out: &mut Emitter<&str>);
    fn two_inputs(&mut self, numbers: &mut Receiver<u64>, texts: &mut Receiver<String>);
    fn input_by_value(&mut self, rows: Receiver<u64>);
    fn shared_input(&mut self, rows: &Receiver<u64>);
    fn borrowed_input(&mut self, rows: &mut Receiver<&str>);
}

fn main() {}
