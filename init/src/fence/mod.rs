//! The fence: addresses that must not outlive the service that answers for them.
//!
//! ```text
//! control socket --register, feed, release--> state --Kill--> process --its end--> state --Delete--> netlink
//! ```
//! A service with `fence = true` (netd) registers an address *before* it adds it, and feeds a deadline. When it falls
//! silent, init kills it, waits for its end and deletes the addresses. Pure: [`state`]. [`shell`] carries out.
//! `docs/decisions/0007-fence-protocol.md` says why it is so.
//!
//! Another program that takes over as PID 1 goes on with all of it, the netlink socket included.
//!
//! It adds no address and knows nothing of leases; what a deadline stands for is netd's business.

mod shell;
pub(crate) mod state;

pub(crate) use shell::Shell;
