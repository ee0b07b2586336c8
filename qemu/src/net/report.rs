//! What the probing host found out: reports of watched addresses, and events. Instants are nanoseconds of the
//! host's monotonic clock ([`super::monotonic`]), comparable between processes of this host.

use super::capture::CaptureStatus;
use super::mac::Mac;
use super::switch::PortCounters;
use core::net::IpAddr;
use proto::cluster::PortId;
use proto::time::{Duration, Time};
use serde::{Deserialize, Serialize};

/// A VIP as the probing host has seen it since its last mark.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VipReport {
    /// The address.
    pub vip: IpAddr,
    /// Who answers for it; nobody once it has been silent.
    pub holder: Option<Mac>,
    /// When anybody last answered, to an owner question or to an echo. Marks do not reset it.
    pub last_answer: Option<Time>,
    /// When the measurement began: the watch, or the last mark.
    pub marked: Time,
    /// Owner questions whose answer window is over.
    pub questions: u64,
    /// Those of them that were answered within it.
    pub samples: u64,
    /// Questions that two or more stations answered within the window, and the same two the question after it; the
    /// first [`DOUBLES_MAX`].
    pub double_owner_samples: Vec<DoubleOwner>,
    /// How many there were.
    pub double_owners_seen: u64,
    /// Questions that two stations answered, but not again: the address moved while the question was on its way.
    pub quick_moves: u64,
    /// Answers that came after their window: they show life, not ownership at the instant of the question.
    pub late_answers: u64,
    /// What the echoes say, when reachability is measured.
    pub reach: Option<ReachReport>,
}

/// Double owner samples kept for each VIP between two marks.
pub const DOUBLES_MAX: usize = 64;
/// Outages kept for each VIP between two marks: the longest ones.
pub const OUTAGES_MAX: usize = 256;

/// A question that several stations answered, and again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DoubleOwner {
    /// When it was asked.
    pub asked: Time,
    /// Who answered, in order; at most [`super::owners::ANSWERS_MAX`].
    pub answers: Vec<Answer>,
    /// When the verifying question was asked: after the second answer.
    pub asked_again: Time,
    /// Who answered that, up to the verdict.
    pub answers_again: Vec<Answer>,
}

/// One station's answer to an owner question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Who.
    pub mac: Mac,
    /// When it came.
    pub at: Time,
}

/// Reachability of a VIP since the last mark.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReachReport {
    /// The station that echoes go to: the client's neighbour cache.
    pub station: Option<Mac>,
    /// Echoes sent.
    pub sent: u64,
    /// Echoes answered.
    pub answered: u64,
    /// Outages longer than the floor in order of time, the one that lasts included.
    pub outages: Vec<Outage>,
    /// How many of them have ended.
    pub outages_seen: u64,
    /// The longest time without service, the one that lasts included, below the floor too. Before the first
    /// answer it runs from the mark.
    pub longest: Outage,
    /// True while an outage lasts.
    pub ongoing: bool,
    /// How late the probing host itself was at worst. An outage of about this length may be the host's own.
    pub own_lateness_max: Duration,
}

/// A time without service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outage {
    /// The last answer before it, or the mark.
    pub start: Time,
    /// Up to the next answer or the report, less one interval between echoes.
    pub length: Duration,
}

/// What happened, as it happens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetEvent {
    /// A VIP is answered for: for the first time, or again after a silence.
    VipAnswered {
        /// The address.
        ip: IpAddr,
        /// Who answers.
        mac: Mac,
        /// When.
        at: Time,
    },
    /// Another station answers for a VIP than before.
    VipMoved {
        /// The address.
        ip: IpAddr,
        /// Who answered before.
        from: Mac,
        /// Who answers now.
        to: Mac,
        /// From the last answer of the one to the first of the other; no finer than the owner interval.
        gap: Duration,
        /// When.
        at: Time,
    },
    /// Nobody has answered for a VIP for the configured time.
    VipSilent {
        /// The address.
        ip: IpAddr,
        /// When that was found.
        at: Time,
    },
    /// Two stations answered one question, and the next. Told once until a question has a single answer again.
    DoubleOwner {
        /// The address.
        ip: IpAddr,
        /// Who answered.
        macs: Vec<Mac>,
        /// When that was certain.
        at: Time,
    },
    /// The capture has ended by itself.
    CaptureStopped {
        /// Why.
        reason: String,
        /// When.
        at: Time,
    },
}

/// The fabric's own state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FabricStats {
    /// Every port, the lab's own hosts included.
    pub ports: Vec<PortStats>,
    /// Addresses the switch has learned.
    pub learned: usize,
    /// Frames held back by delays now.
    pub delayed: usize,
    /// Events that no room was for in a subscriber's queue.
    pub events_lost: u64,
    /// TCP connections into the segment now.
    pub connections: usize,
    /// The capture, if there is one.
    pub capture: Option<CaptureStatus>,
}

/// What passed a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortStats {
    /// Which.
    pub port: PortId,
    /// Frames inside the switch.
    pub switch: PortCounters,
    /// Frames on the machine's socket; all zero for the lab's own hosts.
    pub link: LinkCounters,
}

/// What passed the socket to a machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkCounters {
    /// Frames received.
    pub received: u64,
    /// Frames that were longer than the lab carries.
    pub oversize: u64,
    /// Frames handed to the machine.
    pub sent: u64,
    /// Frames for a machine that is not there.
    pub absent: u64,
    /// Frames lost because the machine did not take them in time.
    pub full: u64,
    /// Frames lost to other errors of the socket.
    pub failed: u64,
    /// Frames waiting for the machine now.
    pub waiting: usize,
}
