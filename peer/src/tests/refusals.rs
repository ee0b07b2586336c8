//! Peers that do not behave: foreign keys, names and clusters, oversize and stalled messages, floods of garbage.

use super::*;
use crate::hello::{Hello1, Protocol};
use crate::tls::Tls;
use crate::{DownReason, MAX_HANDSHAKES, MAX_MESSAGE_LEN};
use proto::envelope::encode;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, ConnectionError};
use std::net::UdpSocket;
use std::sync::Arc;

/// A greeting of release 0.1, whose protocol these peers speak.
fn hello(cluster: &str, node: u8) -> Hello1 {
    Hello1 { cluster: cluster.to_owned(), node: name(node), protocol_min: 1, protocol_max: 1 }
}

/// A bare QUIC client with `key` that dials the owner of `server` and does what the test makes it do.
pub(super) struct Rogue {
    quic: quinn::Endpoint,
    pub(super) connection: Connection,
}

impl Rogue {
    async fn dial(to: SocketAddr, key: &SecretKey, server: &SecretKey) -> Result<Rogue, ConnectionError> {
        Rogue::speaking(Protocol::One, to, key, server).await
    }

    pub(super) async fn speaking(
        protocol: Protocol,
        to: SocketAddr,
        key: &SecretKey,
        server: &SecretKey,
    ) -> Result<Rogue, ConnectionError> {
        let tls = Tls::new(key, &[protocol]).unwrap().client(server.public()).unwrap();
        let config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
        let quic = quinn::Endpoint::client(loopback(0)).unwrap();
        let connection = soon(quic.connect_with(config, to, "peer").unwrap()).await?;
        Ok(Rogue { quic, connection })
    }

    /// Sends `greeting` and returns the answer, or how the connection ended.
    pub(super) async fn greet(&self, greeting: &[u8]) -> Result<Vec<u8>, ConnectionError> {
        let (mut question, mut reply) = self.connection.open_bi().await?;
        // A refused write shows in the read.
        let _ = question.write_all(greeting).await;
        let _ = question.finish();
        match soon(reply.read_to_end(1000)).await {
            Ok(bytes) => Ok(bytes),
            Err(_) => Err(soon(self.connection.closed()).await),
        }
    }

    /// A session as n2 with n1 at `to`.
    async fn session(to: SocketAddr) -> Rogue {
        let rogue = Rogue::dial(to, &key(2), &key(1)).await.unwrap();
        rogue.greet(&encode(&hello("demo", 2))).await.unwrap();
        rogue
    }
}

pub(super) fn closing_text(error: &ConnectionError) -> String {
    match error {
        ConnectionError::ApplicationClosed(close) => String::from_utf8_lossy(&close.reason).into_owned(),
        other => panic!("expected a close with a text, got {other:?}"),
    }
}

#[tokio::test]
async fn key_outside_the_roster_gets_nothing() {
    let mut a = Peer::new(1, 2);
    // The client side is done before the server judged its key: the refusal comes after a successful dial.
    if let Ok(rogue) = Rogue::dial(a.address(), &key(66), &key(1)).await {
        let end = rogue.greet(&encode(&hello("demo", 2))).await.unwrap_err();
        assert!(matches!(end, ConnectionError::ConnectionClosed(_)), "{end:?}");
    }
    until(|| (a.endpoint.stats().refused == 1).then_some(())).await;
    a.quiet(Duration::from_millis(50)).await;
}

#[tokio::test]
async fn dialled_node_with_another_nodes_key_is_refused() {
    // n1 wants n2, but n3 sits at that address: in the roster, yet not whom n1 wants.
    let (mut a, mut c) = (Peer::new(1, 3), Peer::new(3, 3));
    a.endpoint.keep(&name(2), c.address()).unwrap();
    until(|| (c.endpoint.stats().refused >= 2).then_some(())).await;
    a.quiet(Duration::from_millis(1)).await;
    c.quiet(Duration::from_millis(1)).await;
}

#[tokio::test]
async fn own_key_is_refused() {
    let mut a = Peer::new(1, 2);
    if let Ok(rogue) = Rogue::dial(a.address(), &key(1), &key(1)).await {
        rogue.greet(&encode(&hello("demo", 1))).await.unwrap_err();
    }
    until(|| (a.endpoint.stats().refused == 1).then_some(())).await;
    a.quiet(Duration::from_millis(50)).await;
}

#[tokio::test]
async fn wrong_greetings_are_refused_by_name() {
    let mut a = Peer::new(1, 3);
    let newer = Hello1 { protocol_min: 7, protocol_max: 9, ..hello("demo", 2) };
    let table = [
        (encode(&hello("other", 2)), "wrong cluster: node n2 is of \"other\", this node is of \"demo\""),
        (encode(&hello("demo", 3)), "wrong name: the key of node n2 calls itself \"n3\""),
        (encode(&newer), "no common protocol: node n2 speaks 7 to 9, this node 1 there"),
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "node n2 sent no valid greeting"),
        (Vec::new(), "node n2 sent no valid greeting"),
    ];
    for (greeting, expected) in table {
        let rogue = Rogue::dial(a.address(), &key(2), &key(1)).await.unwrap();
        let end = rogue.greet(&greeting).await.unwrap_err();
        assert!(closing_text(&end).starts_with(expected), "{end:?}, expected {expected}");
    }
    let rogue = Rogue::dial(a.address(), &key(2), &key(1)).await.unwrap();
    let end = rogue.greet(&[0; 4096]).await.unwrap_err();
    assert!(matches!(end, ConnectionError::ApplicationClosed(_)), "an endless greeting: {end:?}");
    a.quiet(Duration::from_millis(1)).await;
}

#[tokio::test]
async fn clusters_refuse_each_other_and_stay_apart() {
    let mut a = Peer::new(1, 2);
    let mut b = Peer::with(loopback(0), &key(2), roster(2), "other");
    a.keep(&b);
    until(|| (b.endpoint.stats().refused >= 2).then_some(())).await;
    a.quiet(Duration::from_millis(1)).await;
    b.quiet(Duration::from_millis(1)).await;
}

#[tokio::test]
async fn oversize_message_ends_the_session() {
    let mut a = Peer::new(1, 2);
    let rogue = Rogue::session(a.address()).await;
    a.up(2).await;
    let mut stream = rogue.connection.open_uni().await.unwrap();
    // The end of the connection may come in the middle of the write.
    let _ = soon(stream.write_all(&vec![1; MAX_MESSAGE_LEN + 1])).await;
    let _ = stream.finish();
    assert_eq!(a.event().await, PeerEvent::Down(name(2), DownReason::Oversize));
    assert_eq!(closing_text(&soon(rogue.connection.closed()).await), "message too long");
}

#[tokio::test]
async fn stalled_streams_are_given_up_and_the_session_goes_on() {
    let mut a = Peer::new(1, 2);
    let rogue = Rogue::session(a.address()).await;
    a.up(2).await;
    let mut stalled = Vec::new();
    for _ in 0..crate::session::MAX_STREAMS {
        let mut stream = soon(rogue.connection.open_uni()).await.unwrap();
        soon(stream.write_all(b"half of a mess")).await.unwrap();
        stalled.push(stream);
    }
    // All places are taken; a datagram is not held up by that.
    rogue.connection.send_datagram(b"beat".to_vec().into()).unwrap();
    assert_eq!(a.message(2).await, b"beat");
    // Each is told to stop, and whoever does gets the places back. A peer that does not harms itself only.
    for mut stream in stalled {
        assert_eq!(soon(stream.stopped()).await, Ok(Some(0u32.into())));
        stream.reset(0u32.into()).unwrap();
    }
    let mut next = soon(rogue.connection.open_uni()).await.unwrap();
    soon(next.write_all(b"whole")).await.unwrap();
    next.finish().unwrap();
    assert_eq!(a.message(2).await, b"whole");
    until(|| (a.endpoint.stats().stalled == u64::from(crate::session::MAX_STREAMS)).then_some(())).await;
}

#[tokio::test]
async fn reset_stream_delivers_nothing() {
    let mut a = Peer::new(1, 2);
    let rogue = Rogue::session(a.address()).await;
    a.up(2).await;
    let mut stream = rogue.connection.open_uni().await.unwrap();
    soon(stream.write_all(b"half of a mess")).await.unwrap();
    stream.reset(0u32.into()).unwrap();
    a.quiet(Duration::from_millis(100)).await;
}

#[tokio::test]
async fn garbage_is_ignored() {
    let (mut a, mut b) = (Peer::new(1, 2), Peer::new(2, 2));
    a.keep(&b);
    a.up(2).await;
    b.up(1).await;
    let stranger = UdpSocket::bind(loopback(0)).unwrap();
    let mut state = 1u32;
    for len in 0..1200 {
        let bytes: Vec<u8> = (0..len)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            })
            .collect();
        for to in [a.address(), b.address()] {
            stranger.send_to(&bytes, to).unwrap();
        }
        tokio::task::yield_now().await;
    }
    a.endpoint.send(&name(2), b"still here".to_vec()).unwrap();
    assert_eq!(b.event().await, PeerEvent::Message(name(1), b"still here".to_vec()));
}

/// Strangers that begin and never greet take all places for a while; a node gets through once those are given up.
#[tokio::test]
async fn flood_of_handshakes_is_bounded_and_passes() {
    let mut a = Peer::new(1, 2);
    let mut rogues = Vec::new();
    for _ in 0..MAX_HANDSHAKES + 8 {
        // A key of the roster: the worst stranger, because it is refused only for its silence.
        rogues.push(Rogue::dial(a.address(), &key(2), &key(1)).await);
    }
    let held =
        rogues.iter().filter(|r| r.as_ref().is_ok_and(|r| r.connection.close_reason().is_none())).count();
    assert!(held <= MAX_HANDSHAKES, "{held} held");
    assert!(a.endpoint.stats().refused >= 8, "{:?}", a.endpoint.stats());
    let through = soon(async {
        loop {
            if let Ok(rogue) = Rogue::dial(a.address(), &key(2), &key(1)).await
                && rogue.greet(&encode(&hello("demo", 2))).await.is_ok()
            {
                return rogue;
            }
        }
    })
    .await;
    a.up(2).await;
    drop(through.quic);
}

#[tokio::test]
async fn plain_tls_certificates_are_not_spoken() {
    let a = Peer::new(1, 2);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"evenkeel-peer".to_vec()];
    let config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    let quic = quinn::Endpoint::client(loopback(0)).unwrap();
    let refused = soon(quic.connect_with(config, a.address(), "peer").unwrap()).await;
    assert!(refused.is_err());
    until(|| (a.endpoint.stats().refused == 1).then_some(())).await;
}
