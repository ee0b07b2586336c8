//! Endpoints against each other and against misbehaving peers, on loopback. Every wait has a deadline.

mod membership;
mod mesh;
mod refusals;

use crate::hello::Protocol;
use crate::{Endpoint, Options, PeerEvent, SecretKey};
use proto::cluster::NodeName;
use proto::roster::Roster;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Longest any step of a test may take on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(10);

const IDLE: Duration = Duration::from_millis(500);

fn key(n: u8) -> SecretKey {
    SecretKey::from_seed([n; 32])
}

fn name(n: u8) -> NodeName {
    NodeName(format!("n{n}"))
}

/// Nodes n1, n2, ... with keys of seeds 1, 2, ...
fn roster(count: u8) -> Roster {
    let mut roster = Roster::new();
    for n in 1..=count {
        roster.insert(name(n), *key(n).public()).unwrap();
    }
    roster
}

fn options(cluster: &str) -> Options {
    let id = peer_core::id::named_cluster(cluster);
    Options { cluster: cluster.to_owned(), id, idle: IDLE, renew: Duration::from_secs(3600) }
}

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// An endpoint and what it tells.
struct Peer {
    endpoint: Endpoint,
    events: mpsc::Receiver<PeerEvent>,
}

impl Peer {
    fn new(n: u8, of: u8) -> Peer {
        Peer::at(loopback(0), n, of)
    }

    fn at(address: SocketAddr, n: u8, of: u8) -> Peer {
        Peer::with(address, &key(n), roster(of), "demo")
    }

    fn with(address: SocketAddr, key: &SecretKey, roster: Roster, cluster: &str) -> Peer {
        let (endpoint, events) = Endpoint::bind(address, key, roster, &options(cluster)).unwrap();
        Peer { endpoint, events }
    }

    fn address(&self) -> SocketAddr {
        self.endpoint.local_address().unwrap()
    }

    /// Tells both to keep a session with each other.
    fn keep(&self, other: &Peer) {
        self.endpoint.keep(other.endpoint.own_name(), other.address()).unwrap();
        other.endpoint.keep(self.endpoint.own_name(), self.address()).unwrap();
    }

    /// A node that offers `protocols` only, and renews its sessions every `renew`.
    fn speaking(n: u8, of: u8, protocols: &[Protocol], renew: Duration) -> Peer {
        let socket = std::net::UdpSocket::bind(loopback(0)).unwrap();
        // A machine that is busy for a moment is no silent peer here.
        let options = Options { renew, idle: IDLE * 10, ..options("demo") };
        let (endpoint, events) =
            Endpoint::speaking(protocols, socket, &key(n), roster(of), &options).unwrap();
        Peer { endpoint, events }
    }

    async fn event(&mut self) -> PeerEvent {
        soon(self.events.recv()).await.expect("the endpoint lives")
    }

    async fn up(&mut self, n: u8) {
        assert_eq!(self.event().await, PeerEvent::Up(name(n)));
    }

    /// The next message of `n`, other events aside.
    async fn message(&mut self, n: u8) -> Vec<u8> {
        loop {
            if let PeerEvent::Message(from, bytes) = self.event().await
                && from == name(n)
            {
                return bytes;
            }
        }
    }

    /// Asserts that nothing is told for `span`.
    async fn quiet(&mut self, span: Duration) {
        if let Ok(event) = timeout(span, self.events.recv()).await {
            panic!("expected silence, got {event:?}");
        }
    }
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("done in time")
}

/// Repeats `step` until it gives something.
async fn until<T>(mut step: impl FnMut() -> Option<T>) -> T {
    soon(async {
        loop {
            if let Some(value) = step() {
                return value;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
}
