//! Who may not be in: removed and rotated keys, other clusters, older releases, floods from forged addresses.

use super::refusals::{Rogue, closing_text};
use super::*;
use crate::hello::Hello;
use crate::tls::Tls;
use crate::{DownReason, MAX_HANDSHAKES, SendError};
use peer_core::id::named_cluster;
use quinn::ClientConfig;
use quinn::crypto::rustls::QuicClientConfig;
use rustls::client::Resumption;
use std::net::UdpSocket;
use std::sync::Arc;
use std::time::Instant;

const NEVER: Duration = Duration::from_secs(3600);

/// The roster of `count` nodes without `gone`.
fn without(count: u8, gone: u8) -> Roster {
    let mut roster = Roster::new();
    for n in (1..=count).filter(|n| *n != gone) {
        roster.insert(name(n), *key(n).public()).unwrap();
    }
    roster
}

/// Whichever side dials, a removed key's session ends within a second and none follows; the others' go on.
#[tokio::test]
async fn removed_key_with_a_live_session_is_cut_within_a_second() {
    for (judge, removed) in [(1u8, 2u8), (2, 1)] {
        let (mut a, mut b, mut c) = (Peer::new(judge, 3), Peer::new(removed, 3), Peer::new(3, 3));
        a.keep(&b);
        a.up(removed).await;
        b.up(judge).await;
        a.keep(&c);
        a.up(3).await;
        c.up(judge).await;
        let begun = Instant::now();
        a.endpoint.replace_roster(without(3, removed));
        assert_eq!(a.event().await, PeerEvent::Down(name(removed), DownReason::Removed));
        let PeerEvent::Down(_, DownReason::Failed(text)) = b.event().await else {
            panic!("expected a reason")
        };
        assert!(text.contains("taken out of the roster"), "{text}");
        assert!(begun.elapsed() < Duration::from_secs(1), "cut after {:?}", begun.elapsed());
        let refused = a.endpoint.send(&name(removed), vec![1]);
        assert_eq!(refused, Err(SendError::NotConnected { node: name(removed) }));
        assert!(a.endpoint.keep(&name(removed), b.address()).is_err());
        if removed < judge {
            // It dials on, in vain.
            until(|| (a.endpoint.stats().refused >= 2).then_some(())).await;
        }
        b.quiet(IDLE / 4).await;
        c.endpoint.send(&name(judge), b"still here".to_vec()).unwrap();
        assert_eq!(a.event().await, PeerEvent::Message(name(3), b"still here".to_vec()));
        // Taken in again, it may be dialled again.
        a.endpoint.replace_roster(roster(3));
        a.keep(&b);
        a.up(removed).await;
        b.up(judge).await;
    }
}

#[tokio::test]
async fn rotated_key_ends_the_old_session_and_opens_to_the_new_key_only() {
    let (mut a, mut b) = (Peer::new(1, 2), Peer::new(2, 2));
    a.keep(&b);
    a.up(2).await;
    b.up(1).await;
    let mut rotated = without(2, 2);
    rotated.insert(name(2), *key(12).public()).unwrap();
    a.endpoint.replace_roster(rotated.clone());
    assert_eq!(a.event().await, PeerEvent::Down(name(2), DownReason::Removed));
    let mut renewed = Peer::with(loopback(0), &key(12), rotated, "demo");
    a.quiet(IDLE / 4).await; // it dials the old key's place and does not take it for n2
    a.keep(&renewed);
    a.up(2).await;
    renewed.up(1).await;
}

/// The greeting of the old key ends after the new key's session stands: it must not end that one.
#[tokio::test]
async fn handshake_begun_under_the_old_list_takes_nobodys_place() {
    let mut a = Peer::new(1, 2);
    let late = Rogue::speaking(Protocol::Two, a.address(), &key(2), &key(1)).await.unwrap();
    until(|| (late.connection.stats().frame_rx.handshake_done > 0).then_some(())).await;
    let mut rotated = without(2, 2);
    rotated.insert(name(2), *key(12).public()).unwrap();
    a.endpoint.replace_roster(rotated.clone());
    let mut renewed = Peer::with(loopback(0), &key(12), rotated, "demo");
    a.keep(&renewed);
    a.up(2).await;
    renewed.up(1).await;
    let hello = Hello { id: named_cluster("demo"), cluster: "demo".into(), node: name(2) };
    let _ = late.greet(&hello.encode(Protocol::Two)).await;
    soon(late.connection.closed()).await;
    until(|| (a.endpoint.stats().refused == 1).then_some(())).await;
    a.quiet(IDLE / 4).await;
    renewed.quiet(Duration::from_millis(1)).await;
    renewed.endpoint.send(&name(1), b"still here".to_vec()).unwrap();
    assert_eq!(a.event().await, PeerEvent::Message(name(2), b"still here".to_vec()));
}

/// Taken out and back in before its session has told its end: it is dialled as if it were new.
#[tokio::test]
async fn node_that_is_back_at_once_is_dialled_again() {
    let (mut a, mut b) = (Peer::new(1, 2), Peer::new(2, 2));
    a.keep(&b);
    a.up(2).await;
    b.up(1).await;
    for _ in 0..3 {
        a.endpoint.replace_roster(without(2, 2));
        assert_eq!(a.endpoint.kept_for_test(), 0, "nobody is dialled who is not in the roster");
        a.endpoint.replace_roster(roster(2));
        a.keep(&b);
        assert!(matches!(a.event().await, PeerEvent::Down(_, _)));
        a.up(2).await;
    }
}

#[tokio::test]
async fn node_that_was_removed_itself_keeps_no_session() {
    let (mut a, mut b) = (Peer::new(1, 2), Peer::new(2, 2));
    a.keep(&b);
    a.up(2).await;
    b.up(1).await;
    a.endpoint.replace_roster(without(2, 1));
    assert_eq!(a.event().await, PeerEvent::Down(name(2), DownReason::Removed));
    assert!(matches!(b.event().await, PeerEvent::Down(_, DownReason::Failed(_))));
}

#[tokio::test]
async fn releases_that_follow_each_other_speak_what_both_know() {
    let table: [(&[Protocol], &[Protocol], Protocol); 4] = [
        (&Protocol::ALL, &Protocol::ALL, Protocol::Two),
        (&Protocol::ALL, &[Protocol::One], Protocol::One),
        (&[Protocol::One], &Protocol::ALL, Protocol::One),
        (&[Protocol::One], &[Protocol::One], Protocol::One),
    ];
    for (dials, waits, spoken) in table {
        let mut a = Peer::speaking(1, 2, dials, NEVER);
        let mut b = Peer::speaking(2, 2, waits, NEVER);
        a.keep(&b);
        a.up(2).await;
        b.up(1).await;
        assert_eq!(a.endpoint.protocol(&name(2)), Some(spoken));
        assert_eq!(b.endpoint.protocol(&name(1)), Some(spoken));
        for message in [b"ping".to_vec(), vec![3; crate::MAX_MESSAGE_LEN]] {
            a.endpoint.send(&name(2), message.clone()).unwrap();
            assert_eq!(b.message(1).await, message);
            b.endpoint.send(&name(1), message.clone()).unwrap();
            assert_eq!(a.message(2).await, message);
        }
    }
}

#[tokio::test]
async fn releases_without_a_common_protocol_refuse_each_other() {
    let mut a = Peer::speaking(1, 2, &[Protocol::Two], NEVER);
    let mut b = Peer::speaking(2, 2, &[Protocol::One], NEVER);
    a.keep(&b);
    until(|| (b.endpoint.stats().refused >= 1).then_some(())).await;
    a.quiet(Duration::from_millis(1)).await;
    b.quiet(Duration::from_millis(1)).await;
}

#[tokio::test]
async fn wrong_cluster_id_is_refused_in_the_greeting_and_in_every_message() {
    let mut a = Peer::new(1, 2);
    let hello = |id: &str| Hello { id: named_cluster(id), cluster: "demo".into(), node: name(2) };
    let to = a.address();
    let dial = async || Rogue::speaking(Protocol::Two, to, &key(2), &key(1)).await.unwrap();
    let namesake = dial().await;
    let end = namesake.greet(&hello("other").encode(Protocol::Two)).await.unwrap_err();
    assert!(closing_text(&end).contains("both called \"demo\""), "{end:?}");

    for message in [named_cluster("other").0.to_vec(), vec![], vec![1; 15]] {
        let rogue = dial().await;
        rogue.greet(&hello("demo").encode(Protocol::Two)).await.unwrap();
        a.up(2).await;
        rogue
            .connection
            .send_datagram([named_cluster("demo").0.as_slice(), b"good"].concat().into())
            .unwrap();
        assert_eq!(a.event().await, PeerEvent::Message(name(2), b"good".to_vec()));
        rogue.connection.send_datagram(message.into()).unwrap();
        assert_eq!(a.event().await, PeerEvent::Down(name(2), DownReason::Foreign));
    }
}

#[tokio::test]
async fn exported_keys_are_the_same_on_both_sides_and_nowhere_else() {
    let (mut a, mut b) = (Peer::new(1, 3), Peer::new(2, 3));
    a.keep(&b);
    a.up(2).await;
    b.up(1).await;
    let at_a = a.endpoint.export(&name(2), "beat-1").unwrap();
    let at_b = b.endpoint.export(&name(1), "beat-1").unwrap();
    assert_eq!((at_a.send, at_a.receive), (at_b.receive, at_b.send));
    assert_ne!(at_a.send, at_a.receive, "each direction has its own");
    assert_ne!(at_a.send, a.endpoint.export(&name(2), "beat-2").unwrap().send, "each purpose has its own");
    assert!(!format!("{at_a:?}").contains(&at_a.send[0].to_string()), "keys are not shown");
    let nobody = a.endpoint.export(&name(3), "beat-1");
    assert_eq!(nobody, Err(SendError::NotConnected { node: name(3) }));
}

#[tokio::test]
async fn sessions_are_renewed_at_a_fixed_rate_with_new_keys() {
    let renew = Duration::from_millis(300);
    let mut a = Peer::speaking(1, 2, &Protocol::ALL, renew);
    let mut b = Peer::speaking(2, 2, &Protocol::ALL, renew);
    a.keep(&b);
    a.up(2).await;
    b.up(1).await;
    let mut seen = vec![a.endpoint.export(&name(2), "beat-1").unwrap().send];
    for _ in 0..3 {
        for (peer, other) in [(&mut a, 2), (&mut b, 1)] {
            assert_eq!(peer.event().await, PeerEvent::Down(name(other), DownReason::Replaced));
            peer.up(other).await;
        }
        let key = a.endpoint.export(&name(2), "beat-1").unwrap().send;
        assert!(!seen.contains(&key), "a new session has new keys");
        seen.push(key);
    }
    a.endpoint.send(&name(2), b"through".to_vec()).unwrap();
    assert_eq!(b.message(1).await, b"through");
}

#[tokio::test]
async fn nothing_is_resumed_and_nothing_is_said_early() {
    let a = Peer::new(1, 2);
    let mut tls = Tls::new(&key(2), &[Protocol::Two]).unwrap().client(key(1).public()).unwrap();
    tls.resumption = Resumption::in_memory_sessions(8);
    tls.enable_early_data = true;
    let config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    let quic = quinn::Endpoint::client(loopback(0)).unwrap();
    let hello = Hello { id: named_cluster("demo"), cluster: "demo".into(), node: name(2) };
    for _ in 0..2 {
        let connecting = quic.connect_with(config.clone(), a.address(), "peer").unwrap();
        let Err(connecting) = connecting.into_0rtt() else { panic!("early data offered") };
        let connection = soon(connecting).await.unwrap();
        // A whole exchange: a ticket would have come by then.
        let (mut question, mut reply) = connection.open_bi().await.unwrap();
        question.write_all(&hello.encode(Protocol::Two)).await.unwrap();
        question.finish().unwrap();
        soon(reply.read_to_end(1000)).await.unwrap();
    }
}

/// First packets of a thousand handshakes, each sent on from an address whose owner never answers: few get a place, the
/// others a demand to prove their address, which is not kept, and a member gets in beside them.
#[tokio::test]
async fn thousand_half_open_handshakes_from_forged_addresses_cost_bounded_memory() {
    const HANDSHAKES: usize = 1000;
    let (mut a, mut b) = (Peer::new(1, 2), Peer::new(2, 2));
    let trap = tokio::net::UdpSocket::bind(loopback(0)).await.unwrap();
    let quic = quinn::Endpoint::client(loopback(0)).unwrap();
    let tls = Tls::new(&key(66), &Protocol::ALL).unwrap().client(key(2).public()).unwrap();
    let config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    let mut forged: Vec<UdpSocket> = Vec::new();
    let mut dialling = Vec::new();
    let mut most = 0;
    for n in 0..HANDSHAKES {
        let connecting = quic.connect_with(config.clone(), trap.local_addr().unwrap(), "peer").unwrap();
        let mut packet = [0; 2048];
        let len = soon(trap.recv(&mut packet)).await.unwrap();
        dialling.push(connecting); // its end would tell the node to forget the handshake
        if n % 10 == 0 {
            forged.push(UdpSocket::bind(loopback(0)).unwrap());
        }
        forged.last().unwrap().send_to(&packet[..len], b.address()).unwrap();
        tokio::task::yield_now().await;
        most = most.max(b.endpoint.open_connections_for_test());
    }
    until(|| (b.endpoint.stats().challenged > 0).then_some(())).await;
    let begun = Instant::now();
    a.keep(&b);
    a.up(2).await;
    b.up(1).await;
    let stats = b.endpoint.stats();
    assert!(begun.elapsed() < Duration::from_secs(5), "a member got in after {:?}", begun.elapsed());
    assert!(most <= MAX_HANDSHAKES, "{most} connections were held");
    assert!(stats.challenged > HANDSHAKES as u64 / 4, "{stats:?}");
}
