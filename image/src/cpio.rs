//! Writes the initramfs: a `newc` cpio archive, uncompressed.
//!
//! ```text
//! "070701" + 13 fields of 8 hex digits | name, NUL, padding to 4 | data, padding to 4 | … | TRAILER!!!
//! ```
//! Uncompressed on purpose: its bulk is the squashfs, which is compressed already. Every entry belongs to root
//! and carries the same time, so that the archive depends on nothing but its contents.

/// Builds one archive in memory. Parents must be added before their children.
pub(crate) struct Cpio {
    bytes: Vec<u8>,
    inode: u32,
    time: u32,
}

const S_IFDIR: u32 = 0o040000;
const S_IFREG: u32 = 0o100000;
const S_IFCHR: u32 = 0o020000;

struct Node<'a> {
    name: &'a str,
    mode: u32,
    links: u32,
    device: (u32, u32),
    data: &'a [u8],
}

impl Cpio {
    /// `time`: seconds since 1970 for every entry.
    pub(crate) fn new(time: u32) -> Self {
        Self { bytes: Vec::new(), inode: 1, time }
    }

    pub(crate) fn dir(&mut self, path: &str) {
        self.node(&Node { name: path, mode: S_IFDIR | 0o755, links: 2, device: (0, 0), data: &[] });
    }

    pub(crate) fn file(&mut self, path: &str, permissions: u32, data: &[u8]) {
        self.node(&Node { name: path, mode: S_IFREG | permissions, links: 1, device: (0, 0), data });
    }

    /// A character device: the kernel opens `/dev/console` for PID 1 before anything is mounted.
    pub(crate) fn char_device(&mut self, path: &str, permissions: u32, major: u32, minor: u32) {
        let device = (major, minor);
        self.node(&Node { name: path, mode: S_IFCHR | permissions, links: 1, device, data: &[] });
    }

    /// Closes the archive.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.time = 0;
        self.node(&Node { name: "TRAILER!!!", mode: 0, links: 1, device: (0, 0), data: &[] });
        self.bytes
    }

    fn node(&mut self, node: &Node<'_>) {
        let name = node.name.trim_start_matches('/');
        let length = |n: usize| u32::try_from(n).expect("no entry of an initramfs reaches 4 GiB");
        let fields = [
            self.inode,
            node.mode,
            0, // uid
            0, // gid
            node.links,
            self.time,
            length(node.data.len()),
            0, // device of the archive itself
            0,
            node.device.0,
            node.device.1,
            length(name.len() + 1),
            0, // checksum: unused in this variant
        ];
        self.inode += 1;
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(node.data);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(header: &[u8], index: usize) -> u32 {
        let at = 6 + index * 8;
        u32::from_str_radix(std::str::from_utf8(&header[at..at + 8]).unwrap(), 16).unwrap()
    }

    fn example() -> Vec<u8> {
        let mut cpio = Cpio::new(1_700_000_000);
        cpio.dir("dev");
        cpio.char_device("/dev/console", 0o600, 5, 1);
        cpio.file("/init", 0o755, b"hello");
        cpio.finish()
    }

    #[test]
    fn header_fields_are_in_their_places() {
        let bytes = example();
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(&bytes[..6], b"070701");
        assert_eq!((field(&bytes, 0), field(&bytes[116..], 0)), (1, 2), "no two entries are one file");
        assert_eq!(field(&bytes, 1), 0o040755);
        assert_eq!(field(&bytes, 5), 1_700_000_000);
        let console = 116; // 110 bytes of header, "dev\0", padding
        assert_eq!(field(&bytes[console..], 1), 0o020600);
        assert_eq!((field(&bytes[console..], 9), field(&bytes[console..], 10)), (5, 1));
        let init = console + 124; // 110 + "dev/console\0" padded to 4
        assert_eq!(field(&bytes[init..], 6), 5);
        assert!(bytes.windows(11).any(|w| w == b"TRAILER!!!\0"));
    }
}
