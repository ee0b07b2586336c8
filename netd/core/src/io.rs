//! What goes into the core and what comes out of it.

use crate::event::Event;
use core::fmt;
use proto::cluster::{NodeName, PortName, VipName};
use proto::status::Status;
use std::collections::VecDeque;

/// A hardware address, as seen in somebody's answer or announcement.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What the kernel says of one own port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortStatus {
    /// The port's name in the cluster file.
    pub port: PortName,
    /// An interface matches and is administratively up.
    pub present: bool,
    /// The interface has carrier.
    pub carrier: bool,
}

/// What was done to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// [`Output::Add`].
    Add,
    /// [`Output::Remove`].
    Remove,
}

/// Something happened. The shell hands inputs over in the order they happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// All own ports as they are now; always the full list, a port that is left out is missing. Repeating an
    /// unchanged list is free. Needed once before the core beats.
    Ports(Vec<PortStatus>),
    /// All VIP addresses that are on own ports now, always the full list. The first list of a life is the
    /// leftovers of an earlier one, which are adopted or removed; later lists repair what others changed.
    /// Needed once before the core beats.
    Addresses(Vec<(VipName, PortName)>),
    /// A peer's status, already authenticated as coming from `status.node`.
    Peer {
        /// The message.
        status: Status,
    },
    /// The session with a peer broke. Only a hint: the peer is asked for nothing and is down when its lease
    /// passes.
    PeerLost(NodeName),
    /// The answer to [`Output::Probe`], at the latest about 100 ms after it.
    ProbeDone {
        /// From the request.
        vip: VipName,
        /// From the request.
        port: PortName,
        /// From the request; tells late answers from awaited ones.
        attempt: u32,
        /// The hardware address that answered for the VIP, or that was seen probing for it at the same time
        /// (RFC 5227 2.1.1 and RFC 4862 5.4.3 take both for a conflict). Never one of the node's own.
        answered: Option<Mac>,
    },
    /// Somebody else's frame claims an address that this node holds.
    Conflict {
        /// The address's VIP.
        vip: VipName,
        /// Who sent the frame; never one of the node's own.
        mac: Mac,
    },
    /// The kernel has carried out an [`Output::Add`] or [`Output::Remove`], or refused it.
    Applied {
        /// From the request.
        vip: VipName,
        /// From the request.
        port: PortName,
        /// Which of the two.
        operation: Operation,
        /// The kernel's refusal as text. "Already there" and "not there" are successes.
        result: Result<(), String>,
    },
    /// The daemon is asked to stop: give every VIP up and tell it. Final for this life.
    Leave,
}

/// Something to do. The shell carries outputs out in order and one after the other: a
/// [`Remove`](Output::Remove) is finished, or has failed, before the [`Broadcast`](Output::Broadcast) behind it
/// leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send this to every other node of the own group.
    Broadcast(Status),
    /// Put the VIP's address on an own port. Safe to repeat. Answered by [`Input::Applied`].
    Add {
        /// Which address.
        vip: VipName,
        /// Onto which port.
        port: PortName,
    },
    /// Take the VIP's address off an own port. Safe to repeat. Answered by [`Input::Applied`].
    Remove {
        /// Which address.
        vip: VipName,
        /// Off which port.
        port: PortName,
    },
    /// Tell the LAN where the VIP is, now and again 50, 200 and 1000 ms later for as long as it stays there.
    Announce {
        /// Which address.
        vip: VipName,
        /// Where it is.
        port: PortName,
    },
    /// Ask the LAN three times, 10 to 15 ms apart, whether somebody answers for the VIP. Answered by
    /// [`Input::ProbeDone`] with the same `vip`, `port` and `attempt`.
    Probe {
        /// Which address.
        vip: VipName,
        /// On which port to ask.
        port: PortName,
        /// Number of this probe in this life.
        attempt: u32,
    },
    /// For the log, the console and the tests.
    Event(Event),
}

/// Where the core puts its outputs; the shell empties it after each call. One call adds a bounded number: at
/// most a few for each VIP, port and peer of the group.
#[derive(Debug, Default)]
pub struct Outbox {
    queue: VecDeque<Output>,
}

impl Outbox {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// The oldest output, which leaves the box.
    pub fn pop(&mut self) -> Option<Output> {
        self.queue.pop_front()
    }

    /// Whether nothing is to do.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// All outputs, oldest first, which leave the box.
    pub fn drain(&mut self) -> impl Iterator<Item = Output> + '_ {
        self.queue.drain(..)
    }

    pub(crate) fn push(&mut self, output: Output) {
        self.queue.push_back(output);
    }

    pub(crate) fn event(&mut self, event: Event) {
        self.push(Output::Event(event));
    }
}
