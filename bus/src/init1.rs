//! `org.evenkeel.Init1` at `/org/evenkeel/init`: services and the machine, as PID 1 sees them.
//!
//! | member | signature | |
//! |---|---|---|
//! | method `Services` | `-> a(sssuuts)` | every service, in name order |
//! | method `System` | `-> (sssssusstt)` | one row |
//! | signal `Changed` | `()` | a service changed its state; ask again. Several changes may be told by one signal |
//!
//! PID 1 itself knows no D-Bus: a service of its own asks it and serves this. What changes something is asked of PID 1
//! directly (`keel`).
//! Instants are milliseconds of the node's `CLOCK_BOOTTIME`, not ages: an age would be wrong as soon as it is read.

use crate::client::{CallError, Caller, Changes};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::Duration;
use tokio::sync::watch;
use zbus::Type;

/// The interface's name.
pub const INTERFACE: &str = "org.evenkeel.Init1";

/// The object that carries it.
pub const OBJECT: &str = "/org/evenkeel/init";

/// What is shown, sent through a `watch` channel; each change the channel notifies becomes a `Changed` signal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InitState {
    /// Every service, in name order.
    pub services: Vec<ServiceRow>,
    /// The machine.
    pub system: SystemRow,
}

/// A service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct ServiceRow {
    /// Its name.
    pub name: String,
    /// One word: `waiting`, `starting`, `ready`, `stopping`, `back-off`, `finished`, `stopped`, `refused`.
    pub state: String,
    /// What it waits for or why it does not run, empty when there is nothing to say.
    pub detail: String,
    /// Its main process, 0 while there is none.
    pub pid: u32,
    /// How often it was started again since boot.
    pub restarts: u32,
    /// Since when it is in this state, in ms of `CLOCK_BOOTTIME`.
    pub since_ms: u64,
    /// How its last process ended, empty before the first end.
    pub last_exit: String,
}

/// The machine. What is not known is empty or 0.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct SystemRow {
    /// The host name.
    pub hostname: String,
    /// The kernel's release.
    pub kernel: String,
    /// The kernel's id of this boot.
    pub boot_id: String,
    /// The image's description, TOML.
    pub release: String,
    /// The watchdog's driver, empty without one.
    pub watchdog: String,
    /// Its timeout in seconds.
    pub watchdog_timeout_s: u32,
    /// STATE's device.
    pub state_device: String,
    /// Why PID 1 did not answer last time; the rest is older then. Empty when all is well.
    pub error: String,
    /// Bytes of memory.
    pub memory_total: u64,
    /// Bytes of STATE.
    pub state_size: u64,
}

/// The object clients see; reads the watch channel, decides nothing.
pub(crate) struct Init1(pub(crate) watch::Receiver<InitState>);

#[zbus::interface(name = "org.evenkeel.Init1", spawn = false)]
impl Init1 {
    fn services(&self) -> Vec<ServiceRow> {
        self.0.borrow().services.clone()
    }

    // One out argument that is a structure: the 1-tuple says so to the macro.
    fn system(&self) -> (SystemRow,) {
        (self.0.borrow().system.clone(),)
    }

    #[zbus(signal)]
    pub(crate) async fn changed(emitter: &zbus::object_server::SignalEmitter<'_>) -> zbus::Result<()>;
}

/// Asks. Every call ends within the deadline given to [`Client::connect`].
#[derive(Debug)]
pub struct Client(Caller);

impl Client {
    /// Connects to the socket. `deadline` bounds the connecting and each call after it.
    pub async fn connect(path: &Path, deadline: Duration) -> Result<Client, CallError> {
        Ok(Client(Caller::connect("init", path, deadline).await?))
    }

    /// Every service.
    pub async fn services(&self) -> Result<Vec<ServiceRow>, CallError> {
        self.0.call(OBJECT, INTERFACE, "Services").await
    }

    /// The machine.
    pub async fn system(&self) -> Result<SystemRow, CallError> {
        let (row,): (SystemRow,) = self.0.call(OBJECT, INTERFACE, "System").await?;
        Ok(row)
    }

    /// Follows the `Changed` signal from now on. Read it or drop it: a subscriber that stops reading is cut off.
    pub async fn changes(&self) -> Result<Changes, CallError> {
        self.0.changes(OBJECT, INTERFACE, "Changed").await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_the_documented_ones() {
        assert_eq!(ServiceRow::SIGNATURE.to_string(), "(sssuuts)");
        assert_eq!(SystemRow::SIGNATURE.to_string(), "(sssssusstt)");
    }
}
