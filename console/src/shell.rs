//! The shell on the serial console.
//!
//! On a terminal lines are edited with what any terminal of the last forty years understands: nothing is asked of it, no
//! colours, no bracketed paste, no synchronised updates (serial lines have no size and echo what they do not know).
//! `TERM=dumb` switches editing off. Without a terminal it reads lines, prints answers and no prompt.
//!
//! It ends at the end of input; init starts the next one. History lives in memory only.

use crate::command::{self, Command, LINE_MAX};
use crate::lines::{Item, Lines};
use crate::render;
use crate::session::{Question, Session};
use rustyline::completion::Completer;
use rustyline::config::{BellStyle, Configurer};
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::MemHistory;
use rustyline::validate::Validator;
use rustyline::{ColorMode, CompletionType, Config, Context, Editor, Helper};
use std::io::{self, IsTerminal, Read, Write};

/// Lines remembered for the arrow keys.
const HISTORY: usize = 50;

/// Answers to "really?" have three letters.
const ANSWER_MAX: usize = 64;

/// Whether the shell goes on after a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Line,
    End,
}

/// Runs until the end of input or `exit`.
pub(crate) fn run(session: &Session) -> io::Result<()> {
    if io::stdin().is_terminal() && io::stdout().is_terminal() {
        on_terminal(session)
    } else {
        on_stream(session, io::stdin().lock(), io::stdout().lock())
    }
}

/// Runs one line and prints its output and what went wrong to `out`.
fn line(session: &Session, text: &str, question: Question<'_>, out: &mut dyn Write) -> io::Result<Next> {
    if text.len() > LINE_MAX {
        writeln!(out, "line longer than {LINE_MAX} bytes, ignored")?;
        return Ok(Next::Line);
    }
    match command::parse(&command::words(text)) {
        None => {}
        Some(Err(mistake)) => writeln!(out, "{mistake}")?,
        Some(Ok(Command::Exit)) => return Ok(Next::End),
        Some(Ok(command)) => {
            if let Err(failure) = session.run(&command, question, out) {
                writeln!(out, "{failure}")?;
            }
        }
    }
    out.flush()?;
    Ok(Next::Line)
}

/// Reads lines of a bounded length until the input ends.
fn on_stream(session: &Session, mut input: impl Read, mut out: impl Write) -> io::Result<()> {
    let mut lines = Lines::new(LINE_MAX);
    let mut buffer = [0; 1024];
    loop {
        let (items, ended) = match input.read(&mut buffer) {
            Ok(0) => (lines.finish().into_iter().collect(), true),
            Ok(n) => (lines.push(&buffer[..n]), false),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        for item in items {
            let next = match item {
                Item::Line(bytes) => line(session, &String::from_utf8_lossy(&bytes), None, &mut out)?,
                Item::TooLong => {
                    writeln!(out, "line longer than {LINE_MAX} bytes, ignored")?;
                    Next::Line
                }
            };
            if next == Next::End {
                return Ok(());
            }
        }
        if ended {
            return out.flush();
        }
    }
}

fn on_terminal(session: &Session) -> io::Result<()> {
    let mut out = io::stdout();
    out.write_all(render::banner(&session.node_name(), &session.release()).as_bytes())?;
    out.flush()?;
    let mut editor = editor(CompletionType::List).map_err(other)?;
    editor.set_helper(Some(Words));
    // The question has its own editor: its answers do not belong into the history.
    let mut answers = editor_for_answers().map_err(other)?;
    loop {
        // Asked each time: the name may have come after the shell.
        let name = session.node_name();
        let prompt = if name.is_empty() { "keel> ".to_owned() } else { format!("{name}> ") };
        let text = match editor.readline(&prompt) {
            Ok(text) => text,
            Err(ReadlineError::Eof) => return Ok(()),
            // Ctrl-C drops the line; a resized terminal is no reason to do anything.
            Err(ReadlineError::Interrupted | ReadlineError::Signal(_)) => continue,
            Err(e) => return Err(other(e)),
        };
        if !text.trim().is_empty() && text.len() <= LINE_MAX {
            // A full or refused history loses an arrow key's worth of comfort.
            let _ = editor.add_history_entry(&text);
        }
        let mut question =
            |text: &str| answers.readline(text).ok().filter(|answer| answer.len() <= ANSWER_MAX);
        if line(session, &text, Some(&mut question), &mut out)? == Next::End {
            return Ok(());
        }
    }
}

fn other(error: ReadlineError) -> io::Error {
    match error {
        ReadlineError::Io(e) => e,
        ReadlineError::Errno(e) => e.into(),
        e => io::Error::other(e.to_string()),
    }
}

fn editor<H: Helper>(completion: CompletionType) -> rustyline::Result<Editor<H, MemHistory>> {
    let config = Config::builder()
        .color_mode(ColorMode::Disabled)
        .bracketed_paste(false)
        .check_cursor_position(false)
        .bell_style(BellStyle::None)
        .completion_type(completion)
        .max_history_size(HISTORY)?
        .build();
    let history = MemHistory::with_config(&config);
    let mut editor = Editor::with_history(config, history)?;
    editor.enable_synchronized_output(false);
    Ok(editor)
}

fn editor_for_answers() -> rustyline::Result<Editor<(), MemHistory>> {
    editor(CompletionType::Circular)
}

/// Completes words of commands; hints, colours and checks are left out.
struct Words;

impl Completer for Words {
    type Candidate = String;

    fn complete(&self, text: &str, at: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<String>)> {
        let (start, words) = command::complete(&text[..at]);
        Ok((start, words.into_iter().map(|word| format!("{word} ")).collect()))
    }
}

impl Hinter for Words {
    type Hint = String;
}
impl Highlighter for Words {}
impl Validator for Words {}
impl Helper for Words {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::Places;

    fn feed(input: &[u8]) -> String {
        let nowhere = crate::testing::Dir::new();
        let places = Places {
            netd: nowhere.path("netd"),
            provisiond: nowhere.path("provisiond"),
            init: nowhere.path("init"),
            release: nowhere.path("release"),
            hostname: nowhere.path("hostname"),
        };
        let mut out = Vec::new();
        on_stream(&Session::new(places).unwrap(), input, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_stream_of_lines_is_answered_in_order() {
        let out = feed(b"version\r\n\n   \nshwo\nversion");
        let own = format!("Evenkeel unknown\nkeel {}\n", env!("CARGO_PKG_VERSION"));
        assert_eq!(out, format!("{own}unknown command \"shwo\"; did you mean \"show\"?\n{own}"));
        assert_eq!(feed(b"exit\nversion\n"), "", "nothing after exit");
        assert_eq!(feed(b""), "");
        assert!(feed(b"agent x\n").contains("started by init"));
    }

    #[test]
    fn garbage_is_refused_and_does_not_end_the_shell() {
        let mut input = vec![b'x'; 3 * LINE_MAX];
        input.extend(b"\n\xff\xfe\x00\x1b[6n\n?\n");
        let out = feed(&input);
        let mut lines = out.lines();
        assert_eq!(lines.next(), Some("line longer than 4096 bytes, ignored"));
        assert!(
            lines.next().is_some_and(|line| line.starts_with("unknown command") && !line.contains('\u{1b}'))
        );
        assert!(out.ends_with(command::HELP), "{out}");
    }
}
