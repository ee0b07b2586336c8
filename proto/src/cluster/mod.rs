//! The cluster file: one TOML text that describes all nodes of a cluster.
//!
//! [`ClusterFile::parse`] turns text into a checked [`ClusterFile`] or a list of [`Diagnostic`]s with line, column
//! and caret. What this returns has passed every rule in `rules`, so that no reader has to check again.
//!
//! ```text
//! text --toml--> tree with spans --raw--> values with places --rules--> ClusterFile
//!        |                          |                           |
//!        +-- one syntax error       +-- wrong shapes            +-- broken rules      -> Diagnostics
//! ```
//! Wrong shapes and broken rules of one file are told together. `docs/formats/cluster.md` describes every key.

mod diagnostic;
mod raw;
mod reader;
mod rules;
mod types;

pub use diagnostic::{DIAGNOSTICS_MAX, Diagnostic, Diagnostics};
pub use raw::{GROUP_VIPS_MAX, NETWORKS_MAX, NODES_MAX, PORTS_MAX, VIPS_MAX, is_name};
pub use types::*;

use diagnostic::{Place, Sink};

/// Bytes of a cluster file: 64 nodes and some 2000 VIPs as people write them, ten times what a cluster of appliances has.
pub const CLUSTER_FILE_MAX: usize = 256 * 1024;

impl ClusterFile {
    /// Reads and checks `text`. `path` is what diagnostics call the file; nothing is opened.
    ///
    /// # Errors
    /// Every problem found, in the order of the file; a text that is not TOML gives its first error only.
    ///
    /// ```
    /// let text = "schema = 1\ncluster = \"demo\"\nnetwork = {}\n";
    /// let problems = proto::cluster::ClusterFile::parse("cluster.toml", text).unwrap_err();
    /// let first = problems.iter().find(|p| p.path == "network").unwrap();
    /// assert_eq!((first.line, first.column), (3, 1));
    /// assert_eq!(first.help.as_deref(), Some("did you mean \"networks\"?"));
    /// ```
    pub fn parse(path: &str, text: &str) -> Result<ClusterFile, Diagnostics> {
        let mut sink = Sink::new(path, text);
        if text.len() > CLUSTER_FILE_MAX {
            let message = format!("{} bytes, at most {CLUSTER_FILE_MAX} are read", text.len());
            sink.report(&Place::file(), message);
            return Err(sink.finish());
        }
        let root = match toml::de::DeTable::parse(text) {
            Ok(root) => root,
            Err(error) => {
                let span = error.span().unwrap_or(text.len()..text.len());
                sink.report(&Place { path: String::new(), span }, error.message());
                return Err(sink.finish());
            }
        };
        let Some(raw) = raw::read(&root, &mut sink) else {
            return Err(sink.finish());
        };
        rules::check(&raw, &mut sink);
        match rules::build(raw) {
            Some(file) if sink.is_empty() => Ok(file),
            _ => Err(sink.finish()),
        }
    }
}

#[cfg(test)]
mod tests;
