//! The endpoint: one UDP socket, the sessions on it, who dials and who waits.

use crate::SecretKey;
use crate::clock::RunningClock;
use crate::hello::{Hello, MAX_CLUSTER_LEN, MAX_HELLO_LEN, Protocol, Refusal};
use crate::registry::{Link, Registry, lock};
use crate::session::{self, DownReason, MAX_MESSAGE_LEN, MAX_STREAMS, PeerEvent, close, code, printable};
use crate::tls::{Tls, key_of_peer, protocol_of};
use crate::trusted::Trusted;
use crate::window::FixedWindow;
use proto::cluster::NodeName;
use proto::identity::ClusterId;
use proto::roster::{PublicKey, Roster};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    ClientConfig, Connection, ConnectionId, ConnectionIdGenerator, EndpointConfig, Incoming, ServerConfig,
    TransportConfig, VarInt,
};
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinHandle, JoinSet};
use tokio::time::timeout;

/// Accepted connections that have not greeted yet. More than any cluster's nodes that start at once; each costs
/// some tens of kilobytes.
pub const MAX_HANDSHAKES: usize = 32;

/// With this few places left a sender has to prove its address before it gets one.
const VALIDATE_BELOW: usize = MAX_HANDSHAKES - 8;

/// From the first packet to the end of the greeting, either side. Emulated machines that share two cores need
/// most of a second.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(3);

/// First pause between two attempts to dial; doubles up to [`BACKOFF_MAX`].
const BACKOFF_MIN: Duration = Duration::from_millis(100);

/// Longest pause: a node that returns from a reboot is dialled within this.
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// Sessions shorter than this do not reset the back-off.
const STABLE_AFTER: Duration = Duration::from_secs(1);

/// Events that wait for the reader: a second of beats of a large group.
const EVENT_QUEUE: usize = 1024;

/// How long [`Endpoint::close`] waits for peers to have the last message: some round trips of emulated machines.
const FAREWELL_DEADLINE: Duration = Duration::from_millis(800);

/// How long [`Endpoint::close`] waits for the end of the sessions to be told.
const CLOSE_DEADLINE: Duration = Duration::from_millis(200);

/// Round-trip time assumed before the first measurement: sets how soon a lost first packet is repeated.
const INITIAL_RTT: Duration = Duration::from_millis(50);

/// Bytes of datagrams that wait to be sent; the oldest is dropped for a newer one.
const DATAGRAM_SEND_BUFFER: usize = 16 * 1024;

/// Bytes of datagrams that wait to be read; the oldest is dropped for a newer one.
const DATAGRAM_RECEIVE_BUFFER: usize = 64 * 1024;

/// Bytes of the longest stream: a message with the cluster's id in front.
const STREAM_LEN: u32 = (MAX_MESSAGE_LEN + session::FRAME_LEN) as u32;

/// What an endpoint is told beside its key and roster.
#[derive(Clone, Debug)]
pub struct Options {
    /// The cluster's name, at most 64 bytes. Sessions with nodes of another one are refused.
    pub cluster: String,
    /// The cluster's id: of its roster chain, or of its name where there is no chain.
    pub id: ClusterId,
    /// A session that hears nothing for this long is down. A quarter of it apart, idle sessions are probed.
    pub idle: Duration,
    /// How old a session gets before the side that dials makes another in its place: new keys at a fixed rate.
    pub renew: Duration,
}

/// How old sessions get on an appliance.
pub const RENEW_EVERY: Duration = Duration::from_secs(3600);

/// Keys of one session for messages outside of it, one for each direction.
#[derive(Clone, PartialEq, Eq)]
pub struct DirectionKeys {
    /// For what this node sends.
    pub send: [u8; 32],
    /// For what the peer sends.
    pub receive: [u8; 32],
}

impl std::fmt::Debug for DirectionKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DirectionKeys(hidden)")
    }
}

/// Why an endpoint could not be made or told to keep a session. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The socket could not be had.
    #[error("cannot bind UDP {address}")]
    Bind {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    /// The own key stands under no name.
    #[error("this node's key is not in the roster; check the key and the roster")]
    NotInRoster,
    /// The node is not in the roster, or is this node itself.
    #[error("cannot keep a session with node {node}: it is not another node of the roster")]
    UnknownNode { node: NodeName },
    /// A cluster name that is too long.
    #[error("cluster name of {len} bytes, at most {MAX_CLUSTER_LEN} are allowed")]
    ClusterName { len: usize },
    /// A renewal time out of range.
    #[error("sessions renewed after {renew:?}, expected 100 ms to 24 h")]
    Renew { renew: Duration },
    /// An idle time out of range.
    #[error("idle time of {idle:?}, expected 100 ms to 1 h")]
    Idle { idle: Duration },
    /// The key or the TLS configuration was not accepted.
    #[error("cannot set up TLS")]
    Tls {
        #[source]
        source: rustls::Error,
    },
}

/// Why a message was not sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// There is no session with the node now.
    #[error("no session with node {node}")]
    NotConnected { node: NodeName },
    /// Longer than [`MAX_MESSAGE_LEN`].
    #[error("message of {len} bytes, at most {MAX_MESSAGE_LEN} are allowed")]
    TooLong { len: usize },
}

/// What has been lost or refused since the endpoint was bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Messages dropped because the reader of events was too slow.
    pub dropped: u64,
    /// Long messages replaced or given up before they left.
    pub superseded: u64,
    /// Streams of peers that were not through in time.
    pub stalled: u64,
    /// Connections turned away: no place, no key of the roster, or a refused greeting.
    pub refused: u64,
    /// First packets answered by a demand to prove the sender's address. They cost no memory.
    pub challenged: u64,
}

#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) dropped: AtomicU64,
    pub(crate) superseded: AtomicU64,
    pub(crate) stalled: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) challenged: AtomicU64,
}

/// What the endpoint's tasks share.
pub(crate) struct Shared {
    quic: quinn::Endpoint,
    tls: Tls,
    pub(crate) trusted: Arc<Trusted>,
    own: NodeName,
    own_key: PublicKey,
    pub(crate) hello: Hello,
    renew: Duration,
    transport: Arc<TransportConfig>,
    pub(crate) registry: Registry,
    pub(crate) events: mpsc::Sender<PeerEvent>,
    pub(crate) counters: Counters,
}

impl Shared {
    /// Hands a message to the reader of events, or drops it when that one is behind.
    pub(crate) fn deliver(&self, node: &NodeName, message: Vec<u8>) {
        if self.events.try_send(PeerEvent::Message(node.clone(), message)).is_err() {
            self.counters.dropped.fetch_add(1, Relaxed);
        }
    }
}

/// A bound endpoint. Its drop ends all sessions without a farewell having to be waited for.
pub struct Endpoint {
    shared: Arc<Shared>,
    accepting: AbortHandle,
    kept: Mutex<BTreeMap<NodeName, (SocketAddr, AbortHandle)>>,
}

/// Why an attempt to set up a session failed.
#[derive(Debug, thiserror::Error)]
enum AttemptError {
    #[error("no answer within {HANDSHAKE_DEADLINE:?}")]
    Late,
    #[error("{0}")]
    Connection(DownReason),
    #[error("cannot dial: {0}")]
    Dial(String),
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("greeting cut short")]
    Greeting,
}

impl From<quinn::ConnectionError> for AttemptError {
    fn from(error: quinn::ConnectionError) -> AttemptError {
        AttemptError::Connection(DownReason::from(&error))
    }
}

impl Endpoint {
    /// Binds UDP `address` and starts to accept sessions of the roster's nodes. This node's name is the one its key
    /// has in the roster. Needs a tokio runtime with time and I/O.
    pub fn bind(
        address: SocketAddr,
        key: &SecretKey,
        roster: Roster,
        options: &Options,
    ) -> Result<(Endpoint, mpsc::Receiver<PeerEvent>), PeerError> {
        let socket = UdpSocket::bind(address).map_err(|source| PeerError::Bind { address, source })?;
        Endpoint::on_socket(socket, key, roster, options)
    }

    /// Like [`Endpoint::bind`], on a socket that is bound already.
    pub fn on_socket(
        socket: UdpSocket,
        key: &SecretKey,
        roster: Roster,
        options: &Options,
    ) -> Result<(Endpoint, mpsc::Receiver<PeerEvent>), PeerError> {
        Endpoint::speaking(&Protocol::ALL, socket, key, roster, options)
    }

    /// Like [`Endpoint::on_socket`], offering `protocols` only.
    pub(crate) fn speaking(
        protocols: &[Protocol],
        socket: UdpSocket,
        key: &SecretKey,
        roster: Roster,
        options: &Options,
    ) -> Result<(Endpoint, mpsc::Receiver<PeerEvent>), PeerError> {
        let own = roster.name_of(key.public()).ok_or(PeerError::NotInRoster)?.clone();
        if options.cluster.len() > MAX_CLUSTER_LEN {
            return Err(PeerError::ClusterName { len: options.cluster.len() });
        }
        if !(Duration::from_millis(100)..=Duration::from_secs(24 * 3600)).contains(&options.renew) {
            return Err(PeerError::Renew { renew: options.renew });
        }
        let transport = Arc::new(transport(options.idle)?);
        let tls_failed = |source| PeerError::Tls { source };
        let tls = Tls::new(key, protocols).map_err(tls_failed)?;
        let trusted = Arc::new(Trusted::new(roster));
        let crypto = QuicServerConfig::try_from(tls.server(&trusted, key.public()).map_err(tls_failed)?)
            .expect("the provider has TLS_AES_128_GCM_SHA256, which QUIC's first packets need");
        let mut server = ServerConfig::with_crypto(Arc::new(crypto));
        server
            .transport_config(transport.clone())
            .migration(false)
            .time_source(Arc::new(RunningClock::new()))
            .max_incoming(MAX_HANDSHAKES)
            .incoming_buffer_size(16 * 1024)
            .incoming_buffer_size_total(128 * 1024);

        // Kept across restarts: the next life can tell a peer that its session is gone, instead of silence.
        let reset_key = hmac::Key::new(hmac::HMAC_SHA256, &key.derive("evenkeel stateless reset"));
        let mut config = EndpointConfig::new(Arc::new(reset_key));
        config.cid_generator(|| Box::new(RandomIds(SystemRandom::new())));

        let bind_failed = |source| PeerError::Bind { address: SocketAddr::from(([0; 4], 0)), source };
        socket.set_nonblocking(true).map_err(bind_failed)?;
        let quic = quinn::Endpoint::new(config, Some(server), socket, Arc::new(quinn::TokioRuntime))
            .map_err(bind_failed)?;
        let (events, receiver) = mpsc::channel(EVENT_QUEUE);
        let hello = Hello { id: options.id, cluster: options.cluster.clone(), node: own.clone() };
        let shared = Arc::new(Shared {
            quic,
            tls,
            trusted,
            own,
            own_key: *key.public(),
            hello,
            renew: options.renew,
            transport,
            registry: Registry::default(),
            events,
            counters: Counters::default(),
        });
        let accepting = tokio::spawn(accept(shared.clone())).abort_handle();
        Ok((Endpoint { shared, accepting, kept: Mutex::default() }, receiver))
    }

    /// This node's name.
    pub fn own_name(&self) -> &NodeName {
        &self.shared.own
    }

    /// The address the socket is bound to.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.shared.quic.local_addr()
    }

    /// Keeps a session with `node` at `address` alive until the roster has it no more. Of two nodes only the one with
    /// the lower name dials; the other one waits to be dialled, and for it this only checks the name. A second call moves
    /// the target to another address; a session that stands goes on until one from there takes its place.
    pub fn keep(&self, node: &NodeName, address: SocketAddr) -> Result<(), PeerError> {
        // Held over the question: a roster that is replaced meanwhile would leave a task nobody ends.
        let mut kept = lock(&self.kept);
        if *node == self.shared.own || self.shared.trusted.key_of(node).is_none() {
            return Err(PeerError::UnknownNode { node: node.clone() });
        }
        if self.shared.own > *node || kept.get(node).is_some_and(|(known, _)| *known == address) {
            return Ok(());
        }
        let task = tokio::spawn(dial_for_ever(self.shared.clone(), node.clone(), address)).abort_handle();
        if let Some((_, old)) = kept.insert(node.clone(), (address, task)) {
            old.abort();
        }
        Ok(())
    }

    /// Sends without waiting. The message may be lost, and a long one may be overtaken or replaced by a newer one;
    /// an `Ok` says only that there is a session.
    pub fn send(&self, node: &NodeName, message: Vec<u8>) -> Result<(), SendError> {
        if message.len() > MAX_MESSAGE_LEN {
            return Err(SendError::TooLong { len: message.len() });
        }
        let not_connected = || SendError::NotConnected { node: node.clone() };
        let session = self.shared.registry.get(node).ok_or_else(not_connected)?;
        let connection = &session.link.connection;
        if connection.close_reason().is_some() {
            return Err(not_connected());
        }
        let message = session::framed(&self.shared, session.link.protocol, message);
        if connection.max_datagram_size().is_some_and(|max| message.len() <= max) {
            // It fits, so what can go wrong is a session that has ended meanwhile.
            return connection.send_datagram(message.into()).map_err(|_| not_connected());
        }
        if session.slot.put(message) {
            self.shared.counters.superseded.fetch_add(1, Relaxed);
        }
        Ok(())
    }

    /// Puts another roster in force: from now on handshakes are judged by it, and sessions whose peer has another key
    /// in it, or none, are cut at once. Store what it comes from first. Nodes that are not in it are dialled no more. Nodes
    /// that are new in it, or back, are waited for; to dial them, [`Endpoint::keep`] them. When this node's own key is
    /// not in it, every session is cut and none is made.
    pub fn replace_roster(&self, roster: Roster) {
        let shared = &self.shared;
        let belongs = roster.name_of(&shared.own_key) == Some(&shared.own);
        // Held to the end: of two rosters replaced at once the later one cuts what the earlier one let pass.
        let mut kept = lock(&self.kept);
        // The list first: a handshake that ends after this finds the new one (see `session::run`).
        shared.trusted.replace(if belongs { roster } else { Roster::new() });
        kept.retain(|node, (_, task)| {
            let belongs = shared.trusted.key_of(node).is_some();
            if !belongs {
                task.abort();
            }
            belongs
        });
        for (node, session) in shared.registry.all() {
            if !shared.trusted.holds(&node, &session.link.key) {
                session::cut(&session.link.connection);
            }
        }
    }

    /// The protocol spoken with `node` now.
    pub fn protocol(&self, node: &NodeName) -> Option<Protocol> {
        self.shared.registry.get(node).map(|session| session.link.protocol)
    }

    /// Keys for `purpose` from the session with `node` (RFC 8446, 7.5): both sides get the same, nobody else any. They
    /// change with every [`PeerEvent::Up`]; for a moment the sides may be in different sessions.
    pub fn export(&self, node: &NodeName, purpose: &str) -> Result<DirectionKeys, SendError> {
        let not_connected = || SendError::NotConnected { node: node.clone() };
        let link = self.shared.registry.get(node).ok_or_else(not_connected)?.link;
        if link.connection.close_reason().is_some() {
            return Err(not_connected()); // cut, and its end not told yet
        }
        let label = format!("EXPORTER-evenkeel-{purpose}");
        // Who sends to whom is in the context: the two directions never share a key.
        let key = |from: &PublicKey, to: &PublicKey| {
            let context = [self.shared.hello.id.0.as_slice(), from, to].concat();
            let mut bytes = [0; 32];
            let made = link.connection.export_keying_material(&mut bytes, label.as_bytes(), &context);
            made.map(|()| bytes).map_err(|_| not_connected())
        };
        let own = &self.shared.own_key;
        Ok(DirectionKeys { send: key(own, &link.key)?, receive: key(&link.key, own)? })
    }

    /// What has been lost or refused so far.
    pub fn stats(&self) -> Stats {
        let counters = &self.shared.counters;
        Stats {
            dropped: counters.dropped.load(Relaxed),
            superseded: counters.superseded.load(Relaxed),
            stalled: counters.stalled.load(Relaxed),
            refused: counters.refused.load(Relaxed),
            challenged: counters.challenged.load(Relaxed),
        }
    }

    /// Gives every connected peer the `last` message, waits until each has it, and ends all sessions, so that peers
    /// need not wait for silence. Takes at most a second, however deaf a peer is; who has not got it by then does not.
    pub async fn close(&self, last: &[u8]) {
        let mut farewells = JoinSet::new(); // bounded by the roster
        for (_, session) in self.shared.registry.all() {
            let last = session::framed(&self.shared, session.link.protocol, last.to_vec());
            farewells.spawn(async move { session::deliver(&session.link.connection, &last).await });
        }
        // A deaf peer finds out by silence.
        drop(timeout(FAREWELL_DEADLINE, async { while farewells.join_next().await.is_some() {} }).await);
        self.stop();
        // Late is as good: peers then find out by silence.
        drop(timeout(CLOSE_DEADLINE, self.shared.quic.wait_idle()).await);
    }

    /// Takes the socket away without a word, as a power cut does.
    #[cfg(test)]
    pub(crate) fn rebind_for_test(&self, address: SocketAddr) {
        self.shared
            .quic
            .rebind(UdpSocket::bind(address).expect("loopback has ports"))
            .expect("a good socket");
    }

    /// How many nodes are dialled.
    #[cfg(test)]
    pub(crate) fn kept_for_test(&self) -> usize {
        lock(&self.kept).len()
    }

    /// Connections the library holds, finished or not.
    #[cfg(test)]
    pub(crate) fn open_connections_for_test(&self) -> usize {
        self.shared.quic.open_connections()
    }

    fn stop(&self) {
        self.accepting.abort();
        for (_, task) in std::mem::take(&mut *lock(&self.kept)).into_values() {
            task.abort();
        }
        self.shared.quic.close(VarInt::from_u32(code::SHUTDOWN), b"shutting down");
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Connection ids that are random and nothing else. The library's default ones are signed with a key of this life
/// and it ignores packets that bear others: the next life would answer a peer's old session with silence instead of a
/// stateless reset.
struct RandomIds(SystemRandom);

/// Bytes of a connection id.
const ID_LEN: usize = 8;

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut bytes = [0; ID_LEN];
        self.0.fill(&mut bytes).expect("the kernel's random numbers do not run out");
        ConnectionId::new(&bytes)
    }

    fn cid_len(&self) -> usize {
        ID_LEN
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

fn transport(idle: Duration) -> Result<TransportConfig, PeerError> {
    let in_range = (Duration::from_millis(100)..=Duration::from_secs(3600)).contains(&idle);
    let timeout = idle.try_into().ok().filter(|_| in_range).ok_or(PeerError::Idle { idle })?;
    let mut config = TransportConfig::default();
    config
        .max_idle_timeout(Some(timeout))
        .keep_alive_interval(Some(idle / 4))
        .initial_rtt(INITIAL_RTT)
        .max_concurrent_bidi_streams(VarInt::from_u32(1)) // the greeting
        .max_concurrent_uni_streams(VarInt::from_u32(MAX_STREAMS))
        .stream_receive_window(VarInt::from_u32(STREAM_LEN))
        .receive_window(VarInt::from_u32(STREAM_LEN * MAX_STREAMS))
        .send_window(u64::from(STREAM_LEN * MAX_STREAMS))
        .datagram_receive_buffer_size(Some(DATAGRAM_RECEIVE_BUFFER))
        .datagram_send_buffer_size(DATAGRAM_SEND_BUFFER)
        .congestion_controller_factory(Arc::new(FixedWindow));
    Ok(config)
}

/// Accepts connections until the endpoint is closed.
async fn accept(shared: Arc<Shared>) {
    let places = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    while let Some(incoming) = shared.quic.accept().await {
        let refused = || shared.counters.refused.fetch_add(1, Relaxed);
        if places.available_permits() < VALIDATE_BELOW
            && incoming.may_retry()
            && !incoming.remote_address_validated()
        {
            shared.counters.challenged.fetch_add(1, Relaxed);
            // Cannot fail: `may_retry` said so.
            drop(incoming.retry());
            continue;
        }
        let Ok(place) = places.clone().try_acquire_owned() else {
            refused();
            incoming.refuse();
            continue;
        };
        let shared = shared.clone();
        tokio::spawn(async move {
            let from = incoming.remote_address();
            match timeout(HANDSHAKE_DEADLINE, accept_one(&shared, incoming)).await {
                Ok(Ok((node, link))) => session::run(&shared, &node, link, || drop(place)).await,
                Ok(Err(error)) => {
                    shared.counters.refused.fetch_add(1, Relaxed);
                    // Debug only: strangers must not be able to fill a log.
                    tracing::debug!(%from, %error, "session refused");
                }
                Err(_) => {
                    shared.counters.refused.fetch_add(1, Relaxed);
                    tracing::debug!(%from, "handshake too slow");
                }
            }
        });
    }
}

/// Closes the connection when the attempt it belongs to is given up half way.
struct CloseLate(Option<Connection>);

impl CloseLate {
    /// The attempt came to its end.
    fn keep(mut self) -> Option<Connection> {
        self.0.take()
    }
}

impl Drop for CloseLate {
    fn drop(&mut self) {
        if let Some(connection) = self.0.take() {
            close(&connection, code::LATE, "handshake not finished");
        }
    }
}

/// The accepting side of a handshake and greeting.
async fn accept_one(shared: &Shared, incoming: Incoming) -> Result<(NodeName, Link), AttemptError> {
    let connection = incoming.accept()?.await?;
    let guard = CloseLate(Some(connection.clone()));
    let link = link(&connection)?;
    let node = shared.trusted.name_of(&link.key).ok_or(AttemptError::Greeting)?;
    let (mut reply, mut question) = connection.accept_bi().await?;
    let bytes = question.read_to_end(MAX_HELLO_LEN).await.map_err(|_| greeting_failed(&connection))?;
    judge(shared, &link, &bytes, &node)?;
    let hello = shared.hello.encode(link.protocol);
    reply.write_all(&hello).await.map_err(|_| greeting_failed(&connection))?;
    reply.finish().map_err(|_| greeting_failed(&connection))?;
    guard.keep();
    Ok((node, link))
}

/// What the handshake of `connection` has settled.
fn link(connection: &Connection) -> Result<Link, AttemptError> {
    let key = key_of_peer(connection.peer_identity()).ok_or(AttemptError::Greeting)?;
    let protocol = protocol_of(connection).ok_or(AttemptError::Greeting)?;
    Ok(Link { connection: connection.clone(), key, protocol })
}

/// The dialling side.
async fn dial(shared: &Shared, node: &NodeName, address: SocketAddr) -> Result<Link, AttemptError> {
    let dial_failed = |text: String| AttemptError::Dial(text);
    let key = shared.trusted.key_of(node);
    let key = key.ok_or_else(|| dial_failed("it is not in the roster any more".to_owned()))?;
    let tls = shared.tls.client(&key).map_err(|e| dial_failed(e.to_string()))?;
    let crypto = QuicClientConfig::try_from(tls).map_err(|e| dial_failed(e.to_string()))?;
    let mut config = ClientConfig::new(Arc::new(crypto));
    config.transport_config(shared.transport.clone());
    // The name is for the library only: it is not sent, the verifier compares keys.
    let connecting =
        shared.quic.connect_with(config, address, "peer").map_err(|e| dial_failed(e.to_string()))?;
    let connection = connecting.await?;
    let guard = CloseLate(Some(connection.clone()));
    let link = link(&connection)?;
    let (mut question, mut reply) = connection.open_bi().await?;
    let hello = shared.hello.encode(link.protocol);
    question.write_all(&hello).await.map_err(|_| greeting_failed(&connection))?;
    question.finish().map_err(|_| greeting_failed(&connection))?;
    let bytes = reply.read_to_end(MAX_HELLO_LEN).await.map_err(|_| greeting_failed(&connection))?;
    judge(shared, &link, &bytes, node)?;
    guard.keep();
    Ok(link)
}

fn judge(shared: &Shared, link: &Link, bytes: &[u8], node: &NodeName) -> Result<(), AttemptError> {
    shared.hello.judge(link.protocol, bytes, node).map_err(|refusal| {
        close(&link.connection, refusal.code(), &refusal.to_string());
        AttemptError::Refused(refusal)
    })
}

/// What to say when the greeting's stream broke: the connection's end if it has one, it carries the peer's reason.
fn greeting_failed(connection: &Connection) -> AttemptError {
    connection.close_reason().map_or(AttemptError::Greeting, AttemptError::from)
}

/// Dials `node` until aborted: makes a session, another one in its place when it is old, and the next when it has ended.
///
/// Sessions are tasks of their own. This one may be aborted at any await, and they have to tell their end all the same.
async fn dial_for_ever(shared: Arc<Shared>, node: NodeName, address: SocketAddr) {
    let random = SystemRandom::new();
    let mut backoff = BACKOFF_MIN;
    let mut told = String::new();
    // The session that is old. There are never more than it and the one that takes its place.
    let mut old: Option<JoinHandle<()>> = None;
    loop {
        match timeout(HANDSHAKE_DEADLINE, dial(&shared, &node, address)).await {
            Ok(Ok(link)) => {
                told.clear();
                let began = Instant::now();
                let (its, name) = (shared.clone(), node.clone());
                let mut session = tokio::spawn(async move { session::run(&its, &name, link, || ()).await });
                if timeout(shared.renew, &mut session).await.is_err() {
                    if let Some(replaced) = old.replace(session) {
                        // Over long ago, unless nobody reads the events. Its panic would be told by its own task.
                        drop(replaced.await);
                    }
                    continue;
                }
                if began.elapsed() >= STABLE_AFTER {
                    backoff = BACKOFF_MIN;
                }
            }
            failed => {
                let error = match failed {
                    Ok(Err(error)) => error,
                    Ok(Ok(_)) | Err(_) => AttemptError::Late,
                };
                let text = printable(error.to_string().as_bytes());
                if text != told {
                    tracing::warn!(node = %node, %address, error = text, "no session yet, trying on");
                    told = text;
                }
            }
        }
        tokio::time::sleep(jittered(backoff, &random)).await;
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
}

/// Half to all of `pause`, so that nodes that lost each other at once do not dial at once.
fn jittered(pause: Duration, random: &SystemRandom) -> Duration {
    let mut bytes = [0; 2];
    // Without randomness the longest pause is as good.
    let share = random.fill(&mut bytes).map_or(u16::MAX, |()| u16::from_le_bytes(bytes));
    pause / 2 + pause.mul_f64(f64::from(share) / f64::from(u16::MAX) / 2.0)
}
