//! The attribute behind `taskfork::interface`. Its rooms: `model` reads a trait and says what is
//! wrong with it, `expand` writes what is made of it. Use it through the `taskfork` crate.

mod expand;
mod model;

use proc_macro::TokenStream;
use syn::{ItemTrait, parse_macro_input};

/// Makes a typed interface of a trait. See `taskfork::interface`.
#[proc_macro_attribute]
pub fn interface(arguments: TokenStream, item: TokenStream) -> TokenStream {
    let item = parse_macro_input!(item as ItemTrait);
    match model::Interface::read(arguments.into(), &item) {
        Ok(interface) => expand::expand(&item, &interface).into(),
        // The trait itself stays, so that the only errors are those that say what is wrong.
        Err(error) => {
            let error = error.to_compile_error();
            quote::quote!(#item #error).into()
        }
    }
}
