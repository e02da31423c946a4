//! The parameters of a method: what the worker decodes, and what a caller passes.

use proc_macro2::TokenStream;
use quote::quote;
use syn::{Ident, Type};

use crate::type_text::type_text;

pub(crate) struct Parameter {
    pub(crate) name: Ident,
    ty: Type,
    passing: Passing,
}

enum Passing {
    /// A `String`. Callers may pass any text.
    Text,
    /// Any other value.
    Value,
    /// A reference to a value of this type.
    Reference(Box<Type>),
    /// A reference that an owner of this type gives: `str`, `Path`, a slice.
    Unsized(TokenStream),
    /// A slice of bytes.
    Bytes,
}

impl Parameter {
    pub(crate) fn new(name: Ident, ty: &Type) -> Self {
        let passing = match ty {
            Type::Reference(reference) => match &*reference.elem {
                Type::Slice(slice) if is(&slice.elem, "u8") => Passing::Bytes,
                Type::Slice(slice) => {
                    let element = &slice.elem;
                    Passing::Unsized(quote!(::std::vec::Vec<#element>))
                }
                Type::Path(path) if path.path.is_ident("str") => {
                    Passing::Unsized(quote!(::std::string::String))
                }
                other if is_path(other) => Passing::Unsized(quote!(::std::path::PathBuf)),
                other => Passing::Reference(Box::new(other.clone())),
            },
            other if is(other, "String") => Passing::Text,
            _ => Passing::Value,
        };
        Self { name, ty: ty.clone(), passing }
    }

    /// The type in the trait.
    pub(crate) fn ty(&self) -> &Type {
        &self.ty
    }

    /// Whether a call may leave it out, if it is one of the last.
    pub(crate) fn is_optional(&self) -> bool {
        type_text(&self.ty).starts_with("Option<")
    }

    /// What the worker decodes.
    pub(crate) fn decoded(&self) -> TokenStream {
        match &self.passing {
            Passing::Text | Passing::Value => {
                let ty = &self.ty;
                quote!(#ty)
            }
            Passing::Reference(ty) => quote!(#ty),
            Passing::Unsized(owner) => owner.clone(),
            Passing::Bytes => quote!(::taskfork::Blob),
        }
    }

    /// What the worker passes to the method, from a variable of this name.
    pub(crate) fn passed(&self) -> TokenStream {
        let name = &self.name;
        match &self.passing {
            Passing::Text | Passing::Value => quote!(#name),
            Passing::Reference(_) => quote!(&#name),
            Passing::Unsized(_) | Passing::Bytes => quote!(&*#name),
        }
    }

    /// The type of the parameter of the client's method.
    pub(crate) fn accepted(&self) -> TokenStream {
        match &self.passing {
            Passing::Text => quote!(impl ::core::convert::AsRef<str>),
            _ => {
                let ty = &self.ty;
                quote!(#ty)
            }
        }
    }

    /// What the client's method encodes.
    pub(crate) fn encoded(&self) -> TokenStream {
        let name = &self.name;
        match &self.passing {
            Passing::Text => quote!(::core::convert::AsRef::<str>::as_ref(&#name)),
            Passing::Bytes => quote!(::taskfork::__private::ByteSlice(#name)),
            _ => quote!(#name),
        }
    }
}

/// What to take instead of a reference to `referent`, for error messages.
pub(crate) fn owned(referent: &Type) -> String {
    match referent {
        Type::Path(path) if path.path.is_ident("str") => "`String`".to_owned(),
        other if is_path(other) => "`PathBuf`".to_owned(),
        Type::Slice(_) => "a `Vec`".to_owned(),
        _ => "the value".to_owned(),
    }
}

fn is(ty: &Type, name: &str) -> bool {
    matches!(ty, Type::Path(path) if path.qself.is_none() && path.path.is_ident(name))
}

fn is_path(ty: &Type) -> bool {
    matches!(ty, Type::Path(path) if path.path.segments.last().is_some_and(|last| last.ident == "Path"))
}
