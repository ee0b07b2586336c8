//! Asks a program on a node to run a command line, over a virtio port: `keel agent`, or `lab-fault` for signals.
//!
//! ```text
//! lab  -> run <id> <hex of the command line>\n
//! node -> ready\n (when it opens the port)   out <id> <hex>\n …   done <id> <exit code>\n
//! ```
//! A request sent before the node has opened the port waits in QEMU until it does. One that the node's program has taken
//! along when it ended gets no answer: QEMU tells of that end.

use crate::error::LabError;
use proto::text::{hex, unhex};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The longest line the agent may send.
const LINE_MAX: u64 = 256 * 1024;
/// The most output one command may have; the rest is dropped and said.
const OUTPUT_MAX: usize = 4 << 20;

/// A command's result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Exit code of the command on the node.
    pub code: i32,
    /// What it printed.
    pub text: String,
}

/// One line of the agent.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    Out(u64, Vec<u8>),
    Done(u64, i32),
}

#[derive(Debug, Default)]
struct Inner {
    stream: Option<UnixStream>,
    /// Counts attachments: a command belongs to one life of the machine.
    life: u64,
    next_id: u64,
    pending: Pending,
}

/// The answer to the last request, as far as it has come.
#[derive(Debug, Default)]
struct Pending {
    id: u64,
    output: Vec<u8>,
    code: Option<i32>,
    /// Its program has ended without an answer.
    lost: bool,
}

impl Pending {
    /// Lines of a command given up earlier are ignored.
    fn add(&mut self, line: Line) {
        match line {
            Line::Out(id, bytes) if id == self.id => {
                let room = OUTPUT_MAX.saturating_sub(self.output.len());
                self.output.extend_from_slice(&bytes[..bytes.len().min(room)]);
            }
            Line::Done(id, code) if id == self.id => self.code = Some(code),
            _ => {}
        }
    }
}

/// The lab's end of one node's port; outlives the node's restarts.
#[derive(Debug, Default)]
pub struct Agent {
    inner: Mutex<Inner>,
    changed: Condvar,
    /// One command at a time: the agent runs them one after the other anyway.
    turn: Mutex<()>,
}

impl Agent {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the lab's end of a machine that is about to start.
    pub fn attach(self: &Arc<Self>, stream: UnixStream) -> std::io::Result<()> {
        let reader = stream.try_clone()?;
        let life = {
            let mut inner = self.lock();
            inner.stream = Some(stream);
            inner.life += 1;
            inner.pending = Pending::default();
            inner.life
        };
        let agent = Arc::clone(self);
        std::thread::Builder::new().name("agent".into()).spawn(move || agent.read(reader, life))?;
        Ok(())
    }

    /// Gives the connection up; a command under way fails at once.
    pub fn detach(&self) {
        let mut inner = self.lock();
        if let Some(stream) = inner.stream.take() {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        self.changed.notify_all();
    }

    /// The program on the node has closed the port: a command under way fails at once.
    pub fn lost(&self) {
        self.lock().pending.lost = true;
        self.changed.notify_all();
    }

    fn read(&self, stream: UnixStream, life: u64) {
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        loop {
            line.clear();
            match reader.by_ref().take(LINE_MAX).read_until(b'\n', &mut line) {
                Ok(n) if n > 0 => {}
                _ => break,
            }
            let mut inner = self.lock();
            if inner.life != life {
                return;
            }
            if let Some(parsed) = parse(&line) {
                inner.pending.add(parsed);
                self.changed.notify_all();
            }
        }
        let mut inner = self.lock();
        if inner.life == life {
            inner.stream = None;
            self.changed.notify_all();
        }
    }

    /// Runs `command` on `node` and waits for its end.
    ///
    /// # Errors
    /// The node is off, went off meanwhile, or did not answer in time (then the command may still run there).
    pub fn run(&self, node: &str, command: &str, limit: Duration) -> Result<Answer, LabError> {
        let until = Instant::now() + limit;
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let broken =
            |what: &str| LabError::Machine { node: node.into(), what: format!("`{command}`: {what}") };
        let life = {
            let mut inner = self.lock();
            inner.next_id += 1;
            let request = format!("run {} {}\n", inner.next_id, hex(command.as_bytes()));
            inner.pending = Pending { id: inner.next_id, ..Pending::default() };
            let stream = inner.stream.as_mut().ok_or_else(|| broken("the node is off"))?;
            stream
                .set_write_timeout(Some(limit))
                .and_then(|()| stream.write_all(request.as_bytes()))
                .map_err(|source| LabError::Io { doing: format!("send `{command}` to {node}"), source })?;
            inner.life
        };
        let mut inner = self.lock();
        loop {
            if inner.life == life
                && let Some(code) = inner.pending.code
            {
                let mut output = std::mem::take(&mut inner.pending.output);
                if output.len() >= OUTPUT_MAX {
                    output.extend_from_slice(b"\n(more output dropped)\n");
                }
                return Ok(Answer { code, text: String::from_utf8_lossy(&output).into_owned() });
            }
            if inner.stream.is_none() || inner.life != life {
                return Err(broken("the node went off before the answer"));
            }
            if inner.pending.lost {
                return Err(broken(
                    "its agent ended before the answer; the command may have been carried out",
                ));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let seen = if inner.pending.output.is_empty() {
                    "no answer from its agent"
                } else {
                    "the answer is incomplete"
                };
                let what = format!("`{command}` on {node}");
                return Err(LabError::Deadline { what, limit, seen: seen.into() });
            }
            inner = self.changed.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Reads one line; `None` for `ready` and for everything that is not of the protocol.
fn parse(line: &[u8]) -> Option<Line> {
    let text = std::str::from_utf8(line).ok()?.trim_end_matches(['\r', '\n']);
    let mut words = text.split(' ');
    let (word, id, rest) = (words.next()?, words.next()?.parse().ok()?, words.next()?);
    match (word, words.next()) {
        ("out", None) => Some(Line::Out(id, unhex(rest)?)),
        ("done", None) => Some(Line::Done(id, rest.parse().ok()?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    /// An agent that answers its first request with `reply`, `%` standing for the request's id.
    fn node(agent: &Arc<Agent>, reply: &'static str) {
        let (ours, mut theirs) = UnixStream::pair().expect("socket pair");
        agent.attach(ours).expect("attached");
        std::thread::spawn(move || {
            let mut line = String::new();
            BufReader::new(theirs.try_clone().expect("clone")).read_line(&mut line).expect("a request");
            let id = line.split(' ').nth(1).expect("an id").to_owned();
            theirs.write_all(reply.replace('%', &id).as_bytes()).expect("answered");
        });
    }

    #[test]
    fn output_is_joined_and_the_code_returned() {
        let agent = Arc::new(Agent::default());
        node(&agent, "ready\nout 77 00\nnonsense\nout % 776562\nout % 0a\ndone 77 9\ndone % 2\n");
        let answer = agent.run("a1", "show vips", LIMIT).expect("answered");
        assert_eq!(answer, Answer { code: 2, text: "web\n".into() });
    }

    #[test]
    fn each_way_to_stay_without_an_answer_is_told() {
        let agent = Arc::new(Agent::default());
        let off = agent.run("a1", "show", LIMIT).expect_err("off").to_string();
        assert_eq!(off, "node a1: `show`: the node is off");
        node(&agent, "out % 41\n"); // then the connection ends
        let gone = agent.run("a1", "show", LIMIT).expect_err("gone").to_string();
        assert!(gone.contains("went off"), "{gone}");
        let (ours, _held) = UnixStream::pair().expect("socket pair");
        agent.attach(ours).expect("attached");
        let ending = Arc::clone(&agent);
        let asked =
            std::thread::spawn(move || ending.run("a1", "show", LIMIT).expect_err("lost").to_string());
        // Not before it is asked: what ended earlier took nothing along.
        while agent.lock().next_id < 3 {
            std::thread::yield_now();
        }
        agent.lost();
        let lost = asked.join().expect("joined");
        assert!(lost.contains("its agent ended before the answer"), "{lost}");
        let late = agent.run("a1", "show", Duration::from_millis(30)).expect_err("late").to_string();
        assert!(late.contains("no answer from its agent"), "{late}");
    }

    #[test]
    fn lines_outside_the_protocol_mean_nothing() {
        for bad in ["ready", "out 1", "out x 41", "out 1 4g", "done 1 x", "done 1 2 3", "\u{fffd}", ""] {
            assert_eq!(parse(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(parse(b"done 3 -1\r\n"), Some(Line::Done(3, -1)));
    }
}
