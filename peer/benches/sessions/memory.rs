//! Resident memory of a process with many sessions on one endpoint, for the side that dials and the side that accepts.
//!
//! The measured process, the hub, is a fresh one for each count; the nodes it has sessions with live in the bench. The hub
//! says its port, then kB with no session, with all up, and, when told to, after each has carried 16 KiB both ways.

use crate::{LONG, Node, loopback, roster, run, soon};
use peer::PeerEvent;
use proto::cluster::NodeName;
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};
use std::thread;
use tokio::sync::mpsc;

const COUNTS: [usize; 3] = [1, 50, 200];

/// The hub's name and those of `count` nodes. The lower name of two dials: the hub when their letter is z, they when it is a.
fn names(letter: &str, count: usize) -> Vec<NodeName> {
    let nodes = (0..count).map(|n| format!("{letter}{n:03}"));
    std::iter::once("hub".to_owned()).chain(nodes).map(NodeName).collect()
}

pub(crate) fn bench() {
    println!("\n{:46} {:>8} {:>8} {:>8}   resident kB", "memory of a process", "bound", "up", "used");
    for (side, letter) in [("dials", "z"), ("accepts", "a")] {
        let sizes = COUNTS.map(|count| run(measure(letter, count)));
        for (count, [bound, up, used]) in COUNTS.into_iter().zip(sizes) {
            println!("{:46} {bound:>8} {up:>8} {used:>8}", format!("{side}, sessions: {count}"));
        }
        // From one session on: the first also brings in code and tables that all share.
        let [[_, up, used], _, [_, up_all, used_all]] = sizes.map(|kinds| kinds.map(|kb| kb as f64));
        let each = |few: f64, all: f64| (all - few) / (COUNTS[2] - COUNTS[0]) as f64;
        let (name, up, used) = (format!("{side}, for each session"), each(up, up_all), each(used, used_all));
        println!("{name:46} {:>8} {up:>8.1} {used:>8.1}", "");
    }
}

/// Resident kB of a hub with `count` sessions: bound, all sessions up, each used.
async fn measure(letter: &str, count: usize) -> [u64; 3] {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["hub", letter, &count.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // When this end goes, so does the hub.
    let mut hub = child.stdin.take().unwrap();
    let mut said = lines(child.stdout.take().unwrap());
    let names = names(letter, count);
    let roster = roster(&names);
    let mut nodes: Vec<Node> = (1..=count).map(|n| Node::bind(n, &roster)).collect();
    writeln!(hub, "{}", nodes.iter().map(port).collect::<Vec<_>>().join(" ")).unwrap();
    let address = loopback(number(&mut said).await as u16);
    let bound = number(&mut said).await;
    for node in &mut nodes {
        // One after the other: a crowd at once would meet the bound on handshakes, and its pauses.
        node.endpoint.keep(&names[0], address).unwrap();
        node.up().await;
    }
    let up = number(&mut said).await;
    for node in &mut nodes {
        node.endpoint.send(&names[0], vec![5; LONG]).unwrap();
        assert_eq!(node.message().await.len(), LONG);
    }
    writeln!(hub, "now").unwrap();
    let used = number(&mut said).await;
    assert!(child.wait().unwrap().success(), "the hub failed; its error is above");
    [bound, up, used]
}

/// The measured process.
pub(crate) async fn hub(letter: &str, count: usize) {
    let mut told = lines(std::io::stdin());
    let names = names(letter, count);
    let mut hub = Node::bind(0, &roster(&names));
    println!("{}", port(&hub));
    let ports = soon(told.recv()).await.expect("the bench lives");
    println!("{}", resident());
    let mut up = BTreeSet::new();
    for (at, port) in ports.split(' ').enumerate() {
        hub.endpoint.keep(&names[at + 1], loopback(port.parse().unwrap())).unwrap();
        while letter == "z" && up.len() <= at || at + 1 == count && up.len() < count {
            // A session that is made twice must not count for two.
            match hub.event().await {
                PeerEvent::Up(node) => up.insert(node),
                PeerEvent::Down(node, _) | PeerEvent::Message(node, _) => up.remove(&node),
            };
        }
    }
    println!("{}", resident());
    loop {
        tokio::select! {
            event = hub.event() => match event {
                PeerEvent::Message(from, message) => hub.endpoint.send(&from, message).unwrap(),
                other => panic!("expected messages, got {other:?}"),
            },
            now = told.recv() => break assert!(now.is_some(), "the bench has gone"),
        }
    }
    println!("{}", resident());
}

/// The lines of `source`, read by a thread: this one has sessions to serve meanwhile.
fn lines(source: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel(1);
    thread::spawn(move || {
        let mut read = BufReader::new(source).lines().map_while(Result::ok);
        while read.next().is_some_and(|line| sender.blocking_send(line).is_ok()) {}
    });
    lines
}

async fn number(said: &mut mpsc::Receiver<String>) -> u64 {
    let line = soon(said.recv()).await.expect("the hub failed; its error is above");
    line.parse().unwrap()
}

fn port(node: &Node) -> String {
    node.endpoint.local_address().unwrap().port().to_string()
}

/// Resident memory of this process in kB.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("Linux tells it");
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
