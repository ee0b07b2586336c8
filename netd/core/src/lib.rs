//! netd's decisions: ports, membership, placement, failover. Pure.
//!
//! A node's [`Failover`] is told what happened ([`Input`]) and says what to do ([`Output`]). It has no clock,
//! socket, file or task; time is an argument. The shell around it decides nothing.
//!
//! ```text
//!   Input --> failover: how late are we? --> ports, peers: facts --> decide: rules --> vips: one VIP each --> Output
//!                                                                      |
//!                                                                      +-- placement: where VIPs belong
//! ```
//!
//! # What is promised
//! - `in-bounds`: a VIP is taken only onto an operative port of its network, on a node of its group, never on
//!   the pair partner of the node it left.
//! - `one-holder`, for VIPs guarded by `available`: never two holders while the nodes of the group hear each
//!   other both ways. Where they do not, the probe on the LAN decides; after a partition of both the higher
//!   epoch stays, then the lower node name. A node that stood still removes its addresses before it says
//!   anything. A virtual machine whose clock stood still with it cannot know; it removes them with the first
//!   status it hears.
//!
//! Nothing here waits for a majority: `strict` VIPs are served by nobody.

mod decide;
mod event;
mod failover;
mod fence;
mod io;
mod peers;
mod placement;
mod ports;
mod scope;
mod snapshot;
mod tempo;
#[cfg(test)]
mod testing;
mod vips;

pub use event::{DropCause, Event, Hindrance, MoveCause, Rival, TakeCause};
pub use failover::{Failover, UnknownNode};
pub use fence::FencePace;
pub use io::{Input, Mac, Operation, Outbox, Output, PortStatus};
pub use snapshot::{Conflict, Ignored, Liveness, PeerRow, PortRow, Snapshot, VipRow, VipState};
