//! Service files: `/etc/evenkeel/services/NAME.toml`, parsed and checked. Pure: text in, units or refusals out.
//!
//! ```text
//! text --parse--> unit with its places --check, with all the others--> unit
//!           \-> refusal                    \-> refusal
//! ```
//! A file that breaks a rule is refused alone, with its line and key; what *requires* it is refused with it, since
//! it could never start; what only comes *after* it boots without it. `docs/formats/service.md` is the user's page.

mod check;
mod limits;
mod parse;
mod place;
mod privileges;
mod sandbox;
mod socket;
mod system_calls;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use proto::control::SERVICE_NAME_MAX;
use serde::Deserialize;

pub(crate) use check::check;
pub(crate) use limits::{GroupLimits, Limits};
pub(crate) use parse::{Parsed, parse};
use place::shorten;
pub(crate) use privileges::Privileges;
pub(crate) use sandbox::Sandbox;
pub(crate) use socket::{Address, Kind, Socket};

/// Services of one image; the rows of all of them must fit one control packet.
pub(crate) const SERVICES_MAX: usize = 128;
/// Bytes of a service file; real ones have a few hundred.
pub(crate) const FILE_MAX: usize = 16 * 1024;

/// A service as init runs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unit {
    /// The file's name without `.toml`.
    pub(crate) name: String,
    /// Program (absolute path) and arguments; never empty.
    pub(crate) command: Vec<String>,
    /// Started once these are ready or have failed to become ready once.
    pub(crate) after: Vec<String>,
    /// Not started for the first time before these are ready.
    pub(crate) requires: Vec<String>,
    /// What makes it ready.
    pub(crate) ready: Readiness,
    /// How long it may take to become ready.
    pub(crate) ready_timeout: Duration,
    /// Whether it is started again when it ends.
    pub(crate) restart: Restart,
    /// The signal that asks it to stop.
    pub(crate) stop_signal: StopSignal,
    /// How long it may take to stop before it is killed.
    pub(crate) stop_timeout: Duration,
    /// The terminal it gets as standard input, output and error; without one its output is kept by init.
    pub(crate) tty: Option<String>,
    /// How often it must write a line once it is ready.
    pub(crate) watchdog: Option<Duration>,
    /// Whether it may have addresses deleted at its end.
    pub(crate) fence: bool,
    /// Whether its memory is passed from life to life.
    pub(crate) keeps_memory: bool,
    /// Environment beside `PATH` and `TERM`.
    pub(crate) environment: BTreeMap<String, String>,
    /// Who it runs as.
    pub(crate) privileges: Privileges,
    /// What it sees of the system.
    pub(crate) sandbox: Sandbox,
    /// How much of the machine it may use.
    pub(crate) limits: Limits,
    /// Sockets made for it.
    pub(crate) sockets: Vec<Socket>,
}

/// What makes a service ready.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Readiness {
    /// A line on the descriptor named by `NOTIFY_FD`.
    Notify,
    /// The program was executed.
    #[default]
    Exec,
}

/// Whether a service is started again when it ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Restart {
    /// However it ended.
    #[default]
    Always,
    /// Unless it exited with code 0.
    OnFailure,
    /// Not at all.
    Never,
}

/// The signals a file may ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(crate) enum StopSignal {
    #[default]
    Term,
    Int,
    Quit,
    Hup,
    Usr1,
    Usr2,
    Kill,
}

/// Why a file was refused. The other files are not affected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// The service's name.
    pub(crate) name: String,
    /// The file's name.
    pub(crate) file: String,
    /// Line, from 1; 0 when the file as a whole is meant.
    pub(crate) line: usize,
    /// The key; empty when the file as a whole is meant.
    pub(crate) key: String,
    /// What is wrong and what to do.
    pub(crate) message: String,
}

impl Refusal {
    /// A file that could not be read at all.
    pub(crate) fn unreadable(name: &str, why: String) -> Refusal {
        let (name, file) = (shorten(name), shorten(&format!("{name}.toml")));
        Refusal { name, file, line: 0, key: String::new(), message: format!("cannot be read: {why}") }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}", self.message)
    }
}

/// Whether `name` may name a service: it becomes a file name, a cgroup's name and a word on the console.
pub(crate) fn service_name(name: &str) -> bool {
    name.len() <= SERVICE_NAME_MAX
        && name.bytes().next().is_some_and(|b| b.is_ascii_lowercase())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The service `a` of a file that says `rest` after its command.
    pub(super) fn unit(rest: &str) -> Unit {
        parse("a", &format!("command = ['/bin/a']\n{rest}\n")).unwrap().unit
    }

    /// The refusal of such a file; its first line is the second of the file.
    pub(super) fn refused(rest: &str) -> String {
        parse("a", &format!("command = ['/bin/a']\n{rest}\n")).expect_err(rest).to_string()
    }

    /// The image's own files are read here, not for the first time on a machine.
    #[test]
    fn the_services_of_the_image_run_in_their_walls() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let mut units = BTreeMap::new();
        for directory in ["image/root", "qemu/overlay"] {
            for file in std::fs::read_dir(root.join(directory).join("etc/evenkeel/services")).unwrap() {
                let path = file.unwrap().path();
                let name = path.file_stem().unwrap().to_str().unwrap();
                let text = std::fs::read_to_string(&path).unwrap();
                let unit = parse(name, &text).unwrap_or_else(|refusal| panic!("{refusal}")).unit;
                units.insert(name.to_owned(), unit);
            }
        }
        // The console and the lab's tools act for a person with all that root may.
        let free = ["agent", "console", "fault"];
        for (name, unit) in &units {
            let walled = unit.privileges.no_new_privs && unit.sandbox.system_calls.is_some();
            assert_eq!(walled, !free.contains(&name.as_str()), "{name}");
        }
        let capabilities = |name: &str| units[name].privileges.capabilities.map(u64::count_ones);
        assert_eq!(["netd", "provisiond", "init-bus", "web"].map(capabilities), [2, 0, 0, 0].map(Some));
        assert!(units["netd"].fence && units["netd"].watchdog.is_some());
        assert!(units["web"].privileges.identity.is_some_and(|identity| identity.user == 1000));
    }
}
