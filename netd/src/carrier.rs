//! A cheap look whether the ports' carriers are still as they were when all interfaces were listed last.
//!
//! The full list costs the kernel and this process a hundred times as much as reading three open files, and it is
//! asked for many times a second. A difference, or a port that has no file, only says that the full list is due.

use crate::netlink::Link;
use crate::ports::PortTable;
use proto::cluster::PortName;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Where the kernel has a directory for each interface.
const INTERFACES: &str = "/sys/class/net";

/// The open files, by port.
#[derive(Debug, Default)]
pub(crate) struct Carriers {
    files: BTreeMap<PortName, (u32, File)>,
}

impl Carriers {
    /// Whether every port's carrier is known to be what `ports` says.
    pub(crate) fn agree(&mut self, ports: &PortTable) -> bool {
        self.files.retain(|port, (index, _)| ports.link(port).is_some_and(|link| link.index == *index));
        // An interface that is down has none; that it comes up is reported.
        let mut up = ports.found().filter(|(_, link)| link.up);
        up.all(|(port, link)| self.read(port, link).is_ok_and(|carrier| carrier == link.carrier))
    }

    fn read(&mut self, port: &PortName, link: &Link) -> io::Result<bool> {
        if !self.files.contains_key(port) {
            self.files.insert(port.clone(), (link.index, open(Path::new(INTERFACES), link)?));
        }
        let (_, file) = self.files.get(port).ok_or(io::ErrorKind::NotFound)?;
        let mut text = [0];
        match file.read_at(&mut text, 0) {
            Ok(1) => Ok(text[0] == b'1'),
            Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) => {
                // Gone, or down: opened anew when it is asked for again.
                self.files.remove(port);
                Err(error)
            }
        }
    }
}

/// Opens an interface's carrier file, if this is the interface: the directory may be another network namespace's.
fn open(interfaces: &Path, link: &Link) -> io::Result<File> {
    let directory = interfaces.join(&link.name);
    let index = fs::read_to_string(directory.join("ifindex"))?;
    if index.trim().parse() != Ok(link.index) {
        return Err(io::ErrorKind::NotFound.into());
    }
    File::open(directory.join("carrier"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    struct Tree(PathBuf);

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn another_interface_of_the_same_name_is_not_read() {
        let tree = Tree(std::env::temp_dir().join(format!("netd-carrier-{}", std::process::id())));
        let directory = tree.0.join("eth0");
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("carrier"), "1\n").unwrap();
        fs::write(directory.join("ifindex"), "7\n").unwrap();
        let link =
            |index| Link { index, name: "eth0".into(), mac: None, permanent: None, up: true, carrier: true };
        assert!(open(&tree.0, &link(7)).is_ok());
        assert!(open(&tree.0, &link(8)).is_err());
        let mut carriers = Carriers::default();
        let port = PortName::from("p1");
        carriers.files.insert(port.clone(), (7, open(&tree.0, &link(7)).unwrap()));
        assert!(carriers.read(&port, &link(7)).unwrap());
        fs::write(directory.join("carrier"), "0\n").unwrap();
        assert!(!carriers.read(&port, &link(7)).unwrap(), "read anew each time");
    }
}
