//! The lab: clusters of the built image in QEMU, without root, on a network whose every frame the lab carries.
//!
//! ```text
//! cargo lab up ── prepare (packages, programs, image) ── supervisor ── Lab ──┬── Machine per node (thread, QEMU, QMP)
//! tests/e2e ──────────────────────────────────────────────────────────┘      │     ├── Serial  console log, viewers
//!                                                                            │     └── Agent   keel commands
//!                                                                            └── net::Fabric   switch, probing host
//! ```
//! | module | subject |
//! |---|---|
//! | [`packages`], [`programs`], [`prepare`] | what has to be there before a node can boot |
//! | [`cluster`], [`keys`], [`dir`], `files` | the lab's wiring, its nodes' keys, its directory, what lies in it |
//! | [`variant`], [`disk`], `enrol` | how a machine differs from the usual one; a node's disk while it is off; Secure Boot keys |
//! | [`arguments`], [`accel`], [`qmp`], [`machine`] | one QEMU process: command line, accelerator, control, life |
//! | [`serial`], [`agent`], [`events`] | what a node says and what one can ask it |
//! | [`net`], [`wires`] | switch, faults, capture, probing host, TCP; the same by the cluster file's names |
//! | [`lab`] | the test language: boot, unplug, freeze, cut the power, expect |
//! | [`control`], [`supervisor`], [`up`], [`terminal`], [`signals`] | the same lab behind a UNIX socket, for the command line |
//! | [`test_command`], [`prove_command`] | `cargo lab test`: stages with budgets; `cargo lab prove`: longer explorations |

pub mod accel;
pub mod agent;
pub mod arguments;
pub mod cluster;
pub mod command;
pub mod control;
pub mod dir;
pub mod disk;
mod enrol;
pub mod error;
pub mod events;
mod files;
pub mod keys;
pub mod lab;
pub mod machine;
pub mod net;
pub mod packages;
pub mod prepare;
pub mod programs;
pub mod progress;
pub mod prove_command;
pub mod qmp;
pub mod serial;
pub mod signals;
pub mod supervisor;
mod sys;
pub mod table;
pub mod terminal;
pub mod test_command;
pub mod up;
pub mod variant;
pub mod wires;
