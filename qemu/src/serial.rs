//! A node's serial line: kept complete in a log, searched for words, shown to viewers.
//!
//! ```text
//! QEMU ── socket pair per start ── reader ──┬── con.log (up to LOG_MAX)
//!                                           ├── tail in memory: `wait_for`
//!                                           └── viewers of the UNIX socket `con` (they outlive the node's restarts)
//! ```
//! A reader that is told to hold reads nothing: after some hundred bytes the line is full, as with a terminal that
//! holds up its hand for ever. Nothing is lost; all of it comes when the line is released.

use crate::error::LabError;
use nix::sys::socket::{MsgFlags, send};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What is kept in memory to search: a boot prints some tens of KiB.
const TAIL_MAX: usize = 512 * 1024;
/// A node that prints without end must not fill the disk.
const LOG_MAX: u64 = 32 << 20;
/// People looking at one console at once.
const VIEWERS_MAX: usize = 8;
/// A new viewer sees this much of what came before: the prompt and what led to it.
const VIEWER_HISTORY: usize = 2048;
/// Input a stopped machine does not read: wait this long for room.
const SEND_LIMIT: Duration = Duration::from_secs(5);

/// A place in everything the node ever printed in this lab, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position(u64);

#[derive(Debug)]
struct Inner {
    log: File,
    logged: u64,
    tail: Vec<u8>,
    /// Bytes printed so far; the tail holds the last of them.
    total: u64,
    machine: Option<UnixStream>,
    viewers: Vec<UnixStream>,
    held: bool,
    closed: bool,
}

/// One node's serial line.
#[derive(Debug)]
pub struct Serial {
    node: String,
    inner: Mutex<Inner>,
    changed: Condvar,
    socket: PathBuf,
}

impl Serial {
    /// Opens the log (appending) and the viewers' socket of the line called `line` in the node's directory.
    pub fn open(node: &str, dir: &Path, line: &str) -> Result<Arc<Serial>, LabError> {
        let log_path = dir.join(format!("{line}.log"));
        let doing = || format!("open {}", log_path.display());
        let log = File::options().create(true).append(true).open(&log_path).map_err(LabError::io(doing()))?;
        let logged = log.metadata().map_err(LabError::io(doing()))?.len();
        let socket = dir.join(line);
        let _ = std::fs::remove_file(&socket); // of a lab that is gone: the directory is ours
        let listener =
            UnixListener::bind(&socket).map_err(LabError::io(format!("listen on {}", socket.display())))?;
        let serial = Arc::new(Serial {
            node: node.to_owned(),
            inner: Mutex::new(Inner {
                log,
                logged,
                tail: Vec::new(),
                total: 0,
                machine: None,
                viewers: Vec::new(),
                held: false,
                closed: false,
            }),
            changed: Condvar::new(),
            socket,
        });
        let accepting = Arc::clone(&serial);
        std::thread::Builder::new()
            .name(format!("viewers {node}"))
            .spawn(move || accepting.accept(&listener))
            .map_err(LabError::io("start a thread"))?;
        Ok(serial)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the lab's end of a machine that is about to start. The reader ends with the machine.
    pub fn attach(self: &Arc<Self>, stream: UnixStream) -> io::Result<()> {
        let mut reader = stream.try_clone()?;
        self.lock().machine = Some(stream);
        let serial = Arc::clone(self);
        std::thread::Builder::new().name(format!("serial {}", self.node)).spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = reader.read(&mut buffer) {
                serial.printed(&buffer[..n]);
                serial.wait_while_held();
            }
        })?;
        Ok(())
    }

    fn printed(&self, bytes: &[u8]) {
        let mut inner = self.lock();
        if inner.logged < LOG_MAX {
            inner.logged += bytes.len() as u64;
            // A full disk costs the log, not the node.
            let _ = inner.log.write_all(bytes);
        }
        inner.total += bytes.len() as u64;
        inner.tail.extend_from_slice(bytes);
        if inner.tail.len() > 2 * TAIL_MAX {
            let cut = inner.tail.len() - TAIL_MAX;
            inner.tail.drain(..cut);
        }
        inner.viewers.retain(|viewer| show(viewer, bytes));
        self.changed.notify_all();
    }

    /// Stops reading the line, or reads on.
    pub fn hold(&self, held: bool) {
        self.lock().held = held;
        self.changed.notify_all();
    }

    fn wait_while_held(&self) {
        let held = |inner: &mut Inner| inner.held && !inner.closed;
        drop(self.changed.wait_while(self.lock(), held).unwrap_or_else(PoisonError::into_inner));
    }

    /// Where the node's output stands now.
    pub fn position(&self) -> Position {
        Position(self.lock().total)
    }

    /// What was printed from `from` on, as far as it is still in memory.
    pub fn text_since(&self, from: Position) -> String {
        String::from_utf8_lossy(since(&self.lock(), from)).into_owned()
    }

    /// Waits until `needle` has been printed behind `from`; returns the place right after it.
    ///
    /// # Errors
    /// The deadline, with the last line that came instead.
    pub fn wait_for(&self, from: Position, needle: &str, limit: Duration) -> Result<Position, LabError> {
        let until = Instant::now() + limit;
        let mut inner = self.lock();
        loop {
            let text = since(&inner, from);
            if let Some(at) = find(text, needle.as_bytes()) {
                let end = inner.total - text.len() as u64 + (at + needle.len()) as u64;
                return Ok(Position(end));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || inner.closed {
                let text = String::from_utf8_lossy(text).into_owned();
                let last = text.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or("nothing");
                return Err(LabError::Deadline {
                    what: format!("{:?} on the console of {}", needle, self.node),
                    limit,
                    seen: format!(
                        "last line: {last}; all of it: {}",
                        self.socket.with_extension("log").display()
                    ),
                });
            }
            inner = self.changed.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Ends all viewers' connections and every wait.
    pub fn close(&self) {
        {
            let mut inner = self.lock();
            inner.closed = true;
            for viewer in inner.viewers.drain(..) {
                let _ = viewer.shutdown(std::net::Shutdown::Both);
            }
            if let Some(machine) = inner.machine.take() {
                let _ = machine.shutdown(std::net::Shutdown::Both);
            }
            self.changed.notify_all();
        }
        // The accepting thread wakes up by a connection and sees that it is over.
        let _ = UnixStream::connect(&self.socket);
        let _ = std::fs::remove_file(&self.socket);
    }

    fn accept(self: &Arc<Self>, listener: &UnixListener) {
        while let Ok((viewer, _)) = listener.accept() {
            let mut inner = self.lock();
            if inner.closed {
                return;
            }
            if inner.viewers.len() >= VIEWERS_MAX {
                let _ = (&viewer).write_all(b"too many viewers on this console\r\n");
                continue;
            }
            let from = Position(inner.total.saturating_sub(VIEWER_HISTORY as u64));
            let Ok(reader) = viewer.try_clone() else { continue };
            if show(&viewer, since(&inner, from)) {
                inner.viewers.push(viewer);
            }
            drop(inner);
            let serial = Arc::clone(self);
            let typing = std::thread::Builder::new().name("viewer".into());
            // Without a thread the viewer can look but not type.
            let _ = typing.spawn(move || serial.typed(reader));
        }
    }

    /// Passes a viewer's keys on until it leaves. Keys for a machine that is off are lost, as on a real line.
    fn typed(&self, mut viewer: UnixStream) {
        let mut buffer = [0; 256];
        while let Ok(n @ 1..) = viewer.read(&mut buffer) {
            let machine = self.lock().machine.as_ref().and_then(|m| m.try_clone().ok());
            if let Some(mut machine) = machine {
                let _ = machine.set_write_timeout(Some(SEND_LIMIT));
                let _ = machine.write_all(&buffer[..n]);
            }
        }
        let _ = viewer.shutdown(std::net::Shutdown::Both); // the next output removes it from the list
    }
}

/// Writes to a viewer without waiting; `false` when it is gone or does not keep up.
fn show(viewer: &UnixStream, bytes: &[u8]) -> bool {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    bytes.is_empty() || send(viewer.as_raw_fd(), bytes, flags).is_ok_and(|n| n == bytes.len())
}

fn since(inner: &Inner, from: Position) -> &[u8] {
    let wanted = usize::try_from(inner.total.saturating_sub(from.0)).unwrap_or(usize::MAX);
    &inner.tail[inner.tail.len() - wanted.min(inner.tail.len())..]
}

fn find(text: &[u8], needle: &[u8]) -> Option<usize> {
    if needle.is_empty() {
        return Some(0);
    }
    text.windows(needle.len()).position(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dir::testing::TestDir;

    const LIMIT: Duration = Duration::from_secs(5);

    #[test]
    fn words_are_found_behind_a_position_and_logged() {
        let dir = TestDir::new("serial-words");
        let serial = Serial::open("a1", dir.path(), "con").expect("opened");
        let (ours, mut node) = UnixStream::pair().expect("socket pair");
        serial.attach(ours).expect("attached");
        node.write_all(b"booting\r\na1> ").expect("printed");
        let first = serial.wait_for(Position::default(), "a1> ", LIMIT).expect("the prompt");
        let late = serial
            .wait_for(first, "a1> ", Duration::from_millis(20))
            .expect_err("only one prompt")
            .to_string();
        assert!(late.contains("last line: nothing"), "{late}");
        node.write_all(b"again\r\na1> ").expect("printed");
        serial.wait_for(first, "a1> ", LIMIT).expect("the second prompt");
        assert_eq!(serial.text_since(first), "again\r\na1> ");
        assert_eq!(
            std::fs::read_to_string(dir.path().join("con.log")).expect("log"),
            "booting\r\na1> again\r\na1> "
        );
        serial.close();
    }

    #[test]
    fn viewers_see_history_type_and_stay_over_a_restart() {
        let dir = TestDir::new("serial-viewers");
        let serial = Serial::open("a1", dir.path(), "con").expect("opened");
        let (ours, mut node) = UnixStream::pair().expect("socket pair");
        serial.attach(ours).expect("attached");
        node.write_all(b"before ").expect("printed");
        serial.wait_for(Position::default(), "before", LIMIT).expect("printed");

        let mut viewer = UnixStream::connect(dir.path().join("con")).expect("socket");
        viewer.set_read_timeout(Some(LIMIT)).expect("set");
        let mut seen = [0; 7];
        viewer.read_exact(&mut seen).expect("history");
        assert_eq!(&seen, b"before ");
        viewer.write_all(b"x").expect("typed");
        node.set_read_timeout(Some(LIMIT)).expect("set");
        let mut key = [0; 1];
        node.read_exact(&mut key).expect("the key arrives");
        assert_eq!(&key, b"x");

        drop(node);
        let (ours, mut node) = UnixStream::pair().expect("socket pair");
        serial.attach(ours).expect("attached again");
        node.write_all(b"after").expect("printed");
        let mut seen = [0; 5];
        viewer.read_exact(&mut seen).expect("still watching");
        assert_eq!(&seen, b"after");
        serial.close();
        assert_eq!(viewer.read(&mut seen).expect("ended"), 0, "closing ends the viewers");
    }

    #[test]
    fn a_held_line_fills_and_loses_nothing() {
        let dir = TestDir::new("serial-held");
        let serial = Serial::open("a1", dir.path(), "con").expect("opened");
        let (ours, mut node) = UnixStream::pair().expect("socket pair");
        serial.attach(ours).expect("attached");
        serial.hold(true);
        node.set_write_timeout(Some(Duration::from_millis(50))).expect("set");
        // One byte at a time, as a serial port does it.
        let full = (0..1 << 20).position(|_| node.write(b"x").is_err()).expect("the line is full");
        // What the reader had asked for before it was told to hold is the only thing that came.
        assert!(serial.position() < Position(4097) && full > 0, "{full}");
        serial.hold(false);
        node.set_write_timeout(Some(LIMIT)).expect("set");
        node.write_all(b"end").expect("the line is read again");
        let end = serial.wait_for(Position::default(), "end", LIMIT).expect("all of it came");
        assert_eq!(end, Position(full as u64 + 3));
        serial.close();
    }

    #[test]
    fn memory_stays_bounded_and_positions_hold() {
        let dir = TestDir::new("serial-bound");
        let serial = Serial::open("a1", dir.path(), "con").expect("opened");
        let chunk = vec![b'.'; TAIL_MAX];
        for _ in 0..5 {
            serial.printed(&chunk);
        }
        let mark = serial.position();
        serial.printed(b"end");
        assert_eq!(serial.text_since(mark), "end");
        assert!(serial.lock().tail.len() <= 2 * TAIL_MAX);
        serial.close();
    }
}
