//! The Debian packages a lab needs: looked for, and installed without a question when that is possible.
//!
//! ```text
//! all there ──────────────────────────────────────────────────────────> done
//! missing ── offline, or neither root nor `sudo -n` ──────────────────> NeedsPackages (the one line to run)
//!         └─ (these or the kernel unknown to apt: update) ── install ── works ──> done
//!                   └── held back by versions no source offers, or would take those away: install the sources'
//!                       versions of those too, with --allow-downgrades
//! ```

use crate::command::{self, Outcome};
use crate::error::LabError;
use crate::progress::Progress;
use std::process::Command;
use std::time::Duration;

/// What image builds and machines are made with.
pub const NEEDED: [&str; 11] = [
    "qemu-system-x86",
    "qemu-utils",
    "ovmf",
    "efibootguard",
    "systemd-boot-efi",
    "mtools",
    "dosfstools",
    "gdisk",
    "e2fsprogs",
    "openssl",
    "sbsigntool", // tests hold our signatures against its idea of them
];

/// What the image is made of: not installed, but downloaded, so that apt has to know it. A host that lacks programs has
/// lists as old as itself, and kernels come and go faster than programs.
const DOWNLOADED: &str = image::Flavour::Cloud.metapackage();

/// A slow mirror may take minutes; apt itself gives up on a dead one long before.
const APT_LIMIT: Duration = Duration::from_secs(15 * 60);

/// The host as this module sees it: a way to run programs, and whether we are root.
pub trait Host {
    /// Runs a program with nothing on standard input.
    fn run(&mut self, words: &[&str]) -> Outcome;
    /// Whether installing needs no help.
    fn root(&self) -> bool;
}

/// This host.
#[derive(Debug, Default)]
pub struct ThisHost;

impl Host for ThisHost {
    fn run(&mut self, words: &[&str]) -> Outcome {
        let Some((program, rest)) = words.split_first() else { return Outcome::default() };
        command::run(Command::new(program).args(rest).env("LC_ALL", "C"), APT_LIMIT)
    }

    fn root(&self) -> bool {
        nix::unistd::geteuid().is_root()
    }
}

/// Sees to it that everything in [`NEEDED`] is installed.
pub fn ensure(host: &mut dyn Host, offline: bool, progress: &mut dyn Progress) -> Result<(), LabError> {
    progress.begin("packages");
    let missing = missing(host)?;
    if missing.is_empty() {
        progress.end(&format!("all {} there", NEEDED.len()));
        return Ok(());
    }
    let by_hand = || LabError::NeedsPackages {
        line: format!("apt-get update && apt-get install -y --no-install-recommends {}", missing.join(" ")),
    };
    let prefix: &[&str] = match host.root() {
        _ if offline => return Err(by_hand()),
        true => &["env"],
        false if host.run(&["sudo", "-n", "true"]).ok() => &["sudo", "-n", "env"],
        false => return Err(by_hand()),
    };
    let apt = |host: &mut dyn Host, arguments: &[&str]| {
        let mut words = prefix.to_vec();
        words.extend([
            "DEBIAN_FRONTEND=noninteractive",
            "LC_ALL=C",
            "apt-get",
            "-o",
            "DPkg::Lock::Timeout=120",
        ]);
        words.extend(arguments);
        host.run(&words)
    };

    if missing.iter().chain([&DOWNLOADED]).any(|name| offered(host, name).is_empty()) {
        progress.detail("updating apt's lists");
        let update = apt(host, &["update"]);
        if !update.ok() {
            // One broken foreign source must not stop the others, which may well have what is missing.
            progress.warn(&format!("{}; going on", update.failure("apt-get update")));
        }
    }
    progress.detail(&format!("installing {}", missing.join(" ")));
    // What is installed stays: apt may find it clever to take one needed package away for another.
    let mut install = vec!["install", "-y", "--no-install-recommends", "--no-remove"];
    install.extend(&missing);
    let first = apt(host, &install);
    if !first.ok() {
        let pins = foreign(host);
        if pins.is_empty() {
            return Err(first.failure("apt-get install"));
        }
        let told: Vec<String> =
            pins.iter().map(|p| format!("{} {} -> {}", p.name, p.installed, p.offered)).collect();
        progress.warn(&format!(
            "no configured source offers what is installed, taking theirs: {}",
            told.join(", ")
        ));
        let pinned: Vec<String> = pins.iter().map(|p| format!("{}={}", p.name, p.offered)).collect();
        let mut install =
            vec!["install", "-y", "--no-install-recommends", "--no-remove", "--allow-downgrades"];
        install.extend(missing.iter().filter(|name| !pins.iter().any(|p| p.name == **name)));
        install.extend(pinned.iter().map(String::as_str));
        let second = apt(host, &install);
        if !second.ok() {
            return Err(second.failure("apt-get install --allow-downgrades"));
        }
    }
    progress.end(&format!("installed {}", missing.len()));
    Ok(())
}

/// Name and state of every needed package dpkg knows.
fn missing(host: &mut dyn Host) -> Result<Vec<&'static str>, LabError> {
    let mut query = vec!["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n"];
    query.extend(NEEDED);
    let answer = host.run(&query);
    if answer.code == 127 {
        return Err(LabError::Refused(format!(
            "this is not a Debian system (no dpkg-query): install what provides {} yourself, or run the lab in a Debian 12 container",
            NEEDED.join(" ")
        )));
    }
    let there = |name: &str| answer.out.lines().any(|line| line == format!("{name} installed"));
    Ok(NEEDED.into_iter().filter(|name| !there(name)).collect())
}

/// Versions of `name` that configured sources offer, best first.
fn offered(host: &mut dyn Host, name: &str) -> Vec<String> {
    let answer = host.run(&["apt-cache", "madison", name]);
    answer.out.lines().filter_map(|line| Some(line.split('|').nth(1)?.trim().to_owned())).collect()
}

/// An installed package in a version no source offers, and the version one does.
struct Pin {
    name: &'static str,
    installed: String,
    offered: String,
}

/// Needed packages that came from elsewhere: what depends on their exact version cannot be installed beside them.
fn foreign(host: &mut dyn Host) -> Vec<Pin> {
    let mut query = vec!["dpkg-query", "-W", "-f", "${Package} ${Version} ${db:Status-Status}\n"];
    query.extend(NEEDED);
    let answer = host.run(&query).out;
    let mut pins = Vec::new();
    for name in NEEDED {
        let version = answer.lines().find_map(|line| match line.split(' ').collect::<Vec<_>>()[..] {
            [of, version, "installed"] if of == name => Some(version.to_owned()),
            _ => None,
        });
        let Some(installed) = version else { continue };
        let versions = offered(host, name);
        if let Some(best) = versions.first()
            && !versions.contains(&installed)
        {
            pins.push(Pin { name, installed, offered: best.clone() });
        }
    }
    pins
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Recorded;

    /// A host with a script: the first entry whose words begin the command answers it.
    struct Scripted {
        root: bool,
        script: Vec<(&'static str, Outcome)>,
        ran: Vec<String>,
    }

    impl Host for Scripted {
        fn run(&mut self, words: &[&str]) -> Outcome {
            let line = words.join(" ");
            self.ran.push(line.clone());
            let found = self.script.iter().position(|(part, _)| line.contains(part));
            // An install is answered once: the second try may end otherwise.
            match found {
                Some(at) if self.script[at].0.starts_with("install") => self.script.remove(at).1,
                Some(at) => self.script[at].1.clone(),
                None => Outcome::default(),
            }
        }

        fn root(&self) -> bool {
            self.root
        }
    }

    fn says(out: &str) -> Outcome {
        Outcome { code: 0, out: out.into(), err: String::new() }
    }

    fn fails(err: &str) -> Outcome {
        Outcome { code: 100, out: String::new(), err: err.into() }
    }

    fn installed_but(absent: &[&str]) -> Outcome {
        let names = NEEDED.iter().filter(|n| !absent.contains(n));
        says(&names.map(|n| format!("{n} installed\n")).collect::<String>())
    }

    fn try_it(
        root: bool,
        offline: bool,
        script: Vec<(&'static str, Outcome)>,
    ) -> (Result<(), LabError>, Vec<String>, Vec<String>) {
        let mut host = Scripted { root, script, ran: Vec::new() };
        let mut progress = Recorded::default();
        let result = ensure(&mut host, offline, &mut progress);
        (result, host.ran, progress.0)
    }

    #[test]
    fn with_everything_there_nothing_else_is_run() {
        let (result, ran, _) = try_it(false, true, vec![("dpkg-query", installed_but(&[]))]);
        result.expect("nothing to do");
        assert_eq!(ran.len(), 1);
    }

    #[test]
    fn who_may_not_install_gets_the_one_line() {
        let half = || ("dpkg-query", says("qemu-utils not-installed\novmf installed\n"));
        for (root, offline, sudo) in
            [(true, true, says("")), (false, true, says("")), (false, false, fails("a password is required"))]
        {
            let (result, ran, _) = try_it(root, offline, vec![half(), ("sudo", sudo)]);
            let error = result.expect_err("refused");
            assert_eq!(error.exit_code(), 3);
            let text = error.to_string();
            assert!(
                text.contains(
                    "apt-get install -y --no-install-recommends qemu-system-x86 qemu-utils efibootguard"
                ),
                "{text}"
            );
            assert!(!ran.iter().any(|line| line.contains("apt-get")), "{ran:?}");
        }
    }

    #[test]
    fn unknown_packages_bring_an_update_whose_failure_is_a_warning() {
        let script = || {
            vec![
                ("dpkg-query", installed_but(&["ovmf"])),
                ("sudo -n true", says("")),
                ("madison", says("")),
                ("update", fails("E: foreign source unreachable")),
                ("install -y", says("")),
            ]
        };
        let (result, ran, told) = try_it(true, false, script());
        result.expect("installed");
        let last = ran.last().expect("ran");
        assert_eq!(
            last,
            "env DEBIAN_FRONTEND=noninteractive LC_ALL=C apt-get -o DPkg::Lock::Timeout=120 install -y --no-install-recommends --no-remove ovmf"
        );
        assert!(
            told.iter().any(|line| line.starts_with("warn") && line.contains("foreign source")),
            "{told:?}"
        );
        let (result, ran, _) = try_it(false, false, script());
        result.expect("installed");
        assert!(ran.last().expect("ran").starts_with("sudo -n env DEBIAN_FRONTEND"), "{ran:?}");
    }

    #[test]
    fn known_packages_need_no_update() {
        let mut script = vec![
            ("dpkg-query", installed_but(&["ovmf"])),
            ("madison ovmf", says(" ovmf | 2022.11-6 | a source Packages\n")),
            ("madison linux-image", says(" linux-image | 6.12.1 | a source Packages\n")),
            ("install -y", says("")),
        ];
        let updates = |script: &[_]| {
            let (result, ran, _) = try_it(true, false, script.to_vec());
            result.expect("installed");
            ran.iter().filter(|line| line.ends_with(" update")).count()
        };
        assert_eq!(updates(&script), 0);
        let kernel = script.iter().position(|(part, _)| part.contains("linux")).expect("there");
        script.remove(kernel);
        assert_eq!(updates(&script), 1, "a kernel nobody knows is looked for");
    }

    #[test]
    fn a_foreign_version_in_the_way_is_replaced_and_said() {
        let absent = ["qemu-system-x86"];
        let versions: String = NEEDED
            .iter()
            .filter(|n| !absent.contains(n))
            .map(|n| format!("{n} {} installed\n", if *n == "qemu-utils" { "1:10.0" } else { "1" }))
            .collect();
        let script = || {
            vec![
                ("${Package} ${Version}", says(&versions)),
                ("dpkg-query", installed_but(&absent)),
                (
                    "madison qemu-utils",
                    says("qemu-utils | 1:7.2 | a Packages\nqemu-utils | 1:7.1 | b Packages\n"),
                ),
                ("madison", says("some | 1 | a Packages\n")),
                ("install -y", fails("E: Unable to correct problems, you have held broken packages.")),
            ]
        };
        let mut works = script();
        works.push(("install -y --no-install-recommends --no-remove --allow-downgrades", says("")));
        let (result, ran, told) = try_it(true, false, works);
        result.expect("installed");
        let last = ran.last().expect("ran");
        assert!(
            last.ends_with(
                "install -y --no-install-recommends --no-remove --allow-downgrades qemu-system-x86 qemu-utils=1:7.2"
            ),
            "{last}"
        );
        assert!(told.iter().any(|line| line.contains("qemu-utils 1:10.0 -> 1:7.2")), "{told:?}");

        let mut hopeless = script();
        hopeless[0].1 = says(&versions.replace("1:10.0", "1:7.1"));
        let (result, ran, _) = try_it(true, false, hopeless);
        assert!(result.expect_err("failed").to_string().contains("held broken packages"));
        assert!(!ran.iter().any(|line| line.contains("--allow-downgrades")), "{ran:?}");
    }

    #[test]
    fn other_systems_are_told_what_is_needed() {
        let none = Outcome { code: 127, out: String::new(), err: String::new() };
        let (result, _, _) = try_it(true, false, vec![("dpkg-query", none)]);
        assert!(result.expect_err("refused").to_string().contains("not a Debian system"));
    }
}
