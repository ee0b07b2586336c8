//! The module index of the image (`docs/formats/image.md`, "Module index"): which modules a modalias wants.
//!
//! Read in the child that loads modules, never in PID 1: it is not worth keeping for the few times it is asked.

use std::collections::BTreeSet;

use super::glob;

/// The first line.
const HEAD: &str = "evenkeel modules 1";
/// Bounds of the format: bytes, modules, bytes of a pattern.
pub(crate) const SIZE_MAX: usize = 1 << 20;
const MODULES_MAX: usize = 1024;
const PATTERN_MAX: usize = 256;

/// A module of the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Module<'a> {
    /// Below the index's folder.
    pub(crate) path: &'a str,
    /// It names firmware files, which the image does not have.
    pub(crate) firmware: bool,
}

impl<'a> Module<'a> {
    /// The kernel's name for it: the file's, with `_` for `-`.
    pub(crate) fn name(self) -> String {
        let file = self.path.rsplit('/').next().unwrap_or(self.path);
        file.strip_suffix(".ko").unwrap_or(file).replace('-', "_")
    }
}

/// The index, with its numbers checked.
#[derive(Debug)]
pub(crate) struct Index<'a> {
    /// Where the modules' paths begin.
    pub(crate) directory: &'a str,
    modules: Vec<Module<'a>>,
    /// Pattern and numbers.
    lines: Vec<(&'a str, &'a str)>,
}

impl<'a> Index<'a> {
    /// Reads an index.
    ///
    /// # Errors
    /// The line, what was expected there and what was found.
    pub(crate) fn parse(text: &'a str) -> Result<Index<'a>, String> {
        let mut lines = (1..).zip(text.lines());
        if text.len() > SIZE_MAX {
            return Err(format!("it has {} bytes; at most {SIZE_MAX} are read", text.len()));
        }
        let mut expected = |what: &str, fits: fn(&str) -> bool| match lines.next() {
            Some((_, line)) if fits(line) => Ok(line),
            Some((number, line)) => Err(format!("line {number}: expected {what}, found {line:?}")),
            None => Err(format!("expected {what}, found its end")),
        };
        expected(HEAD, |line| line == HEAD)?;
        let directory = expected("the modules' folder", |line| line.starts_with('/'))?;
        let mut index = Index { directory, modules: Vec::new(), lines: Vec::new() };
        for (number, line) in lines {
            let bad = |what: &str| format!("line {number}: expected {what}, found {line:?}");
            let (first, rest) = line.split_once(' ').ok_or_else(|| bad("two words"))?;
            match first {
                "m" | "f" if index.lines.is_empty() => {
                    if index.modules.len() == MODULES_MAX {
                        return Err(bad(&format!("at most {MODULES_MAX} modules")));
                    }
                    index.modules.push(Module { path: rest, firmware: first == "f" });
                }
                pattern if pattern.len() > PATTERN_MAX => {
                    return Err(bad(&format!("a pattern of at most {PATTERN_MAX} bytes")));
                }
                pattern => {
                    if !ascending(rest, index.modules.len()) {
                        return Err(bad("ascending numbers of modules above"));
                    }
                    index.lines.push((pattern, rest));
                }
            }
        }
        Ok(index)
    }

    /// The numbers of all modules that a device with `modalias` wants. Their order is a load order, also for the
    /// numbers of several devices together.
    pub(crate) fn wanted(&self, modalias: &str) -> BTreeSet<usize> {
        let alias = modalias.replace('-', "_");
        let lines = self.lines.iter().filter(|(pattern, _)| glob::matches(pattern, &alias));
        lines.flat_map(|(_, list)| numbers(list).flatten()).collect()
    }

    /// The module with a number that [`Index::wanted`] gave.
    pub(crate) fn module(&self, number: usize) -> Option<Module<'a>> {
        self.modules.get(number).copied()
    }
}

fn numbers(list: &str) -> impl Iterator<Item = Option<usize>> {
    list.split(' ').map(|number| number.parse().ok())
}

/// Whether `list` has numbers below `count` only, each larger than the one before.
fn ascending(list: &str, count: usize) -> bool {
    let mut least = 0;
    numbers(list).all(|number| {
        let Some(number) = number else { return false };
        let fits = (least..count).contains(&number);
        least = number.saturating_add(1);
        fits
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: &str = "evenkeel modules 1\n/lib/modules/6.12\nm kernel/mii.ko\nm kernel/usb-net.ko\nf kernel/ax.ko\n\
                        m kernel/xhci.ko\npci:v*bc0C* 3\nusb:v0B95p1790d* 0 1 2\nvirtio_x:* 0 3\n";

    #[test]
    fn a_modalias_wants_modules_in_load_order() {
        let index = Index::parse(TEXT).unwrap();
        assert_eq!(index.directory, "/lib/modules/6.12");
        let wanted = |alias| index.wanted(alias).into_iter().collect::<Vec<_>>();
        assert_eq!(wanted("usb:v0B95p1790d0100"), [0, 1, 2]);
        assert_eq!(wanted("pci:v00001B36bc0Csc03"), [3]);
        assert_eq!(wanted("virtio-x:d1"), [0, 3], "the kernel's tools take - for _");
        assert_eq!(wanted("pci:v00001B36bc0Dsc03"), [0_usize; 0]);
        assert_eq!(index.module(2), Some(Module { path: "kernel/ax.ko", firmware: true }));
        assert_eq!(index.module(1).unwrap().name(), "usb_net");
        assert_eq!(index.module(4), None);
    }

    #[test]
    fn what_is_no_index_is_refused_with_its_line() {
        let many = format!("{HEAD}\n/l\n{}", "m a.ko\n".repeat(MODULES_MAX + 1));
        let long = format!("{HEAD}\n/l\nm a.ko\n{} 0\n", "p".repeat(PATTERN_MAX + 1));
        let large = " ".repeat(SIZE_MAX + 1);
        for (text, why) in [
            ("", "expected evenkeel modules 1, found its end"),
            ("evenkeel modules 2\n", "line 1: expected evenkeel modules 1"),
            ("evenkeel modules 1\nlib\n", "line 2: expected the modules' folder"),
            ("evenkeel modules 1\n/l\nm\n", "line 3: expected two words"),
            ("evenkeel modules 1\n/l\nm a\npci:* 0\nm b\n", "line 5: expected ascending"),
            ("evenkeel modules 1\n/l\nm a\npci:* 1\n", "line 4: expected ascending"),
            ("evenkeel modules 1\n/l\nm a\nm b\npci:* 1 0\n", "line 5: expected ascending"),
            ("evenkeel modules 1\n/l\nm a\npci:* 0 0\n", "line 4: expected ascending"),
            (&many, "at most 1024 modules"),
            (&long, "at most 256 bytes"),
            (&large, "at most 1048576 are read"),
        ] {
            let error = Index::parse(text).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    proptest! {
        #[test]
        fn damage_is_an_error_or_an_index(at in 0..TEXT.len(), byte in 0_u8..128) {
            let mut text = TEXT.as_bytes().to_vec();
            text[at] = byte;
            let text = String::from_utf8(text).unwrap();
            if let Ok(index) = Index::parse(&text) {
                let wanted = index.wanted("usb:v0B95p1790d0100");
                prop_assert!(wanted.iter().all(|number| index.module(*number).is_some()));
            }
        }
    }
}
