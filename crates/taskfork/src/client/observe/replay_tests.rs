use std::sync::atomic::{AtomicU64, Ordering};

use tracing::Subscriber;
use tracing::field::Field;
use tracing_subscriber::layer::Context;
use tracing_subscriber::prelude::*;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{Layer, registry};

use super::*;
use crate::wire::trace::Value;

/// Counts the calls of a subscriber.
#[derive(Clone, Default)]
struct Recorder(Arc<Counts>);

#[derive(Default)]
struct Counts {
    enters: AtomicU64,
    exits: AtomicU64,
    closed: AtomicU64,
    deepest: AtomicU64,
    events: AtomicU64,
    /// How often values of a span were recorded after its beginning.
    records: AtomicU64,
    /// The lengths of all texts of spans.
    texts: AtomicU64,
    /// The sum of the fields named `dropped`.
    omitted: AtomicU64,
}

impl tracing::field::Visit for &Counts {
    fn record_debug(&mut self, _: &Field, _: &dyn fmt::Debug) {}

    fn record_str(&mut self, _: &Field, value: &str) {
        self.texts.fetch_add(value.len() as u64, Ordering::Relaxed);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == "dropped" {
            self.omitted.fetch_add(value, Ordering::Relaxed);
        }
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Recorder {
    fn on_new_span(&self, attributes: &Attributes<'_>, _: &Id, _: Context<'_, S>) {
        attributes.record(&mut &*self.0);
    }

    fn on_record(&self, _: &Id, values: &SpanRecord<'_>, _: Context<'_, S>) {
        self.0.records.fetch_add(1, Ordering::Relaxed);
        values.record(&mut &*self.0);
    }

    fn on_enter(&self, _: &Id, _: Context<'_, S>) {
        self.0.enters.fetch_add(1, Ordering::Relaxed);
    }

    fn on_exit(&self, _: &Id, _: Context<'_, S>) {
        self.0.exits.fetch_add(1, Ordering::Relaxed);
    }

    fn on_close(&self, _: Id, _: Context<'_, S>) {
        self.0.closed.fetch_add(1, Ordering::Relaxed);
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        self.0.events.fetch_add(1, Ordering::Relaxed);
        event.record(&mut &*self.0);
        let depth = context.event_scope(event).map_or(0, Iterator::count) as u64;
        self.0.deepest.fetch_max(depth, Ordering::Relaxed);
    }
}

impl Recorder {
    fn get(&self, count: impl FnOnce(&Counts) -> &AtomicU64) -> u64 {
        count(&self.0).load(Ordering::Relaxed)
    }
}

fn encoded(records: &[Record<'_>]) -> Bytes {
    // An array with a length of 32 bits.
    let mut out = vec![0xdd];
    out.extend_from_slice(&(records.len() as u32).to_be_bytes());
    records.iter().for_each(|record| record.write(&mut out));
    out.into()
}

fn site(is_span: bool, fields: &[&str]) -> Vec<u8> {
    let mut out = Vec::new();
    let fields = fields.to_vec();
    let site = trace::Site {
        is_span,
        name: "site",
        target: "tests",
        level: 3,
        fields,
        ..Default::default()
    };
    site.write(&mut out);
    out
}

fn span(span: u64, parent: Option<u64>) -> Record<'static> {
    Record::Span { span, site: 1, parent, time: 0, values: Values::default() }
}

fn event(parent: u64) -> Record<'static> {
    Record::Event { site: 2, parent: Some(parent), time: 0, values: Values::default() }
}

/// Replays each piece separately.
fn played<'a>(pieces: impl IntoIterator<Item = Vec<Record<'a>>>) -> Recorder {
    let recorder = Recorder::default();
    let dispatch = Dispatch::new(registry().with(recorder.clone()));
    let replay = dispatcher::with_default(&dispatch, Replay::for_caller);
    let Some((_, replay)) = replay else { panic!("there is no subscriber") };
    let (of_spans, of_events) = (site(true, &[]), site(false, &[]));
    let with_text = site(true, &["text"]);
    replay.push(
        1,
        encoded(&[
            Record::Site { number: 1, site: &of_spans },
            Record::Site { number: 2, site: &of_events },
            Record::Site { number: 3, site: &with_text },
        ]),
    );
    for piece in pieces {
        replay.push(1, encoded(&piece));
        replay.play();
    }
    drop(replay);
    recorder
}

#[test]
fn a_piece_costs_what_is_new_in_it() {
    const ENTRIES: usize = 100_000;
    const PIECES: usize = 200;
    let mut first = vec![span(1, None)];
    first.extend((0..ENTRIES).map(|_| Record::Enter { span: 1, time: 1 }));
    let small = (0..PIECES).map(|_| vec![event(1)]);
    let recorder = played(std::iter::once(first).chain(small));
    let enters = recorder.get(|counts| &counts.enters);
    assert!(enters <= ((PIECES + 1) * MAX_ENTERED) as u64, "{enters}");
    assert_eq!(enters, recorder.get(|counts| &counts.exits));
    // The last event reports what was omitted.
    assert_eq!(recorder.get(|counts| &counts.events), PIECES as u64 + 1);
    assert_eq!(recorder.get(|counts| &counts.omitted), (ENTRIES - MAX_ENTERED) as u64);
    assert_eq!(recorder.get(|counts| &counts.closed), 1);
}

#[test]
fn entries_of_many_spans_are_bounded_together() {
    const SPANS: u64 = 1000;
    let spans = (1..=SPANS)
        .flat_map(|number| [span(number, None), Record::Enter { span: number, time: 1 }]);
    let exits = (1..=SPANS).rev().map(|span| Record::Exit { span, time: 2 });
    let recorder = played([spans.collect(), vec![event(SPANS)], exits.collect()]);
    assert_eq!(recorder.get(|counts| &counts.omitted), SPANS - MAX_ENTERED as u64);
    // A span that was exited is not entered again for the next piece.
    assert_eq!(recorder.get(|counts| &counts.enters), 3 * MAX_ENTERED as u64);
    assert_eq!(recorder.get(|counts| &counts.exits), 3 * MAX_ENTERED as u64);
    assert_eq!(recorder.get(|counts| &counts.closed), SPANS);
}

#[test]
fn entries_over_the_limit_are_the_first_to_be_exited() {
    let enters = (0..MAX_ENTERED + 10).map(|_| Record::Enter { span: 1, time: 1 });
    let exits = |count| (0..count).map(|_| Record::Exit { span: 1, time: 2 }).collect();
    let first = std::iter::once(span(1, None)).chain(enters).collect();
    let recorder = played([first, exits(10), exits(MAX_ENTERED - 1), vec![event(1)], exits(1)]);
    // Each of the first three pieces makes all entries, and each of the last two makes one.
    assert_eq!(recorder.get(|counts| &counts.enters), 3 * MAX_ENTERED as u64 + 2);
    assert_eq!(recorder.get(|counts| &counts.exits), 3 * MAX_ENTERED as u64 + 2);
}

#[test]
fn spans_within_each_other_are_bounded_and_their_events_kept() {
    const SPANS: u64 = 9000;
    // On a small stack, because subscribers close parents recursively.
    let thread = std::thread::Builder::new().stack_size(1 << 20).spawn(|| {
        let chain = (1..=SPANS).map(|number| span(number, (number > 1).then(|| number - 1)));
        let events = (1..=SPANS).map(event);
        played([chain.collect(), events.collect()])
    });
    let recorder = thread.unwrap().join().unwrap();
    assert_eq!(recorder.get(|counts| &counts.events), SPANS + 1);
    assert_eq!(recorder.get(|counts| &counts.deepest), MAX_DEPTH as u64);
    assert_eq!(recorder.get(|counts| &counts.omitted), SPANS - MAX_DEPTH as u64);
    assert_eq!(recorder.get(|counts| &counts.closed), MAX_DEPTH as u64);
}

#[test]
fn spans_over_the_limit_are_counted() {
    let spans = (1..=MAX_OPEN as u64 + 5).map(|number| span(number, None));
    let recorder = played([spans.collect()]);
    assert_eq!(recorder.get(|counts| &counts.omitted), 5);
}

#[test]
fn the_values_of_open_spans_are_bounded_together() {
    const LENGTH: usize = 1 << 20;
    let text = "x".repeat(LENGTH);
    let values = || Values(vec![(0, Value::Str(&text))]);
    let begin =
        |span| vec![Record::Span { span, site: 3, parent: None, time: 0, values: values() }];
    let more = |span| vec![Record::Values { span, values: values() }];
    let close = |span| vec![Record::Close { span, time: 1 }];
    // 15 texts fit. The next three are omitted, until a span is closed.
    let opened = (1..=15).map(begin).chain([begin(16), more(1), more(2)]);
    let recorder = played(opened.chain([close(3), more(4), more(5)]));
    assert_eq!(recorder.get(|counts| &counts.texts), 16 * LENGTH as u64);
    assert_eq!(recorder.get(|counts| &counts.omitted), 4);
    assert_eq!(recorder.get(|counts| &counts.closed), 16);
}

#[test]
fn the_time_of_the_first_entry_is_recorded_once() {
    let entry = || [Record::Enter { span: 1, time: 1 }, Record::Exit { span: 1, time: 1 }];
    let pieces = std::iter::once(span(1, None)).chain((0..100).flat_map(|_| entry()));
    let recorder = played([pieces.collect()]);
    assert_eq!(recorder.get(|counts| &counts.records), 1);
}
