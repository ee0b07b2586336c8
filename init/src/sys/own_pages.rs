//! Which pages of this program's own file are in its memory.
//!
//! The kernel maps a file's pages in large pieces, and a start runs through code that nothing needs again: parsers,
//! mounts, drivers. [`keep_the_used`] gives all of them back and locks what comes in from then on, so that the path
//! from a service's death to its next start is in memory because it has been taken, and nothing else is.
//!
//! Only what cannot be written: there is no swap, so that data never leaves memory anyway.

use std::io;
use std::ops::Range;

use super::check;

/// `mlock2(2)`: pages are locked when they are first used, not now.
const MLOCK_ONFAULT: libc::c_uint = 1;
const PAGE: usize = 4096;

/// Does it, once: what is locked is not given back. The pages come back from the page cache, by a fault each that does not wait for a disk: the file is in
/// memory as a whole.
///
/// # Errors
/// When they may not be locked (`RLIMIT_MEMLOCK`, without root's rights). They were given back nevertheless.
pub(crate) fn keep_the_used() -> io::Result<()> {
    let mut locked = Ok(());
    for pages in read_only_pages() {
        let (start, length) = (pages.start as *mut libc::c_void, pages.len());
        // SAFETY: the range is one mapping of the program's file that is never written to: what is given back is read
        // from the file when it is used next.
        check(unsafe { libc::madvise(start, length, libc::MADV_DONTNEED) })?;
        // SAFETY: changes no content.
        let r = unsafe { libc::syscall(libc::SYS_mlock2, start, length, MLOCK_ONFAULT) };
        locked = locked.and(check(r as libc::c_int).map(drop));
    }
    locked
}

/// The program's segments without write permission, in whole pages (elf(5), getauxval(3)).
fn read_only_pages() -> impl Iterator<Item = Range<usize>> {
    // SAFETY: integers in, integers out.
    let (address, count) = unsafe { (libc::getauxval(libc::AT_PHDR), libc::getauxval(libc::AT_PHNUM)) };
    let headers: &[libc::Elf64_Phdr] = match address {
        0 => &[],
        // SAFETY: the kernel gives the place and the number of the program's own headers, which stay where they are.
        _ => unsafe { std::slice::from_raw_parts(address as *const libc::Elf64_Phdr, count as usize) },
    };
    let own = headers.iter().find(|h| h.p_type == libc::PT_PHDR);
    // Where the program was loaded, against the addresses in its file.
    let base = own.map_or(0, |own| (address as usize).wrapping_sub(own.p_vaddr as usize));
    let loaded = headers.iter().filter(|h| h.p_type == libc::PT_LOAD && h.p_flags & libc::PF_W == 0);
    loaded.map(move |h| {
        let start = base.wrapping_add(h.p_vaddr as usize);
        start & !(PAGE - 1)..(start + h.p_memsz as usize).next_multiple_of(PAGE)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU8;

    #[test]
    fn code_is_read_only_and_data_is_not() {
        static WRITTEN: AtomicU8 = AtomicU8::new(1);
        let ranges: Vec<_> = read_only_pages().collect();
        let is_ours = |address: usize| ranges.iter().any(|r| r.contains(&address));
        let code = code_is_read_only_and_data_is_not as fn() as usize;
        assert!(is_ours(code), "{code:#x} is not in {ranges:x?}");
        let data = (&raw const WRITTEN) as usize;
        assert!(!is_ours(data), "{data:#x}, which can be written, is in {ranges:x?}");
    }
}
