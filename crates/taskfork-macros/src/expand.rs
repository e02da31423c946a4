//! Generates the dispatch in the worker and the typed calls of the client.

use proc_macro2::{Span, TokenStream};
use quote::{format_ident, quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{Ident, ItemTrait, LitStr, Type};

use crate::model::{Interface, Method, Output, Parameter};

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
    let known = interface.methods.iter().map(|method| method_name(&method.name));
    let arms = interface.methods.iter().map(|method| {
        let text = method_name(&method.name);
        let function = &method.name;
        let names: Vec<_> = method.parameters.iter().map(|parameter| &parameter.name).collect();
        let types = method.parameters.iter().map(|parameter| &parameter.ty);
        let answer = match &method.output {
            Output::Plain(_) => quote!(__request.value(&__result)),
            // This span makes the compiler report an unsuitable error type where the trait names it.
            Output::Fallible { error, .. } => {
                quote_spanned!(error.span()=> __request.typed(__result))
            }
        };
        quote! {
            ::core::option::Option::Some(#text) => match __request.parse::<(#(#types,)*)>() {
                ::core::result::Result::Ok((#(#names,)*)) => {
                    let __result = <S as #name>::#function(__state, #(#names),*);
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
    let (name, docs, text) = (&method.name, &method.docs, method_name(&method.name));
    let parameters = method.parameters.iter().map(|Parameter { name, ty }| {
        if is_string(ty) {
            quote!(#name: impl ::core::convert::AsRef<str>)
        } else {
            quote!(#name: #ty)
        }
    });
    let arguments = method.parameters.iter().map(|Parameter { name, ty }| {
        if is_string(ty) {
            quote!(::core::convert::AsRef::<str>::as_ref(&#name))
        } else {
            quote!(#name)
        }
    });
    let span = match &method.output {
        Output::Plain(value) => value.span(),
        Output::Fallible { error, .. } => error.span(),
    };
    let call = quote_spanned!(span=> #caller::typed(self, #text, (#(#arguments,)*)));
    quote! {
        #(#docs)*
        #[track_caller]
        fn #name(&self, #(#parameters),*) -> #output {
            #call
        }
    }
}

fn types(method: &Method) -> (TokenStream, TokenStream) {
    match &method.output {
        Output::Plain(value) => (quote!(#value), quote!(::taskfork::error::Failure)),
        Output::Fallible { value, error } => (quote!(#value), quote!(#error)),
    }
}

/// Whether `ty` is `String`: then callers may pass any `AsRef<str>`.
fn is_string(ty: &Type) -> bool {
    matches!(ty, Type::Path(path) if path.qself.is_none() && path.path.is_ident("String"))
}

/// The method's name on the wire, which has no `r#` prefix.
fn method_name(name: &Ident) -> LitStr {
    let text = name.to_string();
    LitStr::new(text.strip_prefix("r#").unwrap_or(&text), Span::call_site())
}
