fn example(checkout: taskfork::Checkout) {
    let _ = checkout.call::<()>("method", "not in a tuple");
}

fn main() {}
