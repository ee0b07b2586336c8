//! The cluster file: one TOML text that describes all nodes of a cluster.
//!
//! [`ClusterFile::parse`] turns text into a checked [`ClusterFile`] or a list of [`Diagnostic`]s with line, column
//! and caret. What this returns has passed every rule in `rules`, so that no reader has to check again.

mod types;

pub use types::*;
