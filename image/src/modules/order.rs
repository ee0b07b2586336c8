//! Puts modules into a load order: everything a module needs comes before it, each once, in the order asked for.

use std::collections::BTreeSet;

use super::{ModInfo, normalised};
use crate::error::BuildError;

/// A module somebody wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Want {
    pub name: String,
    /// Its absence from the kernel is no error.
    pub optional: bool,
}

impl Want {
    pub(crate) fn must(name: &str) -> Self {
        Self { name: normalised(name), optional: false }
    }

    pub(crate) fn may(name: &str) -> Self {
        Self { name: normalised(name), optional: true }
    }
}

struct Walk<'a> {
    builtin: &'a [String],
    kernel: &'a str,
    have: &'a mut dyn FnMut(&str) -> Result<Option<ModInfo>, BuildError>,
    done: BTreeSet<String>,
    order: Vec<String>,
}

/// Orders the wanted modules with everything they need. `have` reads a module's own words, or says that the
/// kernel has none of that name.
pub(crate) fn load_order(
    wanted: &[Want],
    builtin: &[String],
    kernel: &str,
    have: &mut dyn FnMut(&str) -> Result<Option<ModInfo>, BuildError>,
) -> Result<Vec<String>, BuildError> {
    let mut walk = Walk { builtin, kernel, have, done: BTreeSet::new(), order: Vec::new() };
    for want in wanted {
        walk.visit(&want.name, want.optional, &mut Vec::new())?;
    }
    Ok(walk.order)
}

impl Walk<'_> {
    /// `path`: the modules on the way here, to see a cycle and to name who asks.
    fn visit(&mut self, name: &str, optional: bool, path: &mut Vec<String>) -> Result<(), BuildError> {
        if self.done.contains(name) || self.builtin.iter().any(|b| b == name) {
            return Ok(());
        }
        if let Some(start) = path.iter().position(|p| p == name) {
            let mut chain = path[start..].to_vec();
            chain.push(name.to_owned());
            return Err(BuildError::ModuleCycle { chain: chain.join(" -> ") });
        }
        let Some(info) = (self.have)(name)? else {
            if optional {
                return Ok(());
            }
            return Err(BuildError::NoModule {
                module: name.to_owned(),
                by: path.last().cloned(),
                kernel: self.kernel.to_owned(),
            });
        };
        path.push(name.to_owned());
        for soft in &info.soft {
            // Soft dependencies may point in circles; what is on the way already is simply not loaded earlier.
            if !path.contains(soft) {
                self.visit(soft, true, path)?;
            }
        }
        for needed in &info.depends {
            self.visit(needed, false, path)?;
        }
        path.pop();
        self.done.insert(name.to_owned());
        self.order.push(name.to_owned());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `name: depends / soft`
    fn order(table: &[(&str, &[&str], &[&str])], wanted: &[Want]) -> Result<Vec<String>, String> {
        let mut have = |name: &str| {
            Ok(table.iter().find(|(n, _, _)| *n == name).map(|(_, depends, soft)| ModInfo {
                depends: depends.iter().map(|s| (*s).to_owned()).collect(),
                soft: soft.iter().map(|s| (*s).to_owned()).collect(),
                ..ModInfo::default()
            }))
        };
        load_order(wanted, &["ext4".into()], "k", &mut have).map_err(|e| e.to_string())
    }

    #[test]
    fn dependencies_first_each_once_in_the_order_asked() {
        let table: &[(&str, &[&str], &[&str])] = &[
            ("virtio_net", &["net_failover"], &[]),
            ("net_failover", &["failover"], &[]),
            ("failover", &[], &[]),
            ("libcrc32c", &[], &["crc32c_generic"]),
            ("crc32c_generic", &[], &[]),
            ("nf_tables", &["nfnetlink", "libcrc32c"], &[]),
            ("nfnetlink", &[], &["absent"]),
        ];
        for (wanted, expected) in [
            (vec!["virtio_net"], vec!["failover", "net_failover", "virtio_net"]),
            (vec!["virtio_net", "failover"], vec!["failover", "net_failover", "virtio_net"]),
            (vec!["ext4", "nf-tables"], vec!["nfnetlink", "crc32c_generic", "libcrc32c", "nf_tables"]),
        ] {
            let wanted: Vec<Want> = wanted.into_iter().map(Want::must).collect();
            assert_eq!(order(table, &wanted).unwrap(), expected);
        }
    }

    #[test]
    fn absent_modules_matter_unless_optional() {
        assert_eq!(order(&[], &[Want::may("gone")]).unwrap(), Vec::<String>::new());
        assert!(order(&[], &[Want::must("gone")]).unwrap_err().starts_with("kernel k has no module gone"));
        let error = order(&[("a", &["gone"], &[])], &[Want::may("a")]).unwrap_err();
        assert!(error.starts_with("kernel k has no module gone (needed by a)"), "{error}");
    }

    #[test]
    fn circles_are_named_but_soft_ones_are_harmless() {
        let error = order(&[("a", &["b"], &[]), ("b", &["a"], &[])], &[Want::must("a")]).unwrap_err();
        assert!(error.starts_with("the modules a -> b -> a need each other"), "{error}");
        assert_eq!(order(&[("a", &[], &["b"]), ("b", &["a"], &[])], &[Want::must("b")]).unwrap(), ["a", "b"]);
    }
}
