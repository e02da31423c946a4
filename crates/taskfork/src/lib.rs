//! TODO-DOC
mod address;
mod client;
mod display;
mod error;
mod server;
mod sys;
mod wire;
mod worker;

pub use address::{Address, AddressError};
pub use error::{
    Activity, CallError, Death, End, Error, Failure, FatalError, Location, Panic, Stage,
};
pub use rmpv::Value;
pub use server::{Entry, Server, ServerBuilder, ServerError, ServerHandle, init};
pub use wire::answer::InterfaceError;
pub use wire::args::Args;
pub use wire::request::{Arguments, ArgumentsError, FromArguments};
pub use worker::function::Function;
pub use worker::interface::{BoxError, Interface};
pub use worker::methods::{Method, Methods, Stateless};
