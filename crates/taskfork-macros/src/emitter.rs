//! The parameter by which a method streams.

use syn::spanned::Spanned;
use syn::{GenericArgument, PathArguments, Type};

use crate::model::Mistakes;

/// The parameter `&mut Emitter<T>` of a method.
pub(crate) struct Emitter {
    /// How many other parameters are in front of it.
    pub(crate) index: usize,
    /// The type of the items.
    pub(crate) item: Box<Type>,
}

impl Emitter {
    /// The type of the items, if a parameter of this type is an emitter.
    pub(crate) fn item<'t>(ty: &'t Type, mistakes: &mut Mistakes) -> Option<&'t Type> {
        let (reference, referent) = match ty {
            Type::Reference(reference) => (Some(reference), &*reference.elem),
            other => (None, other),
        };
        let Type::Path(path) = referent else { return None };
        let last = path.path.segments.last().filter(|last| last.ident == "Emitter")?;
        if reference.is_none_or(|reference| reference.mutability.is_none()) {
            mistakes.add(
                ty.span(),
                "a method sends items by a mutable reference: write `&mut Emitter<Item>`",
            );
        }
        let PathArguments::AngleBracketed(arguments) = &last.arguments else { return None };
        let mut types = arguments.args.iter().filter_map(|argument| match argument {
            GenericArgument::Type(ty) => Some(ty),
            _ => None,
        });
        types.next()
    }
}
