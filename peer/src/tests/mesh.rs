//! Nodes that behave: sessions, messages, restarts.

use super::*;
use crate::{DownReason, MAX_MESSAGE_LEN, PeerError, SendError};
use std::time::Instant;

#[tokio::test]
async fn two_nodes_talk_both_ways() {
    let (mut a, mut b) = (Peer::new(1, 2), Peer::new(2, 2));
    a.keep(&b);
    a.up(2).await;
    b.up(1).await;
    a.endpoint.send(&name(2), b"ping".to_vec()).unwrap();
    assert_eq!(b.event().await, PeerEvent::Message(name(1), b"ping".to_vec()));
    b.endpoint.send(&name(1), b"pong".to_vec()).unwrap();
    assert_eq!(a.event().await, PeerEvent::Message(name(2), b"pong".to_vec()));
}

#[tokio::test]
async fn lengths_from_none_to_the_longest_arrive_whole() {
    let (mut a, mut b) = (Peer::new(1, 2), Peer::new(2, 2));
    a.keep(&b);
    a.up(2).await;
    b.up(1).await;
    for len in [0, 1, 1100, 1400, 2000, 30_000, MAX_MESSAGE_LEN] {
        let message: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
        a.endpoint.send(&name(2), message.clone()).unwrap();
        assert_eq!(b.message(1).await, message, "{len} bytes");
    }
    let refused = a.endpoint.send(&name(2), vec![0; MAX_MESSAGE_LEN + 1]);
    assert_eq!(refused, Err(SendError::TooLong { len: MAX_MESSAGE_LEN + 1 }));
}

#[tokio::test]
async fn of_long_messages_sent_at_once_the_newest_arrives() {
    let (mut a, mut b) = (Peer::new(1, 2), Peer::new(2, 2));
    a.keep(&b);
    a.up(2).await;
    b.up(1).await;
    for n in 0..100u8 {
        a.endpoint.send(&name(2), vec![n; 20_000]).unwrap();
    }
    // No await between the sends: the writer had no chance to take one.
    assert_eq!(b.message(1).await, vec![99; 20_000]);
    assert_eq!(a.endpoint.stats().superseded, 99);
    b.quiet(IDLE / 4).await;
}

#[tokio::test]
async fn four_nodes_make_a_full_mesh() {
    let mut peers: Vec<Peer> = (1..=4).map(|n| Peer::new(n, 4)).collect();
    for a in 0..4 {
        for b in a + 1..4 {
            peers[a].keep(&peers[b]);
        }
    }
    for (at, peer) in peers.iter_mut().enumerate() {
        let mut seen: Vec<NodeName> = Vec::new();
        for _ in 0..3 {
            match peer.event().await {
                PeerEvent::Up(node) => seen.push(node),
                other => panic!("expected Up, got {other:?}"),
            }
        }
        seen.sort();
        let others: Vec<NodeName> = (1..=4u8).filter(|n| usize::from(*n) != at + 1).map(name).collect();
        assert_eq!(seen, others);
    }
    for from in 1..=4u8 {
        for to in (1..=4u8).filter(|to| *to != from) {
            peers[usize::from(from) - 1].endpoint.send(&name(to), vec![from]).unwrap();
            assert_eq!(peers[usize::from(to) - 1].message(from).await, vec![from]);
        }
    }
}

/// Whichever side is killed without a word and started again, the session is back within a second.
#[tokio::test]
async fn restarted_side_is_back_within_a_second() {
    for (victim, witness) in [(1u8, 2u8), (2, 1)] {
        let (mut dead, mut alive) = (Peer::new(victim, 2), Peer::new(witness, 2));
        dead.keep(&alive);
        dead.up(witness).await;
        alive.up(victim).await;
        let (address, other) = (dead.address(), alive.address());
        silence(dead).await;

        let mut born = until(|| {
            let (endpoint, events) =
                Endpoint::bind(address, &key(victim), roster(2), &options("demo")).ok()?;
            Some(Peer { endpoint, events })
        })
        .await;
        let begun = Instant::now();
        born.endpoint.keep(&name(witness), other).unwrap();
        born.up(witness).await;
        assert!(begun.elapsed() < Duration::from_secs(1), "n{victim} back after {:?}", begun.elapsed());
        let PeerEvent::Down(node, reason) = alive.event().await else { panic!("expected Down") };
        assert_eq!(node, name(victim));
        // The new life answers the old session's packets: nobody has to wait for silence.
        assert!(matches!(reason, DownReason::Restarted | DownReason::Replaced), "{reason:?}");
        alive.up(victim).await;
        born.endpoint.send(&name(witness), b"back".to_vec()).unwrap();
        assert_eq!(alive.message(victim).await, b"back");
    }
}

#[tokio::test]
async fn silent_peer_is_down_after_the_idle_time() {
    let (mut a, mut b) = (Peer::new(1, 2), Peer::new(2, 2));
    a.keep(&b);
    a.up(2).await;
    b.up(1).await;
    silence(b).await;
    let begun = Instant::now();
    assert_eq!(a.event().await, PeerEvent::Down(name(2), DownReason::Silent));
    assert!(begun.elapsed() < IDLE * 3, "down after {:?}", begun.elapsed());
    assert_eq!(
        a.endpoint.send(&name(2), vec![1]),
        Err(SendError::NotConnected { node: name(2) }),
        "a message without a session is refused at once"
    );
}

#[tokio::test]
async fn idle_session_stays() {
    let (mut a, mut b) = (Peer::new(1, 2), Peer::new(2, 2));
    a.keep(&b);
    a.up(2).await;
    b.up(1).await;
    a.quiet(IDLE * 3).await;
    b.quiet(Duration::from_millis(1)).await;
}

#[tokio::test]
async fn last_message_and_farewell_are_heard_at_once() {
    let (mut a, mut b) = (Peer::new(1, 2), Peer::new(2, 2));
    a.keep(&b);
    a.up(2).await;
    b.up(1).await;
    soon(b.endpoint.close(b"bye")).await;
    assert_eq!(a.event().await, PeerEvent::Message(name(2), b"bye".to_vec()));
    assert_eq!(a.event().await, PeerEvent::Down(name(2), DownReason::Shutdown));
    assert_eq!(b.event().await, PeerEvent::Down(name(1), DownReason::Closed));
}

/// A reader that does not read loses messages, is told how many, and never blocks or grows the endpoint.
#[tokio::test]
async fn slow_reader_loses_messages_and_nothing_else() {
    let (mut a, mut b) = (Peer::new(1, 2), Peer::new(2, 2));
    a.keep(&b);
    a.up(2).await;
    b.up(1).await;
    until(|| {
        a.endpoint.send(&name(2), vec![7; 100]).unwrap();
        (b.endpoint.stats().dropped > 10).then_some(())
    })
    .await;
    assert_eq!(b.message(1).await, vec![7; 100]);
}

#[tokio::test]
async fn target_can_move_to_another_address() {
    let (mut a, mut b) = (Peer::new(1, 2), Peer::new(2, 2));
    let nobody = std::net::UdpSocket::bind(loopback(0)).unwrap();
    a.endpoint.keep(&name(2), nobody.local_addr().unwrap()).unwrap();
    a.quiet(Duration::from_millis(100)).await;
    a.endpoint.keep(&name(2), b.address()).unwrap();
    a.up(2).await;
    b.up(1).await;
}

/// Up and Down alternate, and nothing is lost to an address where nobody is.
#[tokio::test]
async fn session_stands_while_its_target_moves() {
    let (mut a, mut b) = (Peer::new(1, 2), Peer::new(2, 2));
    a.keep(&b);
    a.up(2).await;
    b.up(1).await;
    let nobody = std::net::UdpSocket::bind(loopback(0)).unwrap();
    a.endpoint.keep(&name(2), nobody.local_addr().unwrap()).unwrap();
    b.endpoint.send(&name(1), b"still here".to_vec()).unwrap();
    assert_eq!(a.event().await, PeerEvent::Message(name(2), b"still here".to_vec()));
    a.endpoint.keep(&name(2), b.address()).unwrap();
    assert_eq!(a.event().await, PeerEvent::Down(name(2), DownReason::Replaced));
    a.up(2).await;
}

#[tokio::test]
async fn what_cannot_be_bound_or_kept_is_refused() {
    let bind =
        |key: &SecretKey, options: &Options| Endpoint::bind(loopback(0), key, roster(2), options).map(|_| ());
    assert!(matches!(bind(&key(9), &options("demo")), Err(PeerError::NotInRoster)));
    assert!(matches!(bind(&key(1), &options(&"x".repeat(65))), Err(PeerError::ClusterName { len: 65 })));
    for idle in [Duration::from_millis(99), Duration::from_secs(3601), Duration::MAX] {
        let options = Options { idle, ..options("demo") };
        assert!(matches!(bind(&key(1), &options), Err(PeerError::Idle { .. })), "{idle:?}");
    }
    let a = Peer::new(1, 2);
    let again = Endpoint::bind(a.address(), &key(1), roster(2), &options("demo")).map(|_| ());
    assert!(matches!(again, Err(PeerError::Bind { .. })));
    for stranger in [name(1), name(3)] {
        assert!(matches!(a.endpoint.keep(&stranger, a.address()), Err(PeerError::UnknownNode { .. })));
    }
}

/// Ends a peer like a power cut: its socket closes without a word.
///
/// The library says farewell on any orderly end, so its socket is first replaced by one the others do not know.
async fn silence(peer: Peer) {
    peer.endpoint.rebind_for_test(loopback(0));
    drop(peer);
}
