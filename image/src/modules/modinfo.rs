//! Reads `.modinfo` of a kernel module: NUL-separated `key=value` strings in one ELF section.

/// What a module says about itself, as far as loading it needs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct ModInfo {
    /// Must be loaded before.
    pub depends: Vec<String>,
    /// Should be loaded before, if there (`softdep=pre: …`).
    pub soft: Vec<String>,
    /// Devices it serves: patterns of their modaliases.
    pub aliases: Vec<String>,
    /// Whether it names firmware files.
    pub firmware: bool,
}

/// More sections than any module has: a header that says more is damaged.
const SECTIONS_MAX: usize = 4096;

impl ModInfo {
    /// Reads an uncompressed module. The error says what is wrong with it.
    pub(crate) fn of(elf: &[u8]) -> Result<Self, String> {
        let section = modinfo_section(elf)?;
        let mut info = Self::default();
        for entry in section.split(|b| *b == 0) {
            let entry = String::from_utf8_lossy(entry);
            if let Some(list) = entry.strip_prefix("depends=") {
                info.depends.extend(list.split(',').filter(|n| !n.is_empty()).map(super::normalised));
            } else if let Some(list) = entry.strip_prefix("softdep=") {
                let before = list.split_once("pre:").map_or("", |(_, rest)| rest);
                let before = before.split_once("post:").map_or(before, |(pre, _)| pre);
                info.soft.extend(before.split_whitespace().map(super::normalised));
            } else if let Some(pattern) = entry.strip_prefix("alias=") {
                info.aliases.push(pattern.to_owned());
            }
            info.firmware |= entry.starts_with("firmware=");
        }
        Ok(info)
    }
}

/// ELF64, little endian:
/// ```text
/// header: 40 section table offset, 58 entry size, 60 entries, 62 index of the name table
/// section: 0 name, 24 offset, 32 size
/// ```
fn modinfo_section(elf: &[u8]) -> Result<&[u8], String> {
    let cut = || "cut short".to_owned();
    if elf.get(..6) != Some(b"\x7fELF\x02\x01") {
        return Err("no 64-bit little-endian ELF file".into());
    }
    let half = |at: usize| -> Option<usize> {
        Some(usize::from(u16::from_le_bytes(elf.get(at..at.checked_add(2)?)?.try_into().ok()?)))
    };
    let long = |at: usize| -> Option<usize> {
        let bytes = elf.get(at..at.checked_add(8)?)?.try_into().ok()?;
        usize::try_from(u64::from_le_bytes(bytes)).ok()
    };
    let word = |at: usize| -> Option<usize> {
        Some(u32::from_le_bytes(elf.get(at..at.checked_add(4)?)?.try_into().ok()?) as usize)
    };
    let table = long(40).ok_or_else(cut)?;
    let (entry, count, names) =
        (half(58).ok_or_else(cut)?, half(60).ok_or_else(cut)?, half(62).ok_or_else(cut)?);
    if count > SECTIONS_MAX {
        return Err(format!("{count} sections"));
    }
    let header = |i: usize| table.checked_add(i * entry);
    let bytes = |at: usize| -> Option<&[u8]> {
        let start = long(at.checked_add(24)?)?;
        elf.get(start..start.checked_add(long(at.checked_add(32)?)?)?)
    };
    let names = header(names).and_then(bytes).ok_or_else(cut)?;
    for i in 0..count {
        let at = header(i).ok_or_else(cut)?;
        let name = word(at).and_then(|n| names.get(n..)).ok_or_else(cut)?;
        if name.starts_with(b".modinfo\0") {
            return bytes(at).ok_or_else(cut);
        }
    }
    Err("no .modinfo section".into())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The smallest ELF file with a `.modinfo` section.
    pub(crate) fn elf(modinfo: &[u8]) -> Vec<u8> {
        let names = b"\0.modinfo\0.shstrtab\0";
        let mut file = vec![0u8; 64];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        let modinfo_at = file.len();
        file.extend_from_slice(modinfo);
        let names_at = file.len();
        file.extend_from_slice(names);
        let table = file.len();
        for (name, start, size) in [(0u32, 0, 0), (1, modinfo_at, modinfo.len()), (10, names_at, names.len())]
        {
            let mut header = [0u8; 64];
            header[..4].copy_from_slice(&name.to_le_bytes());
            header[24..32].copy_from_slice(&(start as u64).to_le_bytes());
            header[32..40].copy_from_slice(&(size as u64).to_le_bytes());
            file.extend_from_slice(&header);
        }
        file[40..48].copy_from_slice(&(table as u64).to_le_bytes());
        file[58] = 64;
        file[60] = 3;
        file[62] = 2;
        file
    }

    #[test]
    fn dependencies_are_read_and_normalised() {
        for (text, depends, soft) in [
            ("license=GPL\0depends=\0", vec![], vec![]),
            ("depends=fat\0name=vfat\0", vec!["fat"], vec![]),
            ("depends=net-failover,failover\0", vec!["net_failover", "failover"], vec![]),
            ("softdep=pre: crc32c-generic b post: c\0depends=a\0", vec!["a"], vec!["crc32c_generic", "b"]),
            ("softdep=post: c\0", vec![], vec![]),
        ] {
            let info = ModInfo::of(&elf(text.as_bytes())).unwrap();
            assert_eq!(
                (info.depends, info.soft),
                (
                    depends.into_iter().map(str::to_owned).collect(),
                    soft.into_iter().map(str::to_owned).collect()
                ),
                "{text}"
            );
        }
    }

    #[test]
    fn damage_is_refused() {
        let good = elf(b"depends=fat\0");
        assert_eq!(ModInfo::of(b"MZ").unwrap_err(), "no 64-bit little-endian ELF file");
        // The last 24 bytes of the last section header are of no use to us.
        for end in 0..good.len() - 24 {
            assert!(ModInfo::of(&good[..end]).is_err(), "cut at {end}");
        }
        for at in [40usize, 47, 60, 61, 62] {
            let mut bad = good.clone();
            bad[at] = 0xff;
            let _ = ModInfo::of(&bad); // any answer, no panic
        }
    }
}
