//! A control group per service: what a service started dies with it, and its limits hold for all of it.
//!
//! ```text
//! MOUNT/cgroup.subtree_control           cpu, and what some service's limits need, enabled once
//!   └─ evenkeel/cgroup.subtree_control   the same
//!        └─ NAME/                        made once, with its limits, when the services are loaded
//! ```
//! Source: Documentation/admin-guide/cgroup-v2.rst. Without control groups, or without a controller, services without
//! limits run all the same; one with limits does not start and says why.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use crate::service::unit::{GroupLimits, Unit};
use crate::sys;

/// Microseconds in which the processor's share is counted; the kernel's default.
const CPU_PERIOD_US: u64 = 100_000;

/// The groups' parent, when cgroup2 is mounted and writable.
pub(crate) struct Cgroups {
    /// Why there are none, otherwise.
    root: Result<Root, String>,
    /// The controllers that some limit needs, and whether they could be enabled.
    enabled: Vec<(Controller, Result<(), String>)>,
}

struct Root {
    mount: PathBuf,
    parent: PathBuf,
}

impl Cgroups {
    /// Makes `evenkeel` below the cgroup2 mount, or a group delegated to init, at `mount`.
    pub(crate) fn new(mount: &Path) -> (Cgroups, io::Result<()>) {
        let parent = mount.join("evenkeel");
        let made = fs::metadata(mount.join("cgroup.procs")).and_then(|_| make(&parent));
        let root = match &made {
            Ok(()) => Ok(Root { mount: mount.to_owned(), parent }),
            Err(e) => Err(format!("{}: {}", mount.display(), sys::errno_text(e))),
        };
        (Cgroups { root, enabled: Vec::new() }, made)
    }

    /// No groups at all.
    pub(crate) fn none() -> Cgroups {
        let why = "init was started without a cgroup2 directory".to_owned();
        Cgroups { root: Err(why), enabled: Vec::new() }
    }

    /// The mount they are made below.
    pub(crate) fn mount(&self) -> Option<&Path> {
        self.root.as_ref().ok().map(|r| r.mount.as_path())
    }

    /// Enables the controllers that the limits of `units` need, before any group is made. What fails is said by the
    /// groups that need it.
    pub(crate) fn enable_for(&mut self, units: &[Unit]) {
        let Ok(root) = &self.root else { return };
        // A controller costs something for each group, so that only those in use are enabled. The processor's always is:
        // with it services share the processor, without it their processes do, and the one that has most gets most.
        let wanted = |c: &Controller| {
            *c == Controller::Cpu || units.iter().any(|u| !c.settings(&u.limits.group).is_empty())
        };
        self.enabled = Controller::ALL.into_iter().filter(wanted).map(|c| (c, root.enable(c))).collect();
    }

    /// Makes the group of `unit` with its limits; `None` where there are no groups and none is needed.
    ///
    /// # Errors
    /// Why the group is not as the unit asks; it must not start.
    pub(crate) fn group(&self, unit: &Unit) -> Result<Option<Group>, String> {
        match &self.root {
            Ok(root) => root.make_group(unit, &self.enabled).map(Some),
            Err(_) if unit.limits.group == GroupLimits::default() => Ok(None),
            Err(why) => Err(format!("its limits need control groups: {why}")),
        }
    }
}

/// One service's group.
pub(crate) struct Group {
    directory: File,
    kill: File,
}

impl Group {
    /// What a new process is born into (`CLONE_INTO_CGROUP`).
    pub(crate) fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Kills everything in the group. True when the kernel took the order.
    pub(crate) fn kill(&self) -> bool {
        nix::unistd::write(&self.kill, b"1").is_ok()
    }
}

impl Root {
    /// Lets the services' groups have `controller`.
    fn enable(&self, controller: Controller) -> Result<(), String> {
        let name = controller.name();
        let available = self.mount.join("cgroup.controllers");
        let list = fs::read_to_string(&available)
            .map_err(|e| format!("{}: {}", available.display(), sys::errno_text(&e)))?;
        if !list.split_ascii_whitespace().any(|c| c == name) {
            let has = if list.trim().is_empty() { "none" } else { list.trim() };
            return Err(format!("no {name} controller in {} (there: {has})", available.display()));
        }
        for directory in [&self.mount, &self.parent] {
            let file = directory.join("cgroup.subtree_control");
            write(&file, &format!("+{name}")).map_err(|e| {
                let hint = match e.raw_os_error() {
                    // The rule of inner nodes: processes and controlled groups exclude each other.
                    Some(libc::EBUSY) => "; no process may be in that group itself",
                    _ => "",
                };
                format!("{}: {}{hint}", file.display(), sys::errno_text(&e))
            })?;
        }
        Ok(())
    }

    fn make_group(&self, unit: &Unit, enabled: &[(Controller, Result<(), String>)]) -> Result<Group, String> {
        let group = self.parent.join(&unit.name);
        make(&group).map_err(|e| format!("cannot make its control group: {}", sys::errno_text(&e)))?;
        for (controller, able) in enabled {
            for Setting { key, file, value } in controller.settings(&unit.limits.group) {
                able.as_ref().map_err(|why| format!("cannot set limits.{key}: {why}"))?;
                write(&group.join(file), &value)
                    .map_err(|e| format!("cannot set limits.{key}: {file}: {}", sys::errno_text(&e)))?;
            }
        }
        let open = || {
            let kill = OpenOptions::new().write(true).open(group.join("cgroup.kill"))?;
            Ok(Group { directory: File::open(&group)?, kill })
        };
        open().map_err(|e: io::Error| format!("cannot use its control group: {}", sys::errno_text(&e)))
    }
}

/// A controller of cgroup v2 that a limit needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Controller {
    Memory,
    Pids,
    Cpu,
}

/// One line in one file of a group.
struct Setting {
    /// In `[limits]`.
    key: &'static str,
    file: &'static str,
    value: String,
}

impl Controller {
    const ALL: [Controller; 3] = [Controller::Memory, Controller::Pids, Controller::Cpu];

    fn name(self) -> &'static str {
        match self {
            Controller::Memory => "memory",
            Controller::Pids => "pids",
            Controller::Cpu => "cpu",
        }
    }

    /// What it is told for `limits`; nothing when they do not concern it.
    fn settings(self, limits: &GroupLimits) -> Vec<Setting> {
        let one = |key, file, value: Option<u64>| {
            value.map(|v| Setting { key, file, value: v.to_string() }).into_iter().collect::<Vec<_>>()
        };
        match self {
            Controller::Memory => {
                let mut settings = one("memory", "memory.max", limits.memory);
                if !settings.is_empty() {
                    // Half a service is worse than none: it is ended whole and started again.
                    let value = "1".to_owned();
                    settings.push(Setting { key: "memory", file: "memory.oom.group", value });
                }
                settings
            }
            Controller::Pids => one("processes", "pids.max", limits.processes),
            Controller::Cpu => {
                let quota = limits.cpu_percent.map(|p| p * CPU_PERIOD_US / 100);
                let mut settings = one("cpu_percent", "cpu.max", quota);
                for s in &mut settings {
                    s.value = format!("{} {CPU_PERIOD_US}", s.value);
                }
                settings
            }
        }
    }
}

fn make(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
        _ => Ok(()),
    }
}

/// Writes to a file that the kernel has made; where it has not, making one would only hide that.
fn write(path: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::unit;

    /// A directory with the files that the kernel would make.
    struct Fake(PathBuf);

    impl Fake {
        fn new(test: &str, controllers: &str, services: &[&str]) -> Fake {
            let path = std::env::temp_dir().join(format!("evenkeel-cgroup-{}-{test}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            let fake = Fake(path);
            for group in ["".to_owned(), "evenkeel".to_owned()]
                .into_iter()
                .chain(services.iter().map(|s| format!("evenkeel/{s}")))
            {
                fs::create_dir_all(fake.0.join(&group)).unwrap();
                for file in ["cgroup.procs", "cgroup.subtree_control", "cgroup.kill", "memory.max"] {
                    fs::write(fake.0.join(&group).join(file), "").unwrap();
                }
                for file in ["memory.oom.group", "pids.max", "cpu.max"] {
                    fs::write(fake.0.join(&group).join(file), "").unwrap();
                }
            }
            fs::write(fake.0.join("cgroup.controllers"), controllers).unwrap();
            fake
        }

        fn read(&self, file: &str) -> String {
            fs::read_to_string(self.0.join(file)).unwrap()
        }

        fn groups(&self, units: &[Unit]) -> Cgroups {
            let (mut groups, made) = Cgroups::new(&self.0);
            made.unwrap();
            groups.enable_for(units);
            groups
        }
    }

    impl Drop for Fake {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn service(name: &str, limits: &str) -> Unit {
        unit::check(
            vec![unit::parse(name, &format!("command = ['/bin/x']\n[limits]\n{limits}\n")).unwrap()],
            &mut Vec::new(),
            |_| None,
        )
        .remove(0)
    }

    #[test]
    fn limits_are_written_and_only_needed_controllers_enabled() {
        let fake = Fake::new("written", "cpuset cpu io memory hugetlb pids\n", &["a", "b"]);
        let (a, b) = (service("a", "memory = '32M'\nprocesses = 16"), service("b", ""));
        let groups = fake.groups(&[a.clone(), b.clone()]);
        let group = groups.group(&a).unwrap().unwrap();
        assert_eq!(fake.read("evenkeel/a/memory.max"), "33554432");
        assert_eq!(fake.read("evenkeel/a/memory.oom.group"), "1");
        assert_eq!(fake.read("evenkeel/a/pids.max"), "16");
        assert_eq!(fake.read("evenkeel/a/cpu.max"), "");
        // A plain file keeps what was written over it: "+memory", then "+pids" and "+cpu" over its beginning.
        assert_eq!(fake.read("cgroup.subtree_control"), "+cpusry");
        assert_eq!(fake.read("evenkeel/cgroup.subtree_control"), "+cpusry");
        assert!(groups.group(&b).unwrap().is_some());
        assert_eq!(fake.read("evenkeel/b/memory.max"), "");
        assert!(group.kill());
        assert_eq!(fake.read("evenkeel/a/cgroup.kill"), "1");
        assert_eq!(fake.read("evenkeel/b/cgroup.kill"), "");
    }

    #[test]
    fn a_share_of_the_processor_is_a_quota_per_period() {
        let fake = Fake::new("cpu", "cpu", &["a"]);
        let a = service("a", "cpu_percent = 150");
        fake.groups(std::slice::from_ref(&a)).group(&a).unwrap();
        assert_eq!(fake.read("evenkeel/a/cpu.max"), "150000 100000");
        assert_eq!(fake.read("cgroup.subtree_control"), "+cpu");
    }

    #[test]
    fn services_share_the_processor_without_asking() {
        let fake = Fake::new("share", "cpu memory pids", &["a"]);
        let a = service("a", "");
        assert!(fake.groups(std::slice::from_ref(&a)).group(&a).unwrap().is_some());
        assert_eq!(fake.read("cgroup.subtree_control"), "+cpu");
        let bare = Fake::new("unshared", "memory", &["a"]);
        assert!(bare.groups(std::slice::from_ref(&a)).group(&a).unwrap().is_some(), "it runs without");
    }

    #[test]
    fn a_missing_controller_stops_only_who_needs_it() {
        let fake = Fake::new("missing", "cpu memory", &["a", "b", "c"]);
        let units = [service("a", "processes = 16"), service("b", "memory = '1M'"), service("c", "")];
        let groups = fake.groups(&units);
        let list = fake.0.join("cgroup.controllers");
        assert_eq!(
            groups.group(&units[0]).err().unwrap(),
            format!(
                "cannot set limits.processes: no pids controller in {} (there: cpu memory)",
                list.display()
            )
        );
        assert!(groups.group(&units[1]).unwrap().is_some() && groups.group(&units[2]).unwrap().is_some());
        assert_eq!(fake.read("evenkeel/a/pids.max"), "");
    }

    #[test]
    fn a_limit_that_cannot_be_written_is_not_forgotten() {
        let fake = Fake::new("unwritable", "pids", &["a"]);
        fs::remove_file(fake.0.join("evenkeel/a/pids.max")).unwrap();
        let a = service("a", "processes = 16");
        let why = fake.groups(std::slice::from_ref(&a)).group(&a).err().unwrap();
        assert_eq!(why, "cannot set limits.processes: pids.max: No such file or directory");
        assert!(!fake.0.join("evenkeel/a/pids.max").exists());
    }

    #[test]
    fn without_groups_only_services_without_limits_run() {
        let groups = Cgroups::none();
        let why = groups.group(&service("a", "cpu_percent = 5")).err().unwrap();
        assert_eq!(why, "its limits need control groups: init was started without a cgroup2 directory");
        assert!(groups.group(&service("b", "nice = 5")).unwrap().is_none());
        let (_, made) = Cgroups::new(Path::new("/proc/self/nowhere"));
        assert_eq!(made.unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
