//! The attribute `#[taskfork(…)]` of a method.

use syn::spanned::Spanned;
use syn::{ItemTrait, LitStr, TraitItem, TraitItemFn};

use crate::model::Mistakes;

/// The longest name of a method in a call, in bytes.
const MAX_NAME: usize = 200;

/// The name that the attribute gives the method in calls.
pub(crate) fn called(item: &TraitItemFn, mistakes: &mut Mistakes) -> Option<LitStr> {
    let mut called = None;
    for attribute in item.attrs.iter().filter(|attribute| attribute.path().is_ident("taskfork")) {
        let read = attribute.parse_nested_meta(|meta| {
            if !meta.path.is_ident("name") {
                return Err(meta.error("there is no such option: write #[taskfork(name = \"…\")]"));
            }
            let name: LitStr = meta.value()?.parse()?;
            if name.value().is_empty() || name.value().len() > MAX_NAME {
                return Err(syn::Error::new(
                    name.span(),
                    format!("a name has 1 to {MAX_NAME} bytes"),
                ));
            }
            called = Some(name);
            Ok(())
        });
        if let Err(error) = read {
            mistakes.add(attribute.meta.span(), error);
        }
    }
    called
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
