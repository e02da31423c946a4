//! The trace that a call belongs to, continued in its worker.

use opentelemetry::trace::{SpanId, TracerProvider};
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};
use serde::{Deserialize, Serialize};
use taskfork::trace_context::TraceContext;
use taskfork::{BoxError, Error, Methods, ServerBuilder, ServerError, trace_context};
use tracing::Instrument;
use tracing_subscriber::prelude::*;

use crate::support::{start, trial};

/// What a worker has exported, as text.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Exported {
    name: String,
    trace: String,
    parent: String,
}

impl From<SpanData> for Exported {
    fn from(span: SpanData) -> Self {
        Self {
            name: span.name.into_owned(),
            trace: span.span_context.trace_id().to_string(),
            parent: span.parent_span_id.to_string(),
        }
    }
}

struct Exporter {
    spans: InMemorySpanExporter,
    provider: SdkTracerProvider,
}

impl Exporter {
    fn new() -> Self {
        let spans = InMemorySpanExporter::default();
        let provider = SdkTracerProvider::builder().with_simple_exporter(spans.clone()).build();
        Self { spans, provider }
    }

    fn subscriber(&self) -> impl tracing::Subscriber + Send + Sync + use<> {
        let tracer = self.provider.tracer("test");
        tracing_subscriber::registry().with(tracing_opentelemetry::layer().with_tracer(tracer))
    }
}

/// Its workers export their own spans, as a service of its own would.
pub(crate) fn server(server: ServerBuilder) -> Result<(), ServerError> {
    let methods = Methods::new()
        .method("work", |exporter: &mut Exporter| {
            tracing::subscriber::with_default(exporter.subscriber(), || {
                let span = tracing::info_span!("work in the worker");
                #[cfg(feature = "opentelemetry")]
                if let Some(context) = trace_context::current() {
                    use tracing_opentelemetry::OpenTelemetrySpanExt;
                    span.set_parent(context.into()).unwrap();
                }
                span.in_scope(|| tracing::info_span!("a part of it").in_scope(|| {}));
            });
            let spans = exporter.spans.get_finished_spans()?;
            exporter.spans.reset();
            Ok(spans.into_iter().map(Exported::from).collect::<Vec<_>>())
        })
        .function("context", || {
            let context = trace_context::current();
            Ok(context.map(|context| {
                (context.traceparent().to_owned(), context.tracestate().map(str::to_owned))
            }))
        });
    server.setup(|| Ok::<_, BoxError>(Exporter::new())).interface(methods).run()
}

trial!(a_worker_continues_its_callers_trace, async || {
    let exporter = Exporter::new();
    let _guard = tracing::subscriber::set_default(exporter.subscriber());
    let (_server, client) = start("traces");
    let call = async { client.call::<Vec<Exported>>("work", ()).await };
    let exported = call.instrument(tracing::info_span!("request")).await.unwrap();
    if cfg!(not(feature = "opentelemetry")) {
        return;
    }

    let own = exporter.spans.get_finished_spans().unwrap();
    let request = own.iter().find(|span| span.name == "request").unwrap();
    let [part, work] = &exported[..] else { panic!("{exported:?}") };
    assert_eq!((&*part.name, &*work.name), ("a part of it", "work in the worker"));
    let trace = request.span_context.trace_id().to_string();
    assert_eq!((&part.trace, &work.trace), (&trace, &trace));
    assert_eq!(work.parent, request.span_context.span_id().to_string());
    assert_ne!(part.parent, SpanId::INVALID.to_string());
});

type Context = Option<(String, Option<String>)>;

trial!(a_trace_context_can_be_given, async || {
    let (_server, client) = start("traces");
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let context = TraceContext::new(parent).unwrap().with_state("vendor=1");
    let checkout = client.checkout().trace_context(context);
    let seen: Context = checkout.call("context", ()).await.unwrap();
    assert_eq!(seen, Some((parent.to_owned(), Some("vendor=1".to_owned()))));
});

trial!(a_trace_context_belongs_to_one_call, async || {
    let (_server, client) = start("traces");
    let exporter = Exporter::new();
    let guard = tracing::subscriber::set_default(exporter.subscriber());
    let checkout = client.checkout();
    let span = tracing::info_span!("request");
    let inside = span.in_scope(|| checkout.call::<Context>("context", ()));
    let outside = checkout.call::<Context>("context", ());
    let inside: Result<Context, Error> = inside.await;
    assert_eq!(inside.unwrap().is_some(), cfg!(feature = "opentelemetry"));
    assert_eq!(outside.await.unwrap(), None);
    drop(guard);
    assert_eq!(checkout.call::<Context>("context", ()).await.unwrap(), None);
});
