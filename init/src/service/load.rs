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
