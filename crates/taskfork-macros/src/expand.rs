//! Generates the dispatch in the worker, the description of the interface, and the traits of callers.

use proc_macro2::TokenStream;
use quote::{format_ident, quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{Ident, ItemTrait};

use crate::clients::{Clients, Kind};
use crate::model::{Interface, Method, Output};
use crate::parameter::Parameter;
use crate::streams::Emitter;
use crate::type_text::type_text;

pub(crate) fn expand(item: &ItemTrait, interface: &Interface) -> TokenStream {
    let dispatch = dispatch(item, interface);
    let description = description(item, interface);
    let calls = calls(item, interface);
    let blocking = blocking_calls(item, interface);
    quote! {
        // Without the feature `server` nothing implements it.
        #[allow(dead_code)]
        #item
        ::taskfork::__with_server! { #dispatch }
        #description
        #calls
        #blocking
    }
}

fn dispatch(item: &ItemTrait, interface: &Interface) -> TokenStream {
    let name = &item.ident;
    let server = format_ident!("{name}Interface");
    let known = interface
        .methods
        .iter()
        .map(|Method { called, conditions, .. }| quote!(#(#conditions)* #called));
    let known: Vec<_> = known.collect();
    let arms = interface.methods.iter().map(|method| {
        let Method {
            name: function,
            called: text,
            conditions,
            parameters,
            emitter,
            receiver,
            output,
            ..
        } = method;
        let names = parameters.iter().map(|parameter| &parameter.name);
        let types = parameters.iter().map(Parameter::decoded);
        let optional = parameters.iter().rev().take_while(|one| one.is_optional()).count();
        let parse = match optional {
            0 => quote!(__request.parse::<(#(#types,)*)>()),
            _ => quote!(__request.parse_optional::<(#(#types,)*)>(#optional)),
        };
        let mut passed: Vec<_> = parameters.iter().map(Parameter::passed).collect();
        let emitter_passed = emitter.as_ref().map(|it| (it.index, quote!(&mut __emitter)));
        let receiver_passed = receiver.as_ref().map(|it| (it.index, quote!(&mut __receiver)));
        let mut streams: Vec<_> = emitter_passed.into_iter().chain(receiver_passed).collect();
        // Each index counts what is in front.
        streams.sort_by_key(|(index, _)| *index);
        for (index, stream) in streams {
            passed.insert(index, stream);
        }
        let answer = match output {
            Output::Plain(_) => quote!(__request.value(&__result)),
            // This span makes the compiler report an unsuitable error type where the trait names it.
            Output::Typed { error, .. } => {
                quote_spanned!(error.span()=> __request.typed(__result))
            }
            Output::Untyped { value } => {
                quote_spanned!(value.span()=> __request.untyped(__result))
            }
        };
        let answer = quote! {{
            let __result = <S as #name>::#function(__state, #(#passed),*);
            #answer
        }};
        // It asks for items, so it comes last.
        let answer = match receiver {
            None => answer,
            Some(receiver) => {
                let item = &receiver.item;
                quote! {
                    match __request.receiver::<#item>() {
                        ::core::result::Result::Ok(mut __receiver) => #answer,
                        ::core::result::Result::Err(__reply) => __reply,
                    }
                }
            }
        };
        let answer = match emitter {
            None => answer,
            Some(Emitter { item, .. }) => quote! {
                match __request.emitter::<#item>() {
                    ::core::result::Result::Ok(mut __emitter) => #answer,
                    ::core::result::Result::Err(__reply) => __reply,
                }
            },
        };
        quote! {
            #(#conditions)*
            ::core::option::Option::Some(#text) => match #parse {
                ::core::result::Result::Ok((#(#names,)*)) => #answer,
                ::core::result::Result::Err(__reply) => __reply,
            },
        }
    });
    let streams = question("streams", interface, |method| method.emitter.is_some());
    let takes_input = question("takes_input", interface, |method| method.receiver.is_some());
    quote! {
        impl<S: #name + 'static> ::taskfork::worker::Interface<S> for #server {
            fn call(
                &self,
                __state: &mut S,
                __request: ::taskfork::__private::Request<'_>,
            ) -> ::taskfork::__private::Reply {
                match __request.method() {
                    #(#arms)*
                    _ => __request.unknown_method([#(#known),*]),
                }
            }

            fn method_names(&self) -> ::std::vec::Vec<::std::string::String> {
                let __known: &[&str] = &[#(#known),*];
                __known.iter().map(::std::string::ToString::to_string).collect()
            }

            fn replaced_after(&self) -> ::taskfork::worker::ReplaceAfter {
                ::taskfork::worker::ReplaceAfter::Panic
            }

            fn descriptions(
                &self,
            ) -> ::std::vec::Vec<&'static ::taskfork::__private::InterfaceDescription> {
                ::std::vec![<Self as ::taskfork::__private::Described>::DESCRIPTION]
            }

            #streams

            #takes_input
        }
    }
}

/// A method of the interface's trait that says which methods have a property. Nothing if none has it.
fn question(
    name: &str,
    interface: &Interface,
    has: impl Fn(&Method) -> bool,
) -> Option<TokenStream> {
    let having = interface.methods.iter().filter(|method| has(method));
    let having: Vec<_> = having
        .map(|Method { called, conditions, .. }| {
            quote!(#(#conditions)* ::core::option::Option::Some(#called) => true,)
        })
        .collect();
    let name = format_ident!("{name}");
    (!having.is_empty()).then(|| {
        quote! {
            fn #name(
                &self,
                __method: ::core::option::Option<&str>,
                _: ::core::option::Option<&str>,
            ) -> bool {
                match __method {
                    #(#having)*
                    _ => false,
                }
            }
        }
    })
}

/// The type that stands for the interface, and what client and server compare.
fn description(item: &ItemTrait, interface: &Interface) -> TokenStream {
    let server = format_ident!("{}Interface", item.ident);
    let docs = format!("Serves [`{}`] from a worker whose state implements it.", item.ident);
    let name = name_text(&item.ident);
    let methods = interface.methods.iter().map(|method| {
        let Method { called, conditions, parameters, emitter, receiver, output, .. } = method;
        let parameters = parameters.iter().map(|parameter| {
            let (name, ty) = (name_text(&parameter.name), type_text(parameter.ty()));
            quote!((#name, #ty))
        });
        let (value, error) = match output {
            Output::Plain(value) => (value, quote!(None)),
            Output::Typed { value, error } => {
                let error = type_text(error);
                (value, quote!(Some(#error)))
            }
            Output::Untyped { value } => {
                (value, quote!(Some(::taskfork::__private::UNTYPED_ERROR)))
            }
        };
        let result = match emitter {
            Some(Emitter { item, .. }) => {
                format!("items {}, then {}", type_text(item), type_text(value))
            }
            None => type_text(value),
        };
        let result = match receiver {
            Some(receiver) => format!("for items {}: {result}", type_text(&receiver.item)),
            None => result,
        };
        quote! {
            #(#conditions)*
            ::taskfork::__private::MethodDescription {
                name: #called,
                parameters: &[#(#parameters),*],
                result: #result,
                error: ::core::option::Option::#error,
            }
        }
    });
    let vis = &item.vis;
    quote! {
        #[doc = #docs]
        #[derive(Debug, Clone, Copy, Default)]
        #vis struct #server;

        impl ::taskfork::__private::Described for #server {
            const DESCRIPTION: &'static ::taskfork::__private::InterfaceDescription =
                &::taskfork::__private::InterfaceDescription::new(#name, &[#(#methods),*]);
        }
    }
}

/// The name without the prefix `r#`.
fn name_text(name: &Ident) -> String {
    let text = name.to_string();
    text.strip_prefix("r#").unwrap_or(&text).to_owned()
}

fn calls(item: &ItemTrait, interface: &Interface) -> TokenStream {
    let output = |method: &Method| {
        let (value, error) = types(method);
        match &method.emitter {
            Some(Emitter { item, .. }) => quote!(::taskfork::StreamCall<#item, #value, #error>),
            None => quote!(::taskfork::Call<#value, #error>),
        }
    };
    let calls = Calls {
        name: format_ident!("{}Calls", item.ident),
        where_used: "on a [`Checkout`](::taskfork::Checkout) or a client",
        module: quote!(::taskfork::client),
        output: &output,
        interface: name_text(&item.ident),
    };
    let clients = Clients {
        calls: &calls,
        client: format_ident!("{}Client", item.ident),
        checkout: format_ident!("{}Checkout", item.ident),
        module: quote!(::taskfork::client),
        kind: Kind::Async,
    };
    let (calls, clients) = (calls.expand(item, interface), clients.expand(item, interface));
    quote!(#calls #clients)
}

fn blocking_calls(item: &ItemTrait, interface: &Interface) -> TokenStream {
    let output = |method: &Method| {
        let (value, error) = types(method);
        match &method.emitter {
            Some(Emitter { item, .. }) => {
                quote!(::taskfork::blocking::StreamCall<#item, #value, #error>)
            }
            None => quote!(::core::result::Result<#value, ::taskfork::Error<#error>>),
        }
    };
    let calls = Calls {
        name: format_ident!("{}BlockingCalls", item.ident),
        where_used: "in a program without async",
        module: quote!(::taskfork::blocking),
        output: &output,
        interface: name_text(&item.ident),
    };
    let clients = Clients {
        calls: &calls,
        client: format_ident!("{}BlockingClient", item.ident),
        checkout: format_ident!("{}BlockingCheckout", item.ident),
        module: quote!(::taskfork::blocking),
        kind: Kind::Blocking,
    };
    let (calls, clients) = (calls.expand(item, interface), clients.expand(item, interface));
    quote!(#calls #clients)
}

/// A trait with the methods for callers. Types of tests can implement it too.
pub(crate) struct Calls<'a> {
    name: Ident,
    where_used: &'a str,
    /// The module with the trait of callers.
    module: TokenStream,
    /// What a method returns.
    output: &'a dyn Fn(&Method) -> TokenStream,
    /// The name of the interface.
    interface: String,
}

impl Calls<'_> {
    fn expand(&self, item: &ItemTrait, interface: &Interface) -> TokenStream {
        let Self { name, where_used, module, .. } = self;
        let (vis, interface_name) = (&item.vis, &item.ident);
        let docs = format!("The methods of [`{interface_name}`] {where_used}.");
        let declared = interface.methods.iter().map(|method| {
            let (docs, signature) = (&method.docs, self.signature(method));
            quote!(#(#docs)* #signature;)
        });
        let methods = interface.methods.iter().map(|method| {
            let (signature, call) = (self.signature(method), self.call(method, &quote!(self)));
            quote!(#signature { #call })
        });
        quote! {
            #[doc = #docs]
            #vis trait #name {
                #(#declared)*
            }

            impl<C: #module::Caller + ?Sized> #name for C {
                #(#methods)*
            }
        }
    }

    /// The methods as those of a type, which calls through `caller`.
    pub(crate) fn methods(
        &self,
        interface: &Interface,
        caller: &TokenStream,
        vis: &TokenStream,
    ) -> Vec<TokenStream> {
        let method = |method: &Method| {
            let (docs, call) = (&method.docs, self.call(method, caller));
            let signature = self.signature_with(method, vis);
            quote!(#(#docs)* #signature { #call })
        };
        interface.methods.iter().map(method).collect()
    }

    /// The implementation of the trait by a type that calls through `caller`.
    pub(crate) fn implementation(
        &self,
        of: &Ident,
        interface: &Interface,
        caller: &TokenStream,
    ) -> TokenStream {
        let name = &self.name;
        let methods = interface.methods.iter().map(|method| {
            let (signature, call) = (self.signature(method), self.call(method, caller));
            quote!(#signature { #call })
        });
        quote! {
            impl #name for #of {
                #(#methods)*
            }
        }
    }

    /// The signature of a method of the trait. One that takes any stream as its input is not for `dyn`, which the others
    /// are.
    fn signature(&self, method: &Method) -> TokenStream {
        let signature = self.signature_with(method, &TokenStream::new());
        match method.receiver {
            Some(_) => quote!(#signature where Self: ::core::marker::Sized),
            None => signature,
        }
    }

    fn signature_with(&self, method: &Method, vis: &TokenStream) -> TokenStream {
        let Method { name, conditions, parameters, .. } = method;
        let output = (self.output)(method);
        let accepted = parameters.iter().map(|parameter| {
            let (name, ty) = (&parameter.name, parameter.accepted());
            quote!(#name: #ty)
        });
        let mut accepted: Vec<_> = accepted.collect();
        if let Some(receiver) = &method.receiver {
            accepted.insert(receiver.passed_before, receiver.accepted(&self.module));
        }
        quote! {
            #(#conditions)*
            #[track_caller]
            #vis fn #name(&self, #(#accepted),*) -> #output
        }
    }

    /// A call of the method through `by`.
    fn call(&self, method: &Method, by: &TokenStream) -> TokenStream {
        let (module, called, interface) = (&self.module, &method.called, &self.interface);
        let is_idempotent = method.is_idempotent;
        let arguments = method.parameters.iter().map(Parameter::encoded);
        let span = match &method.output {
            Output::Plain(value) | Output::Untyped { value } => value.span(),
            Output::Typed { error, .. } => error.span(),
        };
        let function = match (&method.emitter, &method.receiver) {
            (None, None) => quote!(typed),
            (Some(_), None) => quote!(streamed),
            (None, Some(_)) => quote!(typed_with_input),
            (Some(_), Some(_)) => quote!(streamed_with_input),
        };
        let input = method.receiver.iter().map(|receiver| receiver.input(module));
        let method = quote! {
            ::taskfork::__private::TypedMethod {
                interface: #interface,
                name: #called,
                is_idempotent: #is_idempotent,
            }
        };
        quote_spanned!(span=> #module::Caller::#function(#by, #method, (#(#arguments,)*) #(, #input)*))
    }
}

fn types(method: &Method) -> (TokenStream, TokenStream) {
    match &method.output {
        Output::Plain(value) | Output::Untyped { value } => {
            (quote!(#value), quote!(::taskfork::error::Failure))
        }
        Output::Typed { value, error } => (quote!(#value), quote!(#error)),
    }
}
