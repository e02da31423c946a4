#[taskfork::interface]
pub trait One {
    fn only_one(&mut self);
}

#[taskfork::interface]
pub trait Two {
    fn only_two(&mut self);
}

fn calls(one: OneClient, checkout: OneCheckout) {
    let _ = one.only_one();
    let _ = one.only_two();
    let _ = checkout.only_two();
    let _ = one.untyped().call::<()>("only_two", ());
    let _: TwoClient = one;
}

fn main() {}
