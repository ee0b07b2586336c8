//! Unpacks the kernel package: `ar` holding `data.tar.xz` holding the kernel and its modules.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::Path;

use lzma_rust2::XzReader;

use crate::error::BuildError;

/// What we take from a kernel package.
#[derive(Debug, Default)]
pub struct Kernel {
    /// Kernel release, e.g. `6.12.117+deb12-cloud-amd64`.
    pub release: String,
    pub vmlinuz: Vec<u8>,
    /// Module files by path below `lib/modules/RELEASE/`, still compressed: `kernel/fs/fat/fat.ko.xz`.
    pub modules: BTreeMap<String, Vec<u8>>,
    /// Paths of the modules that are built in.
    pub builtin: Vec<String>,
    /// When the package was made, seconds since 1970: the time of everything in the image.
    pub time: u32,
}

/// Largest file taken from a package: the kernels are 12 MB, the largest modules 10 MB.
const FILE_MAX: u64 = 256 << 20;

/// Unpacks the package's bytes; `path` names it in errors.
pub fn unpack(path: &Path, deb: &[u8]) -> Result<Kernel, BuildError> {
    let damaged = |detail: String| BuildError::DamagedPackage { path: path.to_owned(), detail };
    let mut archive = ar::Archive::new(deb);
    let mut kernel = Kernel::default();
    while let Some(entry) = archive.next_entry() {
        let entry = entry.map_err(|e| damaged(e.to_string()))?;
        let name = String::from_utf8_lossy(entry.header().identifier()).into_owned();
        if name == "debian-binary" {
            kernel.time = u32::try_from(entry.header().mtime()).unwrap_or(u32::MAX);
        } else if name == "data.tar.xz" {
            read_data(XzReader::new(entry, true), &mut kernel).map_err(|e| damaged(e.to_string()))?;
        } else if name.starts_with("data.tar") {
            return Err(damaged(format!("{name}: only data.tar.xz is understood")));
        }
    }
    if kernel.vmlinuz.is_empty() || kernel.modules.is_empty() {
        return Err(damaged("it holds no kernel with modules".into()));
    }
    Ok(kernel)
}

/// One file of a package's bytes, by its path without a leading slash; `path` names the package in errors.
pub fn file(path: &Path, deb: &[u8], wanted: &str) -> Result<Vec<u8>, BuildError> {
    let damaged = |detail: String| BuildError::DamagedPackage { path: path.to_owned(), detail };
    let mut archive = ar::Archive::new(deb);
    while let Some(entry) = archive.next_entry() {
        let entry = entry.map_err(|e| damaged(e.to_string()))?;
        if entry.header().identifier() != b"data.tar.xz" {
            continue;
        }
        let mut data = tar::Archive::new(XzReader::new(entry, true));
        for entry in data.entries().map_err(|e| damaged(e.to_string()))? {
            let mut entry = entry.map_err(|e| damaged(e.to_string()))?;
            let name = entry.path().map_err(|e| damaged(e.to_string()))?.to_string_lossy().into_owned();
            let name = name.trim_start_matches("./");
            if name.strip_prefix("usr/").unwrap_or(name) == wanted && entry.header().entry_type().is_file() {
                return read_entry(&mut entry).map_err(|e| damaged(e.to_string()));
            }
        }
    }
    Err(damaged(format!("it holds no {wanted} in a data.tar.xz")))
}

fn read_data(data: impl Read, kernel: &mut Kernel) -> io::Result<()> {
    let mut archive = tar::Archive::new(data);
    for entry in archive.entries()? {
        let mut entry = entry?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let path = entry.path()?.to_string_lossy().trim_start_matches("./").to_owned();
        let path = path.strip_prefix("usr/").unwrap_or(&path).to_owned(); // where newer packages keep lib/
        if let Some(release) = path.strip_prefix("boot/vmlinuz-") {
            kernel.release = release.to_owned();
            kernel.vmlinuz = read_entry(&mut entry)?;
        } else if let Some((_, inside)) = path.strip_prefix("lib/modules/").and_then(|p| p.split_once('/')) {
            if inside.starts_with("kernel/") && inside.contains(".ko") {
                kernel.modules.insert(inside.to_owned(), read_entry(&mut entry)?);
            } else if inside == "modules.builtin" {
                let text = String::from_utf8_lossy(&read_entry(&mut entry)?).into_owned();
                kernel.builtin = text.lines().map(str::to_owned).collect();
            }
        }
    }
    Ok(())
}

fn read_entry(entry: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    entry.take(FILE_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_MAX {
        return Err(io::Error::other("a file of it is larger than any kernel"));
    }
    Ok(bytes)
}

/// Decompresses a module file by its name; `.ko` is taken as it is. The signature at its end stays valid.
pub fn module_bytes(name: &str, file: &[u8]) -> io::Result<Vec<u8>> {
    match name.rsplit_once('.').map(|(_, e)| e) {
        Some("ko") => Ok(file.to_owned()),
        Some("xz") => read_entry(&mut XzReader::new(file, true)),
        _ => Err(io::Error::other(format!("{name}: only .ko and .ko.xz are understood"))),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn xz(bytes: &[u8]) -> Vec<u8> {
        let mut writer =
            lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::with_preset(0)).unwrap();
        io::Write::write_all(&mut writer, bytes).unwrap();
        writer.finish().unwrap()
    }

    /// A made-up kernel package.
    pub(crate) fn package(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut data = tar::Builder::new(Vec::new());
        for (name, bytes) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            data.append_data(&mut header, name, *bytes).unwrap();
        }
        let data = xz(&data.into_inner().unwrap());
        let mut deb = ar::Builder::new(Vec::new());
        let mut first = ar::Header::new(b"debian-binary".to_vec(), 4);
        first.set_mtime(1_700_000_000);
        deb.append(&first, &b"2.0\n"[..]).unwrap();
        deb.append(&ar::Header::new(b"data.tar.xz".to_vec(), data.len() as u64), &data[..]).unwrap();
        deb.into_inner().unwrap()
    }

    #[test]
    fn kernel_modules_and_time_are_found() {
        let module = xz(b"ELF of fat");
        let deb = package(&[
            ("./boot/vmlinuz-6.12-test", b"kernel"),
            ("./lib/modules/6.12-test/kernel/fs/fat/fat.ko.xz", &module),
            ("./lib/modules/6.12-test/modules.builtin", b"kernel/fs/ext4/ext4.ko\n"),
            ("./usr/share/doc/linux/copyright", b"GPL-2"),
        ]);
        let kernel = unpack(Path::new("k.deb"), &deb).unwrap();
        assert_eq!(kernel.release, "6.12-test");
        assert_eq!(kernel.vmlinuz, b"kernel");
        assert_eq!(kernel.time, 1_700_000_000);
        assert_eq!(kernel.builtin, ["kernel/fs/ext4/ext4.ko"]);
        let (name, file) = kernel.modules.first_key_value().unwrap();
        assert_eq!(name, "kernel/fs/fat/fat.ko.xz");
        assert_eq!(module_bytes(name, file).unwrap(), b"ELF of fat");
        assert!(module_bytes("fat.ko.zst", file).is_err());
    }

    #[test]
    fn damage_is_one_line_with_the_next_step() {
        let good = package(&[("./boot/vmlinuz-1", b"kernel"), ("./lib/modules/1/kernel/a.ko", b"x")]);
        let mut flipped = good.clone();
        let middle = good.len() - 100;
        flipped[middle] ^= 0xff;
        for bad in [&b"not a package"[..], &good[..good.len() / 2], &flipped, &package(&[("./x", b"y")])] {
            let error = unpack(Path::new("/cache/k.deb"), bad).unwrap_err().to_string();
            assert!(error.starts_with("package /cache/k.deb is damaged ("), "{error}");
            assert!(error.ends_with("): delete it and build again without --offline"), "{error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }
}
