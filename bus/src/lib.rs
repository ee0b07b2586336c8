//! D-Bus peer to peer on UNIX sockets: how daemons show their state and how the console reads it.
//!
//! There is no broker. Each daemon serves its own socket, every client has a connection of its own with its own
//! object server, and only root (or the daemon's own user) gets past the handshake.
//!
//! ```text
//! daemon core -> tokio::sync::watch -> bus::Server -- UNIX socket, SASL EXTERNAL --> bus::net1::Client, busctl
//! ```
//!
//! Daemons feed a `watch` channel and never see the D-Bus library; this crate is its only importer
//! (`docs/decisions/0002-bus-crate.md`).
//!
//! | module | subject |
//! |---|---|
//! | [`init1`] | `org.evenkeel.Init1`: services and the machine |
//! | [`net1`] | `org.evenkeel.Net1`: ports, VIPs, peers |
//! | [`provision1`] | `org.evenkeel.Provision1`: what the node is and which configuration it runs |
//! | [`server`] | binding, authorisation, one task per client |
//! | [`client`] | connecting and calling with deadlines |
//!
//! Tools that know D-Bus work unchanged:
//! `busctl --address=unix:path=/run/evenkeel/bus/netd call org.evenkeel.Net1 /org/evenkeel/net org.evenkeel.Net1 Vips`

pub mod client;
mod freedesktop;
pub mod init1;
pub mod net1;
pub mod provision1;
mod sasl;
pub mod server;
mod wire;

pub use client::CallError;
pub use server::{BindError, Interfaces, Server};

/// Where netd serves `org.evenkeel.Net1` on a node.
pub const NETD_SOCKET: &str = "/run/evenkeel/bus/netd";

/// Where provisiond serves `org.evenkeel.Provision1` on a node.
pub const PROVISIOND_SOCKET: &str = "/run/evenkeel/bus/provisiond";

/// Where `org.evenkeel.Init1` is served on a node.
pub const INIT_SOCKET: &str = "/run/evenkeel/bus/init";
