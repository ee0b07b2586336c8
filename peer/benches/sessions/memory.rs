//! Resident memory of a process with many sessions on one endpoint, for the side that dials and the side that accepts.
//!
//! ```text
//! bench ── hub's port, nodes' ports ──> both        hub ── kB: bound, all up ──> bench
//! bench ── go ──> nodes ── 16 KiB to the hub and back, one after the other ── done ──> bench
//! bench ── now ──> hub ── kB after that ──> bench
//! ```
//! Each count has fresh processes. Their standard input is the bench's: when it ends, they end.

use crate::{LONG, Node, loopback, roster, soon};
use peer::PeerEvent;
use proto::cluster::NodeName;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use tokio::sync::mpsc;

const COUNTS: [usize; 3] = [1, 50, 200];

/// What the measured process does.
#[derive(Clone, Copy)]
pub(crate) enum Side {
    Dials,
    Accepts,
}

impl Side {
    pub(crate) fn named(name: &str) -> Side {
        match name {
            "dials" => Side::Dials,
            "accepts" => Side::Accepts,
            other => panic!("no side is named {other}"),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Side::Dials => "dials",
            Side::Accepts => "accepts",
        }
    }

    /// The hub's name and those of `count` nodes. The lower name of two dials.
    fn names(self, count: usize) -> Vec<NodeName> {
        let letter = match self {
            Side::Dials => 'z',
            Side::Accepts => 'a',
        };
        let nodes = (0..count).map(|n| NodeName(format!("{letter}{n:03}")));
        [NodeName("hub".to_owned())].into_iter().chain(nodes).collect()
    }
}

pub(crate) fn bench() {
    println!("\n{:46} {:>8} {:>8} {:>8}   resident kB", "memory of a process", "bound", "up", "used");
    for side in [Side::Dials, Side::Accepts] {
        let sizes = COUNTS.map(|count| measure(side, count));
        for (count, [bound, up, used]) in COUNTS.into_iter().zip(sizes) {
            println!("{:46} {bound:>8} {up:>8} {used:>8}", format!("{}, sessions: {count}", side.name()));
        }
        // From one session on: the first also brings in code and tables that all share.
        let ([_, up, used], [_, up_all, used_all]) = (sizes[0], sizes[COUNTS.len() - 1]);
        let each =
            |few: u64, all: u64| (all as f64 - few as f64) / (COUNTS[COUNTS.len() - 1] - COUNTS[0]) as f64;
        let name = format!("{}, for each session", side.name());
        println!("{name:46} {:>8} {:>8.1} {:>8.1}", "", each(up, up_all), each(used, used_all));
    }
}

/// Resident kB of a hub with `count` sessions: bound, all sessions up, each used.
fn measure(side: Side, count: usize) -> [u64; 3] {
    let mut hub = Process::start("hub", side, count);
    let mut nodes = Process::start("nodes", side, count);
    nodes.tell(&hub.line());
    hub.tell(&nodes.line());
    let (bound, up) = (hub.number(), hub.number());
    nodes.tell("go");
    assert_eq!(nodes.line(), "done");
    hub.tell("now");
    [bound, up, hub.number()]
}

struct Process {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Process {
    fn start(role: &str, side: Side, count: usize) -> Process {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([role, side.name(), &count.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Process { child, input, output: BufReader::new(output) }
    }

    fn tell(&mut self, line: &str) {
        writeln!(self.input, "{line}").unwrap();
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        assert!(line.ends_with('\n'), "a process of the bench ended early; its error is above");
        line.trim_end().to_owned()
    }

    fn number(&mut self) -> u64 {
        self.line().parse().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The lines of standard input, read by a thread: this one has sessions to serve meanwhile.
struct Lines(mpsc::Receiver<String>);

impl Lines {
    fn read() -> Lines {
        let (sender, lines) = mpsc::channel(1);
        thread::spawn(move || {
            let mut read = std::io::stdin().lines().map_while(Result::ok);
            while read.next().is_some_and(|line| sender.blocking_send(line).is_ok()) {}
        });
        Lines(lines)
    }

    async fn next(&mut self) -> String {
        soon(self.0.recv()).await.expect("the bench lives")
    }
}

/// The measured process.
pub(crate) async fn hub(side: Side, count: usize) {
    let mut lines = Lines::read();
    let names = side.names(count);
    let mut hub = Node::bind(0, &roster(&names));
    println!("{}", hub.port());
    let ports = lines.next().await;
    println!("{}", resident());
    for (node, port) in names[1..].iter().zip(ports.split(' ')) {
        hub.endpoint.keep(node, loopback(port.parse().unwrap())).unwrap();
    }
    for _ in 0..count {
        hub.up().await;
    }
    println!("{}", resident());
    loop {
        tokio::select! {
            event = hub.event() => match event {
                PeerEvent::Message(from, message) => hub.endpoint.send(&from, message).unwrap(),
                other => panic!("expected messages, got {other:?}"),
            },
            _ = lines.next() => break,
        }
    }
    println!("{}", resident());
}

/// The process with the other ends.
pub(crate) async fn nodes(side: Side, count: usize) {
    let mut lines = Lines::read();
    let names = side.names(count);
    let roster = roster(&names);
    let mut nodes: Vec<Node> = (1..=count).map(|n| Node::bind(n, &roster)).collect();
    println!("{}", nodes.iter().map(|node| node.port().to_string()).collect::<Vec<_>>().join(" "));
    let hub = loopback(lines.next().await.parse().unwrap());
    for node in &nodes {
        node.endpoint.keep(&names[0], hub).unwrap();
    }
    for node in &mut nodes {
        node.up().await;
    }
    lines.next().await;
    for node in &mut nodes {
        node.endpoint.send(&names[0], vec![5; LONG]).unwrap();
        assert_eq!(node.message().await.len(), LONG);
    }
    println!("done");
    // Alive until the hub has been measured.
    lines.0.recv().await;
}

/// Resident memory of this process in kB.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("Linux tells it");
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
