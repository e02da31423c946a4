//! The protocols that a connection can speak.

/// Which of the two protocols is spoken. Defaults to [`Native`](Self::Native).
///
/// ```
/// use taskfork::Client;
/// use taskfork::client::Protocol;
///
/// let builder = Client::builder().address("unix:/run/perl.sock").protocol(Protocol::Perl);
/// # let _ = builder;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Protocol {
    /// The crate's own protocol, which supports all of its features.
    #[default]
    Native,
    /// The protocol of the Perl module AnyEvent::Task: JSON, one call at a time.
    ///
    /// It does not explain a worker's death, and sends neither times nor traces with calls. Binary data is a string
    /// with one character for each byte.
    ///
    /// Such a string is decoded to bytes where a type asks for bytes, as [`Blob`](crate::Blob) and the types of
    /// `serde_bytes` do. A character above U+00FF is an error of the call. A [`Value`](crate::client::Value) holds
    /// the string as it is. Inside types that serde buffers first (`#[serde(untagged)]`, `#[serde(flatten)]`,
    /// `#[serde(tag = "…")]`) only a `Blob` is decoded so: the types of `serde_bytes` get the string's UTF-8 bytes.
    Perl,
}
