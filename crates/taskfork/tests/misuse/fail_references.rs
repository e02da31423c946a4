#[taskfork::interface]
trait Service {
    fn text(&mut self, text: &str);
    fn slice(&mut self, bytes: &[u8]);
    fn inside(&mut self, list: Vec<&String>);
    fn result(&mut self) -> &str;
    fn borrowed(&mut self, text: std::borrow::Cow<'static, str>);
}

fn main() {}
