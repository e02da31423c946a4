//! Generates the dispatch in the worker and the typed calls of the client.

use proc_macro2::TokenStream;
use quote::{format_ident, quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{Ident, ItemTrait};

use crate::emitter::Emitter;
use crate::model::{Interface, Method, Output};
use crate::parameter::Parameter;

pub(crate) fn expand(item: &ItemTrait, interface: &Interface) -> TokenStream {
    let dispatch = dispatch(item, interface);
    let calls = calls(item, interface);
    let blocking = blocking_calls(item, interface);
    quote! {
        #item
        #dispatch
        #calls
        #blocking
    }
}

fn dispatch(item: &ItemTrait, interface: &Interface) -> TokenStream {
    let (vis, name) = (&item.vis, &item.ident);
    let server = format_ident!("{name}Interface");
    let docs = format!("Serves [`{name}`] from a worker whose state implements it.");
    let known = interface
        .methods
        .iter()
        .map(|Method { called, conditions, .. }| quote!(#(#conditions)* #called));
    let arms = interface.methods.iter().map(|method| {
        let Method {
            name: function, called: text, conditions, parameters, emitter, output, ..
        } = method;
        let names = parameters.iter().map(|parameter| &parameter.name);
        let types = parameters.iter().map(Parameter::decoded);
        let mut passed: Vec<_> = parameters.iter().map(Parameter::passed).collect();
        if let Some(emitter) = emitter {
            passed.insert(emitter.index, quote!(&mut __emitter));
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
            ::core::option::Option::Some(#text) => match __request.parse::<(#(#types,)*)>() {
                ::core::result::Result::Ok((#(#names,)*)) => #answer,
                ::core::result::Result::Err(__reply) => __reply,
            },
        }
    });
    let streaming: Vec<_> = interface
        .methods
        .iter()
        .filter(|method| method.emitter.is_some())
        .map(|Method { called, conditions, .. }| {
            quote!(#(#conditions)* ::core::option::Option::Some(#called) => true,)
        })
        .collect();
    let streams = (!streaming.is_empty()).then(|| {
        quote! {
            fn streams(&self, __method: ::core::option::Option<&str>) -> bool {
                match __method {
                    #(#streaming)*
                    _ => false,
                }
            }
        }
    });
    quote! {
        #[doc = #docs]
        #[derive(Debug, Clone, Copy, Default)]
        #vis struct #server;

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

            #streams
        }
    }
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
        caller: quote!(::taskfork::client::Caller),
        output: &output,
    };
    calls.expand(item, interface)
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
        caller: quote!(::taskfork::blocking::Caller),
        output: &output,
    };
    calls.expand(item, interface)
}

/// A trait with the methods for callers. Types of tests can implement it too.
struct Calls<'a> {
    name: Ident,
    where_used: &'a str,
    caller: TokenStream,
    /// What a method returns.
    output: &'a dyn Fn(&Method) -> TokenStream,
}

impl Calls<'_> {
    fn expand(&self, item: &ItemTrait, interface: &Interface) -> TokenStream {
        let Self { name, where_used, caller, .. } = self;
        let (vis, interface_name) = (&item.vis, &item.ident);
        let docs = format!("The methods of [`{interface_name}`] {where_used}.");
        let declared = interface.methods.iter().map(|method| {
            let (docs, signature) = (&method.docs, self.signature(method));
            quote!(#(#docs)* #signature;)
        });
        let methods = interface.methods.iter().map(|method| {
            let (signature, call) = (self.signature(method), self.call(method));
            quote!(#signature { #call })
        });
        quote! {
            #[doc = #docs]
            #vis trait #name {
                #(#declared)*
            }

            impl<C: #caller + ?Sized> #name for C {
                #(#methods)*
            }
        }
    }

    fn signature(&self, method: &Method) -> TokenStream {
        let Method { name, conditions, parameters, .. } = method;
        let output = (self.output)(method);
        let accepted = parameters.iter().map(|parameter| {
            let (name, ty) = (&parameter.name, parameter.accepted());
            quote!(#name: #ty)
        });
        quote! {
            #(#conditions)*
            #[track_caller]
            fn #name(&self, #(#accepted),*) -> #output
        }
    }

    fn call(&self, method: &Method) -> TokenStream {
        let (caller, called) = (&self.caller, &method.called);
        let arguments = method.parameters.iter().map(Parameter::encoded);
        let span = match &method.output {
            Output::Plain(value) | Output::Untyped { value } => value.span(),
            Output::Typed { error, .. } => error.span(),
        };
        let function = match method.emitter {
            Some(_) => quote!(streamed),
            None => quote!(typed),
        };
        quote_spanned!(span=> #caller::#function(self, #called, (#(#arguments,)*)))
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
