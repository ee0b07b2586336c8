//! netd's decisions: ports, membership, placement, failover. Pure.
//!
//! A node's [`Failover`] is told what happened ([`Input`]) and says what to do ([`Output`]). It has no clock, socket,
//! file or task; time is an argument. The shell around it decides nothing.

mod event;
mod failover;
mod io;
mod snapshot;

pub use event::{DropCause, Event, Hindrance, MoveCause, Rival, TakeCause};
pub use failover::{Failover, UnknownNode};
pub use io::{Input, Mac, Operation, Outbox, Output, PortStatus};
pub use snapshot::{Conflict, Ignored, Liveness, PeerRow, PortRow, Snapshot, VipRow, VipState};
