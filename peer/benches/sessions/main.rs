//! What sessions between nodes cost, beside plain TCP in the same run: `cargo bench -p evenkeel-peer`.
//!
//! ```text
//! latency  two threads, a node each: handshakes and round trips
//! memory   a process that is measured, the nodes it has sessions with are in this one
//! bulk     two threads: a long stream of bytes through quinn, as the crate's QUIC does not carry it, and through TCP
//! ```
//! Everything runs on loopback, which has neither a wire's delay nor its short packets: TCP moves 64 KiB in one there,
//! QUIC 1452 bytes. Cases that are compared take turns, so that a slow moment of the machine meets all of them.

#![allow(clippy::unwrap_used)] // A bench ends with the first error.

mod bulk;
mod latency;
mod memory;

use peer::{Endpoint, Options, PeerEvent, SecretKey};
use proto::cluster::NodeName;
use proto::roster::Roster;
use std::fs;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::thread;
use std::time::Duration;
use tokio::sync::mpsc;

/// Longest any step may take, on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(30);

/// Length of the long message: too long for a datagram, it takes a stream.
const LONG: usize = 16 * 1024;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["hub", letter, count] => run(memory::hub(letter, count.parse().unwrap())),
        // `cargo bench` passes `--bench`; `cargo test --all-targets` does not and must not wait for figures.
        others if others.contains(&"--bench") => bench(),
        _ => println!("nothing measured; the figures come from `cargo bench -p evenkeel-peer`"),
    }
}

fn bench() {
    let read = |path: &str| fs::read_to_string(path).unwrap();
    let load = || read("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" ");
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name\t: ")).unwrap_or("processors");
    let (cores, kernel) = (thread::available_parallelism().unwrap(), read("/proc/sys/kernel/osrelease"));
    let build = if cfg!(debug_assertions) { "development" } else { "optimised" };
    println!("{cores} x {model}, Linux {}, {build} build, load {} before", kernel.trim(), load());
    latency::bench();
    memory::bench();
    bulk::bench();
    println!("\nload {} after", load());
}

/// Runs `future` on a runtime like the daemons': one thread.
fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("a step was not done in time")
}

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

fn key(n: usize) -> SecretKey {
    let mut seed = [1; 32];
    seed[..8].copy_from_slice(&(n as u64).to_le_bytes());
    SecretKey::from_seed(seed)
}

/// Nodes of these names, the key of each that of its place.
fn roster(names: &[NodeName]) -> Roster {
    let mut roster = Roster::new();
    for (n, name) in names.iter().enumerate() {
        roster.insert(name.clone(), *key(n).public()).unwrap();
    }
    roster
}

/// A node on loopback: its endpoint and what that tells.
struct Node {
    endpoint: Endpoint,
    events: mpsc::Receiver<PeerEvent>,
}

impl Node {
    /// The one of `roster` with key `n`.
    fn bind(n: usize, roster: &Roster) -> Node {
        let (cluster, id) = ("bench".to_owned(), peer::core::id::named_cluster("bench"));
        let options = Options { cluster, id, idle: PATIENCE * 2, renew: peer::RENEW_EVERY };
        let (endpoint, events) = Endpoint::bind(loopback(0), &key(n), roster.clone(), &options).unwrap();
        Node { endpoint, events }
    }

    async fn event(&mut self) -> PeerEvent {
        soon(self.events.recv()).await.expect("the endpoint lives")
    }

    async fn up(&mut self) {
        while !matches!(self.event().await, PeerEvent::Up(_)) {}
    }

    async fn message(&mut self) -> Vec<u8> {
        loop {
            match self.event().await {
                PeerEvent::Message(_, message) => return message,
                PeerEvent::Up(_) => {}
                PeerEvent::Down(node, reason) => panic!("session with {node} down: {reason}"),
            }
        }
    }
}

/// The value below which `percent` of the values lie.
fn at<T: Ord + Copy>(values: &mut [T], percent: usize) -> T {
    values.sort();
    values[values.len() * percent / 100]
}
