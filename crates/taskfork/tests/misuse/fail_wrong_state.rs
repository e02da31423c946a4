#[taskfork::interface]
trait Service {
    fn get(&mut self) -> u8;
}

struct State;

fn main() {
    let _ = taskfork::Server::builder()
        .setup(|| Ok::<_, taskfork::BoxError>(State))
        .interface(ServiceInterface);
}
