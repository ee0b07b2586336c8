//! A long stream of bytes through quinn and through TCP. Sessions carry short messages only; this is about what another
//! connection of the same library, with the same cryptography, would make of files.
//!
//! Segmentation offload hands the kernel many packets in one call. Off, each packet has a call of its own, and on
//! loopback nothing joins them again for the receiver: that is how a guest without UDP offload fares.

use crate::{key, loopback, run, soon};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring as provider, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
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

const ROUNDS: usize = 5;

/// Bytes of one transfer.
const LEN: usize = 128 << 20;

/// Bytes of one write and of the longest read.
const CHUNK: usize = 64 * 1024;

/// SubjectPublicKeyInfo of an Ed25519 key is this and the 32 bytes (RFC 8410).
const SPKI_HEAD: [u8; 12] = [0x30, 0x2a, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 3, 0x21, 0];

/// One transfer: speed in KiB/s, processor time of each side in nanoseconds, packets handed over in one call.
struct Transfer {
    speed: u64,
    sender: u64,
    receiver: u64,
    packets_per_call: Option<f64>,
}

pub(crate) fn bench() {
    let cases: [(&str, fn() -> Transfer); 3] = [
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
        "\n{:36} {:>8} {:>15} {:>9} {:>9} {:>13}   {ROUNDS} transfers of {} MiB each, medians",
        "bulk",
        "MiB/s",
        "from to",
        "send, s",
        "recv, s",
        "packets/call",
        LEN >> 20
    );
    for ((name, _), transfers) in cases.iter().zip(&transfers) {
        let of = |value: fn(&Transfer) -> u64, percent| {
            crate::at(&mut transfers.iter().map(value).collect::<Vec<_>>(), percent)
        };
        let speed = |percent| of(|t| t.speed, percent) as f64 / 1024.0;
        // Processor time for a GiB.
        let cpu = |value| of(value, 50) as f64 / 1e9 * ((1 << 30) / LEN) as f64;
        let range = format!("{:.0} {:.0}", speed(0), speed(99));
        let calls = transfers[0].packets_per_call.map_or(String::new(), |n| format!("{n:.1}"));
        let (send, receive) = (cpu(|t| t.sender), cpu(|t| t.receiver));
        println!("{name:36} {:>8.0} {range:>15} {send:>9.2} {receive:>9.2} {calls:>13}", speed(50));
    }
}

/// Both sides on threads of their own. `receive` tells its address, then takes all bytes; `send` gives back when it began
/// and the packets in one call.
fn transfer(receive: fn(Sender<SocketAddr>), send: fn(SocketAddr) -> (Instant, Option<f64>)) -> Transfer {
    let (ready, address) = channel();
    let receiver = thread::spawn(move || {
        receive(ready);
        (Instant::now(), thread_cpu())
    });
    let address = address.recv().unwrap();
    let sender = thread::spawn(move || (send(address), thread_cpu()));
    let (end, receiver) = receiver.join().unwrap();
    let ((start, packets_per_call), sender) = sender.join().unwrap();
    let speed = (LEN as f64 / 1024.0 / (end - start).as_secs_f64()) as u64;
    Transfer { speed, sender, receiver, packets_per_call }
}

/// Processor time of this thread in nanoseconds, the kernel's work for it included.
fn thread_cpu() -> u64 {
    let line = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    line.split(' ').next().unwrap().parse().unwrap()
}

fn tcp_receive(ready: Sender<SocketAddr>) {
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
    });
}

fn tcp_send(to: SocketAddr) -> (Instant, Option<f64>) {
    run(async {
        let mut stream = soon(TcpStream::connect(to)).await.unwrap();
        let start = Instant::now();
        let chunk = vec![5; CHUNK];
        for _ in 0..LEN / CHUNK {
            soon(stream.write_all(&chunk)).await.unwrap();
        }
        (start, None)
    })
}

fn quinn_receive(ready: Sender<SocketAddr>) {
    run(async {
        let signing = provider::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(key(0).pkcs8())).unwrap();
        let spki = [SPKI_HEAD.as_slice(), key(0).public()].concat();
        let certified = Arc::new(CertifiedKey::new(vec![CertificateDer::from(spki)], signing));
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
        // Said by a close, so that the sender need not wait for an acknowledgement that has no reason to hurry.
        connection.close(0u32.into(), b"all here");
        soon(endpoint.wait_idle()).await;
    });
}

fn quinn_send(to: SocketAddr, offload: bool) -> (Instant, Option<f64>) {
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
        (start, Some(sent.datagrams as f64 / sent.ios as f64))
    })
}

/// Lets any raw key pass that has signed the handshake: who the peer is matters to no figure here.
#[derive(Debug)]
struct AnyKey(CryptoProvider);

impl ServerCertVerifier for AnyKey {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        spki: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let spki = SubjectPublicKeyInfoDer::from(spki.as_ref());
        verify_tls13_signature_with_raw_key(message, &spki, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
