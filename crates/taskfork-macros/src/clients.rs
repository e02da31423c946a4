//! Generates the clients and checkouts that have the methods of one interface, and no others.

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
        let build = match self.kind {
            Kind::Async => "[`build_as`](::taskfork::client::ClientBuilder::build_as)",
            Kind::Blocking => {
                "[`build_blocking_as`](::taskfork::client::ClientBuilder::build_blocking_as)"
            }
        };
        let docs = [
            format!("A client for the methods of [`{name}`], which its server must serve."),
            String::new(),
            format!("Make it with {build}, or from a client, whose workers it shares then."),
        ];
        let methods = calls.methods(interface, &quote!(&self.inner), &quote!(#vis));
        let of_trait = calls.implementation(client, interface, &quote!(&self.inner));
        let close = self.close(item);
        quote! {
            #(#[doc = #docs])*
            #[allow(dead_code, reason = "a program need not use all that is made of an interface")]
            #[derive(Debug, Clone)]
            #vis struct #client {
                inner: #module::Client,
            }

            #[allow(dead_code, clippy::too_many_arguments, reason = "it is as the interface's trait is")]
            impl #client {
                #(#methods)*

                /// Checks a worker out, or joins the queue for one. Returns at once.
                #vis fn checkout(&self) -> #checkout {
                    #checkout { inner: self.inner.checkout() }
                }

                /// Checks a worker out if one is idle now. Returns `None` otherwise, and never joins the queue.
                #vis fn try_checkout(&self) -> ::core::option::Option<#checkout> {
                    let inner = self.inner.try_checkout()?;
                    ::core::option::Option::Some(#checkout { inner })
                }

                /// A client whose calls of methods with `#[taskfork(idempotent)]` are made again, up to `times` times
                /// each, if they die with their workers. Calls of checkouts are not. Defaults to 0.
                #[must_use = "it returns another client"]
                #vis fn retry(&self, times: u32) -> Self {
                    Self { inner: self.inner.retry(times) }
                }

                #close

                /// Whether `close` has been called on this client or on one that shares its workers.
                #vis fn is_closed(&self) -> bool {
                    self.inner.is_closed()
                }

                /// The current numbers of workers and checkouts, and the totals since the client was built.
                #vis fn stats(&self) -> ::taskfork::client::Stats {
                    self.inner.stats()
                }

                /// The client that shares these workers and has no methods of an interface.
                #vis fn untyped(&self) -> &#module::Client {
                    &self.inner
                }
            }

            impl ::core::convert::From<#module::Client> for #client {
                /// A client with the same workers. Those that are connected already are replaced, because the
                /// server compares interfaces when a worker is connected.
                fn from(inner: #module::Client) -> Self {
                    ::taskfork::__private::require::<#server>(&inner);
                    Self { inner }
                }
            }

            impl #module::TypedClient for #client {
                type Interface = #server;
            }

            #of_trait
        }
    }

    fn close(&self, item: &ItemTrait) -> TokenStream {
        let vis = &item.vis;
        let docs = "Closes the client and all that share its workers, and waits until the last connection is \
                    closed.";
        match self.kind {
            Kind::Async => quote! {
                #[doc = #docs]
                #vis fn close(
                    &self,
                ) -> impl ::core::future::Future<Output = ()> + ::core::marker::Send + '_ {
                    self.inner.close()
                }
            },
            Kind::Blocking => quote! {
                #[doc = #docs]
                #vis fn close(&self) {
                    self.inner.close();
                }
            },
        }
    }

    fn checkout(&self, item: &ItemTrait, interface: &Interface) -> TokenStream {
        let Self { calls, client, checkout, module, .. } = self;
        let (vis, name) = (&item.vis, &item.ident);
        let docs = format!(
            "Holds one worker exclusively, for the methods of [`{name}`]. From [`{client}`]."
        );
        let methods = calls.methods(interface, &quote!(&self.inner), &quote!(#vis));
        let of_trait = calls.implementation(checkout, interface, &quote!(&self.inner));
        let ready = match self.kind {
            Kind::Async => quote!(::taskfork::Call<()>),
            Kind::Blocking => quote!(::core::result::Result<(), ::taskfork::Error>),
        };
        quote! {
            #[doc = #docs]
            #[allow(dead_code, reason = "a program need not use all that is made of an interface")]
            #[derive(Debug)]
            #[must_use = "a checkout is released when it is dropped"]
            #vis struct #checkout {
                inner: #module::Checkout,
            }

            #[allow(dead_code, clippy::too_many_arguments, reason = "it is as the interface's trait is")]
            impl #checkout {
                #(#methods)*

                /// Sets the time limit of each call that is made from now on. `None` means no limit. Defaults to
                /// that of the client.
                #[must_use = "it returns the checkout, which is released when it is dropped"]
                #vis fn timeout(
                    self,
                    timeout: impl ::core::convert::Into<::core::option::Option<::core::time::Duration>>,
                ) -> Self {
                    Self { inner: self.inner.timeout(timeout) }
                }

                /// Records each call that is made from now on in `log`. Defaults to no log.
                #[must_use = "it returns the checkout, which is released when it is dropped"]
                #vis fn log(self, log: &::taskfork::log_defer::Log) -> Self {
                    Self { inner: self.inner.log(log) }
                }

                /// Sets the trace that each call made from now on belongs to.
                #[must_use = "it returns the checkout, which is released when it is dropped"]
                #vis fn trace_context(
                    self,
                    context: ::taskfork::trace_context::TraceContext,
                ) -> Self {
                    Self { inner: self.inner.trace_context(context) }
                }

                /// Waits until the checkout has a worker and the calls made before are over. It runs nothing in
                /// the worker.
                #[track_caller]
                #vis fn ready(&self) -> #ready {
                    self.inner.ready()
                }

                /// Allocates memory of `length` bytes for an argument, to be filled in place.
                ///
                /// # Errors
                /// If the system has no memory or descriptor left.
                #vis fn alloc_blob(
                    &self,
                    length: usize,
                ) -> ::std::io::Result<::taskfork::blob::BlobMut> {
                    self.inner.alloc_blob(length)
                }

                /// Ends the checkout: all its calls fail with `message`, those made later included.
                #vis fn abort(&self, message: impl ::core::convert::Into<::std::string::String>) {
                    self.inner.abort(message);
                }
            }

            #of_trait
        }
    }
}
