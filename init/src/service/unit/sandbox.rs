//! `[sandbox]`: what a service sees of the system and which system calls it may make.

use std::collections::BTreeSet;

use serde::Deserialize;

use super::Refusal;
use super::place::{Source, Words, shorten};
use super::system_calls;

/// The walls around a service. The default has none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sandbox {
    /// The only system calls it may make, by number. All when absent.
    pub(crate) system_calls: Option<BTreeSet<i64>>,
    /// The only paths it may use. All when absent.
    pub(crate) paths: Option<Paths>,
    /// Every mount is read-only but a private `/tmp` and the writable paths.
    pub(crate) read_only_root: bool,
    /// An empty `/tmp` of its own.
    pub(crate) private_tmp: bool,
    /// Its mounts and unmounts are its own; implied by the two above.
    pub(crate) private_mounts: bool,
    /// No network: a network namespace of its own in which nothing is up.
    pub(crate) no_network: bool,
}

/// Files and directories a service may use, with all below them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Paths {
    /// To read and to execute.
    pub(crate) read: Vec<String>,
    /// To read, to write, to make and to remove.
    pub(crate) write: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Raw {
    system_calls: Option<Words>,
    read: Option<Words>,
    write: Option<Words>,
    #[serde(default)]
    read_only_root: bool,
    #[serde(default)]
    private_tmp: bool,
    #[serde(default)]
    private_mounts: bool,
    network: Option<bool>,
}

/// # Errors
/// The first key that breaks a rule.
pub(super) fn parse(raw: Option<&Raw>, source: &Source<'_>) -> Result<Sandbox, Refusal> {
    let Some(raw) = raw else { return Ok(Sandbox::default()) };
    let paths = match (&raw.read, &raw.write) {
        (None, None) => None,
        (read, write) => Some(Paths {
            read: path_list(read.as_ref(), "sandbox.read", source)?,
            write: path_list(write.as_ref(), "sandbox.write", source)?,
        }),
    };
    if let (Some(write), true) = (&raw.write, raw.read_only_root)
        && write.get_ref().iter().any(|p| p.get_ref().bytes().all(|b| b == b'/'))
    {
        let rule = "\"/\" is everything: leave read_only_root out".to_owned();
        return Err(source.refuse_value(write, "sandbox.write", rule));
    }
    Ok(Sandbox {
        system_calls: raw.system_calls.as_ref().map(|s| allowed(s, source)).transpose()?,
        paths,
        read_only_root: raw.read_only_root,
        private_tmp: raw.private_tmp,
        private_mounts: raw.private_mounts || raw.private_tmp || raw.read_only_root,
        no_network: raw.network == Some(false),
    })
}

fn allowed(names: &Words, source: &Source<'_>) -> Result<BTreeSet<i64>, Refusal> {
    let key = "sandbox.system_calls";
    let mut numbers = BTreeSet::new();
    if names.get_ref().is_empty() {
        let rule = "is empty: name the calls it needs, or \"@service\"; leave it out for all".to_owned();
        return Err(source.refuse_value(names, key, rule));
    }
    // Not `Source::words`: a list of single calls is longer than other lists.
    for (i, name) in names.get_ref().iter().enumerate() {
        let Some(found) = system_calls::lookup(name.get_ref()) else {
            let rule = format!(
                "expected a system call like \"openat\" or \"@service\", found {:?}",
                shorten(name.get_ref())
            );
            return Err(source.refuse_value(name, &format!("{key}[{i}]"), rule));
        };
        numbers.extend(found);
    }
    Ok(numbers)
}

fn path_list(list: Option<&Words>, key: &str, source: &Source<'_>) -> Result<Vec<String>, Refusal> {
    let Some(list) = list else { return Ok(Vec::new()) };
    let paths = source.words(list, key)?;
    for (i, (path, place)) in paths.iter().zip(list.get_ref()).enumerate() {
        if !path.starts_with('/') || path.split('/').any(|part| part == ".." || part == ".") {
            let rule =
                format!("expected an absolute path without \".\" and \"..\", found {:?}", shorten(path));
            return Err(source.refuse_value(place, &format!("{key}[{i}]"), rule));
        }
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::unit::tests::{refused, unit};

    #[test]
    fn the_walls_are_read() {
        let s = unit(
            "[sandbox]\nsystem_calls = ['read', 'write']\nread = ['/etc', '/lib']\nwrite = ['/run/a']\n\
             read_only_root = true\nnetwork = false",
        )
        .sandbox;
        assert_eq!(s.system_calls, Some(BTreeSet::from([libc::SYS_read, libc::SYS_write])));
        let paths = s.paths.unwrap();
        assert_eq!((paths.read.len(), paths.write), (2, vec!["/run/a".to_owned()]));
        assert!(s.read_only_root && s.private_mounts && s.no_network && !s.private_tmp);
        assert_eq!(unit("[sandbox]\nnetwork = true").sandbox, Sandbox::default());
        assert!(unit("[sandbox]\nprivate_tmp = true").sandbox.private_mounts);
        // An empty list is not no list: nothing may be read.
        assert_eq!(unit("[sandbox]\nread = []").sandbox.paths, Some(Paths::default()));
    }

    #[test]
    fn each_breach_names_line_and_key() {
        let cases = [
            ("[sandbox]\nsystem_call = []", "a.toml:3: sandbox.system_call: unknown field"),
            ("[sandbox]\nsystem_calls = []", "a.toml:3: sandbox.system_calls: is empty"),
            (
                "[sandbox]\nsystem_calls = ['opn']",
                "a.toml:3: sandbox.system_calls[0]: expected a system call",
            ),
            ("[sandbox]\nread = ['etc']", "a.toml:3: sandbox.read[0]: expected an absolute path"),
            ("[sandbox]\nwrite = ['/a',\n'/run/../etc']", "a.toml:4: sandbox.write[1]: expected an absolute"),
            (
                "[sandbox]\nread_only_root = true\nwrite = ['/']",
                "a.toml:4: sandbox.write: \"/\" is everything",
            ),
            ("[sandbox]\nnetwork = 'no'", "a.toml:3: sandbox.network: invalid type"),
        ];
        for (text, expected) in cases {
            assert!(refused(text).starts_with(expected), "{text}: {}", refused(text));
        }
    }
}
