//! The daemon's log: one line per event on stderr, which init captures with its time.

use std::fmt::{self, Write as _};
use std::io::{self, Write as _};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

/// Sends events of this and lower levels to stderr from here on.
pub(crate) fn start() {
    let subscriber = tracing_subscriber::registry().with(Lines);
    // Somebody set one before only in a test; its lines go there then.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

/// `level: message field=value`, the level left out for information.
struct Lines;

impl<S: Subscriber> Layer<S> for Lines {
    fn enabled(&self, metadata: &tracing::Metadata<'_>, _: Context<'_, S>) -> bool {
        // Libraries talk to their developers below warnings.
        let own = ["provisiond", "bus"].contains(&metadata.target().split("::").next().unwrap_or_default());
        *metadata.level() <= if own { Level::INFO } else { Level::WARN }
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut line = Line(match *event.metadata().level() {
            Level::ERROR => "error: ".to_owned(),
            Level::WARN => "warning: ".to_owned(),
            _ => String::new(),
        });
        event.record(&mut line);
        line.0.push('\n');
        // One write, so that lines of other writers do not cut it. Nobody is left to tell when stderr is gone.
        let _ = io::stderr().write_all(line.0.as_bytes());
    }
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let written = match field.name() {
            "message" => write!(self.0, "{value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
        written.expect("writing into memory cannot fail");
    }
}
