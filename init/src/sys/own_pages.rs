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

/// Does it. The pages come back from the page cache, by a fault each that does not wait for a disk: the file is in
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
    use std::fs;

    /// (start, resident KiB, locked) of each mapping in `/proc/self/smaps`.
    fn mappings() -> Vec<(usize, usize, bool)> {
        let text = fs::read_to_string("/proc/self/smaps").expect("read");
        let mut found = Vec::new();
        for line in text.lines() {
            let words: Vec<_> = line.split_whitespace().collect();
            if let Some((start, _)) = words[0].split_once('-') {
                found.push((usize::from_str_radix(start, 16).expect("an address"), 0, false));
            } else if let Some(last) = found.last_mut() {
                match words[..] {
                    ["Rss:", size, _] => last.1 = size.parse().expect("a size"),
                    ["VmFlags:", ref flags @ ..] => last.2 = flags.contains(&"lo"),
                    _ => {}
                }
            }
        }
        found
    }

    #[test]
    fn what_is_not_used_leaves_memory() {
        let ranges: Vec<_> = read_only_pages().collect();
        let size = ranges.iter().map(|r| r.len() >> 10).sum::<usize>();
        let code = what_is_not_used_leaves_memory as fn() as usize;
        assert!(ranges.iter().any(|r| r.contains(&code)), "{code:#x} is not in {ranges:x?}");
        // All of it is in memory, as after a start that the kernel helped along.
        let touched: usize = ranges
            .iter()
            .flat_map(|r| r.clone().step_by(PAGE))
            // SAFETY: a byte of a readable mapping.
            .map(|address| usize::from(unsafe { std::ptr::read_volatile(address as *const u8) }))
            .sum();
        assert!(touched > 0);
        let resident = |mappings: &[(usize, usize, bool)]| {
            let ours = mappings.iter().filter(|m| ranges.iter().any(|r| r.contains(&m.0)));
            ours.map(|m| m.1).sum::<usize>()
        };
        assert_eq!(resident(&mappings()), size);
        let done = keep_the_used();
        let after = mappings();
        assert!(resident(&after) < size, "{} of {size} KiB are still there", resident(&after));
        // Without root's rights the limit may be below the program's size.
        let locked = after.iter().filter(|m| ranges.iter().any(|r| r.contains(&m.0))).all(|m| m.2);
        assert_eq!(locked, done.is_ok(), "{done:?}");
        // Other tests of this program go on without the lock.
        for r in ranges {
            // SAFETY: changes no content.
            unsafe { libc::munlock(r.start as *const libc::c_void, r.len()) };
        }
    }
}
