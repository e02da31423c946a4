use serde::{Deserialize, Serialize};

#[derive(Debug, thiserror::Error, Serialize, Deserialize)]
#[error("no")]
pub struct No;

#[taskfork::interface]
pub trait Service {
    /// Documented.
    fn plain(&mut self, list: Vec<Option<(u8, String)>>) -> std::collections::BTreeMap<String, f64>;
    fn fallible(&mut self) -> Result<(), No>;
    fn qualified(&mut self, text: String) -> std::result::Result<String, No>;
    fn nothing(&mut self);
    fn r#type(&mut self) -> u8 {
        1
    }
}

fn main() {}
