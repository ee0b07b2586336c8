//! Log lines on standard error, one per event: `warn vip-waiting vip=web port=p1`. init keeps them with their time.

use std::fmt::{self, Write as _};
use std::io::Write as _;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt};

/// Longest line in bytes: what came from outside must not fill a log with one event.
const LINE_MAX: usize = 1000;

/// Writes the events of some programs' own modules.
struct Lines {
    own: &'static [&'static str],
}

impl<S: Subscriber> Layer<S> for Lines {
    fn enabled(&self, event: &Metadata<'_>, _: Context<'_, S>) -> bool {
        wanted(self.own, event.target(), *event.level())
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let line = line(event);
        // Nowhere is left to complain to.
        drop(std::io::stderr().write_all(line.as_bytes()));
    }
}

/// Own events from info on; of libraries only what went wrong.
fn wanted(own: &[&str], target: &str, level: Level) -> bool {
    let own = own.iter().any(|name| target.split("::").next() == Some(name));
    level <= if own { Level::INFO } else { Level::WARN }
}

fn line(event: &Event<'_>) -> String {
    let level = event.metadata().level().as_str().to_ascii_lowercase();
    let mut fields = Fields { message: String::new(), rest: String::new() };
    event.record(&mut fields);
    let mut line = format!("{level} {}{}", fields.message, fields.rest);
    if line.len() > LINE_MAX {
        let cut = (0..=LINE_MAX).rev().find(|at| line.is_char_boundary(*at)).unwrap_or(0);
        line.truncate(cut);
    }
    // One event, one line, whatever a text holds.
    let mut line: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    line.push('\n');
    line
}

struct Fields {
    message: String,
    rest: String,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing into a string cannot fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.rest, " {name}={value:?}"),
        };
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let quote = if value.contains(' ') { "\"" } else { "" };
        let _ = match field.name() {
            "message" => write!(self.message, "{value}"),
            name => write!(self.rest, " {name}={quote}{value}{quote}"),
        };
    }
}

/// Sends this process's events to standard error from now on: those of the crates named in `own` from `info` on, of
/// all others only errors and warnings.
///
/// # Panics
/// When the log has been started already.
pub fn start(own: &'static [&'static str]) {
    let lines = tracing_subscriber::registry().with(Lines { own });
    tracing::subscriber::set_global_default(lines).expect("the log is started once");
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    struct Keep(Arc<Mutex<Vec<String>>>);

    impl<S: Subscriber> Layer<S> for Keep {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            self.0.lock().unwrap().push(line(event));
        }
    }

    #[test]
    fn one_event_is_one_line() {
        let kept = Arc::new(Mutex::new(Vec::new()));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(Keep(kept.clone())), || {
            tracing::warn!(vip = "web", port = %"p1", "vip-waiting");
            tracing::info!(error = "no such\ndevice", "x");
            tracing::info!("{}", "é".repeat(LINE_MAX));
        });
        let lines = kept.lock().unwrap();
        assert_eq!(lines[0], "warn vip-waiting vip=web port=p1\n");
        assert_eq!(lines[1], "info x error=\"no such device\"\n");
        assert!(lines[2].len() <= LINE_MAX + 1 && lines[2].ends_with('\n'));
    }

    #[test]
    fn libraries_are_heard_only_when_something_went_wrong() {
        let wanted = |target, level| wanted(&["netd", "peer"], target, level);
        assert!(wanted("netd::driver", Level::INFO) && !wanted("netd::driver", Level::DEBUG));
        assert!(wanted("quinn::endpoint", Level::ERROR) && !wanted("quinn::endpoint", Level::INFO));
        assert!(!wanted("netdata", Level::INFO));
    }
}
