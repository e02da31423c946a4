//! Types as texts, by which client and server compare their interfaces.
//!
//! The text of a type is what travels: a reference has that of its owner. Paths have their last names only, so that it
//! does not matter how a type is imported.

use quote::ToTokens;
use syn::{GenericArgument, PathArguments, ReturnType, Type, TypePath};

pub(crate) fn type_text(ty: &Type) -> String {
    match ty {
        Type::Path(path) => path_text(path),
        Type::Tuple(tuple) => {
            let comma = if tuple.elems.len() == 1 { "," } else { "" };
            format!("({}{comma})", list(tuple.elems.iter().map(type_text)))
        }
        Type::Slice(slice) => match type_text(&slice.elem) {
            text if text == "u8" => "Blob".to_owned(),
            text => format!("Vec<{text}>"),
        },
        Type::Array(array) => {
            format!("[{}; {}]", type_text(&array.elem), array.len.to_token_stream())
        }
        Type::Reference(reference) => type_text(&reference.elem),
        Type::Paren(inner) => type_text(&inner.elem),
        Type::Group(inner) => type_text(&inner.elem),
        other => other.to_token_stream().to_string(),
    }
}

fn path_text(path: &TypePath) -> String {
    let Some(last) = path.path.segments.last() else { return String::new() };
    let name = last.ident.to_string();
    let name = match name.strip_prefix("r#").unwrap_or(&name) {
        "str" => "String",
        "Path" => "PathBuf",
        name => name,
    };
    match &last.arguments {
        PathArguments::None => name.to_owned(),
        PathArguments::AngleBracketed(arguments) => {
            format!("{name}<{}>", list(arguments.args.iter().map(argument_text)))
        }
        PathArguments::Parenthesized(arguments) => {
            let inputs = list(arguments.inputs.iter().map(|input| type_text(&input.ty)));
            match &arguments.output {
                ReturnType::Default => format!("{name}({inputs})"),
                ReturnType::Type(_, ty) => format!("{name}({inputs}) -> {}", type_text(ty)),
            }
        }
    }
}

fn argument_text(argument: &GenericArgument) -> String {
    match argument {
        GenericArgument::Type(ty) => type_text(ty),
        other => other.to_token_stream().to_string(),
    }
}

fn list(texts: impl Iterator<Item = String>) -> String {
    texts.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_has_one_text_however_it_is_written() {
        for (source, text) in [
            ("std::string::String", "String"),
            ("&str", "String"),
            ("&std::path::Path", "PathBuf"),
            ("&[u8]", "Blob"),
            ("taskfork::Blob", "Blob"),
            ("&[Item]", "Vec<Item>"),
            ("std::vec::Vec<crate::Item>", "Vec<Item>"),
            ("HashMap < String , Option<u8> >", "HashMap<String, Option<u8>>"),
            ("()", "()"),
            ("(u8,)", "(u8,)"),
            ("(u8, [i64; 3])", "(u8, [i64; 3])"),
            ("r#type", "type"),
        ] {
            let ty: Type = syn::parse_str(source).unwrap();
            assert_eq!(type_text(&ty), text, "{source}");
        }
    }
}
