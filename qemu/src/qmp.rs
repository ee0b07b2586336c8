//! QEMU's control protocol, as much as the lab needs: greeting, commands with a deadline, events.

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// A QMP line is a few hundred bytes; longer ones are no QMP.
const LINE_MAX: u64 = 1 << 20;
/// One command is under way at a time; stale answers of timed-out ones may queue behind it.
const REPLIES_MAX: usize = 16;

/// What QEMU reports on its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QmpEvent {
    /// The guest ended: `reason` is `guest-reset`, `guest-shutdown`, `guest-panic`, `host-…`.
    Shutdown {
        /// QEMU's word for it.
        reason: String,
    },
    /// The guest was reset and runs on in the same process.
    Reset {
        /// QEMU's word for it.
        reason: String,
    },
    /// The watchdog ran out.
    Watchdog,
    /// The guest has closed a virtio port: whoever had it open has ended.
    PortClosed {
        /// The port's device id.
        id: String,
    },
    /// The connection ended: so has QEMU, or is about to.
    Closed,
    /// Anything else, by name.
    Other(String),
}

/// A command was not obeyed. The machine may or may not have done it when the answer is missing.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// QEMU said no.
    #[error("`{command}` refused: {reason}")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's description.
        reason: String,
    },
    /// No answer in time.
    #[error("`{command}` unanswered for {} s", .limit.as_secs_f32())]
    Late {
        /// The command.
        command: String,
        /// How long was waited.
        limit: Duration,
    },
    /// The connection is gone.
    #[error("the control connection is closed")]
    Closed,
}

/// A connection to one QEMU. Dropping it closes the connection.
#[derive(Debug)]
pub struct Qmp {
    stream: UnixStream,
    replies: Receiver<Value>,
    next_id: u64,
}

impl Qmp {
    /// Opens the conversation on a connected socket. `on_event` is called on the reader's thread, with
    /// [`QmpEvent::Closed`] exactly once and last.
    pub fn start(
        stream: UnixStream,
        limit: Duration,
        on_event: impl FnMut(QmpEvent) + Send + 'static,
    ) -> Result<Qmp, QmpError> {
        let (sender, replies) = sync_channel(REPLIES_MAX);
        let reader = stream.try_clone().map_err(|_| QmpError::Closed)?;
        std::thread::Builder::new()
            .name("qmp".into())
            .spawn(move || read_all(reader, &sender, on_event))
            .map_err(|_| QmpError::Closed)?;
        let mut qmp = Qmp { stream, replies, next_id: 0 };
        // Commands sent before the greeting are answered after it: no need to wait for it separately.
        qmp.execute("qmp_capabilities", &json!({}), limit)?;
        Ok(qmp)
    }

    /// Sends `command` and waits for its answer.
    pub fn execute(&mut self, command: &str, arguments: &Value, limit: Duration) -> Result<Value, QmpError> {
        self.next_id += 1;
        let request = json!({ "execute": command, "arguments": arguments, "id": self.next_id });
        let mut line = request.to_string();
        line.push('\n');
        // A command is far smaller than the socket's buffer, but a stopped QEMU must not stop us.
        let _ = self.stream.set_write_timeout(Some(limit));
        (&self.stream).write_all(line.as_bytes()).map_err(|_| QmpError::Closed)?;
        let until = Instant::now() + limit;
        loop {
            let reply = match self.replies.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(reply) => reply,
                Err(RecvTimeoutError::Timeout) => {
                    return Err(QmpError::Late { command: command.into(), limit });
                }
                Err(RecvTimeoutError::Disconnected) => return Err(QmpError::Closed),
            };
            if reply["id"] != json!(self.next_id) {
                continue; // the late answer of a command given up before
            }
            return match &reply["error"]["desc"] {
                Value::String(reason) => {
                    Err(QmpError::Refused { command: command.into(), reason: reason.clone() })
                }
                _ => Ok(reply["return"].clone()),
            };
        }
    }
}

impl Drop for Qmp {
    fn drop(&mut self) {
        // The reader's clone would keep the connection open otherwise.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}

/// Sorts lines into answers and events until the connection ends.
fn read_all(stream: UnixStream, replies: &SyncSender<Value>, mut on_event: impl FnMut(QmpEvent)) {
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = Vec::new();
        match reader.by_ref().take(LINE_MAX).read_until(b'\n', &mut line) {
            Ok(n) if n > 0 && line.ends_with(b"\n") => {}
            _ => break,
        }
        let Ok(message) = serde_json::from_slice::<Value>(&line) else { break };
        if let Some(name) = message["event"].as_str() {
            let reason = || message["data"]["reason"].as_str().unwrap_or("unknown").to_owned();
            on_event(match name {
                "SHUTDOWN" => QmpEvent::Shutdown { reason: reason() },
                "RESET" => QmpEvent::Reset { reason: reason() },
                "WATCHDOG" => QmpEvent::Watchdog,
                "VSERPORT_CHANGE" if message["data"]["open"] == false => {
                    QmpEvent::PortClosed { id: message["data"]["id"].as_str().unwrap_or_default().to_owned() }
                }
                other => QmpEvent::Other(other.to_owned()),
            });
        } else if message.get("return").is_some() || message.get("error").is_some() {
            // A full queue means that nobody asks any more.
            let _ = replies.try_send(message);
        }
    }
    on_event(QmpEvent::Closed);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    const LIMIT: Duration = Duration::from_secs(5);

    /// A QEMU that greets and answers each request with what `script` makes of it.
    fn fake(script: impl Fn(&Value) -> Vec<String> + Send + 'static) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().expect("socket pair");
        std::thread::spawn(move || {
            let mut out = theirs.try_clone().expect("clone");
            writeln!(out, "{{\"QMP\": {{\"version\": {{}}}}}}\r").expect("greet");
            for line in BufReader::new(theirs).lines() {
                let Ok(line) = line else { return };
                let request: Value = serde_json::from_str(&line).expect("JSON");
                for answer in script(&request) {
                    if writeln!(out, "{answer}").is_err() {
                        return;
                    }
                }
                if request["execute"] == "quit" {
                    return;
                }
            }
        });
        ours
    }

    fn ok(request: &Value) -> String {
        json!({ "return": {}, "id": request["id"] }).to_string()
    }

    #[test]
    fn answers_and_events_are_told_apart() {
        let stream = fake(|request| match request["execute"].as_str() {
            Some("set_link") => vec![
                json!({ "event": "WATCHDOG", "data": { "action": "reset" } }).to_string(),
                json!({ "event": "RESET", "data": { "guest": true, "reason": "guest-reset" } }).to_string(),
                json!({ "event": "VSERPORT_CHANGE", "data": { "open": true, "id": "p" } }).to_string(),
                json!({ "event": "VSERPORT_CHANGE", "data": { "open": false, "id": "p" } }).to_string(),
                json!({ "event": "NIC_RX_FILTER_CHANGED" }).to_string(),
                ok(request),
            ],
            Some("quit") => {
                vec![
                    json!({ "event": "SHUTDOWN", "data": { "reason": "guest-reset" } }).to_string(),
                    ok(request),
                ]
            }
            _ => vec![ok(request)],
        });
        let (sender, events) = channel();
        let mut qmp =
            Qmp::start(stream, LIMIT, move |e| sender.send(e).expect("test listens")).expect("greeted");
        qmp.execute("set_link", &json!({ "name": "nic-p1", "up": false }), LIMIT).expect("obeyed");
        qmp.execute("quit", &json!({}), LIMIT).expect("obeyed");
        let seen: Vec<QmpEvent> = std::iter::from_fn(|| events.recv_timeout(LIMIT).ok()).collect();
        let shutdown = QmpEvent::Shutdown { reason: "guest-reset".into() };
        let other = QmpEvent::Other("NIC_RX_FILTER_CHANGED".into());
        let reset = QmpEvent::Reset { reason: "guest-reset".into() };
        let opened = QmpEvent::Other("VSERPORT_CHANGE".into());
        let closed = QmpEvent::PortClosed { id: "p".into() };
        assert_eq!(seen, [QmpEvent::Watchdog, reset, opened, closed, other, shutdown, QmpEvent::Closed]);
        assert!(matches!(qmp.execute("cont", &json!({}), LIMIT), Err(QmpError::Closed)));
    }

    #[test]
    fn a_refusal_names_command_and_reason() {
        let stream = fake(|request| match request["execute"].as_str() {
            Some("set_link") => {
                vec![json!({ "error": { "class": "DeviceNotFound", "desc": "no nic-p9" }, "id": request["id"] })
                    .to_string()]
            }
            _ => vec![ok(request)],
        });
        let mut qmp = Qmp::start(stream, LIMIT, |_| {}).expect("greeted");
        let error = qmp.execute("set_link", &json!({}), LIMIT).expect_err("refused");
        assert_eq!(error.to_string(), "`set_link` refused: no nic-p9");
    }

    #[test]
    fn silence_ends_at_the_deadline_and_its_late_answer_is_not_taken_for_the_next() {
        let held = std::sync::Mutex::new(None);
        let stream = fake(move |request| match request["execute"].as_str() {
            Some("stop") => {
                *held.lock().expect("test") = Some(ok(request));
                vec![]
            }
            Some("query-status") => {
                let late = held.lock().expect("test").take();
                let mut answers: Vec<String> = late.into_iter().collect();
                answers.push(json!({ "return": { "status": "running" }, "id": request["id"] }).to_string());
                answers
            }
            _ => vec![ok(request)],
        });
        let mut qmp = Qmp::start(stream, LIMIT, |_| {}).expect("greeted");
        let short = Duration::from_millis(30);
        assert!(matches!(qmp.execute("stop", &json!({}), short), Err(QmpError::Late { .. })));
        let status = qmp.execute("query-status", &json!({}), LIMIT).expect("answered");
        assert_eq!(status["status"], "running");
    }

    #[test]
    fn what_is_no_qmp_closes_the_conversation() {
        let (ours, mut theirs) = UnixStream::pair().expect("socket pair");
        theirs.write_all(b"hello\n").expect("written");
        assert!(matches!(Qmp::start(ours, LIMIT, |_| {}), Err(QmpError::Closed | QmpError::Late { .. })));
    }
}
