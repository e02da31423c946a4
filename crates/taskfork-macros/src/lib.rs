//! The attribute `taskfork::interface`. Use it through the crate `taskfork`.
//!
//! `model`, `parameter`, `streams` and `attributes` parse a trait and report mistakes. `expand` generates code, and
//! `clients` the part of it that clients use; `type_text` writes types for their comparison.
//! `startup_code` is for the crate `taskfork` itself.

mod attributes;
mod clients;
mod expand;
mod model;
mod parameter;
mod startup_code;
mod streams;
mod type_text;

use proc_macro::TokenStream;
use syn::{Item, ItemTrait};

/// Defines a typed interface for the methods of a trait. `taskfork::interface` describes it.
///
/// ```
/// #[taskfork::interface]
/// trait Counter {
///     fn add(&mut self, number: u64) -> u64;
/// }
///
/// async fn count(client: taskfork::Client) -> Result<u64, taskfork::Error> {
///     let checkout = client.checkout();
///     checkout.add(1).await?;
///     checkout.add(2).await
/// }
/// # let _ = count;
/// ```
#[proc_macro_attribute]
pub fn interface(arguments: TokenStream, item: TokenStream) -> TokenStream {
    let item = match syn::parse::<ItemTrait>(item.clone()) {
        Ok(item) => item,
        Err(error) => return not_a_trait(item, error),
    };
    match model::Interface::read(arguments.into(), &item) {
        Ok(interface) => expand::expand(&attributes::without_own(item), &interface).into(),
        // The output contains the trait, because code that uses it would cause further errors without it.
        Err(error) => {
            let (item, error) = (attributes::without_own(item), error.to_compile_error());
            quote::quote!(#item #error).into()
        }
    }
}

/// The compile error of something that is no trait, or of a trait with a mistake in its syntax.
fn not_a_trait(item: TokenStream, error: syn::Error) -> TokenStream {
    let error = match syn::parse::<Item>(item.clone()) {
        Ok(other) => syn::Error::new_spanned(
            other,
            "an interface is a trait: write `#[taskfork::interface] trait Name { … }`, and implement it \
             for the worker's state",
        ),
        Err(_) => error,
    };
    let (item, error) = (proc_macro2::TokenStream::from(item), error.to_compile_error());
    quote::quote!(#item #error).into()
}

/// Places a function, or all functions of an `impl` block, in one section of the program, so that
/// a new worker has fewer page faults. For the crate `taskfork` only.
#[doc(hidden)]
#[proc_macro_attribute]
pub fn startup_code(_: TokenStream, item: TokenStream) -> TokenStream {
    startup_code::expand(item.into()).into()
}
