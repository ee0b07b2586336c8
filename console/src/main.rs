//! `keel`: the shell on the serial console, the same commands as arguments, and the lab's agent.
//!
//! ```text
//! arguments ─┐
//! shell      ├─> command::parse ─> session::run ─┬─> bus  (netd, provisiond)
//! agent      ┘                                   ├─> control (init)
//!                                                └─> render: rows -> text
//! ```
//! Exit codes: 0 done, 1 it failed (the message says what and what to do), 2 the arguments are wrong.

mod agent;
mod command;
mod control;
mod founder;
mod init_bus;
mod lines;
mod render;
mod session;
mod shell;
#[cfg(test)]
mod testing;

use command::Command;
use session::{Places, Session};
use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::process::ExitCode;

/// The command ran and failed.
const FAILED: u8 = 1;

/// There was no such command.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    // Arguments that are not text cannot name anything that exists here.
    let words: Vec<String> = std::env::args_os().skip(1).map(|w| w.to_string_lossy().into_owned()).collect();
    let command = match command::parse(&words) {
        None => Command::Help,
        Some(Ok(command)) => command,
        Some(Err(mistake)) => return complain(&mistake, USAGE),
    };
    let session = match Session::new(Places::default()) {
        Ok(session) => session,
        Err(e) => return complain(&format!("cannot start: {e}"), FAILED),
    };
    let outcome = match &command {
        Command::Shell => shell::run(&session).map_err(|e| format!("the console failed: {e}")),
        Command::Agent { port } => match agent::run(&session, port) {
            Ok(never) => match never {},
            Err(e) => Err(e.to_string()),
        },
        Command::InitBus => {
            match init_bus::run(proto::control::SOCKET_PATH.as_ref(), bus::INIT_SOCKET.as_ref()) {
                Ok(never) => match never {},
                Err(e) => Err(e.to_string()),
            }
        }
        command => {
            let mut ask = ask;
            let interactive = io::stdin().is_terminal() && io::stdout().is_terminal();
            let question: session::Question<'_> = if interactive { Some(&mut ask) } else { None };
            session.run(command, question, &mut io::stdout().lock()).map_err(|e| e.to_string())
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => complain(&message, FAILED),
    }
}

fn complain(message: &str, code: u8) -> ExitCode {
    // Nobody may be there to read it; the exit code says it too.
    let _ = writeln!(io::stderr(), "{message}");
    ExitCode::from(code)
}

/// Asks on the terminal. A terminal's line is bounded by the kernel, the limit here is for the rest.
fn ask(question: &str) -> Option<String> {
    let mut out = io::stdout();
    out.write_all(question.as_bytes()).and_then(|()| out.flush()).ok()?;
    let mut answer = String::new();
    io::stdin().lock().take(command::LINE_MAX as u64).read_line(&mut answer).ok()?;
    Some(answer)
}
