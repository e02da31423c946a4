#[taskfork::interface(name = "x")]
trait Service {
    const LIMIT: usize;
    type State;
    async fn later(&mut self) -> u8;
    fn aliased(&mut self) -> std::fmt::Result;
    fn not_sent(&mut self) -> Result<u8, Box<dyn std::error::Error>>;
    #[taskfork(named = "x")]
    fn other_option(&mut self);
    #[taskfork(name = "")]
    fn without_a_name(&mut self);
}

fn main() {}
