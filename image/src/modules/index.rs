//! The index from modaliases to modules: `docs/formats/image.md`, "Module index".
//!
//! Made here, so that PID 1 needs neither `depmod` nor the modules' own words: it looks an alias up and loads what
//! the line says, in that order.

use std::collections::{BTreeMap, BTreeSet};

use super::Module;
use crate::error::BuildError;

/// The first line.
const HEAD: &str = "evenkeel modules 1";
/// Bounds of PID 1's reader: bytes, modules, bytes of a pattern.
const SIZE_MAX: usize = 1 << 20;
const MODULES_MAX: usize = 1024;
const PATTERN_MAX: usize = 256;

/// The index of `modules`, which are in load order below `directory`. What they need beside each other is loaded
/// already when the index is used.
///
/// # Errors
/// It would be larger than PID 1 reads.
pub(crate) fn index(directory: &str, modules: &[Module]) -> Result<String, BuildError> {
    let numbers: BTreeMap<&str, usize> = modules.iter().zip(0..).map(|(m, i)| (m.name.as_str(), i)).collect();
    let mut needs: Vec<BTreeSet<usize>> = Vec::new();
    let mut lines: BTreeMap<String, BTreeSet<usize>> = BTreeMap::new();
    for (module, number) in modules.iter().zip(0..) {
        let before = module.info.soft.iter().chain(&module.info.depends);
        // Only what comes earlier in the load order: soft dependencies may point in circles.
        let before = before.filter_map(|name| numbers.get(name.as_str())).filter(|n| **n < number);
        let all: BTreeSet<usize> = before.flat_map(|n| needs[*n].clone()).chain([number]).collect();
        for pattern in module.info.aliases.iter().filter_map(|a| pattern(a)) {
            lines.entry(pattern).or_default().extend(&all);
        }
        needs.push(all);
    }
    let mut text = format!("{HEAD}\n{directory}\n");
    for module in modules {
        text.push_str(&format!("{} {}\n", if module.info.firmware { "f" } else { "m" }, module.path));
    }
    for (pattern, numbers) in lines {
        let numbers: Vec<String> = numbers.iter().map(usize::to_string).collect();
        text.push_str(&format!("{pattern} {}\n", numbers.join(" ")));
    }
    if text.len() > SIZE_MAX || modules.len() > MODULES_MAX {
        let found = format!("{} modules in {} bytes", modules.len(), text.len());
        let detail = format!("the index has {found}; PID 1 reads {MODULES_MAX} in {SIZE_MAX}");
        return Err(BuildError::BadTree { path: "/etc/evenkeel/modules.index".into(), detail });
    }
    Ok(text)
}

/// A module's alias as it is matched: `-` is `_`, as the kernel's tools have it. `None` for what no device of a bus
/// calls itself, like `fs-ext4`, `devname:loop` or a pattern for any bus.
fn pattern(alias: &str) -> Option<String> {
    let (bus, _) = alias.split_once(':')?;
    let plain = !bus.is_empty() && bus.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    let fits = alias.len() <= PATTERN_MAX && alias.bytes().all(|b| b.is_ascii_graphic());
    if !plain || !fits || bus == "devname" || bus == "symbol" {
        return None;
    }
    let mut bracket = false;
    let normal = |c| {
        bracket = (bracket || c == '[') && c != ']';
        if c == '-' && !bracket { '_' } else { c }
    };
    Some(alias.chars().map(normal).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::modules::ModInfo;

    fn module(name: &str, depends: &[&str], aliases: &[&str]) -> Module {
        let owned = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
        let info = ModInfo { depends: owned(depends), aliases: owned(aliases), ..ModInfo::default() };
        let file = format!("{name}.ko");
        Module { name: name.into(), path: format!("kernel/{file}"), file, bytes: Vec::new(), info }
    }

    #[test]
    fn a_line_names_all_that_has_to_be_loaded_in_order() {
        let mut modules = [
            module("mii", &[], &[]),
            module("usbnet", &["mii", "usbcore"], &[]),
            module("ax", &["usbnet"], &["usb:v0B95p1790d*", "net-pf-1", "devname:ax"]),
            module("xhci", &[], &["pci:v*bc0C*", "virtio-x:[a-b]-c"]),
            module("other", &[], &["pci:v*bc0C*", "dmi*:x", "pci:two words"]),
        ];
        modules[3].info.firmware = true;
        let golden = "evenkeel modules 1\n/lib/modules/6.12\nm kernel/mii.ko\nm kernel/usbnet.ko\nm kernel/ax.ko\n\
                      f kernel/xhci.ko\nm kernel/other.ko\npci:v*bc0C* 3 4\nusb:v0B95p1790d* 0 1 2\nvirtio_x:[a-b]_c 3\n";
        assert_eq!(index("/lib/modules/6.12", &modules).unwrap(), golden);
    }

    #[test]
    fn an_index_too_large_for_its_reader_is_refused() {
        let aliases: Vec<String> = (0..20_000).map(|i| format!("pci:{}{i}", "x".repeat(60))).collect();
        let aliases: Vec<&str> = aliases.iter().map(String::as_str).collect();
        let error = index("/lib", &[module("a", &[], &aliases)]).unwrap_err().to_string();
        assert!(error.contains("PID 1 reads 1024 in 1048576"), "{error}");
    }

    #[test]
    fn soft_circles_do_not_hold_it_up() {
        let mut modules = [module("a", &[], &["pci:a"]), module("b", &["a"], &["pci:b"])];
        modules[0].info.soft.push("b".into());
        let text = index("/l", &modules).unwrap();
        assert!(text.ends_with("pci:a 0\npci:b 0 1\n"), "{text}");
    }
}
