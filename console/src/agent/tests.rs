//! The agent over socket pairs.

use super::*;
use crate::session::Places;
use crate::testing::Dir;
use std::io::Read;
use std::os::unix::net::UnixStream;

const SOON: u16 = 50;

fn session(dir: &Dir) -> Session {
    let places = Places {
        netd: dir.path("netd"),
        provisiond: dir.path("provisiond"),
        init: dir.path("init"),
        release: dir.path("release"),
        hostname: dir.path("hostname"),
    };
    Session::new(places).unwrap()
}

/// A port as its two ends; the host's end waits at most a few seconds.
fn pair() -> (UnixStream, OwnedFd) {
    let (host, port) = UnixStream::pair().unwrap();
    port.set_nonblocking(true).unwrap();
    host.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    (host, port.into())
}

fn request(id: &str, line: &str) -> String {
    let hex: String = line.bytes().map(|b| format!("{b:02x}")).collect();
    format!("run {id} {hex}\n")
}

fn read_lines(host: &mut UnixStream, count: usize) -> Vec<String> {
    let mut text = Vec::new();
    let mut byte = [0];
    while text.iter().filter(|&&b| b == b'\n').count() < count {
        host.read_exact(&mut byte).unwrap();
        text.push(byte[0]);
    }
    String::from_utf8(text).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn commands_are_answered_and_garbage_too() {
    let dir = Dir::new();
    let session = session(&dir);
    let (mut host, port) = pair();
    let mut agent = Agent::new(&session, port, WRITE_LIMIT).unwrap();
    let table = [
        (request("1", "keel version"), "done 1 0"),
        (request("2", "shwo"), "done 2 2"),
        (request("3", "show vips"), "done 3 1"),
        (request("4", ""), "error - command line is missing"),
        (request("5", "   "), "done 5 2"),
        (request("6", "shell"), "done 6 1"),
        ("\n".to_owned(), "ready"),
        ("frob\r\n".to_owned(), "error - expected: run ID HEX"),
        ("x".repeat(5000) + "\n", "error - request longer than 4096 bytes"),
        (request("7", "help"), "done 7 0"),
    ];
    assert_eq!(agent.turn(SOON.into()).unwrap(), Turn::Present);
    assert_eq!(read_lines(&mut host, 1), ["ready"]);
    for (request, expected) in table {
        host.write_all(request.as_bytes()).unwrap();
        assert_eq!(agent.turn(SOON.into()).unwrap(), Turn::Present);
        loop {
            let line = read_lines(&mut host, 1).remove(0);
            if !line.starts_with("out ") {
                assert_eq!(line, expected, "{request}");
                break;
            }
        }
    }
}

#[test]
fn what_a_command_prints_comes_in_hex() {
    let dir = Dir::new();
    let session = session(&dir);
    let (mut host, port) = pair();
    let mut agent = Agent::new(&session, port, WRITE_LIMIT).unwrap();
    // Sent before the agent looks for the first time, and in two parts: it waits in the port.
    let request = request("x", "shwo");
    let (one, two) = request.split_at(7);
    host.write_all(one.as_bytes()).unwrap();
    agent.turn(SOON.into()).unwrap();
    host.write_all(two.as_bytes()).unwrap();
    agent.turn(SOON.into()).unwrap();
    let lines = read_lines(&mut host, 3);
    let hex: String =
        "unknown command \"shwo\"; did you mean \"show\"?\n".bytes().map(|b| format!("{b:02x}")).collect();
    assert_eq!(lines, ["ready", &format!("out x {hex}"), "done x 2"]);
}

#[test]
fn a_host_that_left_is_waited_for_without_spinning() {
    let dir = Dir::new();
    let session = session(&dir);
    let (host, port) = pair();
    let mut agent = Agent::new(&session, port, WRITE_LIMIT).unwrap();
    agent.turn(SOON.into()).unwrap();
    drop(host);
    assert_eq!(agent.turn(SOON.into()).unwrap(), Turn::Away);
    let began = Instant::now();
    assert_eq!(agent.turn(SOON.into()).unwrap(), Turn::Idle, "the hang-up is told once");
    assert!(began.elapsed() >= Duration::from_millis(u64::from(SOON) - 1));
}

#[test]
fn a_host_that_does_not_read_counts_as_gone_and_may_come_back() {
    let dir = Dir::new();
    let session = session(&dir);
    let (mut host, port) = pair();
    let mut agent = Agent::new(&session, port, Duration::from_millis(100)).unwrap();
    agent.turn(SOON.into()).unwrap();
    assert_eq!(read_lines(&mut host, 1), ["ready"]);
    host.set_nonblocking(true).unwrap();
    // Answers are longer than requests: the host's buffer fills while it goes on asking.
    let mut sent = 0;
    while agent.present {
        match host.write(request("1", "help").as_bytes()) {
            Ok(n) => sent += n,
            Err(e) => assert_eq!(e.kind(), io::ErrorKind::WouldBlock),
        }
        assert!(sent < 16 << 20, "the agent gives up");
        agent.turn(SOON.into()).unwrap();
    }
    host.set_nonblocking(false).unwrap();
    let mut rest = vec![0; 1 << 20];
    // Reading makes room, which wakes the agent up.
    let _ = host.read(&mut rest).unwrap();
    let mut seen = String::new();
    host.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let patience = Instant::now() + Duration::from_secs(10);
    while !seen.contains("\nready\n") {
        assert!(Instant::now() < patience, "it greets the host again");
        agent.turn(SOON.into()).unwrap();
        while let Ok(n @ 1..) = host.read(&mut rest) {
            seen.push_str(&String::from_utf8_lossy(&rest[..n]));
        }
    }
}
