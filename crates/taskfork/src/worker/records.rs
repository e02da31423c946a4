//! The encoded spans and events of one call, until they are sent. Their number of bytes is limited.

use std::collections::BTreeMap;

use tracing::Metadata;

use crate::wire::WireError;
use crate::wire::frame;
use crate::wire::native::put_trace_header;
use crate::wire::trace::{Record, Site};

/// The maximum number of bytes that records occupy until they are sent.
const MAX_BYTES: usize = 1 << 20;

/// The maximum length of one record, so that it can be sent while the call runs.
pub(super) const MAX_RECORD: usize = 3 << 10;

/// The bytes of a frame beside its records: its header, and how many records were dropped.
const OVERHEAD: usize = 40;

#[derive(Debug, Default)]
pub(crate) struct Records {
    encoded: Vec<u8>,
    /// Where each record in `encoded` ends.
    ends: Vec<usize>,
    /// How many records were dropped since the last frame.
    dropped: u64,
    /// The numbers of the call sites that have been recorded, by the addresses of their metadata.
    sites: BTreeMap<usize, u64>,
    spans: u64,
}

impl Records {
    pub(crate) const fn new() -> Self {
        Self { encoded: Vec::new(), ends: Vec::new(), dropped: 0, sites: BTreeMap::new(), spans: 0 }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ends.is_empty() && self.dropped == 0
    }

    /// Takes all records at the end of the call.
    pub(crate) fn take(&mut self) -> Self {
        std::mem::take(self)
    }

    /// The number of the next span.
    pub(super) fn next_span(&mut self) -> u64 {
        self.spans += 1;
        self.spans
    }

    /// The number of a call site. Its first use records the site, with its source file if `places`.
    /// `None` if there is no room.
    pub(super) fn site(
        &mut self,
        metadata: &'static Metadata<'static>,
        places: bool,
    ) -> Option<u64> {
        let address = std::ptr::from_ref(metadata).addr();
        if let Some(&number) = self.sites.get(&address) {
            return Some(number);
        }
        let site = Site {
            is_span: metadata.is_span(),
            name: metadata.name(),
            target: metadata.target(),
            level: number_of(*metadata.level()),
            module: metadata.module_path(),
            file: metadata.file().filter(|_| places),
            line: metadata.line().filter(|_| places),
            fields: metadata.fields().iter().map(|field| field.name()).collect(),
        };
        let mut encoded = Vec::new();
        site.write(&mut encoded);
        let number = self.sites.len() as u64 + 1;
        if !self.keep(&Record::Site { number, site: &encoded }) {
            return None;
        }
        self.sites.insert(address, number);
        Some(number)
    }

    /// Adds a record. Counts it as dropped if there is no room.
    pub(super) fn push(&mut self, record: &Record<'_>) -> bool {
        let kept = self.keep(record);
        self.dropped += u64::from(!kept);
        kept
    }

    /// Counts a record that cannot be added.
    pub(super) fn drop_one(&mut self) {
        self.dropped += 1;
    }

    fn keep(&mut self, record: &Record<'_>) -> bool {
        let before = self.encoded.len();
        // Both lists double their capacity when they grow.
        let ends = 2 * (self.ends.len() + 1) * size_of::<usize>();
        if before + ends + MAX_RECORD <= MAX_BYTES {
            record.write(&mut self.encoded);
        }
        let length = self.encoded.len() - before;
        let kept = (1..=MAX_RECORD).contains(&length);
        if kept {
            self.ends.push(self.encoded.len());
        } else {
            self.encoded.truncate(before);
        }
        kept
    }

    /// Takes all records, as frames of at most `limit` bytes without their headers. Records that are too
    /// long for a frame count as dropped.
    pub(crate) fn frames(&mut self, limit: usize) -> Vec<Vec<u8>> {
        let encoded = std::mem::take(&mut self.encoded);
        let room = limit.saturating_sub(OVERHEAD);
        let mut frames = Vec::new();
        let (mut start, mut end, mut count) = (0, 0, 0);
        for next in std::mem::take(&mut self.ends) {
            if next - end > room {
                frames.extend(self.frame(limit, &encoded[start..end], count));
                self.dropped += 1;
                (start, count) = (next, 0);
            } else if next - start > room {
                frames.extend(self.frame(limit, &encoded[start..end], count));
                (start, count) = (end, 1);
            } else {
                count += 1;
            }
            end = next;
        }
        frames.extend(self.frame(limit, &encoded[start..end], count));
        frames
    }

    /// A frame of these records and of the number of dropped ones. `None` if there are neither.
    fn frame(&mut self, limit: usize, records: &[u8], count: u32) -> Option<Vec<u8>> {
        let dropped = std::mem::take(&mut self.dropped);
        let count = count + u32::from(dropped > 0);
        let mut out = Vec::new();
        let written = frame::write::<WireError>(&mut out, limit, |out| {
            put_trace_header(out, count);
            out.extend_from_slice(records);
            if dropped > 0 {
                Record::Dropped { count: dropped }.write(out);
            }
            Ok(())
        });
        (count > 0 && written.is_ok()).then_some(out)
    }
}

/// The number of a level in the protocol.
fn number_of(level: tracing::Level) -> u8 {
    match level {
        tracing::Level::ERROR => 1,
        tracing::Level::WARN => 2,
        tracing::Level::INFO => 3,
        tracing::Level::DEBUG => 4,
        tracing::Level::TRACE => 5,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::frame::HEADER_LEN;
    use crate::wire::native::{FromWorker, Telemetry};
    use crate::wire::trace::{Value, Values, records};

    fn event(number: usize, text: &str) -> Record<'_> {
        let values = Values(vec![(0, Value::Str(text))]);
        Record::Event { site: 1, parent: None, time: number as u64, values }
    }

    /// The times of the events in frames, and the number of dropped records.
    fn read(frames: &[Vec<u8>], limit: usize) -> (Vec<u64>, u64) {
        let (mut times, mut gone) = (Vec::new(), 0);
        for frame in frames {
            assert!(frame.len() <= limit + HEADER_LEN, "{}", frame.len());
            let Ok(FromWorker::Telemetry(Telemetry { trace: Some(encoded), .. })) =
                FromWorker::decode(&frame[HEADER_LEN..])
            else {
                panic!("this is no telemetry");
            };
            for record in records(encoded).unwrap() {
                match record {
                    Record::Event { time, .. } => times.push(time),
                    Record::Dropped { count } => gone += count,
                    other => panic!("{other:?}"),
                }
            }
        }
        (times, gone)
    }

    proptest! {
        #[test]
        fn frames_hold_all_in_order_or_count_it(
            lengths in prop::collection::vec(0..4000usize, 0..60),
            limit in 60..5000usize,
        ) {
            let mut kept = Records::new();
            let text = "x".repeat(4000);
            let mut expected = Vec::new();
            for (number, &length) in lengths.iter().enumerate() {
                if kept.push(&event(number, &text[..length])) && length + 25 < limit - OVERHEAD {
                    expected.push(number as u64);
                }
            }
            let (times, gone) = read(&kept.frames(limit), limit);
            prop_assert!(times.is_sorted());
            prop_assert!(expected.iter().all(|time| times.contains(time)));
            prop_assert_eq!(times.len() as u64 + gone, lengths.len() as u64);
            prop_assert!(kept.is_empty());
        }
    }

    #[test]
    fn small_records_occupy_no_more_memory_than_the_bound() {
        let mut kept = Records::new();
        while kept.push(&Record::Enter { span: 1, time: 1 }) {}
        let occupied = kept.encoded.capacity() + kept.ends.capacity() * size_of::<usize>();
        assert!(kept.ends.len() > 10_000);
        assert!(occupied <= MAX_BYTES, "{occupied}");
    }

    #[test]
    fn a_flood_is_bounded_and_counted() {
        let mut kept = Records::new();
        for number in 0..100_000 {
            kept.push(&event(number, "some text of a usual length"));
        }
        let frames = kept.frames(4096);
        assert!(frames.iter().map(Vec::len).sum::<usize>() < MAX_BYTES * 11 / 10);
        let (times, gone) = read(&frames, 4096);
        assert!(times.len() > 1000);
        assert_eq!(times.len() as u64 + gone, 100_000);
    }
}
