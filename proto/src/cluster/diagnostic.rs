//! What is wrong with a cluster file: where, what, and what to do about it.
//!
//! ```text
//! cluster.toml:14:13: node[1].port[0].network: unknown network "dta"
//!    14 |   network = "dta"
//!       |             ^^^^^
//!    help: networks are: data, mgmt
//! ```
//! Text from the file is escaped and cut before it is printed: the reader is a technician at a serial terminal, and
//! a file must not be able to drive that terminal.

use core::fmt;
use core::ops::Range;

/// Diagnostics told at most; the rest is counted. A screen of a serial terminal holds about six.
pub const DIAGNOSTICS_MAX: usize = 20;
/// Problems remembered while reading, before they are sorted by place. Bounds what a hostile file can make us keep.
const COLLECTED_MAX: usize = 256;
/// Characters of a source line that are shown; a longer one is shown around its caret.
const SHOWN_LINE_MAX: usize = 110;
/// Characters of a value from the file that a message quotes.
const SHOWN_VALUE_MAX: usize = 48;
/// Names a help line lists before it says how many more there are.
const SHOWN_NAMES_MAX: usize = 12;

/// One problem of a cluster file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// The file's name as the caller gave it.
    pub file: String,
    /// The key's path, like `node[2].port[0].network`, indices from 0; empty when the file as a whole is meant.
    pub path: String,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is wrong; one line, no full stop.
    pub message: String,
    /// The next step, when there is one to name.
    pub help: Option<String>,
    /// The line's text, made fit for a terminal, with the columns to underline.
    excerpt: Option<Excerpt>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Excerpt {
    text: String,
    indent: usize,
    carets: usize,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: ", self.file, self.line, self.column)?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)?;
        if let Some(Excerpt { text, indent, carets }) = &self.excerpt {
            write!(f, "\n{:>5} | {text}\n      | {:indent$}{:^<carets$}", self.line, "", "")?;
        }
        match &self.help {
            Some(help) => write!(f, "\n   help: {help}"),
            None => Ok(()),
        }
    }
}

/// Every problem found in one reading of a cluster file, in the order of the file. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostics {
    list: Vec<Diagnostic>,
    omitted: usize,
}

impl Diagnostics {
    /// The problems told, at most [`DIAGNOSTICS_MAX`].
    pub fn iter(&self) -> impl Iterator<Item = &Diagnostic> {
        self.list.iter()
    }

    /// Problems found beyond those told.
    pub fn omitted(&self) -> usize {
        self.omitted
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, diagnostic) in self.list.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{diagnostic}")?;
        }
        match self.omitted {
            0 => Ok(()),
            n => write!(f, "\nand {n} more"),
        }
    }
}

impl core::error::Error for Diagnostics {}

/// A place in the file: the key's path and the bytes it stands at.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) path: String,
    pub(super) span: Range<usize>,
}

impl Place {
    /// The file as a whole, shown without an excerpt.
    pub(super) fn file() -> Place {
        Place { path: String::new(), span: 0..0 }
    }
}

/// A value and where it came from.
#[derive(Clone, Debug)]
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) place: Place,
}

/// Collects problems while a file is read and checked.
pub(super) struct Sink<'t> {
    file: &'t str,
    text: &'t str,
    found: Vec<(Place, String, Option<String>)>,
    omitted: usize,
}

impl<'t> Sink<'t> {
    pub(super) fn new(file: &'t str, text: &'t str) -> Self {
        Self { file, text, found: Vec::new(), omitted: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// Notes a problem with no better help than its message.
    pub(super) fn report(&mut self, at: &Place, message: impl Into<String>) {
        self.note(at, message.into(), None);
    }

    /// Notes a problem and the next step.
    pub(super) fn report_help(&mut self, at: &Place, message: impl Into<String>, help: impl Into<String>) {
        self.note(at, message.into(), Some(help.into()));
    }

    fn note(&mut self, at: &Place, message: String, help: Option<String>) {
        if self.found.len() < COLLECTED_MAX {
            self.found.push((at.clone(), message, help));
        } else {
            self.omitted += 1;
        }
    }

    /// All that was found, in the file's order.
    pub(super) fn finish(mut self) -> Diagnostics {
        self.found.sort_by_key(|(at, ..)| at.span.start);
        let omitted = self.omitted + self.found.len().saturating_sub(DIAGNOSTICS_MAX);
        self.found.truncate(DIAGNOSTICS_MAX);
        let (file, text) = (self.file, self.text);
        let list =
            self.found.into_iter().map(|(at, message, help)| diagnostic(file, text, at, message, help));
        Diagnostics { list: list.collect(), omitted }
    }
}

fn diagnostic(file: &str, text: &str, at: Place, message: String, help: Option<String>) -> Diagnostic {
    let start = floor_boundary(text, at.span.start);
    let line_start = text[..start].rfind('\n').map_or(0, |i| i + 1);
    let line_end = text[start..].find('\n').map_or(text.len(), |i| start + i);
    let line_text = text[line_start..line_end].trim_end_matches('\r');
    let column = text[line_start..start].chars().count() + 1;
    // A span that runs over several lines is underlined on its first one only.
    let end =
        floor_boundary(text, at.span.end).clamp(start, line_start + line_text.len().max(start - line_start));
    let carets = text[start..end].chars().count().max(1);
    let excerpt = (at.span != (0..0)).then(|| excerpt(line_text, column - 1, carets));
    Diagnostic {
        file: file.to_owned(),
        path: at.path,
        line: text[..line_start].matches('\n').count() + 1,
        column,
        message,
        help,
        excerpt,
    }
}

/// Cuts `line` to a window around the caret and makes it fit for a terminal, one character for one.
fn excerpt(line: &str, indent: usize, carets: usize) -> Excerpt {
    let skip = if indent < SHOWN_LINE_MAX * 3 / 4 { 0 } else { indent - SHOWN_LINE_MAX / 4 };
    let window = line.chars().skip(skip).take(SHOWN_LINE_MAX);
    let text: String = window
        .map(|c| match c {
            '\t' => ' ',
            // Control characters could drive the terminal, marks that change direction could hide text.
            c if c.is_control() || !c.is_ascii() && !c.is_alphanumeric() => '?',
            c => c,
        })
        .collect();
    let indent = indent - skip;
    Excerpt { text, indent, carets: carets.min(SHOWN_LINE_MAX - indent.min(SHOWN_LINE_MAX - 1)) }
}

/// The last character boundary at or before `at`, and never behind the end.
fn floor_boundary(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// `value` from the file, quoted, escaped and cut for a message.
pub(super) fn quoted(value: &str) -> String {
    let mut chars = value.chars();
    let head: String = chars.by_ref().take(SHOWN_VALUE_MAX).collect();
    let more = if chars.next().is_some() { "..." } else { "" };
    format!("\"{}{more}\"", head.escape_debug())
}

/// `names` as a list for a help line.
pub(super) fn listed<T: fmt::Display>(names: impl IntoIterator<Item = T>) -> String {
    let mut names = names.into_iter();
    let head: Vec<String> = names.by_ref().take(SHOWN_NAMES_MAX).map(|n| n.to_string()).collect();
    match names.count() {
        _ if head.is_empty() => "(none)".to_owned(),
        0 => head.join(", "),
        more => format!("{} and {more} more", head.join(", ")),
    }
}
