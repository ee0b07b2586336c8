//! init's own log: the kernel's log for people and serial lines, a ring in memory for the control socket.
//!
//! A write to `/dev/kmsg` never waits for a terminal that nobody reads; init writes to no console while it runs.

use std::fmt::{self, Write as _};
use std::fs::{File, OpenOptions};
use std::io::Write as _;

use proto::control::LOG_LINE_MAX;

use crate::clock;
use crate::ring::{Ring, cut};

/// Bytes of one kmsg record; the kernel refuses longer writes.
const RECORD_MAX: usize = 900;

/// Syslog levels; the kernel shows those below its console level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    Error = 3,
    Warning = 4,
    Info = 6,
}

/// Where init's messages go. Its memory is taken once: saying something allocates nothing.
pub(crate) struct Log {
    /// The record being made: level, name, text.
    record: String,
    sink: Option<File>,
    plain: bool,
    pub(crate) ring: Ring,
}

impl Default for Log {
    fn default() -> Log {
        let record = String::with_capacity(LOG_LINE_MAX);
        Log { record, sink: None, plain: false, ring: Ring::default() }
    }
}

impl Log {
    /// Opens the kernel's log once `/dev` is there. What was said before is kept in the ring and said again.
    pub(crate) fn open_kmsg(&mut self) {
        // The kernel limits what user space writes to ten records in five seconds; a boot has more to say.
        // It takes the word only with its line end.
        if let Err(error) = std::fs::write("/proc/sys/kernel/printk_devkmsg", "on\n") {
            self.warn(format_args!("the kernel goes on to limit what is logged: printk_devkmsg: {error}"));
        }
        self.sink = OpenOptions::new().write(true).open("/dev/kmsg").ok();
        for line in self.ring.last(usize::MAX) {
            let text = self.begin(Level::Info);
            self.record.push_str(&line.text);
            self.emit(text);
        }
    }

    /// Writes to standard error instead: init is not the machine's PID 1.
    pub(crate) fn open_stderr(&mut self) {
        self.plain = true;
    }

    /// Says that something is broken.
    pub(crate) fn error(&mut self, message: fmt::Arguments<'_>) {
        self.say(Level::Error, message);
    }

    /// Says that something is not as it should be.
    pub(crate) fn warn(&mut self, message: fmt::Arguments<'_>) {
        self.say(Level::Warning, message);
    }

    /// Says what was done.
    pub(crate) fn info(&mut self, message: fmt::Arguments<'_>) {
        self.say(Level::Info, message);
    }

    fn say(&mut self, level: Level, message: fmt::Arguments<'_>) {
        let text = self.begin(level);
        // Writing into a String cannot fail.
        let _ = self.record.write_fmt(message);
        // One record is one line: a line end inside would look like another program's message.
        if self.record.contains('\n') {
            self.record = self.record.replace('\n', " | ");
        }
        self.ring.push(clock::now_ms(), self.record.get(text..).unwrap_or_default());
        self.emit(text);
    }

    /// Begins a record; returns where its text starts.
    fn begin(&mut self, level: Level) -> usize {
        self.record.clear();
        let _ = write!(self.record, "<{}>init: ", level as u8);
        self.record.len()
    }

    /// Writes the record whose text starts at `text`.
    fn emit(&mut self, text: usize) {
        if self.plain {
            // A closed standard error is no reason to stop.
            let _ = writeln!(std::io::stderr(), "init: {}", self.record.get(text..).unwrap_or_default());
        } else if let Some(sink) = &mut self.sink {
            let _ = sink.write_all(cut(&self.record, RECORD_MAX).as_bytes());
        }
    }
}
