//! Generates the clients and checkouts that have the methods of one interface, and no others.
//!
//! They are types of the user's crate, because only those can have methods of the interface. All else they have by
//! dereferencing to `TypedHandle` and `TypedCheckout` of the library. Only the options of checkouts are generated, which take
//! the checkout by value: a type that dereferences to another cannot.

use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use syn::{Ident, ItemTrait};

use crate::expand::Calls;
use crate::model::Interface;

/// The clients of one kind: for async programs, or for others.
pub(crate) struct Clients<'a> {
    /// Their methods, and the trait that has them as well.
    pub(crate) calls: &'a Calls<'a>,
    /// The names of the client and of its checkout.
    pub(crate) client: Ident,
    pub(crate) checkout: Ident,
    /// The module of the untyped client.
    pub(crate) module: TokenStream,
    pub(crate) kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Async,
    Blocking,
}

impl Clients<'_> {
    pub(crate) fn expand(&self, item: &ItemTrait, interface: &Interface) -> TokenStream {
        let client = self.client(item, interface);
        let checkout = self.checkout(item, interface);
        quote!(#client #checkout)
    }

    fn client(&self, item: &ItemTrait, interface: &Interface) -> TokenStream {
        let Self { calls, client, checkout, module, .. } = self;
        let (vis, name) = (&item.vis, &item.ident);
        let server = format_ident!("{name}Interface");
        let (path, build, asynchronous) = match self.kind {
            Kind::Async => ("client", "build_as", TokenStream::new()),
            Kind::Blocking => {
                let client = format_ident!("{name}Client");
                ("blocking", "build_blocking_as", quote!(type Async = #client;))
            }
        };
        let docs = [
            format!("A client for the methods of [`{name}`], which its server must serve."),
            String::new(),
            format!(
                "Make it with [`{build}`](::taskfork::client::ClientBuilder::{build}), or from a client, whose workers it \
                 shares then. Options, `checkout`, `map` and others are methods of \
                 [`TypedHandle`](::taskfork::{path}::TypedHandle), to which it dereferences."
            ),
        ];
        let caller = quote!(self.inner.untyped());
        let methods = calls.methods(interface, &caller, &quote!(#vis));
        let of_trait = calls.implementation(client, interface, &caller);
        let deref = dereference(client, &quote!(#module::TypedHandle<#client>));
        quote! {
            #(#[doc = #docs])*
            #[allow(dead_code, reason = "a program need not use all that is made of an interface")]
            #[derive(Debug, Clone)]
            #vis struct #client {
                inner: #module::TypedHandle<Self>,
            }

            #[allow(dead_code, clippy::too_many_arguments, reason = "it is as the interface's trait is")]
            impl #client {
                #(#methods)*
            }

            impl ::core::convert::From<#module::Client> for #client {
                /// A client with the same workers. Those that are connected already are replaced, because the
                /// server compares interfaces when a worker is connected.
                fn from(client: #module::Client) -> Self {
                    Self { inner: #module::TypedHandle::new(client) }
                }
            }

            #deref

            impl #module::TypedClient for #client {
                type Checkout = #checkout;
                #asynchronous
                type Interface = #server;

                fn of(inner: #module::TypedHandle<Self>) -> Self {
                    Self { inner }
                }
            }

            #of_trait
        }
    }

    fn checkout(&self, item: &ItemTrait, interface: &Interface) -> TokenStream {
        let Self { calls, client, checkout, module, .. } = self;
        let (vis, name) = (&item.vis, &item.ident);
        let path = match self.kind {
            Kind::Async => "client",
            Kind::Blocking => "blocking",
        };
        let docs = [
            format!(
                "Holds one worker exclusively, for the methods of [`{name}`]. From [`{client}`]."
            ),
            String::new(),
            format!(
                "`ready`, `alloc_blob`, `abort` and others are methods of \
                 [`TypedCheckout`](::taskfork::{path}::TypedCheckout), to which it dereferences."
            ),
        ];
        let caller = quote!(self.inner.untyped());
        let methods = calls.methods(interface, &caller, &quote!(#vis));
        let of_trait = calls.implementation(checkout, interface, &caller);
        let options = options().map(|CheckoutOption { name, docs, ty }| {
            let docs = docs.iter();
            quote! {
                #(#[doc = #docs])*
                #[must_use = "it returns the checkout, which is released when it is dropped"]
                #vis fn #name(self, #name: #ty) -> Self {
                    Self { inner: self.inner.with(|checkout| checkout.#name(#name)) }
                }
            }
        });
        let deref = dereference(checkout, &quote!(#module::TypedCheckout));
        quote! {
            #(#[doc = #docs])*
            #[allow(dead_code, reason = "a program need not use all that is made of an interface")]
            #[derive(Debug)]
            #[must_use = "a checkout is released when it is dropped"]
            #vis struct #checkout {
                inner: #module::TypedCheckout,
            }

            #[allow(dead_code, clippy::too_many_arguments, reason = "it is as the interface's trait is")]
            impl #checkout {
                #(#methods)*
                #(#options)*
            }

            impl ::core::convert::From<#module::TypedCheckout> for #checkout {
                fn from(inner: #module::TypedCheckout) -> Self {
                    Self { inner }
                }
            }

            #deref

            #of_trait
        }
    }
}

/// An option that takes a checkout and returns it.
struct CheckoutOption {
    name: Ident,
    docs: &'static [&'static str],
    ty: TokenStream,
}

fn options() -> impl Iterator<Item = CheckoutOption> {
    let duration =
        || quote!(impl ::core::convert::Into<::core::option::Option<::core::time::Duration>>);
    let options: [(_, &[_], _); 4] = [
        (
            "timeout",
            &[
                "Sets the time limit of each call that is made from now on, counted from when it is made. `None`",
                "means no limit. Defaults to that of the client. See [`timeout`](::taskfork::Checkout::timeout).",
            ],
            duration(),
        ),
        (
            "run_timeout",
            &[
                "Sets the time limit of each call that is made from now on, counted from when it begins to run. `None`",
                "means no limit. Defaults to that of the client. See [`run_timeout`](::taskfork::Checkout::run_timeout).",
            ],
            duration(),
        ),
        (
            "log",
            &["Records each call that is made from now on in `log`. Defaults to no log."],
            quote!(&::taskfork::log_defer::Log),
        ),
        (
            "trace_context",
            &["Sets the trace that each call made from now on belongs to."],
            quote!(::taskfork::trace_context::TraceContext),
        ),
    ];
    options.into_iter().map(|(name, docs, ty)| CheckoutOption {
        name: format_ident!("{name}"),
        docs,
        ty,
    })
}

/// Makes `of` dereference to its field.
fn dereference(of: &Ident, target: &TokenStream) -> TokenStream {
    quote! {
        impl ::core::ops::Deref for #of {
            type Target = #target;

            fn deref(&self) -> &Self::Target {
                &self.inner
            }
        }
    }
}
