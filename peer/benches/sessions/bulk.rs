//! A long stream of bytes through quinn and through TCP. Sessions carry short messages only; this is about what another
//! connection of the same library, with the same cryptography, would make of files.
//!
//! Segmentation offload hands the kernel many packets in one call. Off, each packet has a call of its own, and on
//! loopback nothing joins them again for the receiver: that is how a guest without UDP offload fares.

use crate::{key, loopback, run, soon};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified as Verified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring as provider, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{
    CertificateDer as Key, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime,
};
use rustls::server::AlwaysResolvesServerRawPublicKeys;
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, Error, SignatureScheme};
use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Instant;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const ROUNDS: usize = 3;

/// Bytes of one transfer.
const LEN: usize = 64 << 20;

/// Bytes of one write and of the longest read.
const CHUNK: usize = 64 * 1024;

/// SubjectPublicKeyInfo of an Ed25519 key is this and the 32 bytes (RFC 8410).
const SPKI_HEAD: [u8; 12] = [0x30, 0x2a, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 3, 0x21, 0];

/// One transfer: MiB/s, seconds of processor time of the sender and of the receiver for a GiB, packets in one
/// call (0 where there are none to count).
type Transfer = [f64; 4];

type Case = (&'static str, fn() -> Transfer);

pub(crate) fn bench() {
    let cases: [Case; 3] = [
        ("quinn, segmentation offload on", || transfer(quinn_receive, |to| quinn_send(to, true))),
        ("quinn, segmentation offload off", || transfer(quinn_receive, |to| quinn_send(to, false))),
        ("TCP, not encrypted", || transfer(tcp_receive, tcp_send)),
    ];
    let mut transfers: [Vec<Transfer>; 3] = Default::default();
    for _ in 0..ROUNDS {
        for ((_, case), transfers) in cases.iter().zip(&mut transfers) {
            transfers.push(case());
        }
    }
    println!(
        "\n{:33} {:>7} {:>12} {:>8} {:>8} {:>13}   medians of {ROUNDS}, {} MiB each, processor time per GiB",
        "bulk",
        "MiB/s",
        "range",
        "send, s",
        "recv, s",
        "packets/call",
        LEN >> 20
    );
    for ((name, _), transfers) in cases.iter().zip(&transfers) {
        let of = |column: usize, percent: usize| {
            let mut values: Vec<f64> = transfers.iter().map(|t| t[column]).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() * percent / 100]
        };
        let range = format!("{:.0} to {:.0}", of(0, 0), of(0, 99));
        let packets = if of(3, 50) > 0.0 { format!("{:.1}", of(3, 50)) } else { String::new() };
        let (speed, sender, receiver) = (of(0, 50), of(1, 50), of(2, 50));
        println!("{name:33} {speed:>7.0} {range:>12} {sender:>8.2} {receiver:>8.2} {packets:>13}");
    }
}

/// Both sides on threads of their own. `receive` tells its address and gives back when it had all bytes, `send` when it
/// began and the packets in one call.
fn transfer(receive: fn(Sender<SocketAddr>) -> Instant, send: fn(SocketAddr) -> (Instant, f64)) -> Transfer {
    let (ready, address) = channel();
    let receiver = thread::spawn(move || (receive(ready), thread_cpu()));
    let address = address.recv().unwrap();
    let sender = thread::spawn(move || (send(address), thread_cpu()));
    let (end, receiver) = receiver.join().unwrap();
    let ((start, packets), sender) = sender.join().unwrap();
    let speed = LEN as f64 / f64::from(1 << 20) / (end - start).as_secs_f64();
    let for_gib = |nanoseconds: f64| nanoseconds / 1e9 * f64::from(1 << 30) / LEN as f64;
    [speed, for_gib(sender), for_gib(receiver), packets]
}

/// Processor time of this thread in nanoseconds, the kernel's work for it included.
fn thread_cpu() -> f64 {
    let line = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    line.split(' ').next().unwrap().parse().unwrap()
}

fn tcp_receive(ready: Sender<SocketAddr>) -> Instant {
    run(async {
        let listener = TcpListener::bind(loopback(0)).await.unwrap();
        ready.send(listener.local_addr().unwrap()).unwrap();
        let (mut stream, _) = soon(listener.accept()).await.unwrap();
        let (mut buffer, mut left) = (vec![0; CHUNK], LEN);
        while left > 0 {
            left -= match soon(stream.read(&mut buffer)).await.unwrap() {
                0 => panic!("{left} bytes are missing"),
                read => read,
            };
        }
        Instant::now()
    })
}

fn tcp_send(to: SocketAddr) -> (Instant, f64) {
    run(async {
        let mut stream = soon(TcpStream::connect(to)).await.unwrap();
        let start = Instant::now();
        let chunk = vec![5; CHUNK];
        for _ in 0..LEN / CHUNK {
            soon(stream.write_all(&chunk)).await.unwrap();
        }
        (start, 0.0)
    })
}

fn quinn_receive(ready: Sender<SocketAddr>) -> Instant {
    run(async {
        let signing = provider::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(key(0).pkcs8())).unwrap();
        let spki = [SPKI_HEAD.as_slice(), key(0).public()].concat();
        let certified = Arc::new(CertifiedKey::new(vec![Key::from(spki)], signing));
        let tls = rustls::ServerConfig::builder_with_provider(Arc::new(provider::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(certified)));
        let config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap()));
        let endpoint = quinn::Endpoint::server(config, loopback(0)).unwrap();
        ready.send(endpoint.local_addr().unwrap()).unwrap();
        let connection = soon(endpoint.accept()).await.unwrap().await.unwrap();
        let mut stream = soon(connection.accept_uni()).await.unwrap();
        let (mut buffer, mut left) = (vec![0; CHUNK], LEN);
        while let Some(read) = soon(stream.read(&mut buffer)).await.unwrap() {
            left -= read;
        }
        assert_eq!(left, 0, "bytes are missing");
        let end = Instant::now();
        // Said by a close, so that the sender need not wait for an acknowledgement that has no reason to hurry.
        connection.close(0u32.into(), b"all here");
        soon(endpoint.wait_idle()).await;
        end
    })
}

fn quinn_send(to: SocketAddr, offload: bool) -> (Instant, f64) {
    run(async {
        let tls = rustls::ClientConfig::builder_with_provider(Arc::new(provider::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyKey(provider::default_provider())))
            .with_no_client_auth();
        let mut transport = quinn::TransportConfig::default();
        transport.enable_segmentation_offload(offload);
        let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
        config.transport_config(Arc::new(transport));
        let endpoint = quinn::Endpoint::client(loopback(0)).unwrap();
        let connection = soon(endpoint.connect_with(config, to, "bench").unwrap()).await.unwrap();
        let mut stream = soon(connection.open_uni()).await.unwrap();
        let start = Instant::now();
        let chunk = vec![5; CHUNK];
        for _ in 0..LEN / CHUNK {
            soon(stream.write_all(&chunk)).await.unwrap();
        }
        stream.finish().unwrap();
        soon(connection.closed()).await;
        let sent = connection.stats().udp_tx;
        (start, sent.datagrams as f64 / sent.ios as f64)
    })
}

/// Lets any raw key pass that has signed the handshake: who the peer is matters to no figure here.
#[derive(Debug)]
struct AnyKey(CryptoProvider);

type Signed = Result<HandshakeSignatureValid, Error>;

impl ServerCertVerifier for AnyKey {
    fn verify_server_cert(
        &self,
        _: &Key,
        _: &[Key],
        _: &ServerName,
        _: &[u8],
        _: UnixTime,
    ) -> Result<Verified, Error> {
        Ok(Verified::assertion())
    }

    fn verify_tls12_signature(&self, _: &[u8], _: &Key, _: &DigitallySignedStruct) -> Signed {
        Err(Error::General("TLS 1.2 is not spoken here".to_owned()))
    }

    fn verify_tls13_signature(&self, message: &[u8], key: &Key, signed: &DigitallySignedStruct) -> Signed {
        let key = SubjectPublicKeyInfoDer::from(key.as_ref());
        verify_tls13_signature_with_raw_key(message, &key, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
