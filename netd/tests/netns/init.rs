//! A stand-in for the first process that has a fence and nothing else. It kills nobody and deletes nothing: it hears, and
//! looks whether an address is there at the moment it hears of it.

#![allow(clippy::unwrap_used)] // a test's helpers fail by panicking

use crate::lan::Node;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, accept, bind, listen, recv, send, socket,
};
use nix::time::{ClockId, clock_gettime};
use proto::control::{FenceAddress, FenceInfo, FenceRow, FenceState, InterfaceRef, Reply, Request};
use proto::envelope;
use proto::time::Time;
use std::collections::BTreeSet;
use std::net::{IpAddr, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

/// What netd said. `present`: the node had the address on some interface when it was heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    Register { index: u32, address: IpAddr, present: bool },
    Release { index: u32, address: IpAddr, present: bool },
    Feed { until: Time },
    Refused,
}

/// How it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    Willing,
    Refusing,
    /// Reads nothing, like a process that hangs.
    Hanging,
}

struct Shared {
    mood: Mood,
    heard: Vec<Heard>,
    registered: BTreeSet<(u32, FenceAddress)>,
    connections: usize,
}

#[derive(Clone)]
pub(crate) struct Init(Arc<(Mutex<Shared>, Condvar)>);

pub(crate) fn boottime() -> Time {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).unwrap();
    Time::ZERO + Duration::from(now)
}

impl Init {
    /// Serves the node's netd from now on, to the end of the test.
    pub(crate) fn of(node: &Node, mood: Mood) -> Init {
        let (heard, registered) = (Vec::new(), BTreeSet::new());
        let shared = Shared { mood, heard, registered, connections: 0 };
        let init = Init(Arc::new((Mutex::new(shared), Condvar::new())));
        let listener =
            socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
        bind(listener.as_raw_fd(), &UnixAddr::new(&node.init_socket()).unwrap()).unwrap();
        listen(&listener, Backlog::new(4).unwrap()).unwrap();
        let (namespace, own) = (node.namespace(), init.clone());
        std::thread::spawn(move || {
            // This thread and those it makes see the node's addresses.
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            loop {
                let client = accept(listener.as_raw_fd()).unwrap();
                let own = own.clone();
                own.lock().connections += 1;
                std::thread::spawn(move || own.attend(client));
            }
        });
        init
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.0.0.lock().unwrap()
    }

    pub(crate) fn set(&self, mood: Mood) {
        self.lock().mood = mood;
        self.0.1.notify_all();
    }

    /// Registers an address that nobody asked for, as a former life may have.
    pub(crate) fn plant(&self, index: u32, address: IpAddr) {
        let prefix = if address.is_ipv4() { 32 } else { 128 };
        self.lock().registered.insert((index, FenceAddress { address, prefix }));
    }

    /// Everything heard so far but feeds.
    pub(crate) fn orders(&self) -> Vec<Heard> {
        self.lock().heard.iter().filter(|heard| !matches!(heard, Heard::Feed { .. })).cloned().collect()
    }

    /// Deadlines of all feeds so far.
    pub(crate) fn feeds(&self) -> Vec<Time> {
        let feed = |heard: &Heard| if let Heard::Feed { until } = heard { Some(*until) } else { None };
        self.lock().heard.iter().filter_map(feed).collect()
    }

    /// What is registered, as texts.
    pub(crate) fn registered(&self) -> Vec<String> {
        self.lock().registered.iter().map(|(_, address)| address.address.to_string()).collect()
    }

    /// The interfaces of what is registered.
    pub(crate) fn interfaces(&self) -> BTreeSet<u32> {
        self.lock().registered.iter().map(|(index, _)| *index).collect()
    }

    pub(crate) fn connections(&self) -> usize {
        self.lock().connections
    }

    fn attend(&self, client: RawFd) {
        let mut packet = vec![0; 64 * 1024];
        loop {
            let hanging = |shared: &mut Shared| shared.mood == Mood::Hanging;
            drop(self.0.1.wait_while(self.lock(), hanging).unwrap());
            let count = recv(client, &mut packet, MsgFlags::empty()).unwrap_or(0);
            if count == 0 {
                break;
            }
            // It may have begun to hang while this waited.
            drop(self.0.1.wait_while(self.lock(), hanging).unwrap());
            if let Some(reply) = self.serve(envelope::decode(&packet[..count]).unwrap()) {
                // netd may have gone.
                let _ = send(client, &envelope::encode(&reply), MsgFlags::MSG_NOSIGNAL);
            }
        }
        self.lock().connections -= 1;
        nix::unistd::close(client).unwrap();
    }

    fn serve(&self, request: Request) -> Option<Reply> {
        // Only a local address can be bound.
        let present = |address: IpAddr| UdpSocket::bind((address, 0)).is_ok();
        let mut shared = self.lock();
        if let Request::FenceFeed { until_ns } = request {
            shared.heard.push(Heard::Feed { until: Time::from_nanos(until_ns) });
            return None;
        }
        if shared.mood == Mood::Refusing {
            shared.heard.push(Heard::Refused);
            return Some(Reply::Refused { reason: "not today".into() });
        }
        Some(match request {
            Request::FenceAdopt { .. } => Reply::Accepted,
            Request::FenceRegister { interface: InterfaceRef { index, .. }, addresses, .. } => {
                for entry in addresses.as_slice() {
                    let (address, present) = (entry.address, present(entry.address));
                    shared.heard.push(Heard::Register { index, address, present });
                    shared.registered.insert((index, *entry));
                }
                Reply::Accepted
            }
            Request::FenceRelease { index, addresses } => {
                for entry in addresses.as_slice() {
                    let (address, present) = (entry.address, present(entry.address));
                    shared.heard.push(Heard::Release { index, address, present });
                    shared.registered.remove(&(index, *entry));
                }
                Reply::Accepted
            }
            Request::FenceState => {
                let indices: Vec<u32> = shared.registered.iter().map(|(index, _)| *index).collect();
                let place = |index: u32| indices.iter().position(|i| *i == index).unwrap() as u8;
                let rows = shared.registered.iter();
                let rows =
                    rows.map(|(index, address)| FenceRow { interface: place(*index), address: *address });
                Reply::Fence(FenceInfo {
                    state: FenceState::Armed,
                    service: Some("netd".into()),
                    left_ms: None,
                    feeds: 0,
                    interfaces: indices
                        .iter()
                        .map(|i| InterfaceRef { index: *i, name: "x".into() })
                        .collect(),
                    rows: rows.collect(),
                    last: None,
                })
            }
            other => panic!("{other:?} is no question of netd's"),
        })
    }
}
