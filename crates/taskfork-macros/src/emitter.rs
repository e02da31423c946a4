//! The parameter by which a method streams.

use syn::{GenericArgument, PathArguments, Type};

/// The parameter `&mut Emitter<T>` of a method.
pub(crate) struct Emitter {
    /// How many other parameters are in front of it.
    pub(crate) index: usize,
    /// The type of the items.
    pub(crate) item: Box<Type>,
}

impl Emitter {
    /// The type of the items, if a parameter of this type is an emitter.
    pub(crate) fn item(ty: &Type) -> Option<&Type> {
        let Type::Reference(reference) = ty else { return None };
        let Type::Path(path) = &*reference.elem else { return None };
        let last = path.path.segments.last().filter(|last| last.ident == "Emitter")?;
        let PathArguments::AngleBracketed(arguments) = &last.arguments else { return None };
        reference.mutability?;
        let mut types = arguments.args.iter().filter_map(|argument| match argument {
            GenericArgument::Type(ty) => Some(ty),
            _ => None,
        });
        types.next()
    }
}
