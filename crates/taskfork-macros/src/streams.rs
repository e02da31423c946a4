//! The parameters by which a method streams: `&mut Emitter<T>` and `&mut Receiver<T>`.

use proc_macro2::TokenStream;
use quote::quote;
use syn::spanned::Spanned;
use syn::{GenericArgument, Ident, PathArguments, Type};

use crate::model::Mistakes;

/// The parameter `&mut Emitter<T>` of a method.
pub(crate) struct Emitter {
    /// How many other parameters are in front of it.
    pub(crate) index: usize,
    /// The type of the items.
    pub(crate) item: Box<Type>,
}

/// The parameter `&mut Receiver<T>` of a method.
pub(crate) struct Receiver {
    pub(crate) name: Ident,
    /// How many other parameters are in front of it, and how many of those a caller passes.
    pub(crate) index: usize,
    pub(crate) passed_before: usize,
    /// The type of the items.
    pub(crate) item: Box<Type>,
}

impl Emitter {
    /// The type of the items, if a parameter of this type is an emitter.
    pub(crate) fn item<'t>(ty: &'t Type, mistakes: &mut Mistakes) -> Option<&'t Type> {
        let mistake = "a method sends items by a mutable reference: write `&mut Emitter<Item>`";
        item(ty, "Emitter", mistake, mistakes)
    }
}

impl Receiver {
    /// The type of the items, if a parameter of this type is a receiver.
    pub(crate) fn item<'t>(ty: &'t Type, mistakes: &mut Mistakes) -> Option<&'t Type> {
        let mistake = "a method takes items by a mutable reference: write `&mut Receiver<Item>`";
        item(ty, "Receiver", mistake, mistakes)
    }

    /// The parameter of the client's method, where `module` is that of the client.
    pub(crate) fn accepted(&self, module: &TokenStream) -> TokenStream {
        let Self { name, item, .. } = self;
        quote!(#name: impl #module::IntoInput<#item>)
    }

    /// What the client's method passes on.
    pub(crate) fn input(&self, module: &TokenStream) -> TokenStream {
        let Self { name, item, .. } = self;
        quote!(#module::IntoInput::<#item>::into_input(#name))
    }
}

/// The `T` of `&mut Name<T>`. If only the mutable reference is missing, that is the mistake.
fn item<'t>(ty: &'t Type, name: &str, mistake: &str, mistakes: &mut Mistakes) -> Option<&'t Type> {
    let (reference, referent) = match ty {
        Type::Reference(reference) => (Some(reference), &*reference.elem),
        other => (None, other),
    };
    let Type::Path(path) = referent else { return None };
    let last = path.path.segments.last().filter(|last| last.ident == name)?;
    let PathArguments::AngleBracketed(arguments) = &last.arguments else { return None };
    let mut types = arguments.args.iter().filter_map(|argument| match argument {
        GenericArgument::Type(ty) => Some(ty),
        _ => None,
    });
    let item = types.next();
    if item.is_some() && reference.is_none_or(|reference| reference.mutability.is_none()) {
        mistakes.add(ty.span(), mistake);
    }
    item
}
