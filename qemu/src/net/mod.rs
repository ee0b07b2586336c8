//! The lab's network: a switch that carries every frame between the machines, faults in its cables, a capture, a
//! probing host that measures VIPs, and TCP from the host into it. No root, no TAP device, no bridge: QEMU's
//! `-netdev dgram` over UNIX sockets.
//!
//! ```text
//! a1:p1 ── n0.vm ⇄ n0.sw ─┐                            ┌─ lab:probe  who answers? how long is nobody there?
//! a1:p2 ── n1.vm ⇄ n1.sw ─┼── faults ── switch ────────┤
//! b1:p1 ── n0.vm ⇄ n0.sw ─┘      │   segments: data,   └─ lab:tcp    http_get, forwards from 127.0.0.1
//!                             capture        mgmt, …
//! ```
//! | module | subject | pure |
//! |---|---|---|
//! | [`mac`], [`frames`] | hardware addresses; ARP, echo, ND built and parsed | yes |
//! | [`switch`], [`fault`] | learning, segments, partition, what is wrong with cables | yes |
//! | [`probe`], [`owners`], [`reach`], [`report`] | who answers, outages, what is told of it | yes |
//! | [`tcp`], [`http`] | TCP into the segment (smoltcp), one HTTP request | yes |
//! | [`link`], [`capture`], [`forward`] | UNIX datagrams, pcap file, host TCP | no |
//! | [`fabric`], [`handle`] | the thread, and what controls it | no |
//! | [`config`], [`error`] | what it is started with, what can go wrong | yes |
//!
//! Everything is driven by one thread on the host's monotonic clock. A host that is overloaded measures its own
//! lateness and says so in the report.

pub mod capture;
pub mod config;
pub mod error;
pub mod fabric;
pub mod fault;
pub mod forward;
pub mod frames;
pub mod handle;
pub mod http;
pub mod link;
pub mod mac;
pub mod owners;
pub mod probe;
mod reach;
pub mod report;
pub mod switch;
pub mod tcp;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use config::{FabricConfig, HostConfig, PortConfig, ProbeTiming};
pub use error::FabricError;
pub use fabric::Fabric;
pub use fault::{Fault, Impairment};
pub use handle::FabricHandle;
pub use http::HttpResponse;
pub use mac::Mac;
pub use report::{DoubleOwner, FabricStats, NetEvent, Outage, ReachReport, VipReport};

use nix::time::{ClockId, clock_gettime};
use proto::time::{Duration, Time};

/// The host's monotonic clock, which all instants of this module are read from. It is the same for all processes
/// of the host, so a supervisor's and a client's instants can be compared.
pub fn monotonic() -> Time {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("every Linux kernel has CLOCK_MONOTONIC");
    Time::ZERO + Duration::from(now)
}
