//! The services of a directory.

use std::fs;
use std::path::Path;

use super::spawn;
use super::unit::{self, Refusal, SERVICES_MAX, Unit};
use crate::sys;

/// Reads and checks all service files of `directory`. Units are in name order.
pub(crate) fn load(directory: &Path) -> (Vec<Unit>, Vec<Refusal>) {
    let mut parsed = Vec::new();
    let mut refused = Vec::new();
    let mut files: Vec<_> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.extension().is_some_and(|e| e == "toml"))
        .collect();
    files.sort();
    files.truncate(SERVICES_MAX);
    for path in files {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let result = match fs::read_to_string(&path) {
            Ok(text) => unit::parse(&name, &text),
            Err(error) => Err(Refusal::unreadable(&name, sys::errno_text(&error))),
        };
        match result {
            Ok(p) => parsed.push(p),
            Err(r) => refused.push(r),
        }
    }
    let units = unit::check(parsed, &mut refused, spawn::missing);
    (units, refused)
}

/// Leaves out the services `names`, and what requires them, for the reason `why`: they are among the refused then.
pub(crate) fn leave_out(
    mut units: Vec<Unit>,
    refused: &mut Vec<Refusal>,
    names: &[&str],
    why: &str,
) -> Vec<Unit> {
    let mut gone: Vec<String> = Vec::new();
    loop {
        let lost = units
            .iter()
            .position(|u| names.contains(&u.name.as_str()) || u.requires.iter().any(|r| gone.contains(r)));
        let Some(lost) = lost else { return units };
        let unit = units.remove(lost);
        let message = match unit.requires.iter().find(|r| gone.contains(*r)) {
            Some(required) if !names.contains(&unit.name.as_str()) => {
                format!("not started: requires {required}, which is not started")
            }
            _ => format!("not started: {why}"),
        };
        refused.push(Refusal {
            file: format!("{}.toml", unit.name),
            line: 0,
            key: String::new(),
            message,
            name: unit.name.clone(),
        });
        gone.push(unit.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_takes_along_what_requires_it() {
        let files = [
            ("a", "requires = ['b']"),
            ("b", "requires = ['netd']"),
            ("c", "after = ['netd']"),
            ("netd", "requires = ['provisiond']"),
            ("provisiond", ""),
        ];
        let parsed = files
            .map(|(name, rest)| unit::parse(name, &format!("command = ['/bin/{name}']\n{rest}\n")).unwrap());
        let mut refused = Vec::new();
        let units = unit::check(parsed.into(), &mut refused, |_| None);
        let units = leave_out(units, &mut refused, &["netd", "provisiond"], "w");
        assert_eq!(units.iter().map(|u| u.name.as_str()).collect::<Vec<_>>(), ["c"]);
        let mut said: Vec<_> = refused.iter().map(ToString::to_string).collect();
        said.sort();
        assert_eq!(
            said,
            [
                "a.toml: not started: requires b, which is not started",
                "b.toml: not started: requires netd, which is not started",
                "netd.toml: not started: w",
                "provisiond.toml: not started: w",
            ]
        );
    }
}
