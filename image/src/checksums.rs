//! The list by which PID 1 knows its own files: `docs/formats/image.md`, "Own files".

use std::fmt::Write as _;

/// One line a file, `CRC32 SIZE PATH`, and a last line over all before it.
pub(crate) fn list<'a>(files: impl Iterator<Item = (&'a str, &'a [u8])>) -> String {
    let mut text = String::new();
    for (path, bytes) in files {
        let _ = writeln!(text, "{:08x} {} {path}", crc32fast::hash(bytes), bytes.len());
    }
    let (sum, length) = (crc32fast::hash(text.as_bytes()), text.len());
    let _ = writeln!(text, "{sum:08x} {length} end");
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_format_stays() {
        let files: [(&str, &[u8]); 2] = [("/init", b"123456789"), ("/boot/modules/a-b.ko", b"")];
        let golden = "cbf43926 9 /init\n00000000 0 /boot/modules/a-b.ko\n2b8c0177 49 end\n";
        assert_eq!(super::list(files.into_iter()), golden);
    }
}
