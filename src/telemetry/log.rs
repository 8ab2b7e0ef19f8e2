//! The log: a line on standard error for each event, with the trace of the request that it is about.

use std::{
    fmt::{self, Write as _},
    io::IsTerminal as _,
};

use tracing::{Event, Subscriber, level_filters::LevelFilter};
use tracing_subscriber::{
    EnvFilter, Layer,
    filter::{FilterExt as _, filter_fn},
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::{Format, Json, Writer},
    },
    registry::LookupSpan,
};

use super::{repeats::Repeats, traces::is_ours};
use crate::wire::trace;

/// Lines of text, with the trace, and how often it came since it was last said, before what is said.
struct Text {
    format: Format,
    repeats: Repeats,
}

/// Objects, with the same as their first members.
struct Objects {
    format: Format<Json>,
    repeats: Repeats,
}

/// A log of what passes `level`.
pub(super) fn layer<S>(level: EnvFilter, is_json: bool) -> impl Layer<S>
where
    S: Subscriber + for<'s> LookupSpan<'s>,
{
    // Our spans are there for traces alone: a log at any level makes none of them.
    let others = filter_fn(|metadata| !is_ours(metadata));
    let filter = level.and(others.with_max_level_hint(LevelFilter::TRACE));
    let log = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal() && no_color().is_none_or(|it| it.is_empty()));
    match is_json {
        true => {
            let (format, repeats) = (Format::default().json(), Repeats::default());
            log.json().event_format(Objects { format, repeats }).boxed()
        }
        false => {
            let (format, repeats) = (Format::default(), Repeats::default());
            log.event_format(Text { format, repeats }).boxed()
        }
    }
    .with_filter(filter)
}

/// What people set who want no colours: https://no-color.org.
fn no_color() -> Option<std::ffi::OsString> {
    std::env::var_os("NO_COLOR")
}

/// The trace of the request at hand, where it is traced.
fn trace_id() -> Option<String> {
    let context = trace::Context::current_or(None)?;
    context.parent.split('-').nth(1).map(str::to_owned)
}

impl<S, N> FormatEvent<S, N> for Text
where
    S: Subscriber + for<'s> LookupSpan<'s>,
    N: for<'w> FormatFields<'w> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let Some(repeated) = self.repeats.due(event) else { return Ok(()) };
        if let Some(id) = trace_id() {
            write!(writer, "trace_id={id} ")?;
        }
        if repeated > 0 {
            write!(writer, "repeated={repeated} ")?;
        }
        self.format.format_event(context, writer, event)
    }
}

impl<S, N> FormatEvent<S, N> for Objects
where
    S: Subscriber + for<'s> LookupSpan<'s>,
    N: for<'w> FormatFields<'w> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let Some(repeated) = self.repeats.due(event) else { return Ok(()) };
        let mut first = String::new();
        if let Some(id) = trace_id() {
            write!(first, "\"trace_id\":\"{id}\",")?;
        }
        if repeated > 0 {
            write!(first, "\"repeated\":{repeated},")?;
        }
        if first.is_empty() {
            return self.format.format_event(context, writer, event);
        }
        let mut object = String::new();
        self.format.format_event(context, Writer::new(&mut object), event)?;
        write!(writer, "{{{first}{}", object.trim_start_matches('{'))
    }
}
