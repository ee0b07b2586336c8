//! The fence: init deletes this daemon's addresses when it does not feed in time
//! (`docs/decisions/0007-fence-protocol.md`).
//!
//! ```no_run
//! # use daemon::fence::Fence;
//! # use proto::control::{FenceAddress, InterfaceRef, SOCKET_PATH};
//! # use proto::time::{Duration, Time};
//! # fn now() -> Time { Time::ZERO } // CLOCK_BOOTTIME
//! # fn main() -> Result<(), daemon::InitError> {
//! let fence = Fence::connect(SOCKET_PATH.as_ref())?;
//! let eth0 = InterfaceRef { index: 2, name: "eth0".into() };
//! let vip = FenceAddress { address: "10.9.0.100".parse().expect("a literal"), prefix: 32 };
//! fence.register(now() + Duration::from_millis(150), &eth0, &[vip])?; // before it is added
//! fence.feed(now() + Duration::from_millis(150))?; // every beat
//! fence.release(eth0.index, &[vip])?; // after it was deleted
//! # Ok(()) }
//! ```
//! Deadlines are instants of `CLOCK_BOOTTIME`. A daemon that starts asks [`Fence::state`] first: what its former life
//! registered is still there until the deadline, and is kept by [`Fence::adopt`].

use crate::control::{Connection, InitError, PATIENCE, accepted};
use proto::control::{FenceAddress, FenceAddresses, FenceInfo, InterfaceRef, Reply, Request};
use proto::time::Time;
use std::path::Path;
use std::time::Duration;

/// The connection that feeds. When it ends nobody feeds: connect again and [`adopt`](Fence::adopt).
#[derive(Debug)]
pub struct Fence(Connection);

impl Fence {
    /// Connects to init's control socket at `path`.
    ///
    /// # Errors
    /// [`InitError::Connection`].
    pub fn connect(path: &Path) -> Result<Fence, InitError> {
        Fence::connect_within(path, PATIENCE)
    }

    /// The same for a daemon that cannot wait so long: the connecting and each answer may take `patience`.
    ///
    /// # Errors
    /// [`InitError::Connection`].
    pub fn connect_within(path: &Path, patience: Duration) -> Result<Fence, InitError> {
        Connection::open(path, patience).map(Fence)
    }

    /// Registers addresses that are about to be added to `interface`, and feeds. Longer lists go in several requests:
    /// after an error the first ones may be registered.
    ///
    /// # Errors
    /// [`InitError`]; the addresses must not be added then.
    pub fn register(
        &self,
        until: Time,
        interface: &InterfaceRef,
        addresses: &[FenceAddress],
    ) -> Result<(), InitError> {
        FenceAddresses::batches(addresses).try_for_each(|addresses| {
            let (until_ns, interface) = (until.as_nanos(), interface.clone());
            accepted(self.0.ask(&Request::FenceRegister { until_ns, interface, addresses })?)
        })
    }

    /// Answers for what a former life, or this one over another connection, has registered.
    ///
    /// # Errors
    /// [`InitError`]; the addresses will be deleted then.
    pub fn adopt(&self, until: Time) -> Result<(), InitError> {
        accepted(self.0.ask(&Request::FenceAdopt { until_ns: until.as_nanos() })?)
    }

    /// Answers for all registered addresses until `until`. One packet, no answer, no wait.
    ///
    /// # Errors
    /// [`InitError::Connection`]: this feed is lost. With `EAGAIN` init is behind and the next one may get through;
    /// with anything else the connection has ended.
    pub fn feed(&self, until: Time) -> Result<(), InitError> {
        self.0.say(&Request::FenceFeed { until_ns: until.as_nanos() })
    }

    /// Releases addresses that were deleted from the interface `index`.
    ///
    /// # Errors
    /// [`InitError`]; they stay registered then, at least some of them.
    pub fn release(&self, index: u32, addresses: &[FenceAddress]) -> Result<(), InitError> {
        FenceAddresses::batches(addresses)
            .try_for_each(|addresses| accepted(self.0.ask(&Request::FenceRelease { index, addresses })?))
    }

    /// What is registered.
    ///
    /// # Errors
    /// [`InitError`].
    pub fn state(&self) -> Result<FenceInfo, InitError> {
        match self.0.ask(&Request::FenceState)? {
            Reply::Fence(info) => Ok(info),
            _ => Err(InitError::Answer(None)),
        }
    }
}
