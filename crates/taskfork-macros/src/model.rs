//! Parses the trait and reports every mistake in it.

use std::collections::BTreeMap;

use proc_macro2::{Span, TokenStream};
use syn::spanned::Spanned;
use syn::visit::Visit;
use syn::{
    Attribute, Error, FnArg, GenericArgument, Ident, ItemTrait, Pat, PathArguments, Receiver,
    ReturnType, Signature, TraitItem, TraitItemFn, Type,
};

/// Methods of clients and checkouts. They take precedence over the methods of the generated traits,
/// so that an interface's method of the same name could not be called.
const RESERVED: [&str; 17] = [
    "abort",
    "alloc_blob",
    "call",
    "checkout",
    "clone",
    "close",
    "invoke",
    "is_closed",
    "log",
    "queue",
    "ready",
    "stats",
    "throw_fatal_error",
    "timeout",
    "trace_context",
    "try_checkout",
    "typed",
];

/// `IntoArguments` is implemented for tuples of at most this length.
const MOST_PARAMETERS: usize = 12;

pub(crate) struct Interface {
    pub(crate) methods: Vec<Method>,
}

pub(crate) struct Method {
    pub(crate) name: Ident,
    pub(crate) docs: Vec<Attribute>,
    pub(crate) parameters: Vec<Parameter>,
    pub(crate) output: Output,
}

pub(crate) struct Parameter {
    pub(crate) name: Ident,
    pub(crate) ty: Type,
}

pub(crate) enum Output {
    /// The method cannot fail.
    Plain(Box<Type>),
    /// The method returns a `Result`.
    Fallible { value: Box<Type>, error: Box<Type> },
}

/// Collects mistakes, so that the compiler reports all of them at once.
#[derive(Default)]
struct Mistakes(Option<Error>);

impl Mistakes {
    fn add(&mut self, span: Span, message: impl std::fmt::Display) {
        let error = Error::new(span, message);
        match &mut self.0 {
            Some(first) => first.combine(error),
            none => *none = Some(error),
        }
    }
}

impl Interface {
    pub(crate) fn read(arguments: TokenStream, item: &ItemTrait) -> Result<Self, Error> {
        let mut mistakes = Mistakes::default();
        if !arguments.is_empty() {
            mistakes.add(
                arguments.span(),
                "`interface` takes no arguments: write #[taskfork::interface]",
            );
        }
        if !item.generics.params.is_empty() || item.generics.where_clause.is_some() {
            mistakes.add(
                item.generics.span(),
                "an interface cannot be generic, as the worker is another process: write one trait \
                 for each set of types",
            );
        }
        if let Some(unsafety) = &item.unsafety {
            mistakes
                .add(unsafety.span(), "an interface cannot be an unsafe trait: remove `unsafe`");
        }
        let mut methods = Vec::new();
        for entry in &item.items {
            match entry {
                TraitItem::Fn(method) => methods.extend(Method::read(method, &mut mistakes)),
                other => mistakes.add(
                    other.span(),
                    "an interface can only have methods: move this to another trait or to the \
                     implementing type",
                ),
            }
        }
        check_duplicates(&methods, &mut mistakes);
        match mistakes.0 {
            Some(error) => Err(error),
            None => Ok(Self { methods }),
        }
    }
}

fn check_duplicates(methods: &[Method], mistakes: &mut Mistakes) {
    let mut seen = BTreeMap::new();
    for method in methods {
        let name = method.name.to_string();
        if seen.insert(name.clone(), ()).is_some() {
            mistakes.add(
                method.name.span(),
                format!("there is already a method `{name}`, and a call names its method by this name only: rename one"),
            );
        }
    }
}

impl Method {
    fn read(item: &TraitItemFn, mistakes: &mut Mistakes) -> Option<Self> {
        let signature = &item.sig;
        check_signature(signature, mistakes);
        let mut inputs = signature.inputs.iter();
        match inputs.next() {
            Some(FnArg::Receiver(receiver)) => check_receiver(receiver, mistakes),
            _ => mistakes.add(
                signature.ident.span(),
                format!(
                    "a method runs on the worker's state: write fn {}(&mut self, …)",
                    signature.ident
                ),
            ),
        }
        let parameters: Vec<_> = signature
            .inputs
            .iter()
            .filter_map(|input| match input {
                FnArg::Typed(input) => Some(input),
                FnArg::Receiver(_) => None,
            })
            .filter_map(|input| {
                check_type(&input.ty, mistakes);
                let name = parameter_name(&input.pat, mistakes)?;
                Some(Parameter { name, ty: (*input.ty).clone() })
            })
            .collect();
        if parameters.len() > MOST_PARAMETERS {
            mistakes.add(
                signature.inputs.span(),
                format!(
                    "a call carries at most {MOST_PARAMETERS} parameters: put some into a struct"
                ),
            );
        }
        let output = Output::read(&signature.output, mistakes)?;
        let docs = item.attrs.iter().filter(|attribute| attribute.path().is_ident("doc"));
        Some(Self {
            name: signature.ident.clone(),
            docs: docs.cloned().collect(),
            parameters,
            output,
        })
    }
}

fn check_signature(signature: &Signature, mistakes: &mut Mistakes) {
    let name = &signature.ident;
    if RESERVED.iter().any(|reserved| name == reserved) {
        mistakes.add(
            name.span(),
            format!("clients or checkouts already have a method `{name}`: choose another name"),
        );
    }
    if let Some(asyncness) = &signature.asyncness {
        mistakes.add(
            asyncness.span(),
            "a worker runs one call at a time and may block: write `fn` without `async`",
        );
    }
    if let Some(unsafety) = &signature.unsafety {
        mistakes.add(
            unsafety.span(),
            "a caller in another process cannot uphold safety conditions: remove `unsafe`",
        );
    }
    if !signature.generics.params.is_empty() || signature.generics.where_clause.is_some() {
        mistakes.add(
            signature.generics.span(),
            "a method cannot be generic, as the worker must know the types: name concrete ones",
        );
    }
    if let Some(variadic) = &signature.variadic {
        mistakes.add(variadic.span(), "a method has a fixed number of parameters: take a `Vec`");
    }
}

fn check_receiver(receiver: &Receiver, mistakes: &mut Mistakes) {
    let fits = receiver.reference.as_ref().is_some_and(|(_, lifetime)| lifetime.is_none())
        && receiver.mutability.is_some()
        && receiver.colon_token.is_none();
    if !fits {
        mistakes.add(
            receiver.span(),
            "a method takes the worker's state by mutable reference: write `&mut self`",
        );
    }
}

fn parameter_name(pattern: &Pat, mistakes: &mut Mistakes) -> Option<Ident> {
    match pattern {
        Pat::Ident(name) if name.by_ref.is_none() && name.subpat.is_none() => {
            Some(name.ident.clone())
        }
        other => {
            mistakes.add(
                other.span(),
                "a parameter must be a plain name: destructure it in the method's body",
            );
            None
        }
    }
}

impl Output {
    fn read(output: &ReturnType, mistakes: &mut Mistakes) -> Option<Self> {
        let ty = match output {
            ReturnType::Default => return Some(Self::Plain(Box::new(syn::parse_quote!(())))),
            ReturnType::Type(_, ty) => &**ty,
        };
        check_type(ty, mistakes);
        let Type::Path(path) = ty else { return Some(Self::Plain(Box::new(ty.clone()))) };
        let last = path.path.segments.last()?;
        if last.ident != "Result" {
            return Some(Self::Plain(Box::new(ty.clone())));
        }
        let types: Vec<Type> = match &last.arguments {
            PathArguments::AngleBracketed(arguments) => arguments
                .args
                .iter()
                .filter_map(|argument| match argument {
                    GenericArgument::Type(ty) => Some(ty.clone()),
                    _ => None,
                })
                .collect(),
            _ => Vec::new(),
        };
        match <[Type; 2]>::try_from(types) {
            Ok([value, error]) => {
                Some(Self::Fallible { value: Box::new(value), error: Box::new(error) })
            }
            Err(_) => {
                mistakes.add(
                    ty.span(),
                    "the caller receives the error type, so that the signature must name it: write \
                     Result<Value, Error> with both types",
                );
                None
            }
        }
    }
}

fn check_type(ty: &Type, mistakes: &mut Mistakes) {
    TypeCheck { mistakes }.visit_type(ty);
}

/// Finds types that cannot be sent to another process.
struct TypeCheck<'a> {
    mistakes: &'a mut Mistakes,
}

impl<'ast> Visit<'ast> for TypeCheck<'_> {
    fn visit_type(&mut self, ty: &'ast Type) {
        let message = match ty {
            Type::Reference(reference) => Some(format!(
                "a reference cannot be sent to another process: take {} by value",
                owned(&reference.elem)
            )),
            Type::Ptr(_) => Some("a pointer cannot be sent to another process".to_owned()),
            Type::ImplTrait(_) => Some(
                "the other process must know the type behind `impl Trait`: name a concrete type"
                    .to_owned(),
            ),
            Type::BareFn(_) => Some("a function cannot be sent to another process".to_owned()),
            Type::TraitObject(_) => Some(
                "a trait object cannot be sent to another process: name a concrete type".to_owned(),
            ),
            _ => None,
        };
        match message {
            Some(message) => self.mistakes.add(ty.span(), message),
            None => syn::visit::visit_type(self, ty),
        }
    }

    fn visit_lifetime(&mut self, lifetime: &'ast syn::Lifetime) {
        self.mistakes.add(
            lifetime.span(),
            "borrowed data cannot be sent to another process: use a type that owns its data",
        );
    }
}

/// What to take instead of a reference to `referent`, for the error message.
fn owned(referent: &Type) -> String {
    match referent {
        Type::Path(path) if path.path.is_ident("str") => "`String`".to_owned(),
        Type::Path(path) if path.path.is_ident("Path") => "`PathBuf`".to_owned(),
        Type::Slice(_) => "a `Vec`".to_owned(),
        _ => "the value".to_owned(),
    }
}
