//! What `up` and `test` say while they work: which step, how far, how long it took.

use crate::table::seconds;
use std::io::Write;
use std::time::Instant;

/// Where steps are told. One line when a step begins, one when it ends; details between are indented.
pub trait Progress: Send {
    /// A step begins.
    fn begin(&mut self, step: &str);
    /// Something worth knowing inside the step.
    fn detail(&mut self, text: &str);
    /// The step ended well; `result` completes the line.
    fn end(&mut self, result: &str);
    /// Something is not as it should be, yet the work goes on.
    fn warn(&mut self, text: &str);
}

/// Steps on standard error, so that standard output stays for results.
#[derive(Debug, Default)]
pub struct Terminal {
    current: Option<(String, Instant)>,
}

impl Terminal {
    fn say(&self, text: &str) {
        // Nobody is left to tell when standard error is gone.
        let _ = writeln!(std::io::stderr(), "{text}");
    }
}

impl Progress for Terminal {
    fn begin(&mut self, step: &str) {
        self.say(&format!("==> {step}"));
        self.current = Some((step.to_owned(), Instant::now()));
    }

    fn detail(&mut self, text: &str) {
        self.say(&format!("    {text}"));
    }

    fn end(&mut self, result: &str) {
        let took = self.current.take().map(|(_, since)| seconds(since.elapsed())).unwrap_or_default();
        self.say(&format!("    {result} ({took})"));
    }

    fn warn(&mut self, text: &str) {
        self.say(&format!("    warning: {text}"));
    }
}

/// Results go to standard output.
///
/// # Errors
/// Nobody reads it any more; most callers have nothing left to do then.
pub fn print(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush())
}

/// Remembers instead of printing.
#[cfg(test)]
#[derive(Debug, Default)]
pub struct Recorded(pub Vec<String>);

#[cfg(test)]
impl Progress for Recorded {
    fn begin(&mut self, step: &str) {
        self.0.push(format!("begin {step}"));
    }
    fn detail(&mut self, text: &str) {
        self.0.push(format!("detail {text}"));
    }
    fn end(&mut self, result: &str) {
        self.0.push(format!("end {result}"));
    }
    fn warn(&mut self, text: &str) {
        self.0.push(format!("warn {text}"));
    }
}
