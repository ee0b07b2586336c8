//! Builds, describes and verifies bootable images.
//!
//! [`build`] turns the device programs, a Debian kernel package and a root tree into a disk image: loader, two
//! slots with their environments, a rescue system and a file system for state (`docs/formats/image.md`). It needs
//! neither root nor loop devices nor mounts, and equal inputs give equal bytes. [`describe`] and [`verify_ours`]
//! look at a finished image.
//!
//! [`release`] signs a boot file for nodes that run: the bundle that they install.
//!
//! [`Target`] is a disk that an image is written to.
//!
//! Not here: writing slots of a running node.

mod build;
mod checksums;
mod cpio;
pub mod deb;
pub mod digest;
mod disk;
mod error;
pub mod gpt;
mod host;
mod inspect;
mod manifest;
mod modules;
mod options;
mod packages;
mod qcow2;
mod release;
pub mod secure_boot;
#[cfg(test)]
mod testdir;
mod tree;
pub mod uki;
mod write;

pub use build::{PROGRAMS, build};
pub use disk::PARTITIONS;
pub use error::{BuildError, InspectError};
pub use inspect::{BootFile, Description, describe, extract, verify_ours};
pub use manifest::Manifest;
pub use options::{
    BuildOptions, Built, ExtraFile, Flavour, Format, Progress, Quiet, Source, Watchdog, default_cache,
};
pub use packages::{Cache, Chosen};
pub use release::{Bundle, ReleaseError, ReleaseOptions, release};
pub use write::{Target, WriteError, Written};

/// Name of the product in files.
const PRODUCT: &str = "evenkeel";
