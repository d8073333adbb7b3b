//! Log lines on stderr: a message, with `warning: ` or `error: ` before it where it is one.
//!
//! A line is written in one piece, so that two ranks that share a terminal do not write into each other's lines, and above the
//! progress bar, if one is shown. Where stderr is closed or its disk is full, the work goes on.

use crate::progress;
use std::fmt;
use std::io::Write;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::{EnvFilter, LevelFilter};
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, SubscriberBuilder};
use tracing_subscriber::registry::LookupSpan;

/// Starts logging. `RUST_LOG` chooses what is logged (`RUST_LOG=debug`, `RUST_LOG=store=debug`); without it, everything from
/// `info` on. Once for a process: a second call changes nothing.
pub fn start() {
    let filter = EnvFilter::builder().with_default_directive(LevelFilter::INFO.into()).from_env_lossy();
    let subscriber =
        SubscriberBuilder::default().with_env_filter(filter).event_format(Plain).with_writer(|| Stderr).finish();
    // An error says that there is a subscriber.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

/// The format of a line.
struct Plain;

impl<S: Subscriber + for<'a> LookupSpan<'a>, N: for<'a> FormatFields<'a> + 'static> FormatEvent<S, N> for Plain {
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut line: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        line.write_str(match *event.metadata().level() {
            Level::ERROR => "error: ",
            Level::WARN => "warning: ",
            Level::INFO => "",
            Level::DEBUG => "debug: ",
            Level::TRACE => "trace: ",
        })?;
        context.field_format().format_fields(line.by_ref(), event)?;
        writeln!(line)
    }
}

struct Stderr;

impl Write for Stderr {
    /// Takes the line whether or not stderr does: tracing would tell a failure on stderr, and panic where it is closed.
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        let _ = progress::above_the_bar(|| std::io::stderr().write_all(line));
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
