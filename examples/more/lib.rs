//! The examples are programs; this package has no library of its own.
