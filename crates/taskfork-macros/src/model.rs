//! Parses the trait and reports every mistake in it.

use std::collections::BTreeMap;

use proc_macro2::{Span, TokenStream};
use quote::ToTokens;
use syn::spanned::Spanned;
use syn::visit::Visit;
use syn::{
    Attribute, Error, FnArg, GenericArgument, Ident, ItemTrait, LitStr, Pat, PathArguments,
    Receiver, ReceiverKind, ReturnType, Safety, Signature, TraitItem, TraitItemFn, Type,
};

use crate::attributes;
use crate::parameter::{Parameter, owned};
use crate::streams::{self, Emitter};

/// Methods of clients and checkouts. They take precedence over the methods of the generated traits,
/// so that an interface's method of the same name could not be called.
const RESERVED: [&str; 32] = [
    "abort",
    "alloc_blob",
    "by_key",
    "call",
    "call_with_input",
    "checkout",
    "clone",
    "close",
    "from",
    "invoke",
    "is_closed",
    "log",
    "map",
    "map_stream",
    "queue",
    "ready",
    "resize",
    "retry",
    "run_timeout",
    "stats",
    "stream",
    "stream_with_input",
    "throw_fatal_error",
    "timeout",
    "trace_context",
    "try_checkout",
    "typed",
    "untyped",
    "with_labels",
    "with_priority",
    "with_run_timeout",
    "with_timeout",
];

/// `IntoArguments` is implemented for tuples of at most this length.
const MOST_PARAMETERS: usize = 12;

pub(crate) struct Interface {
    pub(crate) methods: Vec<Method>,
}

pub(crate) struct Method {
    pub(crate) name: Ident,
    /// What calls name it by.
    pub(crate) called: LitStr,
    /// Running it twice does no harm.
    pub(crate) is_idempotent: bool,
    /// `cfg`, for all that is generated.
    pub(crate) conditions: Vec<Attribute>,
    /// Documentation and `deprecated`, for the client's methods.
    pub(crate) docs: Vec<Attribute>,
    pub(crate) parameters: Vec<Parameter>,
    /// The emitter, if the method streams.
    pub(crate) emitter: Option<Emitter>,
    /// The receiver, if the method takes an input.
    pub(crate) receiver: Option<streams::Receiver>,
    pub(crate) output: Output,
}

pub(crate) enum Output {
    /// The method cannot fail.
    Plain(Box<Type>),
    /// The method returns a `Result` whose error type the caller gets.
    Typed { value: Box<Type>, error: Box<Type> },
    /// The method returns a `Result` with any error, and the caller gets its text and causes.
    Untyped { value: Box<Type> },
}

/// Collects mistakes, so that the compiler reports all of them at once.
#[derive(Default)]
pub(crate) struct Mistakes(Option<Error>);

impl Mistakes {
    pub(crate) fn add(&mut self, span: Span, message: impl std::fmt::Display) {
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

/// Methods under conditions are left out: they may exclude each other.
fn check_duplicates(methods: &[Method], mistakes: &mut Mistakes) {
    let mut seen = BTreeMap::new();
    for method in methods.iter().filter(|method| method.conditions.is_empty()) {
        let called = method.called.value();
        if seen.insert(called.clone(), ()).is_some() {
            mistakes.add(
                method.called.span(),
                format!("there is already a method `{called}`, and a call names its method by this name only: rename one"),
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
        let (mut emitter, mut receiver, mut parameters) = (None, None, Vec::new());
        let typed = signature.inputs.iter().filter_map(|input| match input {
            FnArg::Typed(input) => Some(input),
            FnArg::Receiver(_) => None,
        });
        for (index, input) in typed.enumerate() {
            if let Some(item) = streams::Receiver::item(&input.ty, mistakes) {
                check_type(item, mistakes);
                let Some(name) = parameter_name(&input.pat, mistakes) else { continue };
                let (passed_before, item) = (parameters.len(), Box::new(item.clone()));
                let found = streams::Receiver { name, index, passed_before, item };
                if receiver.replace(found).is_some() {
                    mistakes.add(
                        input.ty.span(),
                        "a method has at most one receiver: take items of an enum",
                    );
                }
                continue;
            }
            if let Some(item) = Emitter::item(&input.ty, mistakes) {
                check_type(item, mistakes);
                let found = Emitter { index, item: Box::new(item.clone()) };
                if emitter.replace(found).is_some() {
                    mistakes.add(
                        input.ty.span(),
                        "a method has at most one emitter: send items of an enum",
                    );
                }
                continue;
            }
            parameters.extend({
                check_parameter(&input.ty, mistakes);
                let name = parameter_name(&input.pat, mistakes);
                name.map(|name| Parameter::new(name, &input.ty))
            });
        }
        if parameters.len() > MOST_PARAMETERS {
            mistakes.add(
                signature.inputs.span(),
                format!(
                    "a call carries at most {MOST_PARAMETERS} parameters: put some into a struct"
                ),
            );
        }
        let output = Output::read(&signature.output, mistakes)?;
        let having = |names: &[&str]| -> Vec<Attribute> {
            let has =
                |attribute: &&Attribute| names.iter().any(|name| attribute.path().is_ident(name));
            item.attrs.iter().filter(has).cloned().collect()
        };
        let name = signature.ident.clone();
        let options = attributes::read(item, mistakes);
        if options.is_idempotent && emitter.is_some() {
            mistakes.add(
                name.span(),
                "a method that streams cannot be idempotent: when its worker dies, the caller may have read items, \
                 which a second run would send again. Remove #[taskfork(idempotent)]",
            );
        }
        Some(Self {
            called: options.name.unwrap_or_else(|| method_name(&name)),
            is_idempotent: options.is_idempotent,
            name,
            conditions: having(&["cfg"]),
            docs: having(&["doc", "deprecated"]),
            parameters,
            emitter,
            receiver,
            output,
        })
    }
}

/// The name without the prefix `r#`.
fn method_name(name: &Ident) -> LitStr {
    let text = name.to_string();
    LitStr::new(text.strip_prefix("r#").unwrap_or(&text), name.span())
}

fn check_signature(signature: &Signature, mistakes: &mut Mistakes) {
    let name = &signature.ident;
    if RESERVED.iter().any(|reserved| name == reserved) {
        mistakes.add(
            name.span(),
            format!(
                "clients or checkouts already have a method `{name}`: choose another name, and write \
                 #[taskfork(name = \"{name}\")] if calls must have this one"
            ),
        );
    }
    if let Some(asyncness) = &signature.asyncness {
        mistakes.add(
            asyncness.span(),
            "a worker runs one call at a time and may block: write `fn` without `async`",
        );
    }
    if let Safety::Unsafe(unsafety) = &signature.safety {
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
    if !matches!(receiver.kind, ReceiverKind::Reference(_, None, Some(_))) {
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
        let result = match ty {
            Type::Path(path) => path.path.segments.last().filter(|last| last.ident == "Result"),
            _ => None,
        };
        let Some(last) = result else {
            check_type(ty, mistakes);
            return Some(Self::Plain(Box::new(ty.clone())));
        };
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
        if let Some(value) = types.first() {
            check_type(value, mistakes);
        }
        match <[Type; 2]>::try_from(types.clone()) {
            Ok([value, error]) if is_untyped_error(&error, mistakes) => {
                Some(Self::Untyped { value: Box::new(value) })
            }
            Ok([value, error]) => {
                check_type(&error, mistakes);
                Some(Self::Typed { value: Box::new(value), error: Box::new(error) })
            }
            // An alias, such as those of `std::io` and `anyhow`.
            Err(_) if types.len() == 1 => Some(Self::Untyped { value: Box::new(types[0].clone()) }),
            Err(_) => {
                mistakes.add(
                    ty.span(),
                    "the caller receives the value, so that the signature must name its type: write \
                     Result<Value, Error>, or Result<Value> with an alias",
                );
                None
            }
        }
    }
}

/// Whether callers get the text and the causes of such an error, and not the error itself.
fn is_untyped_error(ty: &Type, mistakes: &mut Mistakes) -> bool {
    match ty {
        Type::Reference(text) => {
            matches!(&*text.elem, Type::Path(path) if path.path.is_ident("str"))
        }
        Type::Path(path) => {
            let names: Vec<_> =
                path.path.segments.iter().map(|part| part.ident.to_string()).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            match &names[..] {
                [.., "Box"] => {
                    let text = path
                        .path
                        .segments
                        .last()
                        .map(|last| last.arguments.to_token_stream().to_string());
                    let is_sent =
                        text.is_some_and(|text| text.contains("Send") && text.contains("Sync"));
                    if !is_sent {
                        mistakes.add(
                            ty.span(),
                            "the error of a method must be `Send + Sync`: write taskfork::BoxError",
                        );
                    }
                    true
                }
                [.., "BoxError" | "String"]
                | [.., "io" | "anyhow" | "eyre", "Error"]
                | [.., "Report"] => true,
                _ => false,
            }
        }
        _ => false,
    }
}

/// Checks the type of a parameter, which may be a reference to what the worker decodes.
fn check_parameter(ty: &Type, mistakes: &mut Mistakes) {
    match ty {
        Type::Reference(reference) if reference.mutability.is_some() => mistakes.add(
            ty.span(),
            format!(
                "the worker changes a copy, which the caller does not get back: take {} by value, and return it",
                owned(&reference.elem)
            ),
        ),
        Type::Reference(reference) => {
            if let Some(lifetime) = &reference.lifetime {
                mistakes.add(
                    lifetime.span(),
                    "the worker decodes the value for one call: write `&` without a lifetime",
                );
            }
            match &*reference.elem {
                Type::Slice(slice) => check_type(&slice.elem, mistakes),
                other => check_type(other, mistakes),
            }
        }
        other => check_type(other, mistakes),
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
                "a reference can only be a parameter by itself: write {} here",
                owned(&reference.elem)
            )),
            Type::Ptr(_) => Some("a pointer cannot be sent to another process".to_owned()),
            Type::ImplTrait(_) => Some(
                "the other process must know the type behind `impl Trait`: name a concrete type"
                    .to_owned(),
            ),
            Type::FnPtr(_) => Some("a function cannot be sent to another process".to_owned()),
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
