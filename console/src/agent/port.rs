//! Finds a virtio-serial port by the name the machine's command line gave it.

use crate::render::text::printable;
use std::fs;
use std::path::{Path, PathBuf};

/// Where the kernel lists the ports.
pub(super) const CLASS: &str = "/sys/class/virtio-ports";

/// Ports looked at; a virtio-serial device has 31.
const PORTS_MAX: usize = 256;

/// Why there is no such port.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PortError {
    /// The directory cannot be listed: no virtio-serial device, or its module is not loaded.
    #[error("no virtio-serial port here ({0}); is the machine started with one and virtio_console loaded?")]
    NoDevice(String),
    /// Others have ports, this name has none.
    #[error("no virtio-serial port is called {name}; there are: {found}")]
    NotFound { name: String, found: String },
}

/// The device node of the port called `name`.
pub(super) fn find(class: &Path, name: &str) -> Result<PathBuf, PortError> {
    let failed = |e: std::io::Error| PortError::NoDevice(format!("{}: {e}", class.display()));
    let mut found = Vec::new();
    for entry in fs::read_dir(class).map_err(failed)?.take(PORTS_MAX) {
        let entry = entry.map_err(failed)?;
        // A port without a name is not for us; one that just went has none either.
        let Ok(text) = fs::read_to_string(entry.path().join("name")) else { continue };
        if text.trim() == name {
            return Ok(Path::new("/dev").join(entry.file_name()));
        }
        found.push(printable(text.trim()));
    }
    found.sort();
    let found = if found.is_empty() { "none".to_owned() } else { found.join(", ") };
    Err(PortError::NotFound { name: printable(name), found })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Dir;

    #[test]
    fn ports_are_found_by_name() {
        let dir = Dir::new();
        let class = dir.path("class");
        assert!(find(&class, "x").unwrap_err().to_string().contains("is the machine started with one"));
        dir.write("class/vport0p1/name", "org.example.other\n");
        dir.write("class/vport0p2/dev", "247:2\n");
        dir.write("class/vport0p3/name", "org.evenkeel.keel\n");
        assert_eq!(find(&class, "org.evenkeel.keel").unwrap(), Path::new("/dev/vport0p3"));
        let missing = find(&class, "org.evenkeel").unwrap_err().to_string();
        assert!(missing.ends_with("there are: org.evenkeel.keel, org.example.other"), "{missing}");
    }
}
