//! Services: from their files to their processes.
//!
//! ```text
//! unit --checked files--> supervisor --orders--> spawn --process--> cgroup, output --lines--> keeper
//! ```
//! Pure: [`unit`], [`supervisor`]. The manager stands between them and the kernel.

pub(crate) mod cgroup;
pub(crate) mod confine;
pub(crate) mod keeper;
pub(crate) mod listen;
pub(crate) mod load;
pub(crate) mod output;
pub(crate) mod spawn;
pub(crate) mod store;
pub(crate) mod supervisor;
pub(crate) mod unit;

/// A service's number: its place in name order, for as long as this program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ServiceId(pub(crate) u16);

impl ServiceId {
    /// The place in a table of all services.
    pub(crate) fn index(self) -> usize {
        self.0.into()
    }
}
