//! The attribute `#[taskfork(…)]` of a method.

use syn::spanned::Spanned;
use syn::{ItemTrait, LitStr, TraitItem, TraitItemFn};

use crate::model::Mistakes;

/// The longest name of a method in a call, in bytes.
const MAX_NAME: usize = 200;

/// What the attribute says about a method.
#[derive(Default)]
pub(crate) struct MethodOptions {
    /// The name in calls.
    pub(crate) name: Option<LitStr>,
    /// A call that died with its worker may be made again.
    pub(crate) is_idempotent: bool,
}

pub(crate) fn read(item: &TraitItemFn, mistakes: &mut Mistakes) -> MethodOptions {
    let mut options = MethodOptions::default();
    for attribute in item.attrs.iter().filter(|attribute| attribute.path().is_ident("taskfork")) {
        if !matches!(attribute.meta, syn::Meta::List(_)) {
            mistakes.add(
                attribute.span(),
                "write #[taskfork(name = \"…\")] or #[taskfork(idempotent)]",
            );
            continue;
        }
        let read = attribute.parse_nested_meta(|meta| {
            if meta.path.is_ident("idempotent") {
                if meta.input.peek(syn::Token![=]) {
                    return Err(meta.error(
                        "this option has no value: write #[taskfork(idempotent)], or leave it out",
                    ));
                }
                options.is_idempotent = true;
                return Ok(());
            }
            if !meta.path.is_ident("name") {
                return Err(meta.error(
                    "there is no such option: write #[taskfork(name = \"…\")] or #[taskfork(idempotent)]",
                ));
            }
            let name: LitStr = meta
                .value()
                .and_then(syn::parse::ParseBuffer::parse)
                .map_err(|error| {
                    syn::Error::new(error.span(), "write #[taskfork(name = \"…\")], with a text")
                })?;
            if name.value().is_empty() || name.value().len() > MAX_NAME {
                return Err(syn::Error::new(
                    name.span(),
                    format!("a name has 1 to {MAX_NAME} bytes"),
                ));
            }
            options.name = Some(name);
            Ok(())
        });
        if let Err(error) = read {
            mistakes.add(attribute.meta.span(), error);
        }
    }
    options
}

/// The trait without the attributes that only this macro knows.
pub(crate) fn without_own(mut item: ItemTrait) -> ItemTrait {
    for entry in &mut item.items {
        if let TraitItem::Fn(method) = entry {
            method.attrs.retain(|attribute| !attribute.path().is_ident("taskfork"));
        }
    }
    item
}
