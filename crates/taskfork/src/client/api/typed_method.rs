//! What a typed call says about its method.

/// A method of a typed interface, as a call names it.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TypedMethod {
    pub interface: &'static str,
    pub name: &'static str,
    /// Running it twice does no harm.
    pub is_idempotent: bool,
}
