//! Generates the dispatch in the worker and the typed calls of the client.

use proc_macro2::TokenStream;
use quote::{format_ident, quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{Ident, ItemTrait};

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
        let Method { name: function, called: text, conditions, parameters, output, .. } = method;
        let names = parameters.iter().map(|parameter| &parameter.name);
        let types = parameters.iter().map(Parameter::decoded);
        let passed = parameters.iter().map(Parameter::passed);
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
        quote! {
            #(#conditions)*
            ::core::option::Option::Some(#text) => match __request.parse::<(#(#types,)*)>() {
                ::core::result::Result::Ok((#(#names,)*)) => {
                    let __result = <S as #name>::#function(__state, #(#passed),*);
                    #answer
                }
                ::core::result::Result::Err(__reply) => __reply,
            },
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
        }
    }
}

fn calls(item: &ItemTrait, interface: &Interface) -> TokenStream {
    let caller = quote!(::taskfork::client::Caller);
    let methods = interface.methods.iter().map(|method| {
        let (value, error) = types(method);
        call_method(method, &caller, &quote!(::taskfork::Call<#value, #error>))
    });
    let calls = format_ident!("{}Calls", item.ident);
    let where_used = "on a [`Checkout`](::taskfork::Checkout) or a client";
    extension_trait(item, &calls, where_used, &caller, methods)
}

fn blocking_calls(item: &ItemTrait, interface: &Interface) -> TokenStream {
    let caller = quote!(::taskfork::blocking::Caller);
    let methods = interface.methods.iter().map(|method| {
        let (value, error) = types(method);
        let result = quote!(::core::result::Result<#value, ::taskfork::Error<#error>>);
        call_method(method, &caller, &result)
    });
    let calls = format_ident!("{}BlockingCalls", item.ident);
    extension_trait(item, &calls, "in a program without async", &caller, methods)
}

fn extension_trait(
    item: &ItemTrait,
    calls: &Ident,
    where_used: &str,
    caller: &TokenStream,
    methods: impl Iterator<Item = TokenStream>,
) -> TokenStream {
    let (vis, name) = (&item.vis, &item.ident);
    let docs = format!("The methods of [`{name}`] {where_used}.");
    quote! {
        #[doc = #docs]
        #vis trait #calls: #caller {
            #(#methods)*
        }

        impl<C: #caller + ?Sized> #calls for C {}
    }
}

fn call_method(method: &Method, caller: &TokenStream, output: &TokenStream) -> TokenStream {
    let Method { name, called, conditions, docs, parameters, .. } = method;
    let accepted = parameters.iter().map(|parameter| {
        let (name, ty) = (&parameter.name, parameter.accepted());
        quote!(#name: #ty)
    });
    let arguments = parameters.iter().map(Parameter::encoded);
    let span = match &method.output {
        Output::Plain(value) | Output::Untyped { value } => value.span(),
        Output::Typed { error, .. } => error.span(),
    };
    let call = quote_spanned!(span=> #caller::typed(self, #called, (#(#arguments,)*)));
    quote! {
        #(#conditions)*
        #(#docs)*
        #[track_caller]
        fn #name(&self, #(#accepted),*) -> #output {
            #call
        }
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
