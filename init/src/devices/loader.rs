//! The work of the child: from modaliases to modules in the kernel. It may block wherever it likes.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::index::{self, Index};
use super::queue::Job;
use super::report::Report;
use super::uevent::{MODALIAS_MAX, is_modalias};
use crate::sys;

/// Devices of one walk. Machines have some hundred.
const DEVICES_MAX: usize = 16 * 1024;

/// What the child touches.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    /// sysfs.
    pub(crate) sys: PathBuf,
    pub(crate) index: PathBuf,
    /// Puts a module into the kernel.
    pub(crate) load: fn(&File) -> io::Result<()>,
}

impl Places {
    /// Those of a machine.
    pub(crate) fn of_machine() -> Places {
        let index = "/etc/evenkeel/modules.index".into();
        Places { sys: "/sys".into(), index, load: sys::finit_module }
    }
}

/// Nobody listens any more.
#[derive(Debug)]
pub(crate) struct Unheard;

/// Loads what `job` wants, in the order of the index, but for what is there already and the modules of `stuck`.
///
/// # Errors
/// `say` failed: PID 1 is another program by now, which starts anew.
pub(crate) fn run(
    job: &Job,
    stuck: &BTreeSet<String>,
    places: &Places,
    mut say: impl FnMut(Report) -> Result<(), Unheard>,
) -> Result<(), Unheard> {
    let walked;
    let modaliases = match job {
        Job::Serve(list) => list,
        Job::Walk => {
            let (found, trouble) = walk(&places.sys);
            if let Some(trouble) = trouble {
                say(Report::Trouble(trouble))?;
            }
            walked = found;
            &walked
        }
    };
    let mut loaded = 0;
    let path = places.index.display();
    match read(&places.index, index::SIZE_MAX) {
        Err(error) => say(Report::Trouble(format!("no module index: {path}: {}", sys::errno_text(&error))))?,
        Ok(text) => match Index::parse(&text) {
            Err(why) => say(Report::Trouble(format!("no module index: {path}: {why}")))?,
            Ok(index) => loaded = load(&index, modaliases, stuck, places, &mut say)?,
        },
    }
    say(Report::Finished { modaliases: modaliases.len(), loaded })
}

/// Loads the modules for `modaliases`; returns how many.
fn load(
    index: &Index<'_>,
    modaliases: &BTreeSet<String>,
    stuck: &BTreeSet<String>,
    places: &Places,
    say: &mut impl FnMut(Report) -> Result<(), Unheard>,
) -> Result<usize, Unheard> {
    let wanted: BTreeSet<usize> = modaliases.iter().flat_map(|alias| index.wanted(alias)).collect();
    let mut loaded = 0;
    for module in wanted.into_iter().filter_map(|number| index.module(number)) {
        let name = module.name();
        // Built in with parameters, loaded, or being loaded by a child that was given up.
        if stuck.contains(&name) || places.sys.join("module").join(&name).exists() {
            continue;
        }
        say(Report::Loading(name.clone()))?;
        match File::open(Path::new(index.directory).join(module.path)).and_then(|file| (places.load)(&file)) {
            Ok(()) => loaded += 1,
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                say(Report::Refused { name, errno, firmware: module.firmware })?;
            }
        }
    }
    Ok(loaded)
}

/// The modaliases of all devices on all buses, and what kept it from reading them all.
fn walk(sys: &Path) -> (BTreeSet<String>, Option<String>) {
    let mut found = BTreeSet::new();
    let bus = sys.join("bus");
    let buses = match fs::read_dir(&bus) {
        Ok(buses) => buses,
        Err(error) => return (found, Some(format!("{}: {}", bus.display(), sys::errno_text(&error)))),
    };
    let devices = buses.flatten().filter_map(|bus| fs::read_dir(bus.path().join("devices")).ok());
    for (count, device) in devices.flatten().flatten().enumerate() {
        if count == DEVICES_MAX {
            let sys = sys.display();
            return (
                found,
                Some(format!("{sys} has more than {DEVICES_MAX} devices; the others are left out")),
            );
        }
        // Many devices have none, and any may be gone by now.
        if let Ok(text) = read(&device.path().join("modalias"), MODALIAS_MAX)
            && is_modalias(text.trim_end())
        {
            found.insert(text.trim_end().to_owned());
        }
    }
    (found, None)
}

/// Reads a text that has at most `max` bytes; one more shows that it has more.
fn read(path: &Path, max: usize) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(max as u64 + 1).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::boot::testdir::TestDir;
    use std::os::unix::fs::symlink;

    /// A sysfs, a folder of modules and their index, as far as the child looks at them.
    pub(crate) struct Tree(TestDir);

    impl Tree {
        pub(crate) fn new(index: &str) -> Tree {
            let tree = Tree(TestDir::new());
            fs::create_dir_all(tree.sys("bus/pci/drivers")).unwrap();
            fs::create_dir_all(tree.sys("module")).unwrap();
            fs::write(
                tree.path("index"),
                format!("evenkeel modules 1\n{}\n{index}", tree.path("").display()),
            )
            .unwrap();
            tree
        }

        pub(crate) fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn sys(&self, name: &str) -> PathBuf {
            self.path("sys").join(name)
        }

        /// A device below `/sys/devices` with its link on the bus.
        pub(crate) fn device(&self, bus: &str, name: &str, modalias: Option<&str>) {
            let device = self.sys("devices").join(name);
            let links = self.sys("bus").join(bus).join("devices");
            fs::create_dir_all(&device).unwrap();
            fs::create_dir_all(&links).unwrap();
            symlink(&device, links.join(name)).unwrap();
            if let Some(modalias) = modalias {
                fs::write(device.join("modalias"), format!("{modalias}\n")).unwrap();
            }
        }

        /// A module whose file says what becomes of it.
        pub(crate) fn module(&self, file: &str, fate: &str) {
            fs::write(self.path(file), fate).unwrap();
        }

        pub(crate) fn places(&self) -> Places {
            Places { sys: self.path("sys"), index: self.path("index"), load: fate }
        }
    }

    /// What a module's file asks for: an errno, `hang`, or success.
    fn fate(file: &File) -> io::Result<()> {
        let mut text = String::new();
        file.take(16).read_to_string(&mut text)?;
        match text.parse() {
            Ok(errno) => Err(io::Error::from_raw_os_error(errno)),
            Err(_) if text == "hang" => loop {
                nix::unistd::pause();
            },
            Err(_) => Ok(()),
        }
    }

    fn said(job: &Job, stuck: &[&str], tree: &Tree) -> Vec<String> {
        let stuck = stuck.iter().map(|s| (*s).to_owned()).collect();
        let mut said = Vec::new();
        run(job, &stuck, &tree.places(), |report| {
            said.push(report.packet(0)[2..].to_owned());
            Ok(())
        })
        .unwrap();
        said
    }

    const INDEX: &str = "m mii.ko\nm usb-net.ko\nf ax.ko\nm xhci.ko\nm gone.ko\nm old.ko\n\
                         pci:v1* 3 5\nusb:a* 0 1 2\nusb:g* 4\n";

    fn tree() -> Tree {
        let tree = Tree::new(INDEX);
        for (file, fate) in
            [("mii.ko", ""), ("usb-net.ko", ""), ("ax.ko", "19"), ("xhci.ko", ""), ("old.ko", "17")]
        {
            tree.module(file, fate);
        }
        tree.device("pci", "0000:00:01.0", Some("pci:v1d2"));
        tree.device("pci", "0000:00:02.0", Some("pci:v9"));
        tree.device("usb", "1-1:1.0", Some("usb:ax-1"));
        tree.device("usb", "1-2:1.0", Some("usb:ax-1"));
        tree.device("usb", "usb1", None);
        tree.device("usb", "odd", Some("usb:g\u{e9}"));
        tree.device("usb", "empty", Some(""));
        tree
    }

    #[test]
    fn a_walk_loads_what_devices_want_in_order() {
        let expected = [
            "loading mii",
            "loading usb_net",
            "loading ax",
            "refused 19 f ax",
            "loading xhci",
            "loading old",
            "finished 3 3",
        ];
        assert_eq!(said(&Job::Walk, &[], &tree()), expected);
    }

    #[test]
    fn what_is_there_or_hung_is_left_alone() {
        let tree = tree();
        fs::create_dir(tree.sys("module/usb_net")).unwrap();
        assert_eq!(said(&Job::Walk, &["mii", "ax"], &tree), ["loading xhci", "loading old", "finished 3 1"]);
    }

    #[test]
    fn one_modalias_is_served_without_a_walk() {
        let job = Job::Serve(["usb:ghost".to_owned()].into());
        assert_eq!(said(&job, &[], &tree()), ["loading gone", "refused 2 m gone", "finished 1 0"]);
    }

    #[test]
    fn trouble_is_said_and_the_job_ends() {
        let tree = tree();
        fs::write(tree.path("index"), "evenkeel modules 9\n").unwrap();
        let words = said(&Job::Walk, &[], &tree);
        assert!(words[0].contains("index: line 1: expected evenkeel modules 1"), "{words:?}");
        assert_eq!(words[1..], ["finished 3 0"]);
        fs::remove_file(tree.path("index")).unwrap();
        fs::remove_dir_all(tree.sys("bus")).unwrap();
        let words = said(&Job::Walk, &[], &tree);
        assert!(words[0].ends_with("sys/bus: No such file or directory"), "{words:?}");
        assert!(words[1].ends_with("index: No such file or directory"), "{words:?}");
        assert_eq!(words[2..], ["finished 0 0"]);
    }

    #[test]
    fn the_job_ends_when_nobody_listens() {
        let mut words = 0;
        let unheard = run(&Job::Walk, &BTreeSet::new(), &tree().places(), |_| {
            words += 1;
            if words < 3 { Ok(()) } else { Err(Unheard) }
        });
        assert!(unheard.is_err());
        assert_eq!(words, 3);
    }
}
