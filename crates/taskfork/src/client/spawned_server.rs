//! The server that this program has started at an address, as its clients see it.

#[cfg(not(feature = "server"))]
pub(crate) use self::none::SpawnedServer;
#[cfg(feature = "server")]
pub(crate) use crate::server::SpawnedServer;

/// Without the feature `server` a program starts none.
#[cfg(not(feature = "server"))]
mod none {
    use std::fmt;

    use crate::address::Address;
    use crate::error::FatalError;

    #[derive(Debug, Clone)]
    pub(crate) enum SpawnedServer {}

    impl SpawnedServer {
        pub(crate) fn find(_: &Address) -> Option<Self> {
            None
        }

        pub(crate) fn watch(&self) {
            match *self {}
        }

        pub(crate) fn end(&self) -> Option<ServerExit> {
            match *self {}
        }

        pub(crate) fn trouble(&self) -> Option<String> {
            match *self {}
        }

        pub(crate) fn recent_end(&self) -> Option<ServerExit> {
            match *self {}
        }
    }

    /// How a server has ended.
    #[derive(Debug, Clone)]
    pub(crate) enum ServerExit {}

    impl fmt::Display for ServerExit {
        fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
            match *self {}
        }
    }

    impl From<ServerExit> for FatalError {
        fn from(exit: ServerExit) -> Self {
            match exit {}
        }
    }
}
