//! Kernel modules: which ones an image carries and in which order they are loaded.
//!
//! The order is computed at build time and written as a flat list: PID 1 loads line by line and needs no
//! knowledge of dependencies. `depends=` in a module's own `.modinfo` is the source; file names may spell `-`
//! where `depends` has `_`. Modules for devices that a machine may or may not have are listed in an index by the
//! modaliases they serve, each line with all that has to be loaded.

mod index;
mod lists;
mod modinfo;
mod order;

pub(crate) use index::index;
pub(crate) use lists::{device_names, early_names, rescue_names, root_names};
pub(crate) use modinfo::ModInfo;
pub(crate) use order::{Want, load_order};

use std::collections::BTreeMap;

use crate::deb::{self, Kernel};
use crate::error::BuildError;

/// The modules of one kernel, by normalised name.
pub(crate) struct Catalogue<'a> {
    kernel: &'a Kernel,
    paths: BTreeMap<String, &'a str>,
    builtin: Vec<String>,
}

/// A module ready to be put into a tree.
#[derive(Debug, Clone)]
pub(crate) struct Module {
    /// Normalised name (`virtio_net`).
    pub name: String,
    /// File name without compression (`virtio_net.ko`).
    pub file: String,
    /// Path below `lib/modules/RELEASE/`, without compression.
    pub path: String,
    pub bytes: Vec<u8>,
    pub info: ModInfo,
}

/// `-` and `_` are one character in module names.
pub(crate) fn normalised(name: &str) -> String {
    name.replace('-', "_")
}

/// `kernel/fs/fat/fat.ko.xz` → `fat`.
fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    normalised(file.split_once(".ko").map_or(file, |(name, _)| name))
}

impl<'a> Catalogue<'a> {
    pub(crate) fn new(kernel: &'a Kernel) -> Self {
        let paths = kernel.modules.keys().map(|path| (name_of(path), path.as_str())).collect();
        let builtin = kernel.builtin.iter().map(|path| name_of(path)).collect();
        Self { kernel, paths, builtin }
    }

    /// Names of the watchdog drivers, for a message.
    pub(crate) fn watchdogs(&self) -> Vec<String> {
        let kind = "kernel/drivers/watchdog/";
        let modules = self.kernel.modules.keys().map(String::as_str);
        let builtin = self.kernel.builtin.iter().map(String::as_str);
        let mut names: Vec<String> =
            modules.chain(builtin).filter(|path| path.starts_with(kind)).map(name_of).collect();
        // The common part and its policies are no drivers.
        names.retain(|name| name != "watchdog" && !name.starts_with("pretimeout_"));
        names.sort();
        names
    }

    /// Whether a name is a watchdog driver of this kernel.
    pub(crate) fn is_watchdog(&self, name: &str) -> bool {
        self.watchdogs().contains(&normalised(name))
    }

    /// Loads the wanted modules and everything they need, in load order, without those in `loaded`.
    pub(crate) fn select(&self, wanted: &[Want], loaded: &[Module]) -> Result<Vec<Module>, BuildError> {
        let mut read = BTreeMap::new();
        let mut have = |name: &str| -> Result<Option<ModInfo>, BuildError> {
            let Some(path) = self.paths.get(name) else { return Ok(None) };
            let damaged = |detail: String| BuildError::DamagedModule {
                module: name.to_owned(),
                kernel: self.kernel.release.clone(),
                detail,
            };
            let module =
                deb::module_bytes(path, &self.kernel.modules[*path]).map_err(|e| damaged(e.to_string()))?;
            let info = ModInfo::of(&module).map_err(damaged)?;
            read.insert(name.to_owned(), (module, info.clone()));
            Ok(Some(info))
        };
        let order = load_order(wanted, &self.builtin, &self.kernel.release, &mut have)?;
        let rest = order.into_iter().filter(|name| !loaded.iter().any(|m| m.name == *name));
        Ok(rest
            .map(|name| {
                let path = self.paths[&name];
                let path = path.split_once(".ko").map_or(path.to_owned(), |(stem, _)| format!("{stem}.ko"));
                let file = path.rsplit('/').next().unwrap_or(&path).to_owned();
                let (bytes, info) = read.remove(&name).expect("an ordered module has been read");
                Module { name, file, path, bytes, info }
            })
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deb::tests::xz;
    use crate::modules::modinfo::tests::elf;

    fn kernel() -> Kernel {
        let mut kernel = Kernel { release: "6.12-test".into(), ..Kernel::default() };
        for (path, info) in [
            ("kernel/drivers/watchdog/i6300esb.ko.xz", "name=i6300esb\0depends=watchdog\0"),
            ("kernel/drivers/watchdog/watchdog.ko.xz", "name=watchdog\0depends=\0"),
            ("kernel/drivers/char/hw_random/virtio-rng.ko.xz", "name=virtio_rng\0depends=\0"),
            ("kernel/net/broken.ko.xz", "depends=not_there\0"),
        ] {
            kernel.modules.insert(path.into(), xz(&elf(info.as_bytes())));
        }
        kernel.builtin.push("kernel/drivers/watchdog/wdat_wdt.ko".into());
        kernel
    }

    #[test]
    fn modules_come_with_what_they_need_once() {
        let kernel = kernel();
        let catalogue = Catalogue::new(&kernel);
        let early = catalogue.select(&[Want::must("i6300esb")], &[]).unwrap();
        assert_eq!(early.iter().map(|m| m.file.as_str()).collect::<Vec<_>>(), ["watchdog.ko", "i6300esb.ko"]);
        assert_eq!(early[1].path, "kernel/drivers/watchdog/i6300esb.ko");
        let wanted =
            [Want::must("virtio_rng"), Want::must("i6300esb"), Want::must("wdat_wdt"), Want::may("fat")];
        let rest = catalogue.select(&wanted, &early).unwrap();
        assert_eq!(rest.iter().map(|m| m.file.as_str()).collect::<Vec<_>>(), ["virtio-rng.ko"]);
    }

    #[test]
    fn a_missing_module_is_named_with_who_wants_it() {
        let kernel = kernel();
        let catalogue = Catalogue::new(&kernel);
        let error = catalogue.select(&[Want::must("vfat")], &[]).unwrap_err().to_string();
        assert!(error.starts_with("kernel 6.12-test has no module vfat: "), "{error}");
        let error = catalogue.select(&[Want::must("broken")], &[]).unwrap_err().to_string();
        assert!(
            error.starts_with("kernel 6.12-test has no module not_there (needed by broken): "),
            "{error}"
        );
    }

    #[test]
    fn watchdog_drivers_are_listed() {
        let kernel = kernel();
        let catalogue = Catalogue::new(&kernel);
        assert_eq!(catalogue.watchdogs(), ["i6300esb", "wdat_wdt"]);
        assert!(catalogue.is_watchdog("i6300esb"));
        assert!(!catalogue.is_watchdog("virtio-rng"));
    }
}
