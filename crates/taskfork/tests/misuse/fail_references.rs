#[taskfork::interface]
trait Service {
    fn changed(&mut self, list: &mut Vec<u8>);
    fn for_ever(&mut self, text: &'static str);
    fn inside(&mut self, list: Vec<&String>);
    fn result(&mut self) -> &str;
    fn borrowed(&mut self, text: std::borrow::Cow<'static, str>);
}

fn main() {}
