//! Handshakes, and round trips of messages on a session that stands.
//!
//! Each side is a thread with a runtime of its own, as two nodes are. TCP carries the same frame (the cluster's id in
//! front) behind a length, without keys: what is left between the two is the price of QUIC and its cryptography.

use crate::{LONG, Node, at, loopback, roster, run, soon};
use peer::PeerEvent;
use proto::cluster::NodeName;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};

const HANDSHAKES: usize = 200;
const ROUND_TRIPS: usize = 2000;

/// Length of the short message, a beat's: it takes a datagram.
const SHORT: usize = 64;

/// Bytes in front of a message, as sessions have them.
const ID: [u8; 16] = [7; 16];

/// The lower name dials.
fn names() -> [NodeName; 2] {
    ["a", "b"].map(|name| NodeName(name.to_owned()))
}

pub(crate) fn bench() {
    run(async {
        let (session, tcp_address, mut downs) = start_echo().await;
        let (mut up, mut replied, mut tcp) = (vec![], vec![], vec![]);
        for _ in 0..HANDSHAKES {
            let mut node = Node::bind(0, &roster(&names()));
            let start = Instant::now();
            node.endpoint.keep(&names()[1], session).unwrap();
            node.up().await;
            up.push(start.elapsed());
            session_trip(&mut node, SHORT).await;
            replied.push(start.elapsed());
            drop(node);
            soon(downs.recv()).await.expect("the echo lives");

            let start = Instant::now();
            let mut stream = connect(tcp_address).await;
            tcp_trip(&mut stream, SHORT).await;
            tcp.push(start.elapsed());
        }
        head("handshake", HANDSHAKES);
        row("session: dialled to up", &mut up);
        row("session: dialled to reply to a 64-byte message", &mut replied);
        row("TCP: connect to reply to a 64-byte message", &mut tcp);

        let mut node = Node::bind(0, &roster(&names()));
        node.endpoint.keep(&names()[1], session).unwrap();
        node.up().await;
        let mut stream = connect(tcp_address).await;
        let mut times: [Vec<Duration>; 4] = Default::default();
        for _ in 0..ROUND_TRIPS {
            times[0].push(session_trip(&mut node, SHORT).await);
            times[1].push(tcp_trip(&mut stream, SHORT).await);
            times[2].push(session_trip(&mut node, LONG).await);
            times[3].push(tcp_trip(&mut stream, LONG).await);
        }
        head("round trip", ROUND_TRIPS);
        let cases = ["session: 64 bytes", "TCP: 64 bytes", "session: 16 KiB", "TCP: 16 KiB"];
        for (case, times) in cases.into_iter().zip(&mut times) {
            row(case, times);
        }
    });
}

fn head(what: &str, count: usize) {
    println!("\n{what:46} {:>8} {:>8}   microseconds, {count} each", "p50", "p99");
}

fn row(case: &str, times: &mut [Duration]) {
    println!("{case:46} {:>8} {:>8}", at(times, 50).as_micros(), at(times, 99).as_micros());
}

async fn session_trip(node: &mut Node, len: usize) -> Duration {
    let (message, start) = (vec![5; len], Instant::now());
    node.endpoint.send(&names()[1], message).unwrap();
    let (reply, took) = (node.message().await, start.elapsed());
    assert_eq!(reply.len(), len);
    took
}

async fn tcp_trip(stream: &mut TcpStream, len: usize) -> Duration {
    let (message, start) = (vec![5; len], Instant::now());
    write_frame(stream, &message).await;
    let (reply, took) = (soon(read_frame(stream)).await.expect("the echo lives"), start.elapsed());
    assert_eq!(reply.len(), len);
    took
}

async fn connect(address: SocketAddr) -> TcpStream {
    let stream = soon(TcpStream::connect(address)).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

async fn write_frame(stream: &mut TcpStream, message: &[u8]) {
    let len = (ID.len() + message.len()) as u32;
    stream.write_all(&[&len.to_le_bytes(), ID.as_slice(), message].concat()).await.unwrap();
}

/// The next message; `None` when the peer has gone.
async fn read_frame(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let len = stream.read_u32_le().await.ok()?;
    let mut frame = vec![0; len as usize];
    stream.read_exact(&mut frame).await.ok()?;
    frame.strip_prefix(&ID).map(<[u8]>::to_vec)
}

/// The other side of all cases, alive until the process ends: where sessions and where TCP find it, and what tells when a
/// session has ended over there.
async fn start_echo() -> (SocketAddr, SocketAddr, mpsc::Receiver<()>) {
    let (ready, started) = oneshot::channel();
    let (down, downs) = mpsc::channel(1);
    thread::spawn(|| {
        run(async move {
            let mut node = Node::bind(1, &roster(&names()));
            let listener = TcpListener::bind(loopback(0)).await.unwrap();
            ready.send((node.endpoint.local_address().unwrap(), listener.local_addr().unwrap())).unwrap();
            tokio::spawn(async move {
                while let Ok((mut stream, _)) = listener.accept().await {
                    stream.set_nodelay(true).unwrap();
                    tokio::spawn(async move {
                        while let Some(message) = read_frame(&mut stream).await {
                            write_frame(&mut stream, &message).await;
                        }
                    });
                }
            });
            while let Some(event) = node.events.recv().await {
                match event {
                    // Its sender may have gone since; then it does not wait for the reply.
                    PeerEvent::Message(from, message) => drop(node.endpoint.send(&from, message)),
                    PeerEvent::Down(..) if down.send(()).await.is_err() => return,
                    PeerEvent::Down(..) | PeerEvent::Up(_) => {}
                }
            }
        });
    });
    let (session, tcp) = soon(started).await.unwrap();
    (session, tcp, downs)
}
