//! init's own log: the kernel's log for people and serial lines, a ring in memory for the control socket.
//!
//! A write to `/dev/kmsg` never waits for a terminal that nobody reads; init writes to no console while it runs.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::Write;

use proto::control::{LOG_LINE_MAX, LogLine};

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

/// Where init's messages go.
#[derive(Default)]
pub(crate) struct Log {
    sink: Option<File>,
    plain: bool,
    pub(crate) ring: Ring,
}

impl Log {
    /// Opens the kernel's log once `/dev` is there. What was said before is kept in the ring and said again.
    pub(crate) fn open_kmsg(&mut self) {
        // The kernel limits what user space writes to ten records in five seconds; a boot has more to say.
        let _ = std::fs::write("/proc/sys/kernel/printk_devkmsg", "on");
        self.sink = OpenOptions::new().write(true).open("/dev/kmsg").ok();
        for line in self.ring.last(usize::MAX) {
            self.emit(Level::Info, &line.text);
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
        // One record is one line: a line end inside would look like another program's message.
        let mut text = message.to_string().replace('\n', " | ");
        cut(&mut text, LOG_LINE_MAX);
        self.emit(level, &text);
        self.ring.push(LogLine { at_ms: clock::now_ms(), text });
    }

    fn emit(&mut self, level: Level, text: &str) {
        let mut record = format!("<{}>init: {text}", level as u8);
        cut(&mut record, RECORD_MAX);
        if self.plain {
            // A closed standard error is no reason to stop.
            let _ = writeln!(std::io::stderr(), "init: {text}");
        } else if let Some(sink) = &mut self.sink {
            let _ = sink.write_all(record.as_bytes());
        }
    }
}
