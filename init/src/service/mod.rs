//! Services: from their files to their processes.
//!
//! ```text
//! unit --checked files--> supervisor --orders--> spawn --process--> cgroup, output --lines--> keeper
//! ```
//! Pure: [`unit`], [`supervisor`]. The manager stands between them and the kernel.

pub(crate) mod cgroup;
pub(crate) mod keeper;
pub(crate) mod output;
pub(crate) mod spawn;
pub(crate) mod supervisor;
pub(crate) mod unit;
