//! The parameters by which a method streams: `&mut Emitter<T>` and `&mut Receiver<T>`.

use proc_macro2::TokenStream;
use quote::quote;
use syn::{GenericArgument, Ident, PathArguments, Type};

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
    pub(crate) fn item(ty: &Type) -> Option<&Type> {
        item(ty, "Emitter")
    }
}

impl Receiver {
    /// The type of the items, if a parameter of this type is a receiver.
    pub(crate) fn item(ty: &Type) -> Option<&Type> {
        item(ty, "Receiver")
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

/// The `T` of `&mut Name<T>`.
fn item<'a>(ty: &'a Type, name: &str) -> Option<&'a Type> {
    let Type::Reference(reference) = ty else { return None };
    let Type::Path(path) = &*reference.elem else { return None };
    let last = path.path.segments.last().filter(|last| last.ident == name)?;
    let PathArguments::AngleBracketed(arguments) = &last.arguments else { return None };
    reference.mutability?;
    let mut types = arguments.args.iter().filter_map(|argument| match argument {
        GenericArgument::Type(ty) => Some(ty),
        _ => None,
    });
    types.next()
}
