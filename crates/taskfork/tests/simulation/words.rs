//! Plans as text: each item is a word with its numbers, such as `cut:3:40`.

/// Defines an enum whose variants have numbers only, with a word for each variant.
macro_rules! words {
    (
        $(#[$meta:meta])*
        pub(crate) enum $name:ident {
            $($(#[$about:meta])* $variant:ident $word:literal { $($field:ident),* },)*
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum $name {
            $($(#[$about])* $variant { $($field: u64),* },)*
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                match self {
                    $(Self::$variant { $($field),* } => {
                        out.write_str($word)?;
                        $(write!(out, ":{}", $field)?;)*
                    })*
                }
                Ok(())
            }
        }

        impl $name {
            /// Reads one item. Returns `None` if it is another kind of item.
            pub(crate) fn parse(text: &str) -> Option<Self> {
                let (word, numbers) = text.split_once(':').unwrap_or((text, ""));
                let mut numbers = numbers.split(':').map_while(|number| number.parse().ok());
                let item = match word {
                    $($word => Self::$variant { $($field: numbers.next()?),* },)*
                    _ => return None,
                };
                numbers.next().is_none().then_some(item)
            }
        }
    };
}

pub(crate) use words;
