//! Where workers' spans and events come from, as this program's `tracing` wants to have it: known for
//! as long as the program runs. So that no peer can fill the memory, there can only be so many.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, OnceLock};

use tracing::callsite::{self, Callsite, Identifier};
use tracing::field::FieldSet;
use tracing::metadata::Kind;
use tracing::subscriber::Interest;
use tracing::{Level, Metadata};

use crate::sync::lock;
use crate::wire::trace;

/// What a replayed span or event carries besides its own fields.
pub(crate) const PID: &str = "worker.pid";
pub(crate) const TIME: &str = "worker.time";
/// And what a span does.
pub(crate) const ENTERED: &str = "worker.entered";
pub(crate) const CLOSED: &str = "worker.closed";
pub(crate) const BUSY: &str = "worker.busy";

/// So many sites are known, of at most so many encoded bytes each.
const MAX_SITES: usize = 10_000;
const MAX_BYTES: usize = 4 << 10;

static SITES: LazyLock<Mutex<HashMap<Vec<u8>, &'static Site>>> = LazyLock::new(Mutex::default);

/// Why there is no site for a description.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SiteError {
    Unreadable,
    /// It is too long, or too many are known.
    OverLimit,
}

/// One place in a worker's program.
#[derive(Debug)]
pub(crate) struct Site {
    metadata: OnceLock<Metadata<'static>>,
    /// How many of its fields are the worker's.
    worker_fields: usize,
}

impl Site {
    /// The site of this encoded description.
    pub(crate) fn of(encoded: &[u8]) -> Result<&'static Self, SiteError> {
        if encoded.len() > MAX_BYTES {
            return Err(SiteError::OverLimit);
        }
        if let Some(known) = lock(&SITES).get(encoded) {
            return Ok(known);
        }
        let described = trace::Site::read(encoded).map_err(|_| SiteError::Unreadable)?;
        let mut sites = lock(&SITES);
        if sites.len() >= MAX_SITES {
            return Err(SiteError::OverLimit);
        }
        let mut is_new = false;
        let site = *sites.entry(encoded.to_owned()).or_insert_with(|| {
            is_new = true;
            Self::leak(&described)
        });
        drop(sites);
        if is_new {
            // Subscribers are told, which may call this very code.
            callsite::register(site);
        }
        Ok(site)
    }

    fn leak(described: &trace::Site<'_>) -> &'static Self {
        let mut names: Vec<&'static str> =
            described.fields.iter().map(|&name| leak_text(name)).collect();
        let worker_fields = names.len();
        // What comes from a worker's own workers says already where and when.
        if !names.contains(&PID) {
            names.extend([PID, TIME]);
            if described.is_span {
                names.extend([ENTERED, CLOSED, BUSY]);
            }
        }
        let site: &'static Self =
            Box::leak(Box::new(Self { metadata: OnceLock::new(), worker_fields }));
        site.metadata.get_or_init(|| {
            Metadata::new(
                leak_text(described.name),
                leak_text(described.target),
                level(described.level),
                described.file.map(leak_text),
                described.line,
                described.module.map(leak_text),
                FieldSet::new(names.leak(), Identifier(site)),
                if described.is_span { Kind::SPAN } else { Kind::EVENT },
            )
        });
        site
    }

    pub(crate) fn known(&self) -> &Metadata<'static> {
        let Some(metadata) = self.metadata.get() else {
            unreachable!("it is given out once it has its metadata")
        };
        metadata
    }

    pub(crate) fn worker_fields(&self) -> usize {
        self.worker_fields
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

fn leak_text(text: &str) -> &'static str {
    String::leak(text.to_owned())
}

/// A level as the wire has it.
fn level(number: u8) -> Level {
    match number {
        0 | 1 => Level::ERROR,
        2 => Level::WARN,
        3 => Level::INFO,
        4 => Level::DEBUG,
        _ => Level::TRACE,
    }
}
