//! Authenticated sessions between the nodes of a cluster: QUIC, mutual raw public keys (RFC 7250), judged by the roster.
//! Who is in the roster is decided in [`core`], which knows no socket.
//!
//! ```text
//!            keep(node)                      the lower name of a pair dials, the other waits
//!   Idle ──────────────> Dialling ──TLS 1.3, keys by roster──> Greeting ──Hello both ways──> Up
//!    ^  back-off 100 ms..1 s │ refused, deadline                  │ other cluster, name, protocol │
//!    └───────────────────────┴────────────────────────────────────┴──────── idle, reset, breach ──┘
//! ```
//! - A node is who its key says: the raw key is compared whole with the roster's. There are no certificates, names
//!   to look up, resumption, tickets or 0-RTT, and no clock is needed.
//! - In TLS 1.3 the dialling side is done before the accepting side has judged its key, so a session counts as up
//!   only with the first application reply.
//! - Messages are unreliable and newest-wins, like the status messages they carry: [`Endpoint::send`] never waits.
//!   Those that fit go as QUIC datagrams; of longer ones only the newest waits for its turn on a stream.
//! - A key outside the roster costs one of [`MAX_HANDSHAKES`] places for at most [`HANDSHAKE_DEADLINE`].
//!
//! - [`Endpoint::replace_roster`] puts another list of keys in force and cuts the sessions of keys that are not in it.
//! - Every message carries the cluster's id since protocol 2; the protocol is settled by ALPN under TLS.
//! - Sessions are made anew at a fixed rate ([`Options::renew`]); [`Endpoint::export`] gives keys from each.
//!
//! What this does not do: decide who is alive (its caller's beats do), order or acknowledge messages, store anything.

mod clock;
mod endpoint;
mod hello;
mod registry;
mod session;
#[cfg(test)]
mod tests;
mod tls;
mod trusted;
mod window;

pub use endpoint::{
    DirectionKeys, Endpoint, HANDSHAKE_DEADLINE, MAX_HANDSHAKES, Options, PeerError, RENEW_EVERY, SendError,
    Stats,
};
pub use hello::{Protocol, Refusal};
pub use peer_core as core;
pub use peer_core::key::SecretKey;
pub use session::{DownReason, MAX_MESSAGE_LEN, PeerEvent};
