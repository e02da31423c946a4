use std::sync::atomic::{AtomicU64, Ordering};

use tracing::Subscriber;
use tracing_subscriber::layer::Context;
use tracing_subscriber::prelude::*;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{Layer, registry};

use super::*;

/// Counts what a subscriber is told.
#[derive(Clone, Default)]
struct Told(Arc<Counts>);

#[derive(Default)]
struct Counts {
    enters: AtomicU64,
    exits: AtomicU64,
    closed: AtomicU64,
    deepest: AtomicU64,
    events: AtomicU64,
    /// The sum of the fields named `dropped`.
    left_out: AtomicU64,
}

impl tracing::field::Visit for &Counts {
    fn record_debug(&mut self, _: &Field, _: &dyn fmt::Debug) {}

    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == "dropped" {
            self.left_out.fetch_add(value, Ordering::Relaxed);
        }
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Told {
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

impl Told {
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

fn site(is_span: bool) -> Vec<u8> {
    let mut out = Vec::new();
    let site =
        trace::Site { is_span, name: "site", target: "tests", level: 3, ..Default::default() };
    site.write(&mut out);
    out
}

fn span(span: u64, parent: Option<u64>) -> Record<'static> {
    Record::Span { span, site: 1, parent, time: 0, values: Values::default() }
}

fn event(parent: u64) -> Record<'static> {
    Record::Event { site: 2, parent: Some(parent), time: 0, values: Values::default() }
}

/// Plays pieces, each for itself.
fn played<'a>(pieces: impl IntoIterator<Item = Vec<Record<'a>>>) -> Told {
    let told = Told::default();
    let dispatch = Dispatch::new(registry().with(told.clone()));
    let replay = dispatcher::with_default(&dispatch, Replay::for_caller);
    let Some((_, replay)) = replay else { panic!("nobody listens") };
    let (of_spans, of_events) = (site(true), site(false));
    replay.push(
        1,
        encoded(&[
            Record::Site { number: 1, site: &of_spans },
            Record::Site { number: 2, site: &of_events },
        ]),
    );
    for piece in pieces {
        replay.push(1, encoded(&piece));
        replay.play();
    }
    drop(replay);
    told
}

#[test]
fn a_piece_costs_what_is_new_in_it() {
    const ENTRIES: usize = 100_000;
    const PIECES: usize = 200;
    let mut first = vec![span(1, None)];
    first.extend((0..ENTRIES).map(|_| Record::Enter { span: 1, time: 1 }));
    let small = (0..PIECES).map(|_| vec![event(1)]);
    let told = played(std::iter::once(first).chain(small));
    let enters = told.get(|counts| &counts.enters);
    assert!(enters <= ((PIECES + 1) * MAX_ENTERED) as u64, "{enters}");
    assert_eq!(enters, told.get(|counts| &counts.exits));
    // Told once.
    assert_eq!(told.get(|counts| &counts.events), PIECES as u64 + 1);
    assert_eq!(told.get(|counts| &counts.left_out), (ENTRIES - MAX_ENTERED) as u64);
    assert_eq!(told.get(|counts| &counts.closed), 1);
}

#[test]
fn entries_of_many_spans_are_bounded_together() {
    const SPANS: u64 = 1000;
    let spans = (1..=SPANS)
        .flat_map(|number| [span(number, None), Record::Enter { span: number, time: 1 }]);
    let exits = (1..=SPANS).rev().map(|span| Record::Exit { span, time: 2 });
    let told = played([spans.collect(), vec![event(SPANS)], exits.collect()]);
    assert_eq!(told.get(|counts| &counts.left_out), SPANS - MAX_ENTERED as u64);
    // The spans that are left are not entered again.
    assert_eq!(told.get(|counts| &counts.enters), 3 * MAX_ENTERED as u64);
    assert_eq!(told.get(|counts| &counts.exits), 3 * MAX_ENTERED as u64);
    assert_eq!(told.get(|counts| &counts.closed), SPANS);
}

#[test]
fn entries_over_the_limit_are_the_first_to_be_left() {
    let enters = (0..MAX_ENTERED + 10).map(|_| Record::Enter { span: 1, time: 1 });
    let exits = |count| (0..count).map(|_| Record::Exit { span: 1, time: 2 }).collect();
    let first = std::iter::once(span(1, None)).chain(enters).collect();
    let told = played([first, exits(10), exits(MAX_ENTERED - 1), vec![event(1)], exits(1)]);
    // Each of the first pieces enters all of the entries again, each of the last two one.
    assert_eq!(told.get(|counts| &counts.enters), 3 * MAX_ENTERED as u64 + 2);
    assert_eq!(told.get(|counts| &counts.exits), 3 * MAX_ENTERED as u64 + 2);
}

#[test]
fn spans_within_each_other_are_bounded_and_their_events_kept() {
    const SPANS: u64 = 9000;
    // On a small stack, as parents are closed recursively.
    let thread = std::thread::Builder::new().stack_size(1 << 20).spawn(|| {
        let chain = (1..=SPANS).map(|number| span(number, (number > 1).then(|| number - 1)));
        let events = (1..=SPANS).map(event);
        played([chain.collect(), events.collect()])
    });
    let told = thread.unwrap().join().unwrap();
    assert_eq!(told.get(|counts| &counts.events), SPANS + 1);
    assert_eq!(told.get(|counts| &counts.deepest), MAX_DEPTH as u64);
    assert_eq!(told.get(|counts| &counts.left_out), SPANS - MAX_DEPTH as u64);
    assert_eq!(told.get(|counts| &counts.closed), MAX_DEPTH as u64);
}

#[test]
fn spans_over_the_limit_are_counted() {
    let spans = (1..=MAX_OPEN as u64 + 5).map(|number| span(number, None));
    let told = played([spans.collect()]);
    assert_eq!(told.get(|counts| &counts.left_out), 5);
}
