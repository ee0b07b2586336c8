//! Sessions with the other nodes of the own group, over their management addresses.

use netd_core::Input;
use peer::{
    DownReason, Endpoint, MAX_MESSAGE_LEN, Options, PeerError, PeerEvent, RENEW_EVERY, SecretKey, SendError,
};
use proto::cluster::NodeName;
use proto::envelope;
use proto::part::NetdPart;
use proto::status::Status;
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;
use tokio::sync::mpsc;

/// UDP port of the peers' sessions.
pub(crate) const PEER_PORT: u16 = 7400;

/// Sessions live at least this long without a word. With a short lease a hiccup should cost a beat, not a handshake.
const IDLE_MIN: Duration = Duration::from_secs(1);

/// Why there is no endpoint.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PeersError {
    /// The node cannot be reached by its peers.
    #[error(
        "node {node} has no port with an address of its own, its group needs one; add one to the cluster file"
    )]
    NoAddress { node: NodeName },
    /// The socket could not be had.
    #[error("cannot bind UDP {address}")]
    Bind {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    /// The endpoint refused its configuration.
    #[error("cannot open the peer endpoint")]
    Endpoint(#[from] PeerError),
}

/// The sessions.
pub(crate) struct Peers {
    others: Vec<NodeName>,
    /// `None`: there is nobody to talk to.
    open: Option<(Endpoint, mpsc::Receiver<PeerEvent>)>,
    /// The newest status as it was sent.
    last: Vec<u8>,
    told_too_long: bool,
}

impl Peers {
    /// Nobody to talk to.
    pub(crate) fn none() -> Peers {
        Peers { others: Vec::new(), open: None, last: Vec::new(), told_too_long: false }
    }

    /// Opens the endpoint and keeps a session with every other node of the group.
    pub(crate) fn open(part: &NetdPart, udp_port: u16) -> Result<Peers, PeersError> {
        let group = part.cluster.nodes.get(&part.node).map(|node| &node.group);
        let members = group.into_iter().flat_map(|group| part.cluster.group_members(group));
        let others: Vec<NodeName> =
            members.map(|(name, _)| name.clone()).filter(|name| *name != part.node).collect();
        if others.is_empty() {
            return Ok(Peers::none());
        }
        let own = part.cluster.management_address(&part.node);
        let own = own.ok_or_else(|| PeersError::NoAddress { node: part.node.clone() })?;
        let address = SocketAddr::new(own, udp_port);
        let socket = bind(address).map_err(|source| PeersError::Bind { address, source })?;
        let idle = part.cluster.timing.lease.max(IDLE_MIN);
        let cluster = part.cluster.cluster.clone();
        let options = Options { cluster, id: part.cluster_id, idle, renew: RENEW_EVERY };
        let key = SecretKey::from_seed(part.key.0);
        let (endpoint, events) = Endpoint::on_socket(socket, &key, part.roster.clone(), &options)?;
        keep(&endpoint, &others, part, udp_port)?;
        Ok(Peers { others, open: Some((endpoint, events)), last: Vec::new(), told_too_long: false })
    }

    /// Puts the roster of `part` in force: sessions of keys that are not in it are cut at once, who is new is dialled. All
    /// else of `part` is as it was, and this node's own key is in it.
    pub(crate) fn replace_roster(&self, part: &NetdPart, udp_port: u16) -> Result<(), PeersError> {
        let Some((endpoint, _)) = &self.open else { return Ok(()) };
        endpoint.replace_roster(part.roster.clone());
        keep(endpoint, &self.others, part, udp_port)
    }

    /// Sends to everybody in the group who can be reached.
    pub(crate) fn broadcast(&mut self, status: &Status) {
        let Some((endpoint, _)) = &self.open else { return };
        let message = envelope::encode(status);
        for node in &self.others {
            match endpoint.send(node, message.clone()) {
                Ok(()) | Err(SendError::NotConnected { .. }) => {}
                Err(error @ SendError::TooLong { .. }) => {
                    if !std::mem::replace(&mut self.told_too_long, true) {
                        tracing::error!(%error, limit = MAX_MESSAGE_LEN, "status message not sent");
                    }
                }
            }
        }
        self.last = message;
    }

    /// The next input of a peer. Waits for ever when there are no peers.
    pub(crate) async fn next(&mut self) -> Input {
        loop {
            let event = match &mut self.open {
                Some((_, events)) => events.recv().await,
                None => None,
            };
            match event {
                Some(event) => {
                    if let Some(input) = input(event) {
                        return input;
                    }
                }
                None => std::future::pending().await,
            }
        }
    }

    /// An input that is there already.
    pub(crate) fn try_next(&mut self) -> Option<Input> {
        let (_, events) = self.open.as_mut()?;
        while let Ok(event) = events.try_recv() {
            if let Some(input) = input(event) {
                return Some(input);
            }
        }
        None
    }

    /// Says farewell: peers get the last status for sure, which says that this node leaves and holds nothing.
    pub(crate) async fn close(self) {
        if let Some((endpoint, _)) = self.open {
            let stats = endpoint.stats();
            tracing::info!(?stats, "peer endpoint closed");
            endpoint.close(&self.last).await;
        }
    }
}

/// Keeps sessions with those of `others` that can be talked to.
fn keep(endpoint: &Endpoint, others: &[NodeName], part: &NetdPart, udp_port: u16) -> Result<(), PeersError> {
    for node in others {
        let known = part.roster.key_of(node).is_some();
        match part.cluster.management_address(node) {
            Some(address) if known => endpoint.keep(node, SocketAddr::new(address, udp_port))?,
            // Not fatal: the others of the group are still to be served.
            _ => tracing::warn!(%node, known, "no session possible: the node has no address or no key"),
        }
    }
    Ok(())
}

/// Binds even while the address is not there yet: its port may still be looked for.
fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    match address {
        SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
        SocketAddr::V6(_) => socket.set_freebind_v6(true)?,
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

fn input(event: PeerEvent) -> Option<Input> {
    match event {
        // A newer session with the peer stands already.
        PeerEvent::Up(_) | PeerEvent::Down(_, DownReason::Replaced) => None,
        PeerEvent::Down(node, _) => Some(Input::PeerLost(node)),
        PeerEvent::Message(node, bytes) => match envelope::decode::<Status>(&bytes) {
            Ok(status) if status.node == node => Some(Input::Peer { status }),
            // Debug only: a broken peer must not fill the log beat by beat.
            Ok(status) => {
                tracing::debug!(%node, claims = %status.node, "status under another name dropped");
                None
            }
            Err(error) => {
                tracing::debug!(%node, %error, "message dropped");
                None
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::status::Participation;

    fn status(node: &str) -> Status {
        Status {
            node: node.into(),
            incarnation: 1,
            sequence: 1,
            participation: Participation::Ready,
            ports: vec![],
            holds: vec![],
            claims: vec![],
            epochs: vec![],
            refused: vec![],
            seen: vec![],
        }
    }

    #[test]
    fn only_a_nodes_own_status_is_an_input() {
        let message = |of: &str| PeerEvent::Message("a1".into(), envelope::encode(&status(of)));
        assert_eq!(input(message("a1")), Some(Input::Peer { status: status("a1") }));
        assert_eq!(input(message("a2")), None);
        assert_eq!(input(PeerEvent::Message("a1".into(), b"noise".to_vec())), None);
        assert_eq!(input(PeerEvent::Up("a1".into())), None);
        assert_eq!(input(PeerEvent::Down("a1".into(), DownReason::Replaced)), None);
        let down = PeerEvent::Down("a1".into(), DownReason::Silent);
        assert_eq!(input(down), Some(Input::PeerLost("a1".into())));
    }
}
