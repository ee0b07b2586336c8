//! The program itself: as the shell on a terminal that tells no size, on a pipe, and with arguments.

// Helpers here are as much a test as the functions that call them.
#![allow(clippy::unwrap_used)]

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::openpty;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);

/// What a serial terminal would have to answer or would print as garbage: cursor and device queries, bracketed paste,
/// synchronised updates, colours, the cursor hidden.
const FORBIDDEN: [&str; 8] =
    ["\x1b[6n", "\x1b[5n", "\x1b[c", "\x1b[0c", "\x1b[?2004", "\x1b[?2026", "\x1b[3", "\x1b[?25l"];

fn keel(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_keel"));
    command.args(arguments);
    command
}

/// A program on a pseudo terminal of 0x0 columns; killed when dropped.
struct Terminal {
    line: File,
    child: Child,
    seen: String,
}

impl Terminal {
    fn start(arguments: &[&str], term: &str) -> Terminal {
        let pty = openpty(None, None).unwrap();
        let end = || Stdio::from(pty.slave.try_clone().unwrap());
        let child =
            keel(arguments).env("TERM", term).stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        Terminal { line: File::from(pty.master), child, seen: String::new() }
    }

    fn send(&mut self, keys: &str) {
        self.line.write_all(keys.as_bytes()).unwrap();
    }

    /// Reads until `text` has come after everything that was expected before.
    fn expect(&mut self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.seen.find(text) {
                self.check();
                self.seen.drain(..at + text.len());
                return;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let mut fds = [PollFd::new(self.line.as_fd(), PollFlags::POLLIN)];
            let timeout = PollTimeout::try_from(left).unwrap();
            assert!(poll(&mut fds, timeout).unwrap() > 0, "{text:?} did not come, but {:?}", self.seen);
            let mut buffer = [0; 1024];
            let n = self.line.read(&mut buffer).unwrap_or(0);
            assert!(n > 0, "the program ended before {text:?}, after {:?}", self.seen);
            self.seen.push_str(&String::from_utf8_lossy(&buffer[..n]));
        }
    }

    fn check(&self) {
        for sequence in FORBIDDEN {
            assert!(!self.seen.contains(sequence), "{sequence:?} in {:?}", self.seen);
        }
    }

    fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the program does not end, after {:?}", self.seen);
            // What it still prints must not hold it up.
            let mut fds = [PollFd::new(self.line.as_fd(), PollFlags::POLLIN)];
            if poll(&mut fds, PollTimeout::from(10u8)).unwrap() > 0 {
                let mut buffer = [0; 1024];
                let n = self.line.read(&mut buffer).unwrap_or(0);
                self.seen.push_str(&String::from_utf8_lossy(&buffer[..n]));
            }
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Ended already in the good case.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn run(arguments: &[&str], input: &str) -> Output {
    let mut child =
        keel(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn a_terminal_gets_a_prompt_and_no_questions() {
    let mut terminal = Terminal::start(&["shell"], "vt100");
    terminal.expect("Type \"help\".\r\n");
    terminal.expect("> ");
    terminal.send("versoin\r");
    terminal.expect("did you mean \"version\"?\r\n");
    terminal.expect("> ");
    // Tab completes, the arrow key brings the last line back.
    terminal.send("vers\t\r");
    terminal.expect("\r\nkeel ");
    terminal.expect("> ");
    terminal.send("\x1b[A\r");
    terminal.expect("\r\nkeel ");
    terminal.expect("> ");
    terminal.send("show \t\t");
    terminal.expect("services");
    terminal.expect("> show");
    // Ctrl-C drops the line.
    terminal.send("\x03");
    terminal.expect("> ");
    // Lines sent ahead are all answered.
    terminal.send("?\rversion\rshwo\r");
    terminal.expect("power-off");
    terminal.expect("\r\nkeel ");
    terminal.expect("did you mean \"show\"?\r\n");
    terminal.expect("> ");
    terminal.send("\x04");
    assert!(terminal.wait().success(), "{:?}", terminal.seen);
    terminal.check();
}

#[test]
fn a_dumb_terminal_gets_the_same_without_editing() {
    let mut terminal = Terminal::start(&["shell"], "dumb");
    terminal.expect("Type \"help\".\r\n");
    terminal.expect("> ");
    terminal.send("version\r");
    terminal.expect("\r\nkeel ");
    terminal.expect("> ");
    assert!(!terminal.seen.contains('\x1b'), "{:?}", terminal.seen);
    terminal.send("exit\r");
    assert!(terminal.wait().success(), "{:?}", terminal.seen);
}

#[test]
fn a_terminal_is_asked_before_a_reboot() {
    for term in ["vt100", "dumb"] {
        let mut terminal = Terminal::start(&["shell"], term);
        terminal.expect("> ");
        terminal.send("reboot\r");
        terminal.expect("really? (yes/no) ");
        terminal.send("no\r");
        terminal.expect("nothing was done\r\n");
        terminal.expect("> ");
        terminal.send("\x04");
        assert!(terminal.wait().success(), "{:?}", terminal.seen);
    }
    let mut terminal = Terminal::start(&["power-off"], "vt100");
    terminal.expect("really? (yes/no) ");
    terminal.send("nope\r");
    terminal.expect("nothing was done\r\n");
    assert_eq!(terminal.wait().code(), Some(1));
}

#[test]
fn a_pipe_gets_answers_and_no_prompt() {
    let out = run(&["shell"], "help\nshwo\nversion\n");
    assert!(out.status.success());
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(text.starts_with("show [state]") && text.contains("did you mean \"show\"?\n"), "{text}");
    assert!(!text.contains("> ") && text.contains("\nkeel "), "{text}");
}

#[test]
fn exit_codes_and_where_messages_go() {
    let usage = run(&["shwo"], "");
    assert_eq!(usage.status.code(), Some(2));
    assert_eq!(String::from_utf8_lossy(&usage.stderr), "unknown command \"shwo\"; did you mean \"show\"?\n");
    assert!(usage.stdout.is_empty());

    let help = run(&[], "");
    assert!(help.status.success() && help.stdout.starts_with(b"show [state]"));

    let agent = run(&["agent", "org.evenkeel.no-such-port"], "");
    assert_eq!(agent.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&agent.stderr).contains("no virtio-serial port"));

    // A machine where a node's netd runs is not one to test on.
    if std::path::Path::new("/run/evenkeel").exists() {
        return;
    }
    let dead = run(&["show", "vips"], "");
    assert_eq!(dead.status.code(), Some(1));
    let expected = "netd does not answer on /run/evenkeel/bus/netd: no such file or directory; \
                    see \"keel show services\"\n";
    assert_eq!(String::from_utf8_lossy(&dead.stderr), expected);
}
