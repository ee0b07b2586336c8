//! The process that owns a running lab: started by `up` in a session of its own, asked through [`crate::control`].
//!
//! ```text
//! up ──fork──> supervise               its standard input is the owner's connection
//!    ── start {spec} ──>              Lab::start; refused: error, exit
//!    <── done ──
//!                                     boot in the background; `control` accepts commands
//!    ── detach ──>  or the connection ends ──> stop
//! any command ── down ──> stop:       machines, fabric, directory; then the process ends and all connections close
//! ```
//! SIGTERM, SIGINT and SIGHUP stop it as `down` does. When it is killed, the kernel kills its machines.

use crate::control::{
    self, KEEL_LIMIT_MAX_S, LabStatus, Phase, REQUEST_MAX, Reply, Request, read_line, write_line,
};
use crate::error::LabError;
use crate::lab::Lab;
use crate::{signals, sys};
use std::io::BufReader;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Commands under way at once; more are turned away.
const CONNECTIONS_MAX: usize = 32;
/// The owner sends its first request at once.
const START_LIMIT: Duration = Duration::from_secs(10);
/// A client that does not read its answers is given up.
const WRITE_LIMIT: Duration = Duration::from_secs(10);

/// Starts a supervisor; returns the owner's connection to it. Its messages go to `log`.
pub fn spawn(log: std::fs::File) -> Result<UnixStream, LabError> {
    let (ours, theirs) = UnixStream::pair().map_err(LabError::io("make a socket pair"))?;
    let program = std::env::current_exe().map_err(LabError::io("find the lab's own program"))?;
    let mut command = Command::new(program);
    let log_too = log.try_clone().map_err(LabError::io("open the supervisor's log"))?;
    command.arg("supervise").stdin(OwnedFd::from(theirs)).stdout(log_too).stderr(log).current_dir("/");
    sys::own_session(&mut command);
    // Never waited for: it is a process of its own, and init's child once we end.
    command.spawn().map_err(LabError::io("start the supervisor"))?;
    Ok(ours)
}

struct Shared {
    lab: Lab,
    phase: Mutex<Phase>,
    detached: AtomicBool,
    connections: AtomicUsize,
    stop: Sender<()>,
}

/// The supervisor's whole life. Standard input is the owner's connection.
pub fn run() -> Result<(), LabError> {
    let owner = std::io::stdin().as_fd().try_clone_to_owned();
    let owner = UnixStream::from(owner.map_err(LabError::io("take the owner's connection"))?);
    // Before any thread exists, so that all of them leave these signals to the one that reads them.
    let signals = signals::ending()?;
    let mut reader = BufReader::new(owner.try_clone().map_err(LabError::io("share the owner's connection"))?);

    owner.set_read_timeout(Some(START_LIMIT)).map_err(LabError::io("set a time-out"))?;
    let first = read_line(&mut reader, REQUEST_MAX).map_err(LabError::io("read the owner's request"))?;
    let Some(Request::Start { spec }) = first else {
        return Err(LabError::Refused("the owner's first request must be `start`".into()));
    };
    owner.set_read_timeout(None).map_err(LabError::io("set a time-out"))?;
    let started = Lab::start(spec).and_then(|lab| {
        let path = control::socket(lab.dir());
        let _ = std::fs::remove_file(&path); // of a dead lab: the directory is ours
        let listener =
            UnixListener::bind(&path).map_err(LabError::io(format!("listen on {}", path.display())))?;
        Ok((lab, listener))
    });
    let (lab, listener) = match started {
        Ok(started) => started,
        Err(error) => {
            let _ = write_line(&owner, &Reply::Error(error.chain()));
            return Err(error);
        }
    };

    let (stop, stopped) = channel();
    let shared = Arc::new(Shared {
        lab,
        phase: Mutex::default(),
        detached: AtomicBool::new(false),
        connections: AtomicUsize::new(0),
        stop: stop.clone(),
    });
    thread("signals", move || {
        let _ = signals.read_signal();
        let _ = stop.send(());
    })?;
    let booting = Arc::clone(&shared);
    thread("boot", move || boot(&booting))?;
    let accepting = Arc::clone(&shared);
    thread("control", move || accept(&accepting, &listener))?;
    let owned = Arc::clone(&shared);
    thread("owner", move || {
        if write_line(&owner, &Reply::Done("started".into())).is_ok() {
            serve(&owned, reader, &owner);
        }
        if !owned.detached.load(Ordering::SeqCst) {
            let _ = owned.stop.send(());
        }
    })?;

    // Every sender lives as long as the process: this returns when somebody wants the end.
    let _ = stopped.recv();
    shared.lab.stop();
    Ok(())
}

fn thread(name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), LabError> {
    std::thread::Builder::new().name(name.into()).spawn(body).map_err(LabError::io("start a thread"))?;
    Ok(())
}

fn boot(shared: &Shared) {
    let phase = match shared.lab.boot().and_then(|()| shared.lab.wait_for_vips()) {
        Ok(()) => Phase::Ready,
        Err(error) => Phase::Failed(error.chain()),
    };
    let word = match &phase {
        Phase::Failed(why) => why.clone(),
        _ => "every VIP answers".into(),
    };
    *shared.phase.lock().unwrap_or_else(PoisonError::into_inner) = phase;
    shared.lab.hub().tell("lab", word);
}

fn accept(shared: &Arc<Shared>, listener: &UnixListener) {
    while let Ok((stream, _)) = listener.accept() {
        if shared.connections.fetch_add(1, Ordering::SeqCst) >= CONNECTIONS_MAX {
            shared.connections.fetch_sub(1, Ordering::SeqCst);
            let _ = write_line(&stream, &Reply::Error("too many commands are talking to this lab".into()));
            continue;
        }
        let served = Arc::clone(shared);
        let started = thread("connection", move || {
            if let Ok(reader) = stream.try_clone() {
                serve(&served, BufReader::new(reader), &stream);
            }
            served.connections.fetch_sub(1, Ordering::SeqCst);
        });
        if started.is_err() {
            shared.connections.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// Answers one connection's requests until it ends.
fn serve(shared: &Arc<Shared>, mut reader: BufReader<UnixStream>, stream: &UnixStream) {
    let _ = stream.set_write_timeout(Some(WRITE_LIMIT));
    // Events and answers are written by different threads: whole lines, one at a time.
    let Ok(writer) = stream.try_clone().map(|s| Arc::new(Mutex::new(s))) else { return };
    let write = |writer: &Mutex<UnixStream>, reply: &Reply| {
        write_line(&*writer.lock().unwrap_or_else(PoisonError::into_inner), reply)
    };
    loop {
        let reply = match read_line(&mut reader, REQUEST_MAX) {
            Ok(Some(Request::Events)) => {
                let events = shared.lab.hub().subscribe();
                let out = Arc::clone(&writer);
                let started = thread("events", move || {
                    for event in events {
                        if write(&out, &Reply::Event(event)).is_err() {
                            return;
                        }
                    }
                });
                match started {
                    Ok(()) => Reply::Done("events follow".into()),
                    Err(error) => Reply::Error(error.chain()),
                }
            }
            Ok(Some(request)) => answer(shared, request).unwrap_or_else(|error| Reply::Error(error.chain())),
            Ok(None) => return,
            Err(error) => {
                let _ = write(&writer, &Reply::Error(format!("not a request: {error}")));
                return;
            }
        };
        if write(&writer, &reply).is_err() {
            return;
        }
    }
}

fn answer(shared: &Shared, request: Request) -> Result<Reply, LabError> {
    let lab = &shared.lab;
    let done = |text: String| Ok(Reply::Done(text));
    match request {
        Request::Start { .. } => Err(LabError::Refused("the lab is started already".into())),
        Request::Status => Ok(Reply::Status(status(shared))),
        Request::Events => Err(LabError::Refused("events were asked for already".into())),
        Request::Detach => {
            shared.detached.store(true, Ordering::SeqCst);
            done("detached".into())
        }
        Request::Keel { node, command, limit_s } => {
            let answer =
                lab.keel_within(&node, &command, Duration::from_secs(limit_s.clamp(1, KEEL_LIMIT_MAX_S)))?;
            Ok(Reply::Answer { code: answer.code, text: answer.text })
        }
        Request::Link { port, up } => {
            if up {
                lab.plug(&port)?
            } else {
                lab.unplug(&port)?
            }
            done(format!("{port} {}", if up { "plugged" } else { "unplugged" }))
        }
        Request::Power { node, on } => {
            if on {
                lab.power_on(&node)?
            } else {
                lab.power_off(&node)?
            }
            done(format!("{node} {}", if on { "on" } else { "off" }))
        }
        Request::Freeze { node, frozen } => {
            if frozen {
                lab.freeze(&node)?
            } else {
                lab.thaw(&node)?
            }
            done(format!("{node} {}", if frozen { "frozen" } else { "thawed" }))
        }
        Request::Press { node, button } => {
            lab.press(&node, button)?;
            done(format!("{node}: {}", button.word()))
        }
        Request::Fault { node, command } => Ok(Reply::Answer { code: 0, text: lab.fault(&node, &command)? }),
        Request::Signal { node, program, signal } => {
            done(lab.signal(&node, &program, &signal)?.trim().to_owned())
        }
        Request::Forward { listen, to } => done(lab.forward(listen, &to)?),
        Request::Down => {
            let _ = shared.stop.send(());
            done("ending".into())
        }
    }
}

fn status(shared: &Shared) -> LabStatus {
    LabStatus {
        phase: shared.phase.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        ..shared.lab.status()
    }
}
