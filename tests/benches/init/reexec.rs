//! Re-exec with 100 services running, one of which writes all the time: how long PID 1 does not answer, and what of
//! the output is missing afterwards.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, send, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use proto::control::{PACKET_MAX, Reply, Request, ServiceRow};
use proto::envelope;

use crate::measure::{MANY, all_up, ms};
use crate::namespace::{MOMENT, PATIENCE, Running, Stage};
use crate::reports;
use crate::subject::Subject;
use crate::subjects::evenkeel;

/// Numbered lines the talking service writes, 8 bytes each, about one every 150 us: some seconds, and they fit the
/// kept log file whole.
const LINES: usize = 8_000;
const LINE_LEN: usize = 8;
/// When the request comes: the talker is in the middle of its lines.
const LEAD_IN: Duration = Duration::from_millis(300);

/// Milliseconds from the request until the next program answers, the trial of that program included, and bytes lost.
pub(crate) fn measure(stage: &Stage, subject: &Subject) -> Result<(f64, f64), String> {
    let running = stage.start_with(subject, |root| evenkeel::prepare_talking(root, MANY, LINES))?;
    all_up(&running, MANY)?;
    running.quiet(LEAD_IN)?;
    let socket = running.root.outside(evenkeel::CONTROL);
    let before = rows(&socket).map_err(|e| running.told(&format!("its control socket: {e}")))?;
    let from = reports::now();
    match ask(&socket, &Request::ReExec { path: None }).map_err(|e| running.told(&format!("re-exec: {e}")))? {
        Reply::Accepted => {}
        other => return Err(running.told(&format!("re-exec was answered by {other:?}"))),
    }
    let after = loop {
        match rows(&socket) {
            Ok(rows) => break rows,
            Err(error) if ms(reports::now() - from) > PATIENCE.as_secs_f64() * 1e3 => {
                return Err(running.told(&format!("no answer after the re-exec: {error}")));
            }
            Err(_) => {}
        }
    };
    let took = ms(reports::now() - from);
    let numbers = |rows: &[ServiceRow]| rows.iter().map(|r| (r.name.clone(), r.pid)).collect::<Vec<_>>();
    if numbers(&before) != numbers(&after) {
        return Err(running.told("services have other processes after the re-exec"));
    }
    // The talker reports a second time when it has written its last line.
    let done = running.next(PATIENCE)?;
    if done.number != evenkeel::TALKER as u64 {
        return Err(running.told(&format!("service {} started over the re-exec", done.number)));
    }
    Ok((took, lost(&running)? as f64))
}

/// Bytes of the talker's lines that are not in its log file. The file is written in batches: what is missing is
/// missing when the last line is there.
fn lost(running: &Running) -> Result<usize, String> {
    let from = reports::now();
    loop {
        let seen = lines_seen(&running.root.outside(evenkeel::TALKERS_LOG));
        if seen.contains(&(LINES - 1)) {
            return Ok((LINES - seen.len()) * LINE_LEN);
        }
        if ms(reports::now() - from) > PATIENCE.as_secs_f64() * 1e3 {
            return Err(running.told(&format!("the last line never came; {} of {LINES} did", seen.len())));
        }
        running.quiet(MOMENT)?;
    }
}

fn lines_seen(file: &Path) -> BTreeSet<usize> {
    let text = fs::read(file).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    // Each line of the file begins with a time.
    text.lines().filter_map(|l| l.rsplit(' ').next()?.parse().ok()).filter(|n| *n < LINES).collect()
}

fn rows(socket: &Path) -> io::Result<Vec<ServiceRow>> {
    match ask(socket, &Request::Services)? {
        Reply::Services(rows) => Ok(rows),
        other => Err(io::Error::other(format!("{other:?}"))),
    }
}

fn ask(path: &Path, request: &Request) -> io::Result<Reply> {
    let s: OwnedFd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&s, sockopt::ReceiveTimeout, &TimeVal::seconds(PATIENCE.as_secs().cast_signed()))?;
    connect(s.as_raw_fd(), &UnixAddr::new(path)?)?;
    send(s.as_raw_fd(), &envelope::encode(request), MsgFlags::MSG_NOSIGNAL)?;
    let mut buffer = vec![0; PACKET_MAX];
    let count = recv(s.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
    envelope::decode(buffer.get(..count).unwrap_or_default()).map_err(|e| io::Error::other(e.to_string()))
}
