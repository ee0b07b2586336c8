//! The boot file: a unified kernel image made from systemd's EFI stub.
//!
//! ```text
//! stub (PE32+)                       boot file
//! ┌───────────────┐                  ┌───────────────┐
//! │ headers       │                  │ headers       │ + one section header each, sizes and checksum anew
//! │ .text … .sbat │                  │ .text … .sbat │ unchanged, without the debuggers' symbols behind them
//! └───────────────┘                  │ .osrel        │ who made it
//!                                    │ .cmdline      │ kernel command line
//!                                    │ .uname        │ kernel release
//!                                    │ .linux        │ the kernel
//!                                    │ .initrd       │ the initramfs
//!                                    └───────────────┘
//! ```
//! New sections start on page boundaries in memory, behind the last of the stub. The stub copies the kernel to
//! where it wants to run, so nothing else is needed. No time stamps: equal inputs give equal bytes.

/// One section of a PE file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    pub name: String,
    /// Address in memory, relative to the image.
    pub address: u32,
    /// Bytes that matter; the file holds them padded to its alignment.
    pub size: u32,
    /// Offset of the bytes in the file.
    pub offset: u32,
    /// Bytes that the file has of it.
    pub stored: u32,
}

/// Pages of the firmware: what the new sections are aligned to in memory.
const PAGE: u32 = 4096;
const SECTION_HEADER: usize = 40;
/// More sections than any stub or boot file has: a header that says more is damaged.
const SECTIONS_MAX: usize = 64;
/// IMAGE_SCN_CNT_INITIALIZED_DATA | IMAGE_SCN_MEM_READ
const READ_ONLY_DATA: u32 = 0x4000_0040;

/// Offsets of the fields we read or change, counted from the optional header.
const SIZE_OF_INITIALIZED_DATA: usize = 8;
const SECTION_ALIGNMENT: usize = 32;
const FILE_ALIGNMENT: usize = 36;
const SIZE_OF_IMAGE: usize = 56;
const SIZE_OF_HEADERS: usize = 60;
const CHECKSUM: usize = 64;

struct Layout {
    /// Offset of the COFF header.
    coff: usize,
    /// Offset of the optional header.
    optional: usize,
    /// Offset of the section table.
    table: usize,
    sections: Vec<Section>,
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn layout(pe: &[u8]) -> Result<Layout, String> {
    let cut = || "it is cut short".to_owned();
    if pe.get(..2) != Some(b"MZ") {
        return Err("it is no PE file (no \"MZ\")".into());
    }
    let signature = u32_at(pe, 0x3c).ok_or_else(cut)? as usize;
    if pe.get(signature..signature.saturating_add(4)) != Some(b"PE\0\0") {
        return Err("it is no PE file (no \"PE\")".into());
    }
    let coff = signature + 4;
    let count = u16_at(pe, coff + 2).ok_or_else(cut)? as usize;
    if count > SECTIONS_MAX {
        return Err(format!("it claims {count} sections"));
    }
    let optional = coff + 20;
    if u16_at(pe, optional) != Some(0x20b) {
        return Err("it is not PE32+ (64 bits)".into());
    }
    let table = optional + u16_at(pe, coff + 16).ok_or_else(cut)? as usize;
    let mut sections = Vec::with_capacity(count);
    for i in 0..count {
        let at = table + i * SECTION_HEADER;
        let header = pe.get(at..at + SECTION_HEADER).ok_or_else(cut)?;
        let name = header[..8].iter().take_while(|b| **b != 0).map(|b| char::from(*b)).collect();
        let field = |offset| u32_at(header, offset).ok_or_else(cut);
        sections.push(Section {
            name,
            size: field(8)?,
            address: field(12)?,
            stored: field(16)?,
            offset: field(20)?,
        });
    }
    Ok(Layout { coff, optional, table, sections })
}

/// The sections of a PE file, in file order.
pub fn sections(pe: &[u8]) -> Result<Vec<Section>, String> {
    layout(pe).map(|layout| layout.sections)
}

/// The bytes of one section, if it is there and whole.
pub fn section<'a>(pe: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let section = sections(pe).ok()?.into_iter().find(|s| s.name == name)?;
    let start = section.offset as usize;
    pe.get(start..start.checked_add(section.size as usize)?)
}

/// Appends `parts` (section name and bytes) to the stub.
pub fn assemble(stub: &[u8], parts: &[(&str, &[u8])]) -> Result<Vec<u8>, String> {
    let layout = layout(stub)?;
    let optional = layout.optional;
    let field = |offset| u32_at(stub, optional + offset).ok_or_else(|| "it is cut short".to_owned());
    let file_alignment = field(FILE_ALIGNMENT)?;
    let section_alignment = field(SECTION_ALIGNMENT)?;
    if !file_alignment.is_power_of_two() || !section_alignment.is_power_of_two() || section_alignment > PAGE {
        return Err(format!("its alignments ({section_alignment}, {file_alignment}) are not usable"));
    }

    // The table grows into the gap between it and the first section's bytes.
    let end_of_table = layout.table + (layout.sections.len() + parts.len()) * SECTION_HEADER;
    let first_byte = layout.sections.iter().map(|s| s.offset).filter(|o| *o != 0).min().unwrap_or(0);
    let room = field(SIZE_OF_HEADERS)?.min(first_byte) as usize;
    if end_of_table > room {
        return Err(format!("its header has no room for {} more sections", parts.len()));
    }

    // Behind its sections the stub has symbols for debuggers. They would lie between sections then, where a signature has
    // no rule for them.
    let ends = layout.sections.iter().filter(|s| s.stored != 0);
    let end = ends.map(|s| s.offset.saturating_add(s.stored) as usize).max().unwrap_or(room);
    let mut out = stub.get(..end).ok_or("it is cut short")?.to_vec();
    put_u32(&mut out, layout.coff + 8, 0);
    put_u32(&mut out, layout.coff + 12, 0);
    let mut address = layout.sections.iter().map(|s| s.address.saturating_add(s.size)).max().unwrap_or(0);
    let mut initialized = field(SIZE_OF_INITIALIZED_DATA)?;
    for (i, (name, bytes)) in parts.iter().enumerate() {
        if name.len() > 8 || layout.sections.iter().any(|s| s.name == *name) {
            return Err(format!("it cannot take a section {name}"));
        }
        let too_large = || format!("the section {name} makes it larger than 4 GiB");
        out.resize(out.len().next_multiple_of(file_alignment as usize), 0);
        let offset = u32::try_from(out.len()).map_err(|_| too_large())?;
        let size = u32::try_from(bytes.len()).map_err(|_| too_large())?;
        address = address.checked_next_multiple_of(PAGE).ok_or_else(too_large)?;
        let padded = size.checked_next_multiple_of(file_alignment).ok_or_else(too_large)?;

        let mut header = [0u8; SECTION_HEADER];
        header[..name.len()].copy_from_slice(name.as_bytes());
        for (at, value) in [(8, size), (12, address), (16, padded), (20, offset), (36, READ_ONLY_DATA)] {
            put_u32(&mut header, at, value);
        }
        let at = layout.table + (layout.sections.len() + i) * SECTION_HEADER;
        out[at..at + SECTION_HEADER].copy_from_slice(&header);

        out.extend_from_slice(bytes);
        out.resize(out.len().next_multiple_of(file_alignment as usize), 0);
        address = address.checked_add(size).ok_or_else(too_large)?;
        initialized = initialized.checked_add(padded).ok_or_else(too_large)?;
    }

    let count =
        u16::try_from(layout.sections.len() + parts.len()).expect("bounded by SECTIONS_MAX and parts");
    out[layout.coff + 2..layout.coff + 4].copy_from_slice(&count.to_le_bytes());
    put_u32(&mut out, optional + SIZE_OF_INITIALIZED_DATA, initialized);
    let image_size =
        address.checked_next_multiple_of(section_alignment).ok_or("it becomes larger than 4 GiB")?;
    put_u32(&mut out, optional + SIZE_OF_IMAGE, image_size);
    put_u32(&mut out, optional + CHECKSUM, 0);
    let sum = checksum(&out);
    put_u32(&mut out, optional + CHECKSUM, sum);
    Ok(out)
}

/// Offset of the directory of certificates: the fifth of the optional header's directories.
const DIRECTORIES: usize = 108;
const CERTIFICATES: usize = DIRECTORIES + 4 + 4 * 8;

/// What a signature is made over: SHA-256 of a file without signature, its length a multiple of 8, less the checksum and the
/// entry of the certificates.
pub(crate) fn digest(pe: &[u8]) -> Result<[u8; 32], String> {
    use sha2::Digest as _;
    let layout = layout(pe)?;
    let (checksum, entry) = (layout.optional + CHECKSUM, layout.optional + CERTIFICATES);
    let cut = || "it is cut short".to_owned();
    if u32_at(pe, layout.optional + DIRECTORIES).ok_or_else(cut)? < 5 {
        return Err("its header has no place for certificates".into());
    }
    if u32_at(pe, entry).ok_or_else(cut)? != 0 || u32_at(pe, entry + 4).ok_or_else(cut)? != 0 {
        return Err("it is signed already".into());
    }
    // Firmware takes headers and sections one by one, then as many bytes from the end as are left: all of the file, when
    // there are no gaps.
    let headers = u32_at(pe, layout.optional + SIZE_OF_HEADERS).ok_or_else(cut)? as usize;
    let mut places: Vec<(usize, usize)> = layout
        .sections
        .iter()
        .map(|s| (s.offset as usize, s.stored as usize))
        .filter(|(_, n)| *n != 0)
        .collect();
    places.sort_unstable();
    let end =
        places.into_iter().try_fold(headers, |end, (offset, size)| (offset == end).then_some(end + size));
    if entry + 8 > headers || end.is_none_or(|end| end > pe.len()) {
        return Err("its sections do not follow each other".into());
    }
    let mut hash = sha2::Sha256::new();
    for part in [&pe[..checksum], &pe[checksum + 4..entry], &pe[entry + 8..]] {
        hash.update(part);
    }
    Ok(hash.finalize().into())
}

/// Appends a WIN_CERTIFICATE to a file that [`digest`] was made of.
pub(crate) fn append_certificate(pe: &mut Vec<u8>, certificate: &[u8]) -> Result<(), String> {
    let optional = layout(pe)?.optional;
    let place = u32::try_from(pe.len()).map_err(|_| "it is larger than 4 GiB")?;
    let length = u32::try_from(certificate.len()).map_err(|_| "the certificate is too large")?;
    put_u32(pe, optional + CERTIFICATES, place);
    put_u32(pe, optional + CERTIFICATES + 4, length);
    pe.extend_from_slice(certificate);
    put_u32(pe, optional + CHECKSUM, 0);
    let sum = checksum(pe);
    put_u32(pe, optional + CHECKSUM, sum);
    Ok(())
}

/// The PE checksum of a file whose checksum field is zero: 16-bit words added with carry, plus the length.
fn checksum(bytes: &[u8]) -> u32 {
    let mut sum: u64 = 0;
    let (words, rest) = bytes.as_chunks::<2>();
    for word in words {
        sum += u64::from(u16::from_le_bytes(*word));
    }
    sum += rest.first().map_or(0, |b| u64::from(*b));
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    u32::try_from(sum).unwrap_or(0).wrapping_add(length)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A made-up stub: two sections, room for seven more headers.
    pub(crate) fn stub() -> Vec<u8> {
        let mut pe = vec![0u8; 0x400];
        pe[..2].copy_from_slice(b"MZ");
        put_u32(&mut pe, 0x3c, 0x80);
        pe[0x80..0x84].copy_from_slice(b"PE\0\0");
        let (coff, optional) = (0x84, 0x98);
        pe[coff + 2] = 2;
        pe[coff + 16] = 240;
        pe[optional..optional + 2].copy_from_slice(&0x20bu16.to_le_bytes());
        put_u32(&mut pe, optional + SECTION_ALIGNMENT, 0x200);
        put_u32(&mut pe, optional + FILE_ALIGNMENT, 0x200);
        put_u32(&mut pe, optional + SIZE_OF_HEADERS, 0x400);
        let table = optional + 240;
        for (i, (name, address)) in [(b".text\0\0\0", 0x1000u32), (b".sbat\0\0\0", 0x2000)].iter().enumerate()
        {
            let at = table + i * SECTION_HEADER;
            pe[at..at + 8].copy_from_slice(*name);
            put_u32(&mut pe, at + 8, 0x10);
            put_u32(&mut pe, at + 12, *address);
            put_u32(&mut pe, at + 16, 0x200);
            put_u32(&mut pe, at + 20, 0x400 + i as u32 * 0x200);
        }
        pe.resize(0x800, 0x90);
        pe
    }

    #[test]
    fn sections_are_appended_aligned_and_found_again() {
        let big = vec![7u8; 5000];
        let uki = assemble(&stub(), &[(".cmdline", b"quiet"), (".linux", &big)]).unwrap();
        let list = sections(&uki).unwrap();
        assert_eq!(
            list.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(),
            [".text", ".sbat", ".cmdline", ".linux"]
        );
        for section in &list[2..] {
            assert_eq!(section.address % PAGE, 0);
            assert_eq!(section.offset % 0x200, 0);
        }
        assert!(list.windows(2).all(|w| w[0].address + w[0].size <= w[1].address));
        assert_eq!(section(&uki, ".cmdline"), Some(&b"quiet"[..]));
        assert_eq!(section(&uki, ".linux"), Some(&big[..]));
        assert_eq!(section(&uki, ".none"), None);
        let last = &list[3];
        assert!(u32_at(&uki, 0x98 + SIZE_OF_IMAGE).unwrap() >= last.address + last.size);
        assert_eq!(&uki[0x400..0x800], &stub()[0x400..], "the stub's own bytes are unchanged");
    }

    #[test]
    fn a_full_header_is_refused() {
        let names: Vec<String> = (0..20).map(|i| format!(".s{i}")).collect();
        let parts: Vec<(&str, &[u8])> = names.iter().map(|n| (n.as_str(), &b"x"[..])).collect();
        assert_eq!(assemble(&stub(), &parts).unwrap_err(), "its header has no room for 20 more sections");
    }

    #[test]
    fn damaged_files_are_refused_not_followed() {
        assert!(sections(b"").is_err());
        assert!(sections(b"MZ").is_err());
        let mut far = stub();
        put_u32(&mut far, 0x3c, u32::MAX);
        assert!(sections(&far).is_err());
        for cut in 0..stub().len() {
            let _ = sections(&stub()[..cut]); // must not panic
        }
        let mut many = stub();
        many[0x86..0x88].copy_from_slice(&u16::MAX.to_le_bytes());
        assert_eq!(sections(&many).unwrap_err(), "it claims 65535 sections");
    }

    /// The checksum of a real file, as its linker computed it.
    #[test]
    fn checksum_agrees_with_the_stub_of_systemd() {
        let path = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub";
        let mut stub = std::fs::read(path).expect("install the Debian package systemd-boot-efi");
        let at = layout(&stub).unwrap().optional + CHECKSUM;
        let recorded = u32_at(&stub, at).unwrap();
        put_u32(&mut stub, at, 0);
        assert_eq!(checksum(&stub), recorded);
    }
}
