//! The call sites of workers' spans and events. `tracing` keeps a call site for as long as the program
//! runs, so their number and memory are bounded: no peer can fill this process.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, OnceLock};

use tracing::callsite::{self, Callsite, Identifier};
use tracing::field::FieldSet;
use tracing::metadata::Kind;
use tracing::subscriber::Interest;
use tracing::{Level, Metadata};

use crate::sync::lock;
use crate::wire::trace;

/// Fields that the client adds to each replayed span or event.
pub(crate) const PID: &str = "worker.pid";
pub(crate) const TIME: &str = "worker.time";
/// Fields that the client adds to spans only.
pub(crate) const ENTERED: &str = "worker.entered";
pub(crate) const CLOSED: &str = "worker.closed";
pub(crate) const BUSY: &str = "worker.busy";

/// The most sites that this process keeps.
const MAX_SITES: usize = 10_000;

/// The most memory that they occupy together, in bytes.
const MAX_MEMORY: usize = 8 << 20;

/// The longest encoded description of one site, in bytes.
const MAX_DESCRIPTION: usize = 4 << 10;

/// What a site occupies beyond its description and its list of fields, in bytes: itself, its entries in
/// the map and in the registry of `tracing`, and what the allocator adds.
const SITE_OVERHEAD: usize = size_of::<Site>() + 200;

static SITES: LazyLock<Mutex<Sites>> = LazyLock::new(Mutex::default);

/// Why there is no site for a description.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SiteError {
    Unreadable,
    /// The description is too long, or the process has no room for another site.
    OverLimit,
}

/// One place in a worker's program.
#[derive(Debug)]
pub(crate) struct Site {
    metadata: OnceLock<Metadata<'static>>,
    /// How many of its fields come from the worker. They precede the fields that the client adds.
    worker_fields: usize,
}

/// All sites of this process, by their encoded descriptions.
#[derive(Debug, Default)]
struct Sites {
    known: HashMap<&'static [u8], &'static Site>,
    /// About how many bytes they occupy.
    bytes: usize,
}

impl Site {
    /// Returns the site that has this encoded description, and leaks a new one if there is none.
    pub(crate) fn of(encoded: &[u8]) -> Result<&'static Self, SiteError> {
        if encoded.len() > MAX_DESCRIPTION {
            return Err(SiteError::OverLimit);
        }
        let (site, is_new) = lock(&SITES).find_or_leak(encoded)?;
        if is_new {
            // The lock is released, because this calls subscribers, which may run this code.
            callsite::register(site);
        }
        Ok(site)
    }

    /// Leaks a site. Its texts are those of the description.
    fn leak(described: &trace::Site<'static>) -> &'static Self {
        let worker_fields = described.fields.len();
        let names: &'static [&'static str] = Vec::leak(field_names(described));
        let site: &'static Self =
            Box::leak(Box::new(Self { metadata: OnceLock::new(), worker_fields }));
        site.metadata.get_or_init(|| {
            Metadata::new(
                described.name,
                described.target,
                level(described.level),
                described.file,
                described.line,
                described.module,
                FieldSet::new(names, Identifier(site)),
                if described.is_span { Kind::SPAN } else { Kind::EVENT },
            )
        });
        site
    }

    pub(crate) fn known(&self) -> &Metadata<'static> {
        let Some(metadata) = self.metadata.get() else {
            unreachable!("`leak` sets the metadata before it returns the site")
        };
        metadata
    }

    pub(crate) fn worker_fields(&self) -> usize {
        self.worker_fields
    }
}

impl Sites {
    /// Also returns whether the site is new.
    fn find_or_leak(&mut self, encoded: &[u8]) -> Result<(&'static Site, bool), SiteError> {
        if let Some(site) = self.known.get(encoded) {
            return Ok((site, false));
        }
        let described = trace::Site::read(encoded).map_err(|_| SiteError::Unreadable)?;
        let names = size_of_val(&field_names(&described)[..]);
        let bytes = self.bytes + encoded.len() + names + SITE_OVERHEAD;
        if self.known.len() >= MAX_SITES || bytes > MAX_MEMORY {
            return Err(SiteError::OverLimit);
        }
        // The one copy of the description is both the key and the memory of the site's texts.
        let encoded: &'static [u8] = Box::leak(encoded.into());
        let described = trace::Site::read(encoded).map_err(|_| SiteError::Unreadable)?;
        let site = Site::leak(&described);
        self.known.insert(encoded, site);
        self.bytes = bytes;
        Ok((site, true))
    }
}

impl Callsite for Site {
    fn set_interest(&self, _: Interest) {
        // Each replay asks the subscriber itself.
    }

    fn metadata(&self) -> &Metadata<'_> {
        self.known()
    }
}

/// The names of a site's fields: the worker's, then those that the client adds.
fn field_names<'a>(described: &trace::Site<'a>) -> Vec<&'a str> {
    let mut names = described.fields.clone();
    // A worker that has workers of its own has added them to what it forwards.
    if !names.contains(&PID) {
        names.extend([PID, TIME]);
        if described.is_span {
            names.extend([ENTERED, CLOSED, BUSY]);
        }
    }
    names.shrink_to_fit();
    names
}

/// The level that this number means on the wire.
fn level(number: u8) -> Level {
    match number {
        0 | 1 => Level::ERROR,
        2 => Level::WARN,
        3 => Level::INFO,
        4 => Level::DEBUG,
        _ => Level::TRACE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn description(name: &str, fields: &[&str]) -> Vec<u8> {
        let site = trace::Site { name, level: 3, fields: fields.to_vec(), ..Default::default() };
        let mut out = Vec::new();
        site.write(&mut out);
        out
    }

    /// How many sites with names of this length fit, and what they occupy by their own count.
    fn fill(length: usize, fields: &[&str]) -> (usize, usize) {
        let mut sites = Sites::default();
        let refused = (0..=MAX_SITES).find(|number| {
            let name = format!("{number:0length$}");
            sites.find_or_leak(&description(&name, fields)).is_err()
        });
        assert!(refused.is_some());
        (sites.known.len(), sites.bytes)
    }

    #[test]
    fn sites_are_bounded_by_their_number_and_by_their_memory() {
        assert_eq!(fill(10, &["a", "b"]).0, MAX_SITES);
        let (count, bytes) = fill(4000, &["a"; 32]);
        assert!(count > 1000 && count * 4000 < MAX_MEMORY, "{count}");
        assert!(bytes <= MAX_MEMORY && bytes + 6000 > MAX_MEMORY, "{bytes}");
    }

    #[test]
    fn a_known_description_needs_no_more_memory() {
        let mut sites = Sites::default();
        let described = description("name", &["field"]);
        let (first, _) = sites.find_or_leak(&described).unwrap();
        let bytes = sites.bytes;
        let (again, is_new) = sites.find_or_leak(&described).unwrap();
        assert!(std::ptr::eq(first, again) && !is_new);
        assert_eq!((sites.bytes, sites.known.len()), (bytes, 1));
        assert_eq!(first.known().name(), "name");
        assert_eq!(first.known().fields().len(), 3);
    }
}
