//! Who has a session now. At most one per node: a newer one replaces the older.

use crate::hello::Protocol;
use proto::cluster::NodeName;
use proto::roster::PublicKey;
use quinn::Connection;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, watch};

/// The newest message that is too long for a datagram. One place, so nothing queues: a newer message replaces one
/// that has not left yet.
#[derive(Default)]
pub(crate) struct Slot {
    pending: Mutex<Option<Vec<u8>>>,
    wake: Notify,
}

impl Slot {
    /// Puts a message in place. True when it replaced one.
    pub(crate) fn put(&self, message: Vec<u8>) -> bool {
        let replaced = lock(&self.pending).replace(message).is_some();
        self.wake.notify_one();
        replaced
    }

    /// Waits for a message and takes it.
    pub(crate) async fn take(&self) -> Vec<u8> {
        loop {
            if let Some(message) = lock(&self.pending).take() {
                return message;
            }
            self.wake.notified().await;
        }
    }
}

/// A connection whose handshake and greeting are done.
#[derive(Clone)]
pub(crate) struct Link {
    pub(crate) connection: Connection,
    /// The key the peer has proven to hold.
    pub(crate) key: PublicKey,
    pub(crate) protocol: Protocol,
}

/// What others may do with a session.
#[derive(Clone)]
pub(crate) struct Session {
    id: u64,
    pub(crate) link: Link,
    pub(crate) slot: Arc<Slot>,
    /// Closed (by its sender's end) once the session has told its last event.
    over: watch::Receiver<()>,
}

impl Session {
    /// Waits until the session has told its last event.
    pub(crate) async fn over(mut self) {
        while self.over.changed().await.is_ok() {}
    }
}

/// A session's own hold on its place. Its drop marks the session as over.
pub(crate) struct Place {
    id: u64,
    pub(crate) slot: Arc<Slot>,
    _over: watch::Sender<()>,
}

/// Sessions by node.
#[derive(Default)]
pub(crate) struct Registry {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    sessions: BTreeMap<NodeName, Session>,
    next_id: u64,
}

impl Registry {
    /// Makes `link` the node's session; gives back the one it replaces.
    pub(crate) fn install(&self, node: &NodeName, link: &Link) -> (Place, Option<Session>) {
        let mut inner = lock(&self.inner);
        let id = inner.next_id;
        inner.next_id += 1;
        let slot = Arc::new(Slot::default());
        let (tell, over) = watch::channel(());
        let session = Session { id, link: link.clone(), slot: slot.clone(), over };
        let replaced = inner.sessions.insert(node.clone(), session);
        (Place { id, slot, _over: tell }, replaced)
    }

    /// Takes a session out, unless a newer one has its place already.
    pub(crate) fn remove(&self, node: &NodeName, place: &Place) {
        let mut inner = lock(&self.inner);
        if inner.sessions.get(node).is_some_and(|session| session.id == place.id) {
            inner.sessions.remove(node);
        }
    }

    /// All sessions.
    pub(crate) fn all(&self) -> Vec<(NodeName, Session)> {
        lock(&self.inner).sessions.iter().map(|(node, session)| (node.clone(), session.clone())).collect()
    }

    /// The node's session.
    pub(crate) fn get(&self, node: &NodeName) -> Option<Session> {
        lock(&self.inner).sessions.get(node).cloned()
    }
}

/// Locks; every holder leaves consistent data behind, so a poisoned lock is as good as another.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
