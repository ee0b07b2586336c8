//! Kernel modules from a list made by the image builder: one path per line, in load order.

use std::fs::{self, File};
use std::path::Path;

use crate::boot::own_files::Damage;
use crate::host::Host;
use crate::{clock, sys};

/// Lines of a list; today's have some forty.
const MODULES_MAX: usize = 512;

/// Loads every module of `list`, relative paths below `base`, but for those that are known as `damaged`. A failure is
/// said and the next one is tried: most modules serve hardware that this machine may not have.
pub(crate) fn load(host: &mut Host, list: &Path, base: &Path, damaged: &Damage) {
    let text = match fs::read_to_string(list) {
        Ok(text) => text,
        Err(error) => {
            host.log.warn(format_args!("no modules: {}: {}", list.display(), sys::errno_text(&error)));
            return;
        }
    };
    let began = clock::now();
    let (mut loaded, mut failed) = (0, 0);
    for line in entries(&text) {
        let path = base.join(line);
        if damaged.has(&path) {
            continue;
        }
        match File::open(&path).and_then(|file| sys::finit_module(&file)) {
            Ok(()) => loaded += 1,
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => loaded += 1,
            Err(error) => {
                failed += 1;
                host.log.warn(format_args!("module {}: {}", path.display(), sys::errno_text(&error)));
            }
        }
        host.feed();
    }
    let took = clock::now().since(began).as_millis();
    host.log.info(format_args!("{}: {loaded} modules loaded, {failed} refused, {took} ms", list.display()));
}

fn entries(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')).take(MODULES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blank_lines_and_comments_are_skipped() {
        let list = "# early\n/boot/modules/a.ko\n\n  b.ko \n";
        assert_eq!(entries(list).collect::<Vec<_>>(), ["/boot/modules/a.ko", "b.ko"]);
        assert_eq!(entries(&"x\n".repeat(1000)).count(), MODULES_MAX);
    }
}
