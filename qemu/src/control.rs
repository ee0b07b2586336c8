//! How commands talk to a running lab: one JSON value per line over the UNIX socket `control` in its directory.
//!
//! Requests are answered in order; after `events` the lab also sends events between answers. The connection that
//! `up` holds owns the lab: when it ends before `detach`, the lab ends.

use crate::error::LabError;
use crate::events::Event;
use crate::lab::LabSpec;
use crate::machine::Press;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A request with a whole cluster file fits many times.
pub const REQUEST_MAX: u64 = 2 << 20;
/// An answer with a command's longest output, every byte of it escaped.
pub const REPLY_MAX: u64 = 32 << 20;

/// The longest a keel command may be waited for, in seconds.
pub const KEEL_LIMIT_MAX_S: u64 = 3600;

/// The socket of the lab in `dir`.
pub fn socket(dir: &Path) -> PathBuf {
    dir.join("control")
}

/// What a command asks for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "do")]
pub enum Request {
    /// Start this lab: the owner's first request, on the connection the supervisor was started with.
    Start {
        /// Which.
        spec: LabSpec,
    },
    /// How everything is.
    Status,
    /// Send events from now on.
    Events,
    /// The lab goes on without its owner.
    Detach,
    /// Run a keel command on a node.
    Keel {
        /// Where.
        node: String,
        /// The command line.
        command: String,
        /// How long to wait for its end: 1 to [`KEEL_LIMIT_MAX_S`].
        limit_s: u64,
    },
    /// Plug a port's cable in or out.
    Link {
        /// `a1:p1`.
        port: String,
        /// In.
        up: bool,
    },
    /// Switch a node on, or cut its power.
    Power {
        /// Which.
        node: String,
        /// On.
        on: bool,
    },
    /// Stop a node's processor, or let it go on.
    Freeze {
        /// Which.
        node: String,
        /// Stop.
        frozen: bool,
    },
    /// Press a node's button.
    Press {
        /// Which node.
        node: String,
        /// Which button.
        button: Press,
    },
    /// Have `lab-fault` on a node do something.
    Fault {
        /// Where.
        node: String,
        /// Its command line.
        command: String,
    },
    /// Send a signal to a program on a node.
    Signal {
        /// Where.
        node: String,
        /// The program's name.
        program: String,
        /// `KILL`, `STOP`, `CONT` or `TERM`.
        signal: String,
    },
    /// Accept TCP connections here and carry them to a VIP.
    Forward {
        /// Address and port of this host.
        listen: std::net::SocketAddr,
        /// VIP name or address, and its TCP port.
        to: String,
    },
    /// End the lab. The connection closes when it has ended.
    Down,
}

/// What a lab answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// Done; a word about it.
    Done(String),
    /// The answer to `status`.
    Status(LabStatus),
    /// The answer to `keel`.
    Answer {
        /// The command's exit code.
        code: i32,
        /// Its output.
        text: String,
    },
    /// Not done, and why.
    Error(String),
    /// Something happened.
    Event(Event),
}

/// How far the lab is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Nodes are starting or VIPs not yet answering.
    #[default]
    Booting,
    /// Every VIP answered.
    Ready,
    /// It did not get there, and why. Nodes are left running.
    Failed(String),
}

/// The answer to `status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabStatus {
    /// The lab's name.
    pub name: String,
    /// Its directory.
    pub dir: String,
    /// How far it is.
    pub phase: Phase,
    /// Nodes in name order.
    pub nodes: Vec<NodeStatus>,
    /// VIPs in name order.
    pub vips: Vec<VipStatus>,
    /// Forwarded TCP ports.
    pub forwards: Vec<String>,
}

/// One node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// Its pair, or empty.
    pub pair: String,
    /// Its group.
    pub group: String,
    /// `on`, `frozen`, `off (reason)`.
    pub state: String,
    /// Ports; an unplugged one carries `!`.
    pub ports: Vec<String>,
    /// Names of the VIPs it answers for.
    pub vips: Vec<String>,
    /// Its console's UNIX socket.
    pub console: String,
    /// Starts in this lab.
    pub starts: u32,
    /// Its QEMU process, when it runs.
    pub pid: Option<u32>,
}

/// One VIP.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VipStatus {
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: String,
    /// The port it starts on.
    pub home: String,
    /// The port that answers for it now, or empty.
    pub holder: String,
}

/// Reads one value; `None` at the end of the connection. A longer line than `max` is an error, as is what is no JSON.
pub fn read_line<T: DeserializeOwned>(reader: &mut impl BufRead, max: u64) -> io::Result<Option<T>> {
    let mut line = Vec::new();
    let n = reader.by_ref().take(max).read_until(b'\n', &mut line)?;
    if n == 0 {
        return Ok(None);
    }
    if !line.ends_with(b"\n") {
        let what = if n as u64 == max {
            "a line is longer than allowed"
        } else {
            "the connection ended within a line"
        };
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    serde_json::from_slice(&line).map(Some).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

/// Writes one value as a line, in one piece.
pub fn write_line(mut writer: impl Write, value: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(value).map_err(io::Error::other)?;
    line.push(b'\n');
    writer.write_all(&line)
}

/// Whether a socket's time-out ended the call.
fn late(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// A connection to a lab.
#[derive(Debug)]
pub struct Client {
    reader: BufReader<UnixStream>,
    name: String,
}

impl Client {
    /// Connects to the lab called `name` under `root`.
    ///
    /// # Errors
    /// It is not up.
    pub fn connect(root: &Path, name: &str) -> Result<Client, LabError> {
        crate::dir::check_name(name)?;
        let stream = UnixStream::connect(socket(&root.join(name))).map_err(|_| {
            LabError::Refused(format!("lab {name} is not up: start it with `cargo lab --name {name} up`"))
        })?;
        Ok(Client::over(stream, name))
    }

    /// Speaks over a connection that is there already.
    pub fn over(stream: UnixStream, name: &str) -> Client {
        Client { reader: BufReader::new(stream), name: name.to_owned() }
    }

    /// The connection, to wait on.
    pub fn stream(&self) -> &UnixStream {
        self.reader.get_ref()
    }

    /// Asks and waits for the answer; events on the way are dropped.
    ///
    /// # Errors
    /// No answer in time, the lab ended, or it refused.
    pub fn call(&mut self, request: &Request, limit: Duration) -> Result<Reply, LabError> {
        let name = self.name.clone();
        let broken = |source: io::Error| match late(&source) {
            true => {
                LabError::Deadline { what: format!("an answer from lab {name}"), limit, seen: String::new() }
            }
            false => LabError::Io { doing: format!("talk to lab {name}"), source },
        };
        self.stream().set_read_timeout(Some(limit)).map_err(broken)?;
        self.stream().set_write_timeout(Some(limit)).map_err(broken)?;
        write_line(self.stream(), request).map_err(broken)?;
        loop {
            match read_line(&mut self.reader, REPLY_MAX).map_err(broken)? {
                Some(Reply::Event(_)) => {}
                Some(Reply::Error(why)) => return Err(LabError::Refused(why)),
                Some(reply) => return Ok(reply),
                None => return Err(LabError::Refused(format!("lab {name} ended"))),
            }
        }
    }

    /// The next event or answer; `None` when the lab has ended. Waits as long as it takes.
    pub fn next_reply(&mut self) -> Result<Option<Reply>, LabError> {
        self.stream().set_read_timeout(None).map_err(LabError::io("wait for events"))?;
        read_line(&mut self.reader, REPLY_MAX).map_err(LabError::io("wait for events"))
    }

    /// Waits for the end of the lab.
    pub fn wait_end(&mut self, limit: Duration) -> Result<(), LabError> {
        let until = Instant::now() + limit;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let what = format!("the end of lab {}", self.name);
                return Err(LabError::Deadline { what, limit, seen: String::new() });
            }
            self.stream().set_read_timeout(Some(left)).map_err(LabError::io("wait for the lab's end"))?;
            match read_line::<Reply>(&mut self.reader, REPLY_MAX) {
                Ok(Some(_)) => {}
                Err(error) if late(&error) => {}
                // A process that is gone resets what it had not read.
                Ok(None) | Err(_) => return Ok(()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_stable_and_round_trip() {
        let table = [
            (Request::Status, r#"{"do":"status"}"#),
            (Request::Link { port: "a1:p1".into(), up: false }, r#"{"do":"link","port":"a1:p1","up":false}"#),
            (Request::Power { node: "a1".into(), on: true }, r#"{"do":"power","node":"a1","on":true}"#),
            (
                Request::Press { node: "a1".into(), button: Press::CtrlAltDel },
                r#"{"do":"press","node":"a1","button":"ctrl-alt-del"}"#,
            ),
            (
                Request::Forward {
                    listen: "127.0.0.1:8080".parse().expect("address"),
                    to: "web-1:80".into(),
                },
                r#"{"do":"forward","listen":"127.0.0.1:8080","to":"web-1:80"}"#,
            ),
        ];
        for (request, text) in table {
            let mut line = Vec::new();
            write_line(&mut line, &request).expect("written");
            assert_eq!(String::from_utf8_lossy(&line), format!("{text}\n"));
            assert_eq!(read_line(&mut line.as_slice(), REQUEST_MAX).expect("read"), Some(request));
        }
    }

    #[test]
    fn bounds_and_nonsense_are_errors_and_the_end_is_not() {
        let read = |text: &str, max| read_line::<Request>(&mut text.as_bytes(), max);
        assert!(read("", 10).expect("end").is_none());
        for (text, max) in [
            ("{\"do\":\"status\"}\n", 5),
            ("{\"do\":\"status\"}", 100),
            ("{\"do\":\"fly\"}\n", 100),
            ("\n", 100),
        ] {
            assert!(read(text, max).is_err(), "{text}");
        }
    }

    #[test]
    fn a_client_skips_events_and_tells_refusals_and_the_end() {
        let (ours, theirs) = UnixStream::pair().expect("socket pair");
        let thread = std::thread::spawn(move || {
            let mut reader = BufReader::new(theirs.try_clone().expect("clone"));
            let event = Event { at_ms: 1, subject: "a1".into(), what: "on".into() };
            for reply in [Reply::Done("yes".into()), Reply::Error("no such node".into())] {
                read_line::<Request>(&mut reader, REQUEST_MAX).expect("read").expect("a request");
                write_line(&theirs, &Reply::Event(event.clone())).expect("written");
                write_line(&theirs, &reply).expect("written");
            }
            read_line::<Request>(&mut reader, REQUEST_MAX).expect("read").expect("a request");
        });
        let mut client = Client::over(ours, "demo");
        let limit = Duration::from_secs(5);
        assert_eq!(client.call(&Request::Status, limit).expect("done"), Reply::Done("yes".into()));
        assert_eq!(client.call(&Request::Status, limit).expect_err("refused").to_string(), "no such node");
        assert_eq!(client.call(&Request::Status, limit).expect_err("ended").to_string(), "lab demo ended");
        client.wait_end(limit).expect("it has ended");
        thread.join().expect("served");

        let (ours, _silent) = UnixStream::pair().expect("socket pair");
        let limit = Duration::from_millis(20);
        let error = Client::over(ours, "demo").call(&Request::Status, limit).expect_err("late").to_string();
        assert_eq!(error, "an answer from lab demo: not within 0.02 s");
    }
}
