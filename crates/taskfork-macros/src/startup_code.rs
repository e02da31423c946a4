//! The section of the program for what a new worker runs before its first answer.
//!
//! A new worker has a page fault for each 64 KiB of the program that it runs code of. The kernel then
//! maps all pages of these 64 KiB, and unmaps them when the worker ends. Without the section, the
//! functions lie scattered over megabytes of the program. A linker keeps those of a section together.

use proc_macro2::TokenStream;
use quote::{ToTokens, quote};
use syn::{ImplItem, ItemImpl};

/// Places a function, or all functions of an `impl` block, in the section.
pub(crate) fn expand(item: TokenStream) -> TokenStream {
    let Ok(mut block) = syn::parse2::<ItemImpl>(item.clone()) else { return placed(item) };
    for item in &mut block.items {
        if let ImplItem::Fn(function) = item {
            *item = ImplItem::Verbatim(placed(function));
        }
    }
    block.into_token_stream()
}

/// Naming a section is unsafe because linkers and loaders give some sections a meaning. This one has
/// none: it is code like any other.
fn placed(function: impl ToTokens) -> TokenStream {
    quote!(#[unsafe(link_section = "taskfork_startup")] #function)
}
