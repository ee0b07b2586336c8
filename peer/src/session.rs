//! One established session: messages in and out until it ends, and why it ended.

use crate::endpoint::Shared;
use crate::hello::Protocol;
use crate::registry::{Link, Slot};
use proto::cluster::NodeName;
use quinn::{Connection, ConnectionError, ReadToEndError, RecvStream, VarInt};
use std::fmt;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Longest message in bytes. Status messages of a whole group with hundreds of VIPs stay far below.
pub const MAX_MESSAGE_LEN: usize = 64 * 1024;

/// Bytes in front of a message: the cluster's id.
pub(crate) const FRAME_LEN: usize = 16;

/// A message on a stream must be through within this, at either end; a stalled one is given up.
pub(crate) const STREAM_DEADLINE: Duration = Duration::from_secs(2);

/// Streams a peer may have open: one in transfer, the next, and two that wait for their acknowledgement.
pub(crate) const MAX_STREAMS: u32 = 4;

/// Bytes of a peer's closing text that are looked at.
const MAX_REASON_LEN: usize = 256;

/// Close codes of established sessions. Refused greetings have their own, from 0x10.
pub(crate) mod code {
    pub(crate) const SHUTDOWN: u32 = 1;
    pub(crate) const REPLACED: u32 = 2;
    pub(crate) const OVERSIZE: u32 = 3;
    /// The handshake took too long.
    pub(crate) const LATE: u32 = 4;
    /// The peer's key was taken out of the roster.
    pub(crate) const REMOVED: u32 = 5;
    /// A message for another cluster.
    pub(crate) const FOREIGN: u32 = 6;
}

/// What an endpoint tells. For each node `Up` and `Down` alternate, and every `Message` lies between them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerEvent {
    /// A session with the node stands; messages go both ways.
    Up(NodeName),
    /// It is gone; another is sought if it is to be kept.
    Down(NodeName, DownReason),
    /// The node sent this. At most [`MAX_MESSAGE_LEN`] bytes; they are the peer's and not to be trusted.
    Message(NodeName, Vec<u8>),
}

/// Why a session ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DownReason {
    /// Nothing was heard for the idle time.
    Silent,
    /// The peer no longer knows the session: it was restarted.
    Restarted,
    /// The peer is shutting down.
    Shutdown,
    /// A newer session with the same node took its place.
    Replaced,
    /// The peer sent a message longer than [`MAX_MESSAGE_LEN`].
    Oversize,
    /// This endpoint was closed.
    Closed,
    /// The peer's key is not the roster's for it any more.
    Removed,
    /// The peer sent a message for another cluster.
    Foreign,
    /// Anything else, in the transport's words.
    Failed(String),
}

impl fmt::Display for DownReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DownReason::Silent => f.write_str("silent"),
            DownReason::Restarted => f.write_str("restarted"),
            DownReason::Shutdown => f.write_str("shut down"),
            DownReason::Replaced => f.write_str("replaced by a newer session"),
            DownReason::Oversize => write!(f, "sent a message of more than {MAX_MESSAGE_LEN} bytes"),
            DownReason::Closed => f.write_str("closed here"),
            DownReason::Removed => f.write_str("its key was taken out of the roster"),
            DownReason::Foreign => f.write_str("sent a message for another cluster"),
            DownReason::Failed(text) => f.write_str(text),
        }
    }
}

impl From<&ConnectionError> for DownReason {
    fn from(error: &ConnectionError) -> DownReason {
        match error {
            ConnectionError::TimedOut => DownReason::Silent,
            ConnectionError::Reset => DownReason::Restarted,
            ConnectionError::LocallyClosed => DownReason::Closed,
            ConnectionError::ApplicationClosed(close) => match u32::try_from(close.error_code.into_inner()) {
                Ok(code::SHUTDOWN) => DownReason::Shutdown,
                Ok(code::REPLACED) => DownReason::Replaced,
                _ => DownReason::Failed(format!("peer closed: {}", printable(&close.reason))),
            },
            other => DownReason::Failed(printable(other.to_string().as_bytes())),
        }
    }
}

/// A peer's text, fit for a log line: bounded, no control characters.
pub(crate) fn printable(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(&text[..text.len().min(MAX_REASON_LEN)]);
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Closes with a code of [`code`].
pub(crate) fn close(connection: &Connection, code: u32, text: &str) {
    connection.close(VarInt::from_u32(code), text.as_bytes());
}

/// Runs the session with `node` from its first event to its last.
///
/// `announced` is called once `Up` has been told: until then the caller keeps the place in the handshake bound, so
/// that sessions waiting for a slow reader of events stay bounded too.
pub(crate) async fn run(shared: &Shared, node: &NodeName, link: Link, announced: impl FnOnce()) {
    let connection = &link.connection;
    // Greeted under a list that has been replaced: it must not take the place of a session of the key that is right now.
    if !shared.trusted.holds(node, &link.key) {
        shared.counters.refused.fetch_add(1, Relaxed);
        return cut(connection);
    }
    let (place, replaced) = shared.registry.install(node, &link);
    let mut replaces = false;
    if let Some(old) = replaced {
        replaces = true;
        close(&old.link.connection, code::REPLACED, "replaced by a newer session");
        // Its `Down` comes before our `Up`.
        old.over().await;
    }
    tracing::info!(node = %node, address = %connection.remote_address(), replaces, "session up");
    // The list may have been replaced since. It is asked after the session can be found in the registry: whoever replaces
    // it later finds the session there.
    if !shared.trusted.holds(node, &link.key) {
        cut(connection);
    }
    let told = shared.events.send(PeerEvent::Up(node.clone())).await;
    announced();
    let mut reason = match told {
        Ok(()) => exchange(shared, node, &link, &place.slot).await,
        Err(_) => DownReason::Closed, // nobody listens any more
    };
    if reason == DownReason::Closed && !shared.trusted.holds(node, &link.key) {
        reason = DownReason::Removed;
    }
    if reason == DownReason::Closed
        && shared.registry.get(node).is_some_and(|s| s.link.connection.stable_id() != connection.stable_id())
    {
        reason = DownReason::Replaced;
    }
    tracing::info!(node = %node, %reason, "session down");
    shared.registry.remove(node, &place);
    // The endpoint's owner may have gone: then nobody is left to be told.
    drop(shared.events.send(PeerEvent::Down(node.clone(), reason)).await);
}

/// Ends the session of a peer whose key is no longer the roster's.
pub(crate) fn cut(connection: &Connection) {
    close(connection, code::REMOVED, "this key was taken out of the roster");
}

/// `message` as `link` carries it: the cluster's id in front since protocol 2.
pub(crate) fn framed(shared: &Shared, protocol: Protocol, message: Vec<u8>) -> Vec<u8> {
    match protocol {
        Protocol::One => message,
        Protocol::Two => [shared.hello.id.0.as_slice(), &message].concat(),
    }
}

/// Sends one message and waits until the peer has all of it. A session that ends meanwhile ends the wait.
pub(crate) async fn deliver(connection: &Connection, message: &[u8]) {
    let Ok(mut stream) = connection.open_uni().await else { return };
    if stream.write_all(message).await.is_ok() && stream.finish().is_ok() {
        drop(stream.stopped().await);
    }
}

/// The message in `bytes`; `None` when it is not for this cluster.
fn unframed(shared: &Shared, protocol: Protocol, bytes: Vec<u8>) -> Option<Vec<u8>> {
    match protocol {
        Protocol::One => Some(bytes),
        Protocol::Two => bytes.strip_prefix(shared.hello.id.0.as_slice()).map(<[u8]>::to_vec),
    }
}

/// How the reading of one stream ended.
enum StreamEnd {
    Message(Vec<u8>),
    Oversize,
    Stalled,
    Lost,
}

/// Moves messages until the connection ends.
async fn exchange(shared: &Shared, node: &NodeName, link: &Link, slot: &Slot) -> DownReason {
    let connection = &link.connection;
    let mut reading = JoinSet::new(); // bounded by MAX_STREAMS: the transport opens no more
    let writing = write_streams(shared, connection, slot);
    tokio::pin!(writing);
    loop {
        let bytes = tokio::select! {
            datagram = connection.read_datagram() => match datagram {
                Ok(bytes) => bytes.into(),
                Err(error) => return DownReason::from(&error),
            },
            stream = connection.accept_uni() => match stream {
                Ok(stream) => {
                    reading.spawn(read_stream(stream));
                    continue;
                }
                Err(error) => return DownReason::from(&error),
            },
            Some(end) = reading.join_next() => match end {
                Ok(StreamEnd::Message(bytes)) => bytes,
                Ok(StreamEnd::Oversize) => {
                    close(connection, code::OVERSIZE, "message too long");
                    return DownReason::Oversize;
                }
                Ok(StreamEnd::Stalled) => {
                    shared.counters.stalled.fetch_add(1, Relaxed);
                    continue;
                }
                Ok(StreamEnd::Lost) | Err(_) => continue,
            },
            () = &mut writing => unreachable!("the writer has no end"),
        };
        // What arrived before a session was cut here is not handed on after it.
        if connection.close_reason() == Some(ConnectionError::LocallyClosed) {
            return DownReason::Closed;
        }
        match unframed(shared, link.protocol, bytes) {
            Some(message) if message.len() > MAX_MESSAGE_LEN => {
                close(connection, code::OVERSIZE, "message too long");
                return DownReason::Oversize;
            }
            Some(message) => shared.deliver(node, message),
            None => {
                close(connection, code::FOREIGN, "message for another cluster");
                return DownReason::Foreign;
            }
        }
    }
}

/// Reads the message a stream carries.
async fn read_stream(mut stream: RecvStream) -> StreamEnd {
    match timeout(STREAM_DEADLINE, stream.read_to_end(MAX_MESSAGE_LEN + FRAME_LEN)).await {
        Ok(Ok(message)) => StreamEnd::Message(message),
        Ok(Err(ReadToEndError::TooLong)) => StreamEnd::Oversize,
        Ok(Err(ReadToEndError::Read(_))) => StreamEnd::Lost,
        // Dropping the stream tells the sender to stop and gives its place back.
        Err(_) => StreamEnd::Stalled,
    }
}

/// Sends what the slot holds, one stream after the other. Ends only by being dropped.
async fn write_streams(shared: &Shared, connection: &Connection, slot: &Slot) {
    loop {
        let message = slot.take().await;
        let Ok(Ok(mut stream)) = timeout(STREAM_DEADLINE, connection.open_uni()).await else {
            shared.counters.superseded.fetch_add(1, Relaxed);
            // A lost connection ends the session in `exchange`; do not spin until it does.
            if connection.close_reason().is_some() {
                std::future::pending::<()>().await;
            }
            continue;
        };
        match timeout(STREAM_DEADLINE, stream.write_all(&message)).await {
            // Already stopped by the peer: the message is lost, as any may be.
            Ok(Ok(())) => drop(stream.finish()),
            Ok(Err(_)) | Err(_) => {
                // Without the reset a drop would end the stream in order and pass off a part as a message.
                drop(stream.reset(VarInt::from_u32(0)));
                shared.counters.superseded.fetch_add(1, Relaxed);
            }
        }
    }
}
